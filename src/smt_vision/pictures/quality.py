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
Line = tuple[str, Sequence[float], float, Mapping[str, Any]]  # name, values, area in percent, style
SQUARE = (6.4, 4.6)  # inches, with the legend at the right


def ranking_curves(
    metrics: Mapping[str, Any], classes: Sequence[str], precision_recall: Path, roc: Path
) -> tuple[Figure, Figure]:
    """Draw the precision-recall and the ROC curves of a classifier: the mean over classes, and single classes.

    Args:
        metrics: Metrics of an evaluation: ``curves``, ``per_class``, ``map`` and ``auroc_macro``; see
            :meth:`smt_vision.tasks.classification.ranking.RankingMetrics.compute`.
        classes: K class names.
        precision_recall: Path of the image file with the precision-recall curves.
        roc: Path of the image file with the ROC curves.

    Returns:
        The two figures as written.
    """
    found, rows = metrics["curves"], metrics["per_class"]
    drawn = [entry["class"] for entry in found["classes"]]
    defined = sum(row["ap"] is not None and row["auroc"] is not None for row in rows)
    which = "" if defined == len(drawn) else f": the {len(drawn)} of {defined} classes with the lowest AP"

    def lines(curve: str, area: str, mean: str) -> list[Line]:
        out: list[Line] = [("mean", found["macro"][curve], metrics[mean], MEAN_STYLE)]
        for k, entry in zip(drawn, found["classes"], strict=True):
            color = tuple(value / 255 for value in class_color(k))
            out.append((classes[k], entry[curve], rows[k][area], {"color": color, "linewidth": 1.2}))
        return out if defined > 1 else out[:1]

    return (
        area_curves(found["grid"], lines("precision", "ap", "map"), precision_recall, area="AP",
                    title=f"Precision and recall{which}", labels=("recall", "precision")),
        area_curves(found["grid"], lines("tpr", "auroc", "auroc_macro"), roc, area="AUROC", title=f"ROC{which}",
                    labels=("false positive rate", "true positive rate"), diagonal=True),
    )  # fmt: skip


def area_curves(
    grid: Sequence[float],
    lines: Sequence[Line],
    path: Path,
    *,
    title: str,
    labels: tuple[str, str],
    area: str,
    diagonal: bool = False,
) -> Figure:
    """Draw curves in the unit square, with the areas below them in the legend.

    Args:
        grid: Values of the horizontal axis.
        lines: Name, values on the grid, area in percent, and style of each curve.
        path: Path of the image file to write.
        title: Title of the figure.
        labels: Labels of the horizontal and the vertical axis.
        area: Name of the area, for the legend.
        diagonal: Whether to draw the diagonal, the curve of a random ranking.

    Returns:
        The figure as written.
    """

    def draw() -> Figure:
        figure = Figure(figsize=SQUARE)
        axes = figure.subplots()
        for name, values, percent, style in lines:
            axes.plot(grid, values, label=f"{short(name)}  {percent:.1f}", **style)
        if diagonal:
            axes.plot([0, 1], [0, 1], color=GRAY, linewidth=1, linestyle=":", label="chance  50.0")
        _unit_square(axes, labels)
        axes.set(title=title, aspect="equal")
        legend = axes.legend(title=f"{area} (%)", loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8.5)
        legend.set_alignment("left")
        return figure

    return save(draw, path)


def reliability(bins: Sequence[Mapping[str, float]], ece: float, path: Path, label: str = "accuracy") -> Figure:
    """Draw a reliability diagram: accuracy over confidence, and how many predictions have each confidence.

    Args:
        bins: ``count``, mean ``confidence`` and ``accuracy`` in percent of each bin.
        ece: Expected calibration error in percent.
        path: Path of the image file to write.
        label: Label of the vertical axis.

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
        _unit_square(axes, ("", label))
        axes.set_title("Reliability")
        axes.set_title(f"calibration error {ece:.2f} %", loc="right", fontsize=9.5, fontweight="normal", color=GRAY)
        axes.legend(loc="upper left")
        counts_axes.bar(confidence, 100 * counts / counts.sum(), width=0.03, color=TRAIN)
        counts_axes.set(xlabel="confidence", ylabel="share (%)")
        return figure

    return save(draw, path)


def _unit_square(axes: Axes, labels: tuple[str, str]) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), xlabel=labels[0], ylabel=labels[1])
