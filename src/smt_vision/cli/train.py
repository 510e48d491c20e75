"""``smt train``."""

import shlex
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml
from rich.markup import escape

from ..recipes import GROUPS, RECIPES, Recipe
from .common import EXIT_USAGE, Output, Parser, nearest, new_parser

HELP = "train a recipe, from the start or from where it was stopped"
EXAMPLES = """\
smt train quickstart
smt train finetune --data MY_IMAGES --model smt_tiny --epochs 30
smt train cifar10 --data cifar10.tar.gz --optim.lr 1e-3 --run runs/lower_rate
smt train finetune --config my.yaml             my.yaml holds any of the fields below
smt train --resume runs/finetune                go on after a stop
"""


def build_parser(words: list[str]) -> Parser:
    """The options are the fields of a recipe, with the values of the recipe that the words name."""
    name = next((w for w in words if w in RECIPES), None)
    if resumed := _resumed(words):
        name = None
    parser = new_parser(
        "train", f"{HELP}.", EXAMPLES, "smt train RECIPE [--FIELD VALUE ...], or smt train --resume FOLDER"
    )
    parser.add_argument("recipe", nargs="?", help=f"one of: {', '.join(RECIPES)}; smt recipes tells about them")
    parser.add_argument("--run", type=Path, help="the run's folder; default: runs/RECIPE, numbered where taken")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with the run in this folder")
    parser.add_argument("--max_steps", type=int, help="stop, resumable, after this many optimizer steps in all")
    parser.add_argument("--config", action="config", help="a YAML file with any of the fields below")
    parser.add_class_arguments(Recipe, as_group=True)
    values = resumed or asdict(RECIPES[name] if name else _blank())
    parser.set_defaults(values)
    return parser


def _blank() -> Recipe:
    return Recipe(name="", about="", model="", data="", epochs=1, batch_size=1, hardware="", citation="")


def _resumed(words: list[str]) -> dict[str, Any] | None:
    """The recipe of the run that ``--resume`` names."""
    folder = next((w.partition("=")[2] or "".join(words[i + 1 : i + 2]) for i, w in enumerate(words)
                   if w == "--resume" or w.startswith("--resume=")), None)  # fmt: skip
    path = Path(folder or "") / "recipe.yaml"
    return yaml.safe_load(path.read_text()) if folder and path.is_file() else None


def run(args: Any) -> Output:
    """Train; the best weights' numbers are the result."""
    if args.resume:
        folder = args.resume
        if not (folder / "recipe.yaml").is_file():
            raise FileNotFoundError(f"{folder} holds no run: there is no recipe.yaml in it")
    elif args.recipe in RECIPES:
        folder = args.run or _free_folder(Path("runs") / args.recipe)
    else:
        what = f"there is no recipe {args.recipe!r}{nearest(args.recipe, RECIPES)}" if args.recipe else "name a recipe"
        print(f"smt train: error: {what} (smt recipes lists them)", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)
    chosen = {f.name: args[f.name] for f in fields(Recipe)}
    recipe = Recipe.from_dict({k: vars(v) if k in GROUPS else v for k, v in chosen.items()})

    from ..engine.allocator import keep_big_blocks  # imported late: only after the arguments are validated
    from ..engine.launch import runs_on_cuda
    from ..engine.loop import train

    if not runs_on_cuda(recipe.engine):
        keep_big_blocks()
    command = "smt " + shlex.join(["train", *sys.argv[2:]])
    done = train(recipe, folder, display=not args.json, max_steps=args.max_steps, command=command)
    numbers = {k: v for k, v in done.metrics.items() if isinstance(v, int | float)}
    data = {"run": str(folder), "step": done.step, "best_epoch": done.best_epoch, "seconds": done.seconds, **numbers}
    if done.step < done.total_steps:
        where = f"stopped after step {done.step} of {done.total_steps}, as --max_steps asks"
        return Output(data, [f"{where}; go on with: smt train --resume {escape(str(folder))}"])
    show = [f"\n[bold]{escape(str(folder))}[/]: {done.task.headline} {numbers[done.task.headline]:.2f} % "
            f"(best of epoch {done.best_epoch}), {done.seconds / 60:.1f} min"]  # fmt: skip
    show += [f"  {path.name}" for path in (*folder.glob("summary.md"), *sorted(folder.glob("*.png")))]
    show.append(f"use it: smt predict {escape(str(folder))} IMAGE_OR_FOLDER")
    return Output(data, show)


def _free_folder(wanted: Path) -> Path:
    """The wanted folder, or, where it holds a run already, the first of its kind with a number that holds none."""
    folder, number = wanted, 1
    while (folder / "recipe.yaml").exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
