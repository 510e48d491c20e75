"""Pictures of a classifier: confusions, worst mistakes, predictions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from .style import GREY, save, short

MOST_NUMBERED = 20  # classes of a confusion matrix with numbers in its cells
MOST_CLASSES = 40  # classes of a confusion matrix
GRID = 25  # images of a grid
COLUMNS = 5


@dataclass(frozen=True)
class Prediction:
    """What the model said of an image.

    Args:
        image: as read, or as the model saw it.
        prediction: name of the most probable class.
        confidence: its probability, in [0, 1].
        id: of the image, as its file.
    """

    image: Image.Image
    prediction: str
    confidence: float
    id: str

    @property
    def caption(self) -> str:
        """What is written above the image."""
        return f"{short(self.prediction)} ({100 * self.confidence:.0f} %)"


@dataclass(frozen=True)
class Mistake:
    """An image that the model put into the wrong class.

    Args:
        image: as read, or as the model saw it.
        target: name of the true class.
        prediction: name of the class it was put into.
        confidence: the probability given to that class, in [0, 1].
        id: of the image, as its file.
    """

    image: Image.Image
    target: str
    prediction: str
    confidence: float
    id: str

    @property
    def caption(self) -> str:
        """What is written above the image."""
        return f"said {short(self.prediction)} ({100 * self.confidence:.0f} %),\nis {short(self.target)}"


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
                colour = "white" if value > 35 else "#1b2430"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
        figure.colorbar(drawn, ax=axes, label=f"{unit} of the true class (%)", shrink=0.8, ticks=[0, 1, 5, 20, 50, 100])
        return figure

    return save(draw, path)


def mistakes(items: Sequence[Mistake], path: Path) -> Figure:
    """Draws the worst mistakes, the most confident first.

    Args:
        items: any number of them, in any order; 25 at most are drawn.
        path: the image file to write.

    Returns:
        The figure, as written.
    """
    worst = sorted(items, key=lambda item: -item.confidence)
    return _grid(worst, path, "Worst mistakes", "No mistakes: every image was put into its class.")


def predictions(items: Sequence[Prediction], path: Path) -> Figure:
    """Draws images with what the model said of them.

    Args:
        items: in the order to draw; the first 25 are.
        path: the image file to write.

    Returns:
        The figure, as written.
    """
    return _grid(items, path, "Predictions", "No images.")


def _grid(items: Sequence[Mistake | Prediction], path: Path, title: str, empty: str) -> Figure:
    items = items[:GRID]

    def draw() -> Figure:
        if not items:
            figure = Figure(figsize=(6, 2))
            figure.text(0.5, 0.5, empty, ha="center", va="center", fontsize=12)
            return figure
        columns = min(COLUMNS, len(items))
        rows = math.ceil(len(items) / columns)
        figure = Figure(figsize=(max(2.2 * columns, 4), 2.5 * rows + 0.4))
        figure.suptitle(title, fontsize=12, fontweight="bold")
        grid = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes in grid[len(items) :]:
            axes.axis("off")
        for axes, item in zip(grid, items, strict=False):
            axes.set(xticks=[], yticks=[], anchor="N")
            axes.spines[:].set_visible(False)
            image = item.image.convert("RGB")
            image.thumbnail((320, 320))
            small = max(image.size) < 160
            axes.imshow(np.asarray(image), interpolation="nearest" if small else "antialiased")
            axes.set_title(item.caption, fontsize=8.5, fontweight="normal", loc="center")
            axes.set_xlabel(short(item.id, 36), fontsize=7, color=GREY)
        return figure

    return save(draw, path)
