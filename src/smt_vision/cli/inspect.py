"""``smt inspect``."""

from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from rich.table import Table

from ..bounds import OutputFolder
from ..tasks import INSPECTED, get_inspection, recipe_class
from ..text import printable
from .common import Output, Parser, new_parser
from .progress import progress_callback

HELP = "look at a dataset before training: classes, sizes, broken and duplicate images, labels"
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
    parser.add_argument("--task", choices=list(INSPECTED), help="default: the task whose layout the data have")
    parser.add_argument("--out", type=OutputFolder, default=Path("inspect"), help="output folder; default: inspect")
    parser.add_argument(
        "--max_images", type=Limit, default=MAX_IMAGES, help="images per split that are read; of more, a random sample"
    )
    parser.add_argument(
        "--seed", type=Seed, default=0, help="seed of the sample and of held-out images, as in a recipe"
    )
    for (group, name), declared in _options().items():
        kind = get_type_hints(declared, include_extras=True)[name] | None
        parser.add_argument(f"--{group}.{name}", type=kind, help="as in a recipe")
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
    table = Table("split", "images", "read", "broken", "classes", box=None, header_style="bold")
    for split, facts in report["splits"].items():
        numbers = (facts["images"], facts["read"], len(facts["broken"]), len(facts["classes"]))
        table.add_row(split, *map(str, numbers))
    findings = [f"- {printable(text)}" for text in report["findings"]]
    return Output(report, [f"task: {report['task']}", table, "", *findings, f"written: {args.out / PAGE_NAME}"])
