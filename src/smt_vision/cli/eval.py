"""``smt eval``."""

import json
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from ..recipes import Engine, from_plain
from .changes import add_changes, changes_of
from .common import Output, Parser, new_parser

HELP = "measure a model on labelled images: accuracy, average precision, IoU"
EXAMPLES = """\
smt eval runs/finetune --data MY_IMAGES
smt eval smt_tiny --data imagenet --engine.devices 8
smt eval convnext_tiny --data imagenet              any model of timm, measured the same way
smt eval runs/nuclei                                a detector, on what its run held out
smt eval runs/camvid --segment.test_scales "[0.75,1,1.25]" --segment.test_flip true
"""


def build_parser(words: list[str]) -> Parser:
    parser = new_parser("eval", f"{HELP}. Exact for any batch size and number of processes.", EXAMPLES)
    parser.add_argument(
        "model", help="a run's or an export's folder, a checkpoint, or a name of timm's (its pretrained weights)"
    )
    parser.add_argument(
        "--data", type=str | None, help="where the images are, as for smt train; default: the run's own"
    )
    parser.add_argument("--out", type=Path, help="a folder for metrics.json and pictures")
    parser.add_argument("--batch_size", type=int | None, help="images a batch; default: 64 of a classifier, else 4")
    parser.add_argument("--workers", type=int, default=8, help="loader processes for each process")
    parser.add_argument("--max_broken", type=int, default=10, help="unreadable images to skip before giving up")
    add_changes(parser)
    unused = {f.name for f in fields(Engine)} - {"accelerator", "devices", "nodes", "precision"}
    parser.add_class_arguments(Engine, "engine", skip=unused)
    parser.set_defaults({"engine.precision": "32-true"})
    return parser


def run(args: Any) -> Output:
    from ..engine.allocator import keep_big_blocks
    from ..engine.launch import runs_on_cuda
    from ..evaluation import evaluate_model

    engine = from_plain(Engine, vars(args.engine))
    if not runs_on_cuda(engine):
        keep_big_blocks()

    def advance(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\rbatch {done}/{total}", end="" if done < total else "\n", file=sys.stderr, flush=True)

    metrics, task = evaluate_model(
        args.model,
        args.data,
        engine=engine,
        batch_size=args.batch_size,
        workers=args.workers,
        max_broken=args.max_broken,
        advance=advance,
        changes=changes_of(args),
    )
    show: list[Any] = [f"{metrics['model']} on {metrics['data']} ({metrics['input']})", _measures(metrics, task)]
    show += [_shown(table) for table in task.tables(metrics) if table.rows]
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
        drawn = task.pictures(args.out, metrics)
        show.append(f"written: {', '.join(map(str, [args.out / 'metrics.json', *drawn]))}")
    return Output(metrics, show)


def _measures(metrics: dict[str, Any], task: Any) -> Table:
    table = Table(box=None, show_header=False)
    table.add_row("images", f"{metrics['count']:,}")
    for name, measure in task.measures.items():
        table.add_row(measure.title, measure.text(metrics[name]))
    return table


def _shown(table: Any) -> Table:
    """A table of a summary, which is written in Markdown, for the terminal."""
    shown = Table(*map(escape, table.header), title=table.title, box=None, header_style="bold", title_justify="left")
    for row in table.rows:
        cells = (f"{cell:.2f}" if isinstance(cell, float) else escape(str(cell)) for cell in row)
        shown.add_row(*(re.sub(r"\*\*(.+)\*\*", r"[bold]\1[/]", cell) for cell in cells))
    return shown
