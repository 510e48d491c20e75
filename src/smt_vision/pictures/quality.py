"""Precision-recall and ROC curves, and reliability diagrams."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .drawing import class_color
from .style import EVAL, GRAY, TRAIN, save, short

MEAN_STYLE: dict[str, Any] = dict(color="#1b2430", linewidth=2.4, zorder=3)
SQUARE = (6.4, 4.6)  # inches, with the legend at the right


def ranking_curves(metrics: Mapping[str, Any], classes: Sequence[str], precision_recall: Path, roc: Path) -> None:
    """Draw the precision-recall and the ROC curves of a classifier: the mean over classes, and single classes.

    Args:
        metrics: Metrics of an evaluation: ``curves``, ``per_class``, ``map`` and ``auroc_macro``; see
            :meth:`smt_vision.tasks.classification.ranking.RankingMetrics.compute`.
        classes: K class names.
        precision_recall: Path of the image file with the precision-recall curves.
        roc: Path of the image file with the ROC curves.
    """
    found = metrics["curves"]
    rows, drawn = metrics["per_class"], found["classes"]
    defined = sum(row["ap"] is not None and row["auroc"] is not None for row in rows)
    which = "" if defined <= len(drawn) else f": the {len(drawn)} of {defined} classes with the lowest AP"
    for path, curve, value, mean, label, chance in (
        (precision_recall, "precision", "ap", "map", "AP", None),
        (roc, "tpr", "auroc", "auroc_macro", "AUROC", [0, 1]),
    ):
        lines = [("mean", found["macro"][curve], metrics[mean], MEAN_STYLE)]
        for entry in drawn if defined > 1 else ():
            k = entry["class"]
            style = dict(color=[v / 255 for v in class_color(k if defined <= len(drawn) else len(lines) - 1)])
            lines.append((classes[k], entry[curve], rows[k][value], {**style, "linewidth": 1.2}))
        title = ("Precision and recall" if curve == "precision" else "ROC") + which
        axis_labels = ("recall", "precision") if curve == "precision" else ("false positive rate", "true positive rate")
        curves(found["grid"], lines, path, title=title, labels=axis_labels, value=label, chance=chance)


def curves(
    grid: Sequence[float],
    lines: Sequence[tuple[str, Sequence[float], float, Mapping[str, Any]]],
    path: Path,
    *,
    title: str,
    labels: tuple[str, str],
    value: str,
    chance: Sequence[float] | None = None,
) -> Figure:
    """Draw curves in the unit square.

    Args:
        grid: Values of the horizontal axis.
        lines: Name, values on the grid, area in percent, and style of each curve.
        path: Path of the image file to write.
        title: Title of the figure.
        labels: Labels of the horizontal and the vertical axis.
        value: Name of the area, for the legend.
        chance: First and last value of the diagonal that a random ranking gives; ``None`` for none.

    Returns:
        The figure as written.
    """

    def draw() -> Figure:
        figure = Figure(figsize=SQUARE)
        axes = figure.subplots()
        for name, values, area, style in lines:
            axes.plot(grid, values, label=f"{short(name)}  {area:.1f}", **style)
        if chance is not None:
            axes.plot([0, 1], chance, color=GRAY, linewidth=1, linestyle=":", label="chance  50.0")
        _unit_square(axes, labels)
        axes.set(title=title, aspect="equal")
        legend = axes.legend(title=f"{value} (%)", loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8.5)
        legend.set_alignment("left")
        return figure

    return save(draw, path)


def reliability(bins: Sequence[Mapping[str, float]], ece: float, path: Path) -> Figure:
    """Draw a reliability diagram: accuracy over confidence, and how many predictions have each confidence.

    Args:
        bins: ``count``, mean ``confidence`` and ``accuracy`` in percent of each bin.
        ece: Expected calibration error in percent.
        path: Path of the image file to write.

    Returns:
        The figure as written.
    """
    confidence = np.array([row["confidence"] for row in bins]) / 100
    accuracy = np.array([row["accuracy"] for row in bins]) / 100
    counts = np.array([row["count"] for row in bins], dtype=np.float64)

    def draw() -> Figure:
        figure = Figure(figsize=(4.8, 5.6))
        axes, counts_axes = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
        axes.plot([0, 1], [0, 1], color=GRAY, linewidth=1, linestyle=":", label="perfect calibration")
        axes.vlines(confidence, np.minimum(confidence, accuracy), np.maximum(confidence, accuracy), color=EVAL,
                    linewidth=5, alpha=0.35, label="gap")  # fmt: skip
        axes.plot(confidence, accuracy, color=TRAIN, linewidth=1.8, marker="o", markersize=4, label="observed")
        _unit_square(axes, ("", "accuracy"))
        axes.set_title("Reliability")
        axes.set_title(f"calibration error {ece:.2f} %", loc="right", fontsize=9.5, fontweight="normal", color=GRAY)
        axes.legend(loc="upper left")
        counts_axes.bar(confidence, 100 * counts / counts.sum(), width=0.03, color=TRAIN)
        counts_axes.set(xlabel="confidence", ylabel="share (%)")
        return figure

    return save(draw, path)


def _unit_square(axes: Axes, labels: tuple[str, str]) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), xlabel=labels[0], ylabel=labels[1])
