"""``smt inspect``."""

from functools import cache
from pathlib import Path
from typing import Any

from rich.table import Table

from ..bounds import OutputFolder
from ..tasks import INSPECTED, get_inspection, recipe_class
from ..text import printable
from .common import Output, Parser, add_field, new_parser
from .progress import progress_callback

HELP = "look at a dataset before training: classes, sizes, unreadable and duplicate images, labels"
EXAMPLES = """\
smt inspect MY_IMAGES                                     inspect/inspect.html and inspect.json
smt inspect cells --task detect --out cells_inspected
smt inspect DUTS --task segment --segment.kind binary
smt inspect imagenet --max_images 50000                   read a sample of 50,000 images per split
"""


@cache
def _options() -> dict[tuple[str, str], Any]:
    """Group and field, with the class that declares it, of all tasks."""
    return {
        (group, name): recipe_class(task).groups()[group]
        for task in INSPECTED
        for group, names in get_inspection(task).options.items()
        for name in names
    }


def build_parser(words: list[str]) -> Parser:
    from ..inspection.inspect import MAX_IMAGES, Limit, Seed

    parser = new_parser("inspect", f"{HELP}.", EXAMPLES)
    parser.add_argument("data", help="the images, as for smt train --data")
    parser.add_argument("--task", choices=list(INSPECTED), help="default: inferred from the dataset's layout")
    parser.add_argument("--out", type=OutputFolder, default=Path("inspect"), help="output folder; default: inspect")
    parser.add_argument(
        "--max_images",
        type=Limit,
        default=MAX_IMAGES,
        help="maximum number of images read per split; larger splits are sampled at random",
    )
    parser.add_argument(
        "--seed", type=Seed, default=0, help="seed of the sample and of held-out images, as in a recipe"
    )
    for (group, name), declared in _options().items():
        add_field(parser, group, name, declared, default="as in a recipe of the task")
    return parser


def run(args: Any) -> Output:
    from ..inspection.inspect import PAGE_NAME, inspect

    overrides: dict[str, dict[str, Any]] = {}
    for group, name in _options():
        if (value := args[f"{group}.{name}"]) is not None:
            overrides.setdefault(group, {})[name] = value
    with progress_callback("reading images") as on_progress:
        report = inspect(
            args.data, args.out, task=args.task, max_images=args.max_images, seed=args.seed, overrides=overrides,
            on_progress=on_progress,
        )  # fmt: skip
    table = Table("split", "images", "read", "unreadable", "classes", box=None, header_style="bold")
    for split, facts in report["splits"].items():
        numbers = (facts["images"], facts["read"], len(facts["unreadable"]), len(facts["classes"]))
        table.add_row(split, *map(str, numbers))
    findings = [f"- {printable(text)}" for text in report["findings"]]
    return Output(report, [f"task: {report['task']}", table, "", *findings, f"written: {args.out / PAGE_NAME}"])
