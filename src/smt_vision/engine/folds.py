"""Cross-validation: a run per fold, and the mean of their results."""

import json
import math
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..bounds import CountOrZero, checked
from ..checkpoints import training_checkpoints
from ..files import write_text_atomic
from ..recipe import GivenRecipe
from ..recipe_files import write_recipe
from ..signals import RunStopped
from ..text import code, markdown, shell_word
from .loop import start, train
from .run import RECIPE, Run
from .summary import table_lines

RESULT = "folds.json"


@dataclass(frozen=True)
class CrossValidation:
    """The result of a cross-validation.

    Args:
        folder: Its folder, with the run of fold i in ``fold-i``.
        primary_metric: Name of the primary metric.
        folds: Numeric metrics of the weights in each finished fold's ``best.pt``, and ``best_epoch``.
        mean: Mean over the folds by metric; empty until all are finished.
        std: Sample standard deviation over the folds by metric, likewise.
    """

    folder: Path
    primary_metric: str
    folds: tuple[dict[str, float], ...]
    mean: dict[str, float]
    std: dict[str, float]

    @property
    def finished(self) -> bool:
        """Whether all folds are trained."""
        return bool(self.mean)


@checked
def cross_validate(
    recipe: GivenRecipe,
    folder: str | Path,
    display: bool = True,
    max_steps: CountOrZero | None = None,
    command: str = "",
) -> CrossValidation:
    """Train a recipe once per fold, each time validating on another part of the training images.

    The validation images of the ``recipe.folds`` folds are a partition of the training images, stratified by class;
    without a validation split, of all images. Each fold is an ordinary run in ``FOLDER/fold-1`` and so on. A
    cross-validation that was stopped continues: finished folds are not trained again.

    Args:
        recipe: The run, with ``folds`` set and ``fold`` not.
        folder: Where the runs, ``folds.json`` and ``summary.md`` are written.
        display: Show progress.
        max_steps: Stop, resumable, after this many optimizer steps of all folds together.
        command: The command line, for the summaries.

    Returns:
        The metrics of each fold, their mean and standard deviation.

    Raises:
        ValueError: ``folds`` is not set in the recipe, or ``fold`` is, or the folder holds an ordinary run; and the
            errors of :func:`smt_vision.train`.
    """
    folder = Path(folder)
    if recipe.folds is None or recipe.fold is not None:
        raise ValueError(f"folds={recipe.folds} and fold={recipe.fold}: a cross-validation needs folds, and no fold")
    folders = [fold_folder(folder, fold) for fold in range(1, recipe.folds + 1)]
    fabric = start(recipe)  # other processes choose their folder before this one makes it
    if fabric.is_global_zero and not (folder / RECIPE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_recipe(recipe, folder / RECIPE)  # first, so that it can be resumed whatever happens
    folds: list[dict[str, float]] = []
    left = max_steps
    for fold, place in enumerate(folders, 1):
        try:
            run = train(replace(recipe, fold=fold), place, display, left, command)
        except RunStopped as error:
            raise error.within(folder) from None
        except Exception:
            if not (folders[0] / RECIPE).exists():  # e.g. data that do not exist: nothing to resume
                (folder / RECIPE).unlink(missing_ok=True)
            raise
        primary = run.task.primary_metric
        if not run.is_finished:
            return CrossValidation(folder, primary, tuple(folds), {}, {})
        left = None if left is None else max(left - run.step, 0)
        numbers = {name: float(v) for name, v in run.metrics.items() if isinstance(v, int | float)}
        folds.append({**numbers, "best_epoch": run.best_epoch})
    names = [name for name in folds[0] if all(name in row and math.isfinite(row[name]) for row in folds)]
    columns = {name: [row[name] for row in folds] for name in names if name != "best_epoch"}
    result = CrossValidation(
        folder,
        primary,
        tuple(folds),
        {name: statistics.fmean(values) for name, values in columns.items()},
        {name: statistics.stdev(values) for name, values in columns.items()},
    )
    if run.fabric.is_global_zero:
        _write(result, run, command)
    return result


def fold_folder(folder: Path, fold: int) -> Path:
    """The folder of a fold's run in that of its cross-validation.

    Raises:
        ValueError: The latter holds an ordinary run.
    """
    if training_checkpoints(folder):
        raise ValueError(
            f"{folder} holds an ordinary run; choose another folder for a cross-validation (--run), or continue that "
            f"run (smt train --resume {shell_word(folder)})"
        )
    return folder / f"fold-{fold}"


def _write(result: CrossValidation, run: Run, command: str) -> None:
    """Write ``folds.json`` and ``summary.md``."""
    content: dict[str, Any] = {
        "primary_metric": result.primary_metric, "mean": result.mean, "std": result.std, "folds": result.folds
    }  # fmt: skip
    write_text_atomic(result.folder / RESULT, json.dumps(content, indent=1))
    recipe, formats = run.recipe, run.task.metric_formats
    shown = [name for name in formats if name in result.mean]
    rows: list[list[str | int | float]] = [
        [f"fold-{i}", int(row["count"]), int(row["best_epoch"]), *(formats[name].text(row[name]) for name in shown)]
        for i, row in enumerate(result.folds, 1)
    ]
    for title, values in (("mean", result.mean), ("standard deviation", result.std)):
        rows.append([title, "", "", *(formats[name].text(values[name]) for name in shown)])
    primary = formats[result.primary_metric]
    mean, std = result.mean[result.primary_metric], result.std[result.primary_metric]
    page = [
        f"# {markdown(recipe.name)}: {recipe.folds}-fold cross-validation",
        "",
        f"{code(recipe.model)} on {code(recipe.data)}: **{mean:.2f} ± {std:.2f} % {primary.label}**, the mean and the "
        "sample standard deviation over the folds, each with its `best.pt` on its own validation images.",
        "",
        *table_lines(["run", "images", "epoch", *(formats[name].title for name in shown)], rows),
        "",
        "Every training image is in the validation images of exactly one fold. Each fold is a run of its own, e.g. "
        f"`smt eval {shell_word(result.folder / 'fold-1')}`.",
        "",
        "```sh",
        command or f"smt train --resume {shell_word(result.folder)}",
        "```",
    ]
    write_text_atomic(result.folder / "summary.md", "\n".join(page) + "\n")
