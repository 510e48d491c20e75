"""Training curves."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..text import printable
from .style import BEST, EVAL, GRAY, TRAIN, save

LOSS_TERM_COLORS = ("#8a63b8", "#2f9ca6", "#b5852a", "#b6507d", "#6f8f3a", "#5c6b7a")


def curves(
    log: list[dict[str, Any]],
    path: Path,
    title: str,
    *,
    metric: str,
    label: str,
    loss_label: str = "loss",
    best_epoch: int | None = None,
) -> Figure:
    """Draw the losses, the primary metric and the learning rate over epochs.

    Args:
        log: Lines of the training log, as returned by ``read_log``.
        path: Path of the image file to write.
        title: Title of the figure.
        metric: Name of the primary metric in the log.
        label: Axis label of the metric, e.g. ``top-1 (%)``.
        loss_label: Axis label of the losses.
        best_epoch: The epoch of the best weights, which is marked; ``None``: that of the largest value.

    Returns:
        The figure as written.
    """
    train = [line for line in log if line["kind"] == "train"]
    evals = [line for line in log if line["kind"] == "eval"]

    def draw() -> Figure:
        figure = Figure(figsize=(13, 4))
        figure.suptitle(printable(title), fontsize=12, fontweight="bold")
        loss_axes, metric_axes, lr_axes = figure.subplots(1, 3)
        eval_style: dict[str, Any] = dict(color=EVAL, linewidth=1.8, marker="o", markersize=3.5)
        epochs, losses = _series(train, "loss")
        loss_axes.plot(epochs, losses, color=TRAIN, alpha=0.25, linewidth=0.8, label="training")
        loss_axes.plot(epochs, _smooth(losses), color=TRAIN, linewidth=1.8, label="training, smoothed")
        if any("loss" in line for line in evals):
            loss_axes.plot(*_series(evals, "loss"), **eval_style, label="evaluation")
        terms = sorted({name for line in train for name in line if name.startswith("loss/")})
        for name, color in zip(terms, cycle(LOSS_TERM_COLORS)):
            epochs, losses = _series(train, name)
            loss_axes.plot(epochs, _smooth(losses), color=color, linewidth=1.1, label=name.removeprefix("loss/"))
        _format_axes(loss_axes, "Loss", loss_label, has_data=bool(train or evals))
        if train or evals:
            loss_axes.legend()

        epochs, percent = _series(evals, metric)
        metric_axes.plot(epochs, percent, **eval_style)
        if np.isfinite(percent).any():
            known = np.flatnonzero(epochs == best_epoch)
            best = int(known[-1]) if len(known) else int(np.nanargmax(percent))
            metric_axes.plot(epochs[best], percent[best], "*", color=BEST, markersize=14, zorder=3)
            subtitle = f"best {percent[best]:.2f} %, epoch {epochs[best]:g}"
            metric_axes.set_title(subtitle, loc="right", color=BEST, fontsize=9.5)
        _format_axes(metric_axes, "Evaluation", label, has_data=bool(evals))

        lr_axes.plot(*_series(train, "lr"), color=TRAIN, linewidth=1.8)
        lr_axes.yaxis.set_major_formatter(lambda value, position: f"{value:g}")
        _format_axes(lr_axes, "Learning rate", "learning rate", has_data=bool(train))
        return figure

    return save(draw, path)


def lr_curve(
    lrs: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    steepest: float | None,
    tenth: float | None,
    diverged: bool,
    *,
    path: Path,
    title: str,
) -> Figure:
    """Draw the loss over a rising learning rate.

    Args:
        lrs, losses, smoothed, steepest, tenth, diverged: As in ``LearningRateCurve``.
        path: Path of the image file to write.
        title: Title of the figure.

    Returns:
        The figure as written.
    """

    def draw() -> Figure:
        figure = Figure(figsize=(7, 4.2))
        axes = figure.subplots()
        axes.plot(lrs, losses, color=TRAIN, alpha=0.25, linewidth=0.8, label="loss")
        axes.plot(lrs, smoothed, color=TRAIN, linewidth=1.8, label="loss, smoothed")
        for value, color, label in ((steepest, BEST, "falls fastest"), (tenth, EVAL, "a tenth of the minimum")):
            if value is not None:
                axes.axvline(value, color=color, linestyle="--", label=f"{value:.2g}: {label}")
        low, high = min(smoothed), max(smoothed[: len(smoothed) // 2 + 1])
        margin = 0.5 * (high - low) or 1.0
        axes.set(xscale="log", ylim=(low - margin, high + margin), xlabel="optim.lr", ylabel="loss")
        axes.xaxis.set_major_formatter(lambda value, position: f"{value:g}")
        axes.set_title(f"{printable(title)}{', until the loss diverged' if diverged else ''}")
        axes.legend()
        return figure

    return save(draw, path)


def _series(lines: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values of the log lines with this name; infinite values become NaN, a gap in the curve."""
    points = [(line["epoch"], float(line[name])) for line in lines if name in line]
    epochs, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return epochs, np.where(np.isfinite(values), values, np.nan)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Exponential moving average over 1/30 of the run, unbiased from the first value on."""
    decay = 1 - 1 / max(len(values) / 30, 1)
    smoothed = np.full_like(values, np.nan)
    total = weight = 0.0
    for index, value in enumerate(values):
        if not np.isnan(value):
            total, weight = decay * total + value, decay * weight + 1
            smoothed[index] = total / weight
    return smoothed


def _format_axes(axes: Axes, title: str, label: str, *, has_data: bool) -> None:
    axes.set(title=title, xlabel="epoch", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not has_data:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "nothing logged", transform=axes.transAxes, ha="center", va="center", color=GRAY)
