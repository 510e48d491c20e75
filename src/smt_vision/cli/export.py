"""``smt export``."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from .changes import add_changes, changes_of
from .common import Output, Parser, new_parser

HELP = "turn a model into a program for ONNX, OpenVINO (8-bit too) or torch.export, checked"
EXAMPLES = """\
smt export runs/finetune --format onnx
smt export smt_femto.cifar10 --format openvino --out deployed       weights that ship with the package: no network
smt export runs/finetune --format openvino --int8 --calibrate MY_IMAGES
smt export runs/nuclei --format onnx --images PHOTOS        the whole detector, image to masks
"""


def build_parser(words: list[str]) -> Parser:
    about = (
        f"{HELP}: it must give the model's own logits on real images, or it is not kept. smt predict and eval use it. "
        "Detectors go to ONNX and OpenVINO, whole, one image at a time."
    )
    parser = new_parser("export", about, EXAMPLES)
    parser.add_argument("model", help="a run's folder, a checkpoint, or a name of timm's (its pretrained weights)")
    parser.add_argument("--format", choices=("onnx", "openvino", "torch"), required=True, help="what is to run it")
    parser.add_argument("--int8", action="store_true", help="quantise to 8-bit integers; OpenVINO only")
    parser.add_argument("--calibrate", type=Path, help="images, like those it will see, to quantise with")
    parser.add_argument("--images", type=Path, nargs="+", help="images to check it with; default: those of --calibrate")
    parser.add_argument("--out", type=Path, help="a folder; default: exports/MODEL-FORMAT")
    parser.add_argument("--force", action="store_true", help="replace the export that is in the folder")
    add_changes(parser)
    return parser


def run(args: Any) -> Output:
    """Export; the manifest is the result."""
    if args.int8 != (args.calibrate is not None):
        wants, given = ("--calibrate FOLDER", "--int8") if args.int8 else ("--int8", "--calibrate")
        raise ValueError(f"{given} needs {wants}: 8-bit numbers get their ranges from images")

    from ..deploy.export import export_model
    from ..inference import find_images, load

    def tell(text: str) -> None:
        if sys.stderr.isatty():
            print(f"{text} ...", file=sys.stderr, flush=True)

    calibrate = find_images([args.calibrate]) if args.calibrate else []
    images = find_images(args.images) if args.images else []
    model = load(args.model, changes=changes_of(args))
    kind = f"{args.format}-int8" if args.int8 else args.format
    folder = args.out or Path("exports") / f"{Path(args.model).name}-{kind}"
    manifest = export_model(
        model.model,
        model.card,
        folder,
        name=model.name,
        format=args.format,
        images=images,
        calibrate=calibrate,
        replace=args.force,
        tell=tell,
    )
    detects = manifest.card["task"] == "detect"
    compared = ("same detections", "largest difference") if detects else ("same class", "largest difference of logits")
    table = Table("images", *compared, box=None, header_style="bold")
    for case in manifest.parity["cases"]:
        count, _, height, width = case["shape"]
        table.add_row(
            f"{count} of {height} x {width}", f"{case['agree']} of {case['of']}", f"{case['max_difference']:.1e}"
        )
    size = sum(path.stat().st_size for path in folder.iterdir())
    sides = "any height and width" if manifest.free_sides else f"{manifest.input.size} x {manifest.input.size} pixels"
    show = [
        f"[bold]{escape(str(folder))}[/]: {manifest.format}, {manifest.precision}, {size / 1e6:.1f} MB, "
        f"{'one image' if detects else 'any batch size'}, {sides}",
        table,
        f"use it: smt predict {escape(str(folder))} IMAGE_OR_FOLDER",
    ]
    return Output({"folder": str(folder), **asdict(manifest)}, show)
