"""Estimated training time of cells that have not run yet."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory

from ..benchmark.timing import one_thread
from ..engine.log import read_log
from ..engine.loop import train
from .results import CellResult
from .study import Cell, with_data, with_overrides

STEPS = 3  # timed optimizer steps, after one that is not
EVALUATION = 1.1  # time of a run over that of its training steps: evaluations and start


def estimate_seconds(
    cells: Sequence[Cell], results: Mapping[str, CellResult], data: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Estimated seconds of each cell that has no result, by key.

    From the time per epoch of finished cells with the same variant or, without one, of any on the same data;
    otherwise from a few training steps of the variant here.

    Args:
        cells: Cells, with and without results.
        results: Results by key.
        data: Path of the dataset, by the name that recipes have for it.
    """
    waiting = [cell for cell in cells if cell.key not in results]
    known: dict[tuple[str, str | None], list[float]] = {}  # seconds per epoch
    for cell in cells:
        if result := results.get(cell.key):
            for group in ((cell.recipe.data, cell.variant), (cell.recipe.data, None)):
                known.setdefault(group, []).append(result.seconds / cell.recipe.epochs)
    estimates = {}
    for cell in waiting:
        group = (cell.recipe.data, cell.variant)
        if group not in known:
            general = known.get((cell.recipe.data, None))
            known[group] = general or [_measure_epoch(cell, data or {})]
        estimates[cell.key] = mean(known[group]) * cell.recipe.epochs
    return estimates


def _measure_epoch(cell: Cell, data: Mapping[str, str]) -> float:
    """Seconds of an epoch, from the first training steps, on one thread."""
    recipe = with_overrides(with_data(cell.recipe, data), {"engine.log_every": 1, "engine.loggers": ()})
    with one_thread(), TemporaryDirectory() as folder:
        run = train(recipe, folder, display=False, max_steps=1 + STEPS)
        lines = [line for line in read_log(Path(folder)) if line["kind"] == "train"]
    seconds = median(recipe.batch_size / line["images_per_s"] for line in lines[-STEPS:])
    return EVALUATION * seconds * run.total_steps / recipe.epochs
