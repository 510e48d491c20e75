"""Exported models on the CPU: OpenVINO in float32, bfloat16 and 8 bits against the reference, and their accuracy.

    python benchmarks/export.py --data CIFAR10 --out export.json

Speed is measured with random weights of ``--model``, calibrated on noise: weights and ranges do not change the time.
Accuracy is that of the weights included in the package on the 10,000 test images of CIFAR-10, calibrated on 300 of its
training images. ``CIFAR10`` is a directory, archive or name as ``smt eval --data`` takes it, with a training and a test
split. Without ``--data`` accuracy is skipped.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from common import reference_parser, write_results
from reference import reference_and_ours
from smt_vision.benchmark.compare import Candidate, compare
from smt_vision.data.decode import decode
from smt_vision.deploy.exported import load_exported
from smt_vision.deploy.quantize import CALIBRATION_IMAGES
from smt_vision.deploy.samples import evenly_spaced
from smt_vision.engine.evaluation import evaluate
from smt_vision.recipe import Engine
from smt_vision.spec import ModelSpec
from smt_vision.tasks.classification.config import ClassificationInput, ClassifyConfig
from smt_vision.tasks.classification.data.sources import open_dataset
from smt_vision.tasks.classification.predictor import Classifier
from smt_vision.tasks.load import load
from smt_vision.tasks.predictor import Predictor

CIFAR10_MODEL = "smt_femto.cifar10"  # included in the package


def export_openvino(
    predictor: Predictor[Any], folder: Path, images: Sequence[Path], calibrate: Sequence[Path]
) -> dict[str, Path]:
    """Export to OpenVINO in float32, bfloat16 and 8 bits, checked on ``images``; the folders by name."""
    kinds: dict[str, dict[str, Any]] = {
        "openvino float32": {},
        "openvino bfloat16": {"precision": "bf16"},
        "openvino int8": {"calibrate": calibrate},
    }
    for name, options in kinds.items():
        predictor.export(folder / name.replace(" ", "-"), "openvino", images=images, **options)
    return {name: folder / name.replace(" ", "-") for name in kinds}


def measure_speed(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Reference, float32, bfloat16 and 8 bits, timed in turn in one process."""
    reference, ours = reference_and_ours(args.model)
    size = (3, args.size, args.size)
    pixels = torch.randint(256, (args.size, args.size, 3), generator=torch.Generator().manual_seed(0))
    noise = folder / "noise.png"
    Image.fromarray(pixels.byte().numpy()).save(noise)
    classes, input = tuple(map(str, range(1000))), ClassificationInput(size=args.size)
    spec = ModelSpec("classify", args.model, classes, input, head=ClassifyConfig())
    classifier = Classifier(ours, spec, args.model)
    candidates = [Candidate("reference", reference.eval(), size, ours)]
    for name, export in export_openvino(classifier, folder, [noise], [noise]).items():
        candidates.append(Candidate(name, load_exported(export), size, ours))
    results = compare(candidates, args.batch_size, rounds=args.rounds, seconds=args.seconds)
    rows = [result.to_dict() for result in results]
    for row in rows:
        if row["model"] not in ("reference", "openvino float32"):
            row["share_of_peak"] = None  # the peak is that of float32
    float32 = {row["batch_size"]: row["images_per_s"] for row in rows if row["model"] == "openvino float32"}
    return [row | {"ratio_to_float32": row["images_per_s"] / float32[row["batch_size"]]} for row in rows]


def measure_accuracy(data: str, calibration_images: int, folder: Path) -> dict[str, float]:
    """Top-1 in percent of the eager model and of the exports."""
    classifier = load(CIFAR10_MODEL)
    training = open_dataset(data, "train")
    images = []
    for i in evenly_spaced(range(len(training)), calibration_images):
        raw, _, name = training.read(i)
        images.append(folder / f"{i}.png")
        decode(raw, 3, name=name).save(images[-1])
    sources = {"eager": CIFAR10_MODEL}
    sources |= {name: str(export) for name, export in export_openvino(classifier, folder, images, images).items()}
    engine = Engine(accelerator="cpu", devices=1, precision="32-true")
    return {
        name: evaluate(source, data, engine=engine, batch_size=100, workers=0)["top1"]
        for name, source in sources.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = reference_parser(__doc__)
    parser.add_argument("--batch_size", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--data", help="CIFAR-10, to measure accuracy on")
    parser.add_argument("--calibration_images", type=int, default=CALIBRATION_IMAGES)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    top1 = {}
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_speed(args, Path(folder))
    if args.data:
        with tempfile.TemporaryDirectory() as folder:
            top1 = measure_accuracy(args.data, args.calibration_images, Path(folder))
    print(f"{'batch':>5}  {'model':<18}{'images/s':>9}{'to reference':>14}{'to float32':>12}")
    for row in rows:
        print(
            f"{row['batch_size']:>5}  {row['model']:<18}{row['images_per_s']:>9.1f}{row['ratio']:>14.2f}"
            f"{row['ratio_to_float32']:>12.2f}"
        )
    for name, percent in top1.items():
        print(f"{name:<18} top-1 {percent:.2f} % on {args.data}")
    write_results(args.out, {"speed": rows, "top1": top1})


if __name__ == "__main__":
    main()
