"""``smt train``."""

import os
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ..bounds import CountOrZero, OutputFolder, short
from ..recipe import Recipe
from ..recipe_files import read_recipe_file, read_yaml
from ..tasks import RECIPES, TASKS
from ..text import shell_word
from .common import EXIT_USAGE, Output, Parser, nearest, new_parser
from .console import styled
from .progress import progress_callback

HELP = "train a recipe, from the start or from where it stopped"
EXAMPLES = """\
smt train quickstart
smt train finetune --data MY_IMAGES --model smt_tiny --epochs 30
smt train cifar10 --data cifar10.tar.gz --optim.lr 1e-3 --run runs/lower_lr
smt train finetune --config my.yaml             my.yaml has any of the fields below
smt train --resume runs/finetune                resume after a stop
smt train finetune --data MY_IMAGES --distill runs/large    learn from a teacher, too
smt train finetune --data MY_IMAGES --log wandb,tensorboard     experiment loggers; none for log.jsonl only
smt train finetune --data MY_IMAGES --find_lr   find a learning rate before training
smt train finetune --data MY_IMAGES --folds 5   cross-validation: five runs, mean and deviation
"""
FLAGS = ("--json", "--find_lr")  # options without a value


def build_parser(words: list[str]) -> Parser:
    """The options are the fields of a recipe of the task, with the values of the recipe that is named."""
    folder = next(iter(_paths(words, "--resume")), None)
    resumed = None if folder is None else _recipe_in(folder)
    # An option's value, e.g. of --run, may be a recipe's name too.
    positional = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if not before.startswith("--") or "=" in before or before in FLAGS
    ]
    named = next((RECIPES[word] for word in positional if word in RECIPES), None)
    recipe = resumed or named
    parser = new_parser(
        "train", f"{HELP}.", EXAMPLES, "smt train RECIPE [--FIELD VALUE ...], or smt train --resume FOLDER"
    )
    for path in _paths(words, "--config"):
        try:
            if path.is_file():
                read_yaml(path)
        except ValueError as error:
            parser.error(f"--config {error}")
    parser.add_argument("recipe", nargs="?", help=f"one of {', '.join(RECIPES)}; smt recipes describes them")
    parser.add_argument("--run", type=OutputFolder, help="folder of the run; default: runs/RECIPE, or numbered")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="resume the run in this folder")
    parser.add_argument(
        "--max_steps", type=CountOrZero | None, help="stop, resumable, after this many optimizer steps in total"
    )
    parser.add_argument(
        "--find_lr",
        action="store_true",
        help="instead of training, raise the learning rate over 100 steps, and suggest a value of optim.lr",
    )
    parser.shorthands |= {"--distill": "--distill.teacher", "--log": "--engine.loggers"}
    parser.lists.add("--engine.loggers")
    parser.add_argument("--config", action="config", help="a YAML file with any of the fields below")
    # A printed recipe names its task, so --config must take it; that of the recipe cannot be changed.
    parser.add_argument("--task", choices=[recipe.task] if recipe else list(TASKS), help="the recipe's own task")
    if recipe is None:  # without a recipe: the fields that the recipes of all tasks have
        parser.add_class_arguments(Recipe, as_group=True)
        parser.set_defaults(dict(name="", model="", data="", epochs=1, batch_size=1))
    else:
        parser.add_class_arguments(type(recipe), as_group=True)
        parser.set_defaults(asdict(recipe))
    return parser


def _recipe_in(folder: Path) -> Recipe | None:
    """The recipe of a run, or of a cross-validation of which only single folds have been trained."""
    if (folder / "recipe.yaml").is_file():
        return read_recipe_file(folder / "recipe.yaml")
    of_folds = sorted(folder.glob("fold-*/recipe.yaml"))
    return replace(read_recipe_file(of_folds[0]), fold=None) if of_folds else None


def _paths(words: list[str], option: str) -> list[Path]:
    """The paths that are given for an option in the arguments of the command."""
    pairs = zip(words, [*words[1:], ""], strict=False)
    values = [
        following if word == option else word.partition("=")[2]
        for word, following in pairs
        if word.partition("=")[0] == option
    ]
    return [Path(os.path.expanduser(value)) for value in values if value]


