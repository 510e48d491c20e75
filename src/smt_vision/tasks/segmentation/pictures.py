"""Label maps drawn over an image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ...pictures.drawing import BACKGROUND, class_color, resize_long_side, with_legend
from .config import IGNORE_INDEX


def draw_label_map(
    image: Image.Image,
    label: Any,
    classes: Sequence[str],
    *,
    opacity: float = 0.65,
    legend: bool = True,
    side: int | None = None,
) -> Image.Image:
    """Draws each pixel's class over the image; pixels labelled 255 stay as they are.

    Args:
        image: of any mode; it is not changed.
        label: (H, W) classes by index, of the image's size: an array or a tensor on the CPU.
        classes: names, by index.
        opacity: of the colors; 1 hides the image.
        legend: put the classes that occur beneath the picture.
        side: resize the picture first, so that its long side has so many pixels.

    Raises:
        ValueError: the label map is not of the image's size.
    """
    values = np.asarray(label)
    if values.shape != image.size[::-1]:
        raise ValueError(f"the label map is {values.shape}; of this image it must be ({image.height}, {image.width})")
    known = values != IGNORE_INDEX
    table = np.array([class_color(k) for k in range(len(classes))] + [BACKGROUND], dtype=np.float64)
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    painted = (1 - opacity) * pixels + opacity * table[np.where(known, values, len(classes))]
    canvas, _ = resize_long_side(
        Image.fromarray(np.where(known[..., None], painted, pixels).round().astype(np.uint8)), side
    )
    return with_legend(canvas, np.unique(values[known]).tolist(), classes) if legend else canvas
