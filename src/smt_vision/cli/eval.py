"""``smt eval``."""

import json
from dataclasses import fields
from typing import Any, Literal

from rich.table import Table

from ..bounds import Count, CountOrZero, OutputFolder, Resamples, Workers
from ..files import write_text_atomic
from ..precision import describe_precision
from ..recipe import Engine, from_plain
from ..text import Markdown
from .common import Output, Parser, finite, new_parser
from .console import styled
from .overrides import add_labels, add_overrides, add_precision, add_providers, labels_of, overrides_of, providers_of
from .progress import progress_callback

HELP = "evaluate a model on labeled images: accuracy, average precision, IoU"
EXAMPLES = """\
smt eval runs/finetune --data MY_IMAGES
smt eval smt_tiny --data imagenet --engine.devices 8
smt eval convnext_tiny --data imagenet              any timm model, evaluated the same way
smt eval runs/nuclei                                a detector, on its run's validation images
smt eval runs/camvid --segment.test_scales "[0.75,1,1.25]" --segment.test_flip true
"""


def build_parser(words: list[str]) -> Parser:
    parser = new_parser("eval", f"{HELP}. Exact for any batch size and number of processes.", EXAMPLES)
    parser.add_argument(
        "model", help="a run or export folder, a checkpoint, or a timm model name (its pretrained weights)"
    )
    parser.add_argument("--data", type=str | None, help="the images, as for smt train; default: the run's own")
    parser.add_argument("--out", type=OutputFolder, help="output folder for metrics.json and pictures")
    parser.add_argument(
        "--batch_size", type=Count | None, help="images per batch; default: 64 for a classifier, else 4"
    )
    parser.add_argument("--workers", type=Workers, default=8, help="data loading processes per process")
    parser.add_argument(
        "--max_unreadable", type=CountOrZero, default=10, help="unreadable images to skip before giving up"
    )
    parser.add_argument(
        "--split",
        type=Literal["val", "test"],
        default="val",
        help="split of the dataset; test for detectors and segmenters only",
    )
    parser.add_argument(
        "--bootstrap", type=Resamples, default=0, help="resamples for a 95 % interval of the primary metric, e.g. 1000"
    )
    add_precision(parser)
    add_providers(parser)
    add_overrides(parser)
    add_labels(parser)
    unused = {f.name for f in fields(Engine)} - {"accelerator", "devices", "nodes"}
    parser.add_class_arguments(Engine, "engine", skip=unused)
    return parser


def run(args: Any) -> Output:
    from ..allocator import keep_large_allocations
    from ..engine.evaluation import engine_for, evaluate_with_details
    from ..engine.launch import runs_on_cuda
    from ..engine.processes import is_first

    engine = engine_for(args.model, from_plain(Engine, {**vars(args.engine), "precision": "32-true"}, "engine"))
    if not runs_on_cuda(engine):
        keep_large_allocations()
    with progress_callback("evaluating batches") as on_progress:
        metrics, evaluation = evaluate_with_details(
            args.model,
            args.data,
            engine=engine,
            batch_size=args.batch_size,
            workers=args.workers,
            max_unreadable=args.max_unreadable,
            split=args.split,
            bootstrap=args.bootstrap,
            overrides=overrides_of(args),
            providers=providers_of(args),
            precision=args.precision,
            labels=labels_of(args),
            on_progress=on_progress,
        )
    show: list[Any] = [f"{metrics['model']} on {metrics['data']} ({metrics['input']})", _metrics(metrics, evaluation)]
    if args.precision:
        show.append(describe_precision(metrics["precision"], "cuda" if runs_on_cuda(engine) else "cpu"))
    show += [_rendered(table) for table in evaluation.tables(metrics) if table.rows]
    if args.out and is_first():
        write_text_atomic(args.out / "metrics.json", json.dumps(finite(metrics), indent=1, allow_nan=False))
        drawn = evaluation.pictures(args.out, metrics)
        show.append(f"written: {', '.join(map(str, [args.out / 'metrics.json', *drawn]))}")
    return Output(metrics, show)


def _metrics(metrics: dict[str, Any], evaluation: Any) -> Table:
    table = Table(box=None, show_header=False)
    table.add_row("images", f"{metrics['count']:,}")
    for name, format in evaluation.metric_formats.items():
        table.add_row(format.title, format.text(metrics[name]))
    if interval := metrics.get("interval"):
        format = evaluation.metric_formats[interval["metric"]]
        low, high = format.text(interval["low"]), format.text(interval["high"])
        table.add_row(f"{format.title}, {interval['level']} % interval", f"{low} to {high}")
    return table


def _rendered(table: Any) -> Table:
    """A summary's table for the terminal."""
    shown = Table(*table.header, title=table.title, box=None, header_style="bold", title_justify="left")
    for row in table.rows:
        shown.add_row(*map(_cell, row))
    return shown


def _cell(value: Any) -> Any:
    if isinstance(value, Markdown):  # bold, in the tables of a summary
        return styled((value.strip("*"), "bold"))
    return f"{value:.2f}" if isinstance(value, float) else str(value)
