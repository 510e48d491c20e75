"""A run's result on one page."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch

from .._version import __version__
from ..cost import ModelInfo
from ..recipes import RECIPES
from ..tasks.task import Measure, Table
from .journal import LOG_NAME, read_log


def write_summary(
    folder: Path,
    *,
    recipe: dict[str, Any],
    metrics: dict[str, Any],
    headline: str,
    measures: Mapping[str, Measure],
    best_epoch: int,
    seconds: float,
    hardware: str,
    command: str,
    classes: int,
    images: str,
    cost: ModelInfo,
    tables: Sequence[Table],
    pictures: Sequence[Path],
) -> None:
    """Writes ``summary.md``: what was trained on what, how well, where it errs, and how to go on.

    Args:
        folder: the run's folder.
        recipe: the recipe, as a dictionary.
        metrics: of the best epoch; ``count`` is the number of images.
        headline: the metric, in percent, that the result is told by.
        measures: the metrics to list, in order.
        best_epoch: the epoch they are of.
        seconds: that training took.
        hardware: that it took place on, in one line.
        command: the exact command line.
        classes: how many.
        images: what the model sees of an image, in words.
        cost: of the model.
        tables: what else there is to tell.
        pictures: files below the folder to show.
    """
    height, width = cost.input_size[1:]
    model = f"{cost.parameters / 1e6:.2f} M parameters, {cost.gmac:.3g} GMAC at {height} x {width}"
    facts = {
        "model": f"`{recipe['model']}`: {model}",
        "data": f"`{recipe['data']}`: {classes} {'class' if classes == 1 else 'classes'}, {images}",
        "length": f"{recipe['epochs']} epochs, {recipe['batch_size']} images a batch and process",
        "seed": str(recipe["seed"]),
        "time": str(timedelta(seconds=round(seconds))) + _speed(folder),
        "hardware": hardware,
        "versions": f"smt_vision {__version__}, torch {torch.__version__}, timm {timm.__version__}",
    }
    result = (
        f"`{recipe['model']}` on `{recipe['data']}`: **{metrics[headline]:.2f} % {measures[headline].label}** of "
        f"{metrics['count']} images, by the weights of epoch {best_epoch} of {recipe['epochs']}, the best on these "
        "same images."
    )
    page = [
        f"# {recipe['name']}",
        "",
        result,
        "",
        *_result(metrics, measures, recipe.get("expected", {})),
        *_source(recipe),
        "![curves](curves.png)",
        "",
        "## Run",
        "",
        *(f"- {name}: {fact}" for name, fact in facts.items()),
        "",
        "```sh",
        command,
        "```",
        "",
        *(line for table in tables for line in _table(table)),
        *(line for path in pictures for line in (_shown(path, folder), "")),
        "## Go on",
        "",
        "```sh",
        f"smt predict {folder} IMAGE_OR_FOLDER   # what is in an image",
        f"smt eval {folder}                      # this result again",
        f"smt train --resume {folder}            # continue from the last checkpoint",
        "```",
    ]
    (Path(folder) / "summary.md").write_text("\n".join(page) + "\n", encoding="utf-8")


def _result(metrics: dict[str, Any], measures: Mapping[str, Measure], expected: dict[str, float]) -> list[str]:
    lines = ["| metric | this run | expected | difference |", "|---|---:|---:|---:|"]
    for key, measure in measures.items():
        wanted, gap = "", ""
        if key in expected:
            wanted, gap = measure.text(expected[key]), measure.text(metrics[key] - expected[key], sign="+")
        lines.append(f"| {measure.title} | {measure.text(metrics[key])} | {wanted} | {gap} |")
    return [*lines, ""]


def _source(recipe: dict[str, Any]) -> list[str]:
    """Where the expected numbers are from, and of which model they are where the run has another."""
    named = RECIPES.get(recipe["name"])
    of = f" of `{named.model}`" if named is not None and named.model != recipe["model"] else ""
    source = recipe.get("expected_source", "")
    return [f"Expected{of}: {source}.", ""] if source else []


def _table(table: Table) -> list[str]:
    """A table of Markdown; columns with numbers in them are set to the right."""
    right = [any(not isinstance(cell, str) for cell in column) for column in zip(*table.rows, strict=True)]
    rules = ["---:" if r else "---" for r in right] or ["---"] * len(table.header)
    lines = [f"## {table.title}", "", _row(table.header), f"|{'|'.join(rules)}|"]
    return [*lines, *(_row(row) for row in table.rows), ""]


def _row(cells: Sequence[str | int | float]) -> str:
    told = (f"{cell:.2f}" if isinstance(cell, float) else str(cell).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(told)} |"


def _shown(path: Path, folder: Path) -> str:
    return f"![{path.stem}]({path.relative_to(folder).as_posix()})"


def _speed(folder: Path) -> str:
    """The median training speed, where a log tells it."""
    if not (Path(folder) / LOG_NAME).exists():
        return ""
    speeds = [line["images_per_s"] for line in read_log(folder) if "images_per_s" in line]
    return f", {median(speeds):.0f} images/s in training (median)" if speeds else ""
