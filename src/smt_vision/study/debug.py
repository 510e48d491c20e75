"""Tiny made-up datasets, on which studies of debug size are trained."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..recipe import Recipe

IMAGES = {"train": 24, "val": 12}  # per split
SIDE = 64  # pixels
COLORS = ((200, 60, 60), (60, 170, 90))


def write_debug_data(recipe: Recipe, folder: Path) -> Path:
    """Write a dataset for the recipe's task, unless it is there: discs and squares on noise.

    Args:
        recipe: A recipe of classification (folders of the two shapes) or segmentation (background and shapes).
        folder: Where the datasets of all tasks are written to.

    Returns:
        The folder of the dataset.

    Raises:
        ValueError: There is no such dataset for the task.
    """
    if recipe.task not in ("classify", "segment"):
        raise ValueError(f"there is no data of debug size for task {recipe.task!r}: expected 'classify' or 'segment'")
    path, rng = folder / recipe.task, np.random.default_rng(0)
    complete = path / ".complete"
    if not complete.exists():
        for split, count in IMAGES.items():
            for index in range(count):
                image, labels = _draw(rng, shape=index % 2)
                if recipe.task == "classify":
                    _save(image, path / split / ("disc", "square")[index % 2] / f"{index}.png")
                else:
                    _save(image, path / "images" / split / f"{index}.png")
                    _save(labels, path / "labels" / split / f"{index}.png")
        complete.touch()
    return path


def _draw(rng: np.random.Generator, shape: int) -> tuple[Image.Image, Image.Image]:
    """An image of one shape, and its label map: 0 for background, 1 for discs, 2 for squares."""
    image = Image.fromarray(rng.integers(0, 90, (SIDE, SIDE, 3), dtype=np.uint8))
    labels = Image.new("L", (SIDE, SIDE))
    size = int(rng.integers(16, 40))
    left, top = (int(n) for n in rng.integers(0, SIDE - size, 2))
    box = (left, top, left + size, top + size)
    for canvas, fill in ((image, COLORS[shape]), (labels, 1 + shape)):
        pen = ImageDraw.Draw(canvas)
        if shape:
            pen.rectangle(box, fill=fill)
        else:
            pen.ellipse(box, fill=fill)
    return image, labels


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
