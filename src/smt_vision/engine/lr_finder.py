"""The learning rate range test (Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017)."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Annotated

import numpy as np

from ..bounds import Range, checked
from ..files import write_text_atomic
from ..pictures.training import lr_curve
from ..recipe import GivenRecipe, Recipe
from ..tasks.build import without_unaccepted_drop_path
from ..tasks.task import Batch, TrainLoader
from .launch import ends_after_an_error
from .loop import no_batch, open_task, start
from .optim import learning_rate_scale
from .state import TrainingState
from .step import step_batches, train_step

PICTURE, NUMBERS = "lr_finder.png", "lr_finder.json"
DIVERGED = 4.0  # times the lowest smoothed loss
SMOOTHING = 3.0  # standard deviation of the Gaussian that smooths the losses, in steps
Steps = Annotated[int, Range(ge=10, le=100_000)]
Rate = Annotated[float, Range(gt=0, le=1_000_000)]


@dataclass(frozen=True)
class LearningRateCurve:
    """The loss as the learning rate rises.

    Args:
        lrs: Values of ``optim.lr``, one per optimizer step.
        losses: The loss of each step, before the step.
        smoothed: The losses, smoothed.
        steepest: The value of ``optim.lr`` at which the smoothed loss falls fastest, before its minimum; ``None`` if it
            does not fall.
        tenth: A tenth of the value at the minimum of the smoothed loss; ``None`` likewise.
        diverged: Whether the sweep ended early, because the loss grew or was not finite.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    steepest: float | None
    tenth: float | None
    diverged: bool


@checked
@ends_after_an_error()
def find_lr(
    recipe: GivenRecipe,
    folder: str | Path | None = None,
    *,
    steps: Steps = 100,
    min_lr: Rate = 1e-7,
    max_lr: Rate = 10.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> LearningRateCurve:
    """Train a recipe's model for a few steps with a rising learning rate, to find a value for ``optim.lr``.

    The images, their augmentation, the loss and the optimizer are those of training. The learning rate rises
    exponentially, and the sweep ends early if the loss diverges. The model is not kept, and no run is written.

    Args:
        recipe: The recipe.
        folder: Where to write the curve, as ``lr_finder.png`` and ``lr_finder.json``; ``None`` writes nothing.
        steps: Optimizer steps.
        min_lr: First value of ``optim.lr``.
        max_lr: Last value of ``optim.lr``.
        on_progress: Called after each step with the number of steps done and the total.

    Returns:
        The curve and the suggestions, as values of ``optim.lr``: if ``optim.lr_batch`` is set, the learning rates of
        the steps are these times (images per step) / ``lr_batch``.

    Raises:
        ValueError: The recipe is invalid, ``min_lr`` is not below ``max_lr``, or the loss is not finite from the start.
    """
    if min_lr >= max_lr:
        raise ValueError(f"invalid min_lr={min_lr}: expected a value below max_lr={max_lr}")
    recipe = replace(recipe, engine=replace(recipe.engine, ema=None, on_nonfinite="stop", max_grad_norm=None))
    fabric = start(recipe)
    recipe = without_unaccepted_drop_path(recipe)
    task = open_task(fabric, recipe)
    state = TrainingState(fabric, task, recipe)
    loader = task.train_loader(fabric.global_rank, fabric.world_size)
    accumulate = min(recipe.engine.accumulate, loader.batches_per_epoch)
    scale = learning_rate_scale(recipe.optim, loader.images_per_batch * fabric.world_size * accumulate)
    lrs = np.geomspace(min_lr, max_lr, steps).tolist()
    losses: list[float] = []
    diverged = False
    state.train_mode()
    with closing(loader):
        for lr, batches in zip(lrs, _batches(loader, accumulate, recipe), strict=False):
            means, _, failure = train_step(state, batches, lr * scale)
            loss = sum(value.item() for value in means.values())
            if math.isfinite(loss):
                losses.append(loss)
            diverged = bool(failure) or bool((smoothed := smooth(losses))[-1] > DIVERGED * smoothed.min())
            if on_progress is not None and fabric.is_global_zero:
                on_progress(len(losses), steps)
            if diverged:
                break
    if len(losses) < 2:
        raise ValueError(
            f"the loss or the gradient is not finite at the learning rate {min_lr:g}: {failure}; check the data, or "
            "lower min_lr"
        )
    curve = _curve(lrs[: len(losses)], losses, diverged)
    if folder is not None and fabric.is_global_zero:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomic(folder / NUMBERS, json.dumps({"recipe": recipe.to_dict(), **asdict(curve)}, indent=1))
        lr_curve(**asdict(curve), path=folder / PICTURE, title=recipe.name)
    return curve


def _batches(loader: TrainLoader, accumulate: int, recipe: Recipe) -> Iterator[list[Batch]]:
    """The batches of one optimizer step after the other, epoch after epoch."""
    for epoch in count():
        empty = True
        for batches in step_batches(loader.epoch(epoch), accumulate):
            empty = False
            yield batches
        if empty:
            raise no_batch(recipe)


def smooth(values: list[float]) -> np.ndarray:
    """Weighted means of neighboring values, Gaussian and centered, so that the curve is not shifted."""
    reach = math.ceil(3 * SMOOTHING)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / SMOOTHING) ** 2)
    weights = np.convolve(np.ones(len(values)), kernel)[reach:-reach]
    return np.convolve(values, kernel)[reach:-reach] / weights


def _curve(lrs: list[float], losses: list[float], diverged: bool) -> LearningRateCurve:
    smoothed = smooth(losses)
    lowest = int(smoothed.argmin())
    slopes = np.gradient(smoothed, np.log(lrs))[: lowest + 1]
    steepest = int(slopes.argmin())
    falls = lowest > 0 and slopes[steepest] < 0
    return LearningRateCurve(
        lrs=tuple(lrs),
        losses=tuple(losses),
        smoothed=tuple(smoothed.tolist()),
        steepest=lrs[steepest] if falls else None,
        tenth=lrs[lowest] / 10 if falls else None,
        diverged=diverged,
    )
