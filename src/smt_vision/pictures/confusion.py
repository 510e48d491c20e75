"""Picture of a confusion matrix."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from .style import save, short

MAX_CLASSES_WITH_VALUES = 20  # the cells of larger matrices have no text
MAX_CLASSES = 40


def confusion(matrix: Tensor | np.ndarray, classes: Sequence[str], path: Path, unit: str = "images") -> Figure:
    """Draw a confusion matrix in percent of each true class.

    Values are written into the cells for up to 20 classes. With more than 40 classes, only the 40 with the most errors
    are drawn.

    Args:
        matrix: Counts (K, K), true classes as rows.
        classes: K class names.
        path: Path of the image file to write.
        unit: Unit of the counts, e.g. ``images``.

    Returns:
        The figure as written.

    Raises:
        ValueError: If the matrix is not (K, K) for K class names.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(f"matrix is {counts.shape} and there are {len(classes)} class names: expected (K, K) and K")
    totals = counts.sum(axis=1, keepdims=True)
    percent = np.divide(100 * counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    names, title = list(classes), "Confusion"
    if len(names) > MAX_CLASSES:
        errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
        kept = np.sort(np.argsort(-errors, kind="stable")[:MAX_CLASSES])
        title = f"Confusion: the {MAX_CLASSES} of {len(names)} classes with most errors (rows count all classes)"
        percent, names = percent[np.ix_(kept, kept)], [names[index] for index in kept]

    def draw() -> Figure:
        side = 3.5 + min(6.5, 0.45 * len(names))
        figure = Figure(figsize=(side + 1, side))
        axes = figure.subplots()
        # The square root makes the small values visible, and these are the confusions.
        heatmap = axes.imshow(percent, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
        axes.set_facecolor("#eeeeee")
        size = 9 if len(names) <= MAX_CLASSES_WITH_VALUES else 6.5
        labels = [short(name) for name in names]
        rotation = 90 if max(map(len, labels)) > 3 else 0
        axes.set_xticks(range(len(names)), labels, rotation=rotation, fontsize=size)
        axes.set_yticks(range(len(names)), labels, fontsize=size)
        axes.set(title=title, xlabel="predicted class", ylabel="true class")
        axes.grid(visible=False)
        if len(names) <= MAX_CLASSES_WITH_VALUES:
            for row, column in np.argwhere(percent > 0):
                value = percent[row, column]
                text = f"{value:.1f}" if len(names) <= 10 else f"{value:.0f}"
                color = "white" if value > 35 else "#1b2430"
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
        label = f"{unit} of the true class (%)"
        figure.colorbar(heatmap, ax=axes, label=label, shrink=0.8, ticks=[0, 1, 5, 20, 50, 100])
        return figure

    return save(draw, path)