def run(args: Any) -> Output:
    """Train; the metrics of the weights in ``best.pt`` are the result."""
    if args.find_lr and (args.resume or args.max_steps is not None):
        other = "--resume" if args.resume else "--max_steps"
        print(f"smt train: error: --find_lr starts from a recipe and trains no run; omit {other}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)
    resumed = None
    if args.resume:
        folder = args.resume
        if args.run or args.recipe:
            what = f"--run {args.run}" if args.run else f"the recipe {args.recipe}"
            print(f"smt train: error: --resume continues a run in its folder; omit {what}", file=sys.stderr)
            raise SystemExit(EXIT_USAGE)
        if (resumed := _recipe_in(folder)) is None:
            of = f"; give its folder: --resume {folder.parent}" if (folder.parent / "recipe.yaml").is_file() else ""
            raise FileNotFoundError(f"{folder} is not a run's folder: there is no recipe.yaml in it{of}")
    elif args.recipe in RECIPES:
        folder = args.run or _free_folder(Path("runs") / args.recipe)
    else:
        what = f"unknown recipe {args.recipe!r}{nearest(args.recipe, RECIPES)}" if args.recipe else "name a recipe"
        if args.recipe and Path(args.recipe).is_file():
            what += f"; fields from a file are given with --config: smt train RECIPE --config {args.recipe}"
        print(f"smt train: error: {what} (smt recipes lists them)", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)
    kind = type(resumed or RECIPES[args.recipe])
    chosen = {f.name: args[f.name] for f in fields(kind)}
    try:
        recipe = kind.from_dict({k: _plain(k, v) if k in kind.groups() else v for k, v in chosen.items()})
    except ValueError as error:
        files = ", ".join(map(str, args.config or ()))
        raise ValueError(f"{error} (values are from {files} and the command line)" if files else str(error)) from error

    from ..allocator import keep_large_allocations
    from ..engine.folds import fold_folder
    from ..engine.launch import runs_on_cuda
    from ..engine.loop import train  # torch is imported late: only after arguments are validated

    if not runs_on_cuda(recipe.engine):
        keep_large_allocations()
    if recipe.fold is not None and (resumed is None or resumed.fold is None):
        folder = fold_folder(folder, recipe.fold)
    if args.find_lr:
        return _find_lr(recipe, folder)
    command = " ".join(["smt train", *map(shell_word, sys.argv[2:])])
    if recipe.folds is not None and recipe.fold is None:
        return _cross_validate(recipe, folder, args, command)
    done = train(recipe, folder, display=not args.json, max_steps=args.max_steps, command=command)
    numbers = {k: v for k, v in done.metrics.items() if isinstance(v, int | float)}
    data = {
        "run": str(folder),
        "step": done.step,
        "best_epoch": done.best_epoch,
        "stopped_early": done.stopped_early,
        "parameters": done.parameters,
        "trained_parameters": done.trained_parameters,
        "seconds": done.seconds,
        **numbers,
    }
    if not done.is_finished:
        where = f"stopped after step {done.step} of {done.total_steps}, as --max_steps asks"
        return Output(data, [f"{where}; resume with: smt train --resume {shell_word(folder)}"])
    metric = done.task.primary_metric
    which = f"{'' if done.task.keeps_latest else 'best, '}epoch {done.best_epoch}"
    result = f": {metric} {numbers[metric]:.2f} % ({which}), {done.seconds / 60:.1f} min"
    show: list[Any] = ["", styled((str(folder), "bold"), result)]
    show += [f"  {path.name}" for path in (*sorted(folder.glob("summary.*")), *sorted(folder.glob("*.png")))]
    if done.task.spec.classes:
        show.append(f"use it: smt predict {shell_word(folder)} IMAGE_OR_FOLDER")
    else:
        show.append(f"start from it: smt train finetune --checkpoint {shell_word(folder)} --data MY_IMAGES")
    return Output(data, show)


def _find_lr(recipe: Recipe, folder: Path) -> Output:
    from ..engine.lr_finder import PICTURE, find_lr

    with progress_callback("finding a learning rate") as on_progress:
        curve = find_lr(recipe, folder, on_progress=on_progress)
    data = {"folder": str(folder), **asdict(curve)}
    where = f"curve: {folder / PICTURE}"
    if curve.steepest is None:
        return Output(data, [f"no suggestion: the loss does not fall at any learning rate; {where}"])
    return Output(
        data,
        [
            styled(("suggested: ", "bold"), f"--optim.lr {curve.steepest:.2g}, where the loss falls fastest"),
            f"also usual: --optim.lr {curve.tenth:.2g}, a tenth of where it is lowest",
            where,
        ],
    )


def _cross_validate(recipe: Recipe, folder: Path, args: Any, command: str) -> Output:
    from ..engine.folds import cross_validate

    result = cross_validate(recipe, folder, display=not args.json, max_steps=args.max_steps, command=command)
    data = {"run": str(folder), "folds": result.folds, "mean": result.mean, "std": result.std}
    if not result.finished:
        where = f"stopped in fold {len(result.folds) + 1} of {recipe.folds}, as --max_steps asks"
        return Output(data, [f"{where}; resume with: smt train --resume {shell_word(folder)}"])
    name = result.primary_metric
    summary = f": {name} {result.mean[name]:.2f} ± {result.std[name]:.2f} %, mean and deviation of {recipe.folds} folds"
    return Output(data, ["", styled((str(folder), "bold"), summary), "  folds.json", "  summary.md"])


def _plain(name: str, group: Any) -> dict[str, Any]:
    """The values of a group of fields, by name.

    Raises:
        ValueError: A file has another value in the place of the group.
    """
    if not isinstance(group, Namespace):
        raise ValueError(f"invalid {name}={short(group)}: expected the fields of a group")
    return vars(group)


def _free_folder(wanted: Path) -> Path:
    """The wanted folder, or, where it has a run in it already, the first numbered one that has none."""
    folder, number = wanted, 1
    while (folder / "recipe.yaml").exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
