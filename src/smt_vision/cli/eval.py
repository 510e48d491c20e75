"""``smt eval``."""

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from ..recipes import Engine, from_plain
from .common import Output, Parser, new_parser

HELP = "measure a model on labelled images: accuracy, calibration, confusion"
EXAMPLES = """\
smt eval runs/finetune --data MY_IMAGES
smt eval smt_tiny --data imagenet --engine.devices 8
smt eval convnext_tiny --data imagenet              any model of timm, measured the same way
"""


def build_parser(words: list[str]) -> Parser:
    parser = new_parser("eval", f"{HELP}. Exact for any batch size and number of processes.", EXAMPLES)
    parser.add_argument(
        "model", help="a run's or an export's folder, a checkpoint, or a name of timm's (its pretrained weights)"
    )
    parser.add_argument(
        "--data", type=str | None, help="where the images are, as for smt train; default: the run's own"
    )
    parser.add_argument("--out", type=Path, help="a folder for metrics.json, confusion.png and mistakes.png")
    parser.add_argument("--batch_size", type=int, default=64, help="images a batch")
    parser.add_argument("--workers", type=int, default=8, help="loader processes for each process")
    parser.add_argument("--max_broken", type=int, default=10, help="unreadable images to skip before giving up")
    parser.add_argument("--size", type=int | None, help="side in pixels; default: what the model was trained for")
    parser.add_argument("--crop_pct", type=float | None, help="as in a recipe; default: the model's")
    parser.add_argument("--exact", type=bool | None, help="resize as timm does, to the bit; default: the model's")
    unused = {f.name for f in fields(Engine)} - {"accelerator", "devices", "nodes", "precision"}
    parser.add_class_arguments(Engine, "engine", skip=unused)
    parser.set_defaults({"engine.precision": "32-true"})
    return parser


def run(args: Any) -> Output:
    from ..evaluation import evaluate_classifier

    def advance(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\rbatch {done}/{total}", end="" if done < total else "\n", file=sys.stderr, flush=True)

    metrics, task = evaluate_classifier(
        args.model,
        args.data,
        engine=from_plain(Engine, vars(args.engine)),
        batch_size=args.batch_size,
        workers=args.workers,
        max_broken=args.max_broken,
        advance=advance,
        size=args.size,
        crop_pct=args.crop_pct,
        exact=args.exact,
    )
    show: list[Any] = [f"{metrics['model']} on {metrics['data']} ({metrics['input']})", _table(metrics)]
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
        drawn = task.pictures(args.out, metrics)
        show.append(f"written: {args.out / 'metrics.json'}, {', '.join(map(str, drawn))}")
    return Output(metrics, show)


def _table(metrics: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False)
    for name, label, unit in (
        ("count", "images", ""),
        ("top1", "top-1", " %"),
        ("top5", "top-5", " %"),
        ("mean_class_accuracy", "mean over classes", " %"),
        ("ece", "calibration error", " %"),
        ("loss", "cross entropy", ""),
    ):
        value = metrics[name]
        table.add_row(label, f"{value:,}" if isinstance(value, int) else f"{value:.3f}{unit}")
    rated = [row for row in metrics["per_class"] if row["count"]]
    for row in sorted(rated, key=lambda row: row["accuracy"])[:5] if len(rated) > 1 else ():
        table.add_row(f"  weakest: {escape(row['class'])}", f"{row['accuracy']:.1f} % of {row['count']}")
    return table
