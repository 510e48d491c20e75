"""A run's results on one page, as Markdown and as self-contained HTML."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch

from .._version import __version__
from ..cost import ModelInfo
from ..files import write_text_atomic
from ..pages import html_page, table_lines
from ..tasks.task import MetricFormat, Table
from ..text import code, markdown, printable, shell_word
from .log import LOG_NAME, read_log

MAX_CHANGED = 6  # fields that are listed


def write_summary(
    folder: Path,
    *,
    recipe: dict[str, Any],
    metrics: dict[str, Any],
    primary_metric: str,
    formats: Mapping[str, MetricFormat],
    best_epoch: int,
    keeps_latest: bool,
    seconds: float,
    hardware: str,
    command: str,
    classes: int,
    input_description: str,
    cost: ModelInfo,
    trained: str,
    stopped_after: int | None,
    changed: Sequence[str],
    tables: Sequence[Table],
    pictures: Sequence[Path],
) -> None:
    """Write ``summary.md``: model, data, results, typical errors, and the commands that use or continue the run.

    ``summary.html`` is the same page with its pictures in it, and the recipe.

    Names from the recipe and the data are escaped, so that they are shown and nothing else.

    Args:
        folder: The run's folder.
        recipe: The recipe, as a dictionary.
        metrics: Metrics of the weights in ``best.pt``; ``count`` is the number of images.
        primary_metric: Name of the metric, in percent, that the result line states.
        formats: The metrics to list, in order.
        best_epoch: The epoch of ``metrics``.
        keeps_latest: It is not the epoch with the best primary metric, but that of the latest evaluation.
        seconds: Training time.
        hardware: The hardware, in one line.
        command: The exact command line, printable and in one line.
        classes: Number of classes; 0 for a network that predicts nothing.
        input_description: Description of the model's input.
        cost: Size and cost of the model.
        trained: The parameters that were trained, in words; empty if they are all.
        stopped_after: The epoch after which the run was stopped early; ``None`` if it was not.
        changed: Fields that differ from the recipe of that name, so that its expected results may not apply.
        tables: Further tables.
        pictures: Image files below the folder to show.
    """
    height, width = cost.input_size[1:]
    model = f"{cost.parameters / 1e6:.2f} M parameters, {cost.gmac:.3g} GMAC at {height} x {width}"
    length = (
        f"{recipe['epochs']} epochs"
        if stopped_after is None
        else (f"stopped early after epoch {stopped_after} of {recipe['epochs']}")
    )
    facts = {
        "model": f"{code(recipe['model'])}: {model}",
        **({"trained": trained} if trained else {}),
        "data": f"{code(recipe['data'])}: {classes} {'class' if classes == 1 else 'classes'}, {input_description}",
        "length": f"{length}, {recipe['batch_size']} images per batch and process",
        "seed": str(recipe["seed"]),
        "time": str(timedelta(seconds=round(seconds))) + _speed(folder),
        "hardware": markdown(hardware),
        "versions": f"smt_vision {__version__}, torch {torch.__version__}, timm {timm.__version__}",
    }
    result = (
        f"{code(recipe['model'])} on {code(recipe['data'])}: **{metrics[primary_metric]:.2f} % "
        f"{formats[primary_metric].label}** on {metrics['count']} images, with the weights of epoch {best_epoch} of "
        f"{recipe['epochs']}{'' if keeps_latest else ', the best epoch on these same images'}."
    )
    page = [
        f"# {markdown(recipe['name'])}",
        "",
        result,
        "",
        *_result(metrics, formats, recipe.get("expected", {})),
        *_source(recipe, changed),
        "![curves](curves.png)",
        "",
        "## Run",
        "",
        *(f"- {name}: {fact}" for name, fact in facts.items()),
        "",
        "```sh",
        printable(command),
        "```",
        "",
        *(line for table in tables for line in (f"## {table.title}", "", *table_lines(table.header, table.rows), "")),
        *(line for path in pictures for line in (_shown(path, folder), "")),
        "## Next steps",
        "",
        "```sh",
        *(
            (
                f"smt predict {shell_word(folder)} IMAGE_OR_FOLDER   # predict images",
                f"smt eval {shell_word(folder)}                      # repeat this evaluation",
            )
            if classes
            else (
                f"smt train finetune --checkpoint {shell_word(folder)} --data MY_IMAGES   # start from these weights",
            )
        ),
        f"smt train --resume {shell_word(folder)}            # continue from the last checkpoint",
        "```",
    ]
    write_text_atomic(folder / "summary.md", "\n".join(page) + "\n")
    fields = ["## Recipe", "", *table_lines(["field", "value"], list(_recipe_rows(recipe)))]
    write_text_atomic(folder / "summary.html", html_page(recipe["name"], "\n".join([*page, "", *fields]), folder))


def _recipe_rows(values: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of the fields of a recipe; those of a group begin with its name and a dot."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value and not group:
            yield from _recipe_rows(value, f"{name}.")
        else:
            yield f"{group}{name}", value if isinstance(value, str) else json.dumps(value)


def _result(metrics: dict[str, Any], formats: Mapping[str, MetricFormat], expected: dict[str, float]) -> list[str]:
    lines = ["| metric | this run | expected | difference |", "|---|---:|---:|---:|"]
    for key, format in formats.items():
        if key not in metrics:  # best weights of an earlier version, in a resumed run
            continue
        wanted, gap = "", ""
        if key in expected:
            wanted, gap = format.text(expected[key]), format.text(metrics[key] - expected[key], sign="+")
        lines.append(f"| {format.title} | {format.text(metrics[key])} | {wanted} | {gap} |")
    return [*lines, ""]


def _source(recipe: dict[str, Any], changed: Sequence[str]) -> list[str]:
    """Source of the expected results, and what this run changes in the recipe that they are of."""
    source = recipe.get("expected_source", "")
    if not source or not changed:
        return [f"Expected: {markdown(source)}.", ""] if source else []
    more = f" and {len(changed) - MAX_CHANGED} other fields" if len(changed) > MAX_CHANGED else ""
    listed = ", ".join(map(code, changed[:MAX_CHANGED])) + more
    return [f"Expected with the recipe as it is: {markdown(source)}. This run changes {listed}.", ""]


def _shown(path: Path, folder: Path) -> str:
    return f"![{path.stem}]({path.relative_to(folder).as_posix()})"


def _speed(folder: Path) -> str:
    """The median training speed, if the folder has a log."""
    if not (Path(folder) / LOG_NAME).exists():
        return ""
    speeds = [line["images_per_s"] for line in read_log(folder) if "images_per_s" in line]
    return f", {median(speeds):.0f} images/s in training (median)" if speeds else ""
