"""Drawing of boxes and masks on an image."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ...pictures.drawing import BACKGROUND, TEXT_COLOR, class_color, load_font, resize_long_side, text_size, with_legend
from ...pictures.style import short

FILL = 0.45  # opacity of a mask


def draw_detections(
    image: Image.Image,
    boxes: Any,
    labels: Any,
    scores: Any = None,
    masks: Sequence[Any] | None = None,
    *,
    classes: Sequence[str],
    legend: bool = True,
    side: int | None = None,
) -> Image.Image:
    """Draw boxes, and masks if given, each with its class and score.

    Objects with the highest scores are drawn last, on top. The label of a small object is omitted, like a label that
    would overlap another: the color shows the class. With a single class, only the score is written.

    Args:
        image: Image of any mode; it is not modified.
        boxes: Boxes (N, 4), ``(x1, y1, x2, y2)`` in pixels of the image. Like labels, scores and masks, an array or a
            tensor on the CPU.
        labels: Class indices (N,).
        scores: Scores (N,) in [0, 1]; ``None`` for ground truth, which is labeled without a score.
        masks: Masks (H, W) of the image's size, true inside the object; each is read once.
        classes: Class names, by class index.
        legend: Whether to add a legend of the classes below the image.
        side: Long side in pixels to which the image is resized first.

    Raises:
        ValueError: The arrays differ in length, or the masks do not have the image's size.
    """
    boxes, labels = np.asarray(boxes, dtype=np.float64).reshape(-1, 4), np.asarray(labels, dtype=np.int64)
    scores = None if scores is None else np.asarray(scores, dtype=np.float64)
    lengths = [len(values) for values in (boxes, labels, scores, masks) if values is not None]
    if len(set(lengths)) > 1:
        raise ValueError(f"boxes, labels, scores and masks must have the same length, got {lengths}")
    canvas, scale = resize_long_side(image.convert("RGB"), side)
    order = range(len(boxes)) if scores is None else np.argsort(scores, kind="stable").tolist()
    if masks is not None:
        colored = ((np.asarray(masks[i], dtype=bool), class_color(labels[i])) for i in order)
        canvas = _with_masks(canvas, colored, image.size[::-1])
    draw, width = ImageDraw.Draw(canvas), _line_width(canvas)
    for i in order:
        x0, y0, x1, y1 = boxes[i] * scale
        corners = (x0, y0, max(x1 - 1, x0), max(y1 - 1, y0))  # x2 and y2 are exclusive, Pillow's corners inclusive
        draw.rectangle(corners, outline=class_color(labels[i]), width=width if masks is None else 1)
    taken: list[tuple[float, float, float, float]] = []
    for i in reversed(order):
        parts = [short(classes[labels[i]])] if len(classes) > 1 else []
        parts += [f"{scores[i]:.2f}"] if scores is not None else []
        if parts:
            _draw_label(draw, canvas.size, boxes[i] * scale, " ".join(parts), class_color(labels[i]), taken)
    return with_legend(canvas, labels.tolist(), classes) if legend else canvas


def _with_masks(
    image: Image.Image, masks: Iterable[tuple[np.ndarray, tuple[int, int, int]]], size: tuple[int, int]
) -> Image.Image:
    """Blend masks (H, W) in their colors, each with an outline that separates adjacent objects of one class."""
    pixels = np.array(image)
    for mask, color in masks:
        if mask.shape != size:
            raise ValueError(f"invalid mask of shape {mask.shape}: expected {size}, as the image")
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            continue
        # Only the mask's bounding rectangle is processed: an image may have hundreds of masks.
        top, bottom = _scaled(rows[0], rows[-1] + 1, image.height / mask.shape[0])
        left, right = _scaled(columns[0], columns[-1] + 1, image.width / mask.shape[1])
        crop = Image.fromarray(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
        inside = np.asarray(crop.resize((right - left, bottom - top), Image.Resampling.NEAREST))
        padded = np.pad(inside, 1)
        core = inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        target = pixels[top:bottom, left:right]
        target[core] = ((1 - FILL) * target[core] + FILL * np.array(color)).round()
        target[inside & ~core] = color
    return Image.fromarray(pixels)


def _scaled(start: int, end: int, factor: float) -> tuple[int, int]:
    """A pixel range after resizing; never empty."""
    first = round(start * factor)
    return first, max(round(end * factor), first + 1)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: np.ndarray,
    text: str,
    color: tuple[int, int, int],
    taken: list[tuple[float, float, float, float]],
) -> None:
    """Write a box's label on its color, above the box or inside its upper edge, unless it would overlap another label.

    A box whose sides are both shorter than two lines of text gets no label. ``taken`` has the rectangles of the labels.
    """
    font = load_font(text_size(size))
    width, height = font.getlength(text) + 4, 1.25 * font.size
    if max(box[2] - box[0], box[3] - box[1]) < 2 * height:
        return
    x = min(max(box[0], 0), max(size[0] - width, 0))
    for y in (box[1] - height, max(box[1], 0)):
        rectangle = (x, y, x + width, y + height)
        if y >= 0 and not any(
            rectangle[0] < right and left < rectangle[2] and rectangle[1] < bottom and top < rectangle[3]
            for left, top, right, bottom in taken
        ):
            draw.rectangle(rectangle, fill=color)
            bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 150
            draw.text((x + 2, y + height / 2), text, fill=TEXT_COLOR if bright else BACKGROUND, font=font, anchor="lm")
            taken.append(rectangle)
            return


def _line_width(image: Image.Image) -> int:
    """Width in pixels of a box's outline."""
    return max(2, round(max(image.size) / 400))
