"""The picture of a training run."""

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .style import BEST, EVAL, GREY, TRAIN, save

PARTS = (
    "#8a63b8",
    "#2f9ca6",
    "#b5852a",
    "#b6507d",
    "#6f8f3a",
    "#5c6b7a",
)  # colors of the losses that make up the whole


def curves(
    log: list[dict[str, Any]], path: Path, title: str, *, metric: str, label: str, loss_label: str = "loss"
) -> Figure:
    """Draws how training went: losses, the metric that decides and learning rate by epoch.

    Args:
        log: lines as ``read_log`` gives them.
        path: the image file to write.
        title: above it all.
        metric: name of the metric in the log.
        label: of its axis, as ``top-1 (%)``.
        loss_label: of the losses' axis.

    Returns:
        The figure, as written.
    """
    train = [line for line in log if line["kind"] == "train"]
    evals = [line for line in log if line["kind"] == "eval"]

    def draw() -> Figure:
        figure = Figure(figsize=(13, 4))
        figure.suptitle(title, fontsize=12, fontweight="bold")
        loss, scored, rate = figure.subplots(1, 3)
        epochs, losses = _series(train, "loss")
        loss.plot(epochs, losses, color=TRAIN, alpha=0.25, linewidth=0.8, label="training")
        loss.plot(epochs, _smooth(losses), color=TRAIN, linewidth=1.8, label="training, smoothed")
        if any("loss" in line for line in evals):
            marks = dict(color=EVAL, linewidth=1.8, marker="o", markersize=3.5, label="evaluation")
            loss.plot(*_series(evals, "loss"), **marks)
        parts = sorted({name for line in train for name in line if name.startswith("loss/")})
        for name, color in zip(parts, cycle(PARTS)):
            epochs, losses = _series(train, name)
            loss.plot(epochs, _smooth(losses), color=color, linewidth=1.1, label=name.removeprefix("loss/"))
        _dress(loss, "Loss", loss_label, drawn=bool(train or evals))
        if train or evals:
            loss.legend()

        epochs, percent = _series(evals, metric)
        scored.plot(epochs, percent, color=EVAL, linewidth=1.8, marker="o", markersize=3.5)
        if np.isfinite(percent).any():
            best = int(np.nanargmax(percent))
            scored.plot(epochs[best], percent[best], "*", color=BEST, markersize=14, zorder=3)
            scored.set_title(
                f"best {percent[best]:.2f} %, epoch {epochs[best]:g}", loc="right", color=BEST, fontsize=9.5
            )
        _dress(scored, "Evaluation", label, drawn=bool(evals))

        rate.plot(*_series(train, "lr"), color=TRAIN, linewidth=1.8)
        rate.yaxis.set_major_formatter(lambda value, position: f"{value:g}")
        _dress(rate, "Learning rate", "learning rate", drawn=bool(train))
        return figure

    return save(draw, path)


def _series(lines: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values of the lines that hold the name; an infinite value becomes NaN, a gap in the curve."""
    points = [(line["epoch"], float(line[name])) for line in lines if name in line]
    epochs, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return epochs, np.where(np.isfinite(values), values, np.nan)


def _smooth(values: np.ndarray) -> np.ndarray:
    """The moving average, exponential over a thirtieth of the run and right from the first value on."""
    keep = 1 - 1 / max(len(values) / 30, 1)
    smoothed = np.full_like(values, np.nan)
    total = weight = 0.0
    for index, value in enumerate(values):
        if not np.isnan(value):
            total, weight = keep * total + value, keep * weight + 1
            smoothed[index] = total / weight
    return smoothed


def _dress(axes: Axes, title: str, unit: str, *, drawn: bool) -> None:
    axes.set(title=title, xlabel="epoch", ylabel=unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not drawn:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "nothing logged", transform=axes.transAxes, ha="center", va="center", color=GREY)
