"""``smt export``."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from ..bounds import Count, OutputFolder, Points
from ..text import shell_word
from .common import Output, Parser, new_parser
from .console import styled
from .overrides import add_overrides, overrides_of
from .progress import status_callback

HELP = "export a model to ONNX, OpenVINO, torch.export, ExecuTorch or Core ML, checked against the original"
EXAMPLES = """\
smt export runs/finetune --format onnx
smt export smt_femto.cifar10 --format openvino --out deployed       weights that ship with the package: no network
smt export runs/finetune --format openvino --int8 --calibrate MY_IMAGES
smt export runs/finetune --format openvino --int8 --calibrate MY_IMAGES --max_drop 0.5
smt export runs/finetune --format executorch                for phones and other mobile devices
smt export runs/nuclei --format onnx --images PHOTOS        the complete detector, from image to masks
"""

IN_FLOAT32 = (
    "compared in float32, since this CPU has no instructions for bfloat16: where there are, outputs differ more; "
    "measure the accuracy there (smt eval)"
)


def build_parser(words: list[str]) -> Parser:
    about = (
        f"{HELP}: an export whose outputs differ on real images is not kept. smt predict and smt eval use exports. "
        "Detectors are exported complete, for a fixed number of images at a time, to ONNX and OpenVINO."
    )
    parser = new_parser("export", about, EXAMPLES)
    parser.add_argument("model", help="a run folder, a checkpoint, or a timm model name (its pretrained weights)")
    parser.add_argument(
        "--format", choices=("onnx", "openvino", "torch", "executorch", "coreml"), required=True, help="target format"
    )
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32",
        help="bf16: computed in bfloat16 where the processor has instructions for it; OpenVINO only",
    )  # fmt: skip
    parser.add_argument("--int8", action="store_true", help="quantize to 8-bit integers; OpenVINO only")
    parser.add_argument("--calibrate", type=Path, help="representative images to quantize with")
    parser.add_argument(
        "--max_drop",
        type=Points | None,
        help="largest accuracy loss allowed for --int8, in percentage points; layers return to floating point until it "
        "is met",
    )
    parser.add_argument(
        "--data", type=Path, help="labeled images for --max_drop, as for smt eval; default: those that a run held out"
    )
    parser.add_argument("--images", type=Path, nargs="+", help="images to compare on; default: those of --calibrate")
    parser.add_argument(
        "--batch_size", type=Count | None, help="images that a detector's program takes, all of one size; default: 1"
    )
    parser.add_argument("--out", type=OutputFolder, help="output folder; default: exports/MODEL-FORMAT")
    parser.add_argument("--force", action="store_true", help="replace the export that is in the folder")
    add_overrides(parser)
    return parser


def run(args: Any) -> Output:
    """Export; the manifest is the result."""
    if args.int8 != (args.calibrate is not None):
        needs, given = ("--calibrate FOLDER", "--int8") if args.int8 else ("--int8", "--calibrate")
        raise ValueError(f"{given} needs {needs}: quantization ranges are calibrated on images")
    if args.max_drop is not None and not args.int8:
        raise ValueError("--max_drop needs --int8: it limits the accuracy loss by quantization")
    if args.data is not None and args.max_drop is None:
        raise ValueError("--data needs --max_drop: it is what the loss of accuracy is measured on")

    from ..api import export
    from ..data.files import find_images
    from ..data.padding import padded
    from ..deploy.samples import source_name

    calibrate = find_images([args.calibrate]) if args.calibrate else []
    images = find_images(args.images) if args.images else []
    suffix = "-int8" if args.int8 else "-bf16" if args.precision == "bf16" else ""
    kind = f"{args.format}{suffix}"
    folder = args.out or Path("exports") / f"{source_name(args.model)}-{kind}"
    with status_callback() as on_status:
        manifest = export(
            args.model,
            folder,
            args.format,
            overrides=overrides_of(args),
            max_drop=args.max_drop,
            data=args.data,
            images=images,
            calibrate=calibrate,
            replace=args.force,
            batch_size=args.batch_size,
            precision=args.precision,
            on_status=on_status,
        )
    table = Table("images", "agreement", "largest difference", box=None, header_style="bold")
    for case in manifest.parity.get("cases", ()):
        count, _, height, width = case["shape"]
        agreement = f"{case['agree']} of {case['of']}" if case["of"] else "nothing detected"
        table.add_row(f"{count} of {height} x {width}", agreement, f"{case['max_difference']:.1e}")
    accuracy = manifest.parity.get("accuracy")
    loss = "{metric} {after:.2f} %, before quantization {before:.2f} %"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    spec = manifest.spec
    side = "any" if manifest.dynamic_image_size else spec["input"].get("size") or padded(min(spec["head"]["crop"]))
    count = {None: "any number of images", 1: "one image"}.get(manifest.batch_size, f"{manifest.batch_size} images")
    sides = "any height and width" if side == "any" else f"{side} x {side} pixels"
    use = f"use it: smt predict {shell_word(folder)} IMAGE_OR_FOLDER"
    if reason := manifest.parity.get("reason"):
        use = f"not compared with the model: {reason}; the names and shapes of its input and output are as expected"
    show = [
        styled(
            (str(folder), "bold"), f": {manifest.format}, {manifest.precision}, {size / 1e6:.1f} MB, {count}, {sides}"
        ),
        *([table] if table.rows else []),
        *([loss.format(**accuracy)] if accuracy else []),
        *([IN_FLOAT32] if manifest.parity.get("floating_point") == "float32" else []),
        use,
    ]
    return Output({"folder": str(folder), **asdict(manifest)}, show)
