"""Estimated training time of cells that have not run yet."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory

from ..benchmark.timing import one_thread
from ..engine.log import read_log
from ..engine.loop import train
from ..recipe import Recipe
from .results import CellResult
from .study import Cell, inference_key, passes, with_data, with_overrides

# Arguments of a model that decide most of its time.
SHAPE = ("embed_dims", "depths", "stem_stride", "img_size")
STEPS = 3  # timed optimizer steps, after one that is not
EVALUATION = 1.1  # time of a run over that of its training steps: evaluations and start


def estimate_seconds(
    cells: Sequence[Cell], results: Mapping[str, CellResult], data: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Estimated seconds of each cell that has no result, by key.

    From the time per image of finished cells with the same model and input size or, without one, of any with this input
    size on the same data; otherwise from a few training steps of the variant here.

    Args:
        cells: Cells, with and without results.
        results: Results by key.
        data: Path of the dataset, by the name that recipes have for it.
    """
    times = PassTimes()
    for cell in cells:
        if result := results.get(cell.key):
            times.add(cell.recipe, result.seconds)
    estimates = {}
    for cell in cells:
        if cell.key not in results:
            seconds = times.of(cell.recipe)
            if seconds is None:
                seconds = _measure_pass(cell, data or {})
                times.add(cell.recipe, seconds * passes(cell.recipe))
            estimates[cell.key] = seconds * passes(cell.recipe)
    return estimates


class PassTimes:
    """Seconds per pass over all images of the runs that are known."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], list[float]] = {}

    def add(self, recipe: Recipe, seconds: float) -> None:
        """Add a run that took this long."""
        for group in _groups(recipe):
            self._known.setdefault(group, []).append(seconds / passes(recipe))

    def of(self, recipe: Recipe, *, rough: bool = False) -> float | None:
        """The mean of runs of the same model or else of a similar one; ``rough``: or else of any, on the same data if
        there are such. ``None`` without one."""
        groups = _groups(recipe)
        found = (self._known[group] for group in (groups if rough else groups[:2]) if group in self._known)
        times = next(found, None)
        return None if times is None else mean(times)


def _groups(recipe: Recipe) -> tuple[tuple[str, ...], ...]:
    """What recipes have in common: those of the same time per image, of a similar one, on the same data, and all."""
    size = str(getattr(recipe.input, "size", ""))
    shape = json.dumps([recipe.model, *(recipe.model_args.get(name) for name in SHAPE)], default=list)
    return (recipe.data, inference_key(recipe)), (recipe.data, size, shape), (recipe.data,), ()


def _measure_pass(cell: Cell, data: Mapping[str, str]) -> float:
    """Seconds of a pass over all images, from the first training steps, on one thread."""
    recipe = with_overrides(with_data(cell.recipe, data), {"engine.log_every": 1, "engine.loggers": ()})
    with one_thread(), TemporaryDirectory() as folder:
        run = train(recipe, folder, display=False, max_steps=1 + STEPS)
        lines = [line for line in read_log(Path(folder)) if line["kind"] == "train"]
    seconds = median(recipe.batch_size / line["images_per_s"] for line in lines[-STEPS:])
    return EVALUATION * seconds * run.total_steps / passes(recipe)
