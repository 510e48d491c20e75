"""Exports on the CPU: OpenVINO in float32 beside the reference, 8 bits beside float32, and the accuracy of 8 bits.

python benchmarks/export.py --data CIFAR10 --out export.json

Speed is that of ``--model`` with random weights, calibrated on noise: ranges do not change the time. Accuracy is that
of the weights that ship, on the 10,000 test images of CIFAR-10, with ranges from 300 of its training images.
``CIFAR10`` is a folder, archive or name as ``smt eval --data`` takes it, with a training and a test split; without it
accuracy is left out.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from reference import finish, parser, reference_and_ours

from smt_vision.benchmark.compare import Contender
from smt_vision.benchmark.compare import compare
from smt_vision.data.decode import decode
from smt_vision.tasks.classification.data.sources import open_dataset
from smt_vision.deploy.export import export_classifier
from smt_vision.deploy.exported import load_exported
from smt_vision.deploy.quantize import CALIBRATION_IMAGES
from smt_vision.deploy.samples import evenly_spaced
from smt_vision.engine.evaluation import evaluate_classifier
from smt_vision.tasks.classification.predictor import Classifier
from smt_vision.recipe import Engine
from smt_vision.recipe import Input

SHIPPED = "smt_femto.cifar10"


def speed(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Reference, float32 and 8 bits, interleaved in one process."""
    reference, ours = reference_and_ours(args.model)
    input = Input(size=args.size)
    noise = folder / "noise.png"
    pixels = torch.randint(
        256, (args.size, args.size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    Image.fromarray(pixels.numpy()).save(noise)
    contenders = [Contender("reference", reference.eval(), (3, args.size, args.size), ours)]
    for name, calibrate in (("openvino float32", []), ("openvino int8", [noise])):
        target = folder / name.replace(" ", "-")
        classes = [str(i) for i in range(1000)]
        export_classifier(ours, classes, input, target, name=args.model, format="openvino", calibrate=calibrate)
        contenders.append(Contender(name, load_exported(target), (3, args.size, args.size), ours))
    results = compare(contenders, args.batch_size, rounds=args.rounds, seconds=args.seconds)
    return [result.to_dict() for result in results]


def accuracy(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Top-1 in percent: eager, and the two exports."""
    classifier = Classifier.load(SHIPPED)
    training = open_dataset(args.data, "train")
    images = []
    for i in evenly_spaced(range(len(training)), args.calibration_images):
        raw, _, name = training.read(i)
        images.append(folder / f"{i}.png")
        decode(raw, 3, name=name).save(images[-1])
    top1 = {}
    sources = {"eager": SHIPPED}
    for kind, calibrate in (("openvino float32", []), ("openvino int8", images)):
        target = folder / f"accuracy {kind}"
        sources[kind] = str(target)
        export_classifier(
            classifier.model,
            classifier.classes,
            classifier.input,
            target,
            name=SHIPPED,
            format="openvino",
            calibrate=calibrate,
        )
    for kind, source in sources.items():
        engine = Engine(accelerator="cpu", devices=1, precision="32-true")
        metrics, _ = evaluate_classifier(source, args.data, engine=engine, batch_size=100, workers=0)
        top1[kind] = metrics["top1"]
    return top1


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--batch_size", type=int, nargs="+", default=[1, 16])
    options.add_argument("--data", help="CIFAR-10, to measure accuracy on")
    options.add_argument("--calibration_images", type=int, default=CALIBRATION_IMAGES)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        rows = speed(args, Path(name))
        top1 = accuracy(args, Path(name)) if args.data else {}
    print(f"{'batch':>5}  {'program':<18}{'images/s':>9}{'to reference':>14}{'to float32':>12}")
    float32 = {row["batch_size"]: row for row in rows if row["model"] == "openvino float32"}
    for row in rows:
        row["ratio_to_float32"] = row["images_per_s"] / float32[row["batch_size"]]["images_per_s"]
        print(
            f"{row['batch_size']:>5}  {row['model']:<18}{row['images_per_s']:>9.1f}{row['ratio']:>14.2f}"
            f"{row['ratio_to_float32']:>12.2f}"
        )
    for program, percent in top1.items():
        print(f"{program:<18} top-1 {percent:.2f} % on {args.data}")
    finish(args, {"speed": rows, "top1": top1})


if __name__ == "__main__":
    main()
