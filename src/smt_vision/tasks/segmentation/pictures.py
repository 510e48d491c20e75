"""Drawing of label maps on an image."""

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
    known = values != IGNORE_INDEX
    colors = np.array([class_color(k) for k in range(len(classes))] + [BACKGROUND], dtype=np.float64)
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    blended = (1 - opacity) * pixels + opacity * colors[np.where(known, values, len(classes))]
    canvas, _ = resize_long_side(
        Image.fromarray(np.where(known[..., None], blended, pixels).round().astype(np.uint8)), side
    )
    return with_legend(canvas, np.unique(values[known]).tolist(), classes) if legend else canvas
