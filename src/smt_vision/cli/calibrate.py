"""``smt calibrate``."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.table import Table

from ..bounds import Count, CountOrZero, Workers
from ..recipe import Engine, from_plain
from .common import Output, Parser, new_parser
from .overrides import add_labels, labels_of
from .progress import progress_callback

HELP = "make a classifier's scores match its accuracy: temperature scaling"
EXAMPLES = """\
smt calibrate runs/finetune                                 on the images that the run held out
smt calibrate runs/finetune --data MY_OTHER_IMAGES --out calibrated.pt
"""
ROWS = {"top1": ("top-1 (%)", 2), "loss": ("loss (nats)", 4), "ece": ("calibration error (%)", 2)}


def build_parser(words: list[str]) -> Parser:
    about = f"{HELP}. Fitted on images that the model was not trained on; the predicted classes do not change."
    parser = new_parser("calibrate", about, EXAMPLES)
    parser.add_argument("model", help="a run folder, a checkpoint, or a timm model name (its pretrained weights)")
    parser.add_argument("--data", type=str | None, help="the images, as for smt eval; default: those the run held out")
    parser.add_argument("--out", type=Path | None, help="checkpoint to write, a .pt file; default: the model itself")
    parser.add_argument("--batch_size", type=Count | None, help="images per batch; default: 64")
    parser.add_argument("--workers", type=Workers, default=8, help="data loading processes per process")
    parser.add_argument(
        "--max_unreadable", type=CountOrZero, default=10, help="unreadable images to skip before giving up"
    )
    unused = {f.name for f in fields(Engine)} - {"accelerator", "devices", "nodes", "precision"}
    parser.add_class_arguments(Engine, "engine", skip=unused)
    add_labels(parser)
    parser.set_defaults({"engine.precision": "32-true"})
    return parser


def run(args: Any) -> Output:
    from ..engine.calibration import calibrate

    with progress_callback("evaluating batches") as on_progress:
        found = calibrate(
            args.model,
            args.data,
            out=args.out,
            engine=from_plain(Engine, vars(args.engine), "engine"),
            batch_size=args.batch_size,
            workers=args.workers,
            max_unreadable=args.max_unreadable,
            labels=labels_of(args),
            on_progress=on_progress,
        )
    table = Table("", "before", "after", box=None, header_style="bold")
    for name, (label, digits) in ROWS.items():
        if name in found["before"]:
            table.add_row(label, *(f"{found[when][name]:.{digits}f}" for when in ("before", "after")))
    show = [
        f"{found['model']} on {found['count']:,} images of {found['data']}: temperature {found['temperature']:.4f}",
        table,
        f"written: {found['file']}",
    ]
    return Output(found, show)
