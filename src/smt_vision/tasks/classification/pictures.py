"""Pictures of a classifier's predictions and mistakes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ...pictures.style import GRAY, save, short

GRID = 25  # images in a grid, at most
COLUMNS = 5
CAPTION_LINES = 3
THUMBNAIL_SIDE = 320  # maximum side in pixels


@dataclass(frozen=True)
class LabeledImage:
    """An image with its prediction.

    Args:
        image: Original or preprocessed image.
        prediction: Name of the predicted class.
        score: Score of the predicted class, in [0, 1].
        id: Image id, e.g. its file name.
        labels: For a multi-label classifier, names and scores of the predicted classes, best first.
    """

    image: Image.Image
    prediction: str
    score: float
    id: str
    labels: tuple[tuple[str, float], ...] | None = None

    @property
    def caption(self) -> str:
        """Text above the image: up to three classes, each in a line."""
        labels = ((self.prediction, self.score),) if self.labels is None else self.labels
        lines = [f"{short(label)} ({100 * score:.0f} %)" for label, score in labels[:CAPTION_LINES]]
        if len(labels) > CAPTION_LINES:
            lines[-1] += f" + {len(labels) - CAPTION_LINES}"
        return "\n".join(lines) or "no class"


@dataclass(frozen=True)
class Mistake:
    """A misclassified image.

    Args:
        image: Original or preprocessed image.
        target: Name of the true class.
        prediction: Name of the predicted class.
        score: Score of the predicted class, in [0, 1].
        id: Image id, e.g. its file name.
    """

    image: Image.Image
    target: str
    prediction: str
    score: float
    id: str

    @property
    def caption(self) -> str:
        """Text above the image."""
        return f"predicted {short(self.prediction)} ({100 * self.score:.0f} %)\ntrue {short(self.target)}"


def mistakes(items: Sequence[Mistake], path: Path) -> Figure:
    """Draw the most confident mistakes, in order of decreasing score.

    Args:
        items: Mistakes in any order; the 25 with the highest scores are drawn.
        path: Path of the image file to write.

    Returns:
        The figure as written.
    """
    worst = sorted(items, key=lambda item: -item.score)
    return _grid(worst, path, "Worst mistakes", "No mistakes: all images are classified correctly.")


def predictions(items: Sequence[LabeledImage], path: Path) -> Figure:
    """Draw images with their predictions.

    Args:
        items: Images in the order to draw; only the first 25 are drawn.
        path: Path of the image file to write.

    Returns:
        The figure as written.
    """
    return _grid(items, path, "Predictions", "No images.")


def thumbnail(image: Image.Image) -> Image.Image:
    """A copy of an image of any mode in RGB, reduced to the size at which a grid shows it."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return small


def _grid(items: Sequence[Mistake | LabeledImage], path: Path, title: str, empty_text: str) -> Figure:
    items = items[:GRID]

    def draw() -> Figure:
        if not items:
            figure = Figure(figsize=(6, 2))
            figure.text(0.5, 0.5, empty_text, ha="center", va="center", fontsize=12)
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
            image = thumbnail(item.image)
            small = max(image.size) < 160
            axes.imshow(np.asarray(image), interpolation="nearest" if small else "antialiased")
            axes.set_title(item.caption, fontsize=8.5, fontweight="normal", loc="center")
            axes.set_xlabel(short(item.id, 36), fontsize=7, color=GRAY)
        return figure

    return save(draw, path)
