"""The confusion matrix."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from .style import save, short

MOST_NUMBERED = 20  # classes of a confusion matrix with numbers in its cells


MOST_CLASSES = 40  # classes of a confusion matrix


def confusion(matrix: Tensor | np.ndarray, classes: Sequence[str], path: Path, unit: str = "images") -> Figure:
    """Draws which classes are taken for which, in percent of each true class's images, or other units.

    Up to 20 classes have their numbers written; of more than 40, the 40 with most errors are drawn.

    Args:
        matrix: (K, K) counts, true classes as rows.
        classes: K names.
        path: the image file to write.
        unit: what is counted.

    Returns:
        The figure, as written.

    Raises:
        ValueError: the matrix is not square, or has not one name for each row.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(f"the matrix is {counts.shape} and there are {len(classes)} names: expected (K, K) and K")
    totals = counts.sum(axis=1, keepdims=True)
    percent = np.divide(100 * counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    names, title = list(classes), "Confusion"
    if len(names) > MOST_CLASSES:
        errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
        kept = np.sort(np.argsort(-errors, kind="stable")[:MOST_CLASSES])
        title = f"Confusion: the {MOST_CLASSES} of {len(names)} classes with most errors (rows count all classes)"
        percent, names = percent[np.ix_(kept, kept)], [names[index] for index in kept]

    def draw() -> Figure:
        side = 3.5 + min(6.5, 0.45 * len(names))
        figure = Figure(figsize=(side + 1, side))
        axes = figure.subplots()
        # the square root lets the small numbers be seen, which are the confusions
        drawn = axes.imshow(percent, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
        axes.set_facecolor("#eeeeee")
        size = 9 if len(names) <= MOST_NUMBERED else 6.5
        labels = [short(name) for name in names]
        turned = 90 if max(map(len, labels)) > 3 else 0
        axes.set_xticks(range(len(names)), labels, rotation=turned, fontsize=size)
        axes.set_yticks(range(len(names)), labels, fontsize=size)
        axes.set(title=title, xlabel="predicted class", ylabel="true class")
        axes.grid(visible=False)
        if len(names) <= MOST_NUMBERED:
            for row, column in np.argwhere(percent > 0):
                value = percent[row, column]
                text = f"{value:.1f}" if len(names) <= 10 else f"{value:.0f}"
                color = "white" if value > 35 else "#1b2430"
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
        figure.colorbar(drawn, ax=axes, label=f"{unit} of the true class (%)", shrink=0.8, ticks=[0, 1, 5, 20, 50, 100])
        return figure

    return save(draw, path)
