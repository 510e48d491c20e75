"""Drawing of label maps on an image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ...pictures.drawing import BACKGROUND, class_color, resize_long_side, with_legend
from .config import IGNORE_INDEX

PIXELS = 1 << 20  # drawn at a time, which limits the memory


def draw_label_map(
    image: Image.Image,
    label: Any,
    classes: Sequence[str],
    *,
    opacity: float = 0.65,
    legend: bool = True,
    side: int | None = None,
) -> Image.Image:
    """Draw each pixel's class over an image; pixels labeled 255 stay as they are.

    Args:
        image: Image of any mode; it is not modified.
        label: ``(H, W)`` class indices at the size of the image: an array or a CPU tensor.
        classes: Class names by class index.
        opacity: Opacity of the class colors; 1 hides the image.
        legend: Add a legend of the classes that occur below the picture.
        side: Long side of the picture in pixels; ``None`` keeps the image size.

    Raises:
        ValueError: The label map differs in size from the image.
    """
    values = np.asarray(label)
    if values.shape != image.size[::-1]:
        raise ValueError(f"invalid label map of shape {values.shape}: expected ({image.height}, {image.width})")
    colors = np.array([class_color(k) for k in range(len(classes))] + [BACKGROUND], dtype=np.float64)
    pixels = np.array(image.convert("RGB"))
    found: set[int] = set()
    rows = max(1, PIXELS // image.width)
    for top in range(0, image.height, rows):
        part, labels = pixels[top : top + rows], values[top : top + rows]
        known = labels != IGNORE_INDEX
        blended = (1 - opacity) * part + opacity * colors[np.where(known, labels, len(classes))]
        part[known] = blended[known].round().astype(np.uint8)
        found.update(np.unique(labels[known]).tolist())
    canvas, _ = resize_long_side(Image.fromarray(pixels), side)
    return with_legend(canvas, found, classes) if legend else canvas
