"""Pictures of a classifier: confusions, worst mistakes, predictions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ...pictures.style import GREY, save, short

GRID = 25  # images of a grid
COLUMNS = 5


@dataclass(frozen=True)
class LabeledImage:
    """What the model said of an image.

    Args:
        image: as read, or as the model saw it.
        prediction: name of the most probable class.
        score: its probability, in [0, 1].
        id: of the image, as its file.
    """

    image: Image.Image
    prediction: str
    score: float
    id: str

    @property
    def caption(self) -> str:
        """What is written above the image."""
        return f"{short(self.prediction)} ({100 * self.score:.0f} %)"


@dataclass(frozen=True)
class Mistake:
    """An image that the model put into the wrong class.

    Args:
        image: as read, or as the model saw it.
        target: name of the true class.
        prediction: name of the class it was put into.
        score: the probability given to that class, in [0, 1].
        id: of the image, as its file.
    """

    image: Image.Image
    target: str
    prediction: str
    score: float
    id: str

    @property
    def caption(self) -> str:
        """What is written above the image."""
        return f"said {short(self.prediction)} ({100 * self.score:.0f} %),\nis {short(self.target)}"


def mistakes(items: Sequence[Mistake], path: Path) -> Figure:
    """Draws the worst mistakes, the most confident first.

    Args:
        items: any number of them, in any order; 25 at most are drawn.
        path: the image file to write.

    Returns:
        The figure, as written.
    """
    worst = sorted(items, key=lambda item: -item.score)
    return _grid(worst, path, "Worst mistakes", "No mistakes: every image was put into its class.")


def predictions(items: Sequence[LabeledImage], path: Path) -> Figure:
    """Draws images with what the model said of them.

    Args:
        items: in the order to draw; the first 25 are.
        path: the image file to write.

    Returns:
        The figure, as written.
    """
    return _grid(items, path, "Predictions", "No images.")


def _grid(items: Sequence[Mistake | LabeledImage], path: Path, title: str, empty: str) -> Figure:
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
