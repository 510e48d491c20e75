"""Boxes and masks drawn over an image."""

from collections.abc import Sequence
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
    masks: Any = None,
    *,
    classes: Sequence[str],
    legend: bool = True,
    side: int | None = None,
) -> Image.Image:
    """Draws boxes, and masks where there are any, each with its class and score.

    The most certain are drawn last, on top. The name of a small object, and one that would cover another, is left out:
    its color tells the class. Of a single class the score alone is written.

    Args:
        image: of any mode; it is not changed.
        boxes: (N, 4), left, top, right, bottom in pixels of the image: an array or a tensor on the CPU, as all here.
        labels: (N,) classes, by index.
        scores: (N,) in [0, 1]; ``None`` for the truth, whose names stand without a number.
        masks: (N, H, W) of the image's size, true inside.
        classes: names, by index.
        legend: put the classes that occur beneath the picture.
        side: resize the picture first, so that its long side has so many pixels.

    Raises:
        ValueError: the arrays are not of one length, or the masks not of the image's size.
    """
    boxes, labels = np.asarray(boxes, dtype=np.float64).reshape(-1, 4), np.asarray(labels, dtype=np.int64)
    certain = None if scores is None else np.asarray(scores, dtype=np.float64)
    shapes = None if masks is None else np.asarray(masks, dtype=bool)
    lengths = [len(values) for values in (boxes, labels, certain, shapes) if values is not None]
    if len(set(lengths)) > 1:
        raise ValueError(f"boxes, labels, scores and masks must be of one length; they are {lengths}")
    if shapes is not None and shapes.shape[1:] != image.size[::-1]:
        raise ValueError(f"masks are {shapes.shape}; of this image they must be (N, {image.height}, {image.width})")
    canvas, scale = resize_long_side(image.convert("RGB"), side)
    order = range(len(boxes)) if certain is None else np.argsort(certain, kind="stable").tolist()
    if shapes is not None:
        canvas = _with_masks(canvas, [shapes[i] for i in order], [class_color(labels[i]) for i in order])
    pen, width = ImageDraw.Draw(canvas), _line(canvas)
    for i in order:
        x0, y0, x1, y1 = boxes[i] * scale
        corners = (x0, y0, max(x1 - 1, x0), max(y1 - 1, y0))  # a box ends before its last coordinate
        pen.rectangle(corners, outline=class_color(labels[i]), width=1 if shapes is not None else width)
    taken: list[tuple[float, float, float, float]] = []
    for i in reversed(order):
        words = [short(classes[labels[i]])] if len(classes) > 1 else []
        words += [f"{certain[i]:.2f}"] if certain is not None else []
        if words:
            _tag(pen, canvas.size, boxes[i] * scale, " ".join(words), class_color(labels[i]), taken)
    return with_legend(canvas, labels.tolist(), classes) if legend else canvas


def _with_masks(image: Image.Image, masks: Sequence[np.ndarray], colors: Sequence[tuple[int, int, int]]) -> Image.Image:
    """Masks filled in their colors, each with an outline, so that neighbours of one class stay apart."""
    pixels = np.asarray(image, dtype=np.float64).copy()
    for mask, color in zip(masks, colors, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            continue
        # Only the mask's own rectangle is worked on: an image may have hundreds.
        top, bottom = _scaled(rows[0], rows[-1] + 1, image.height / mask.shape[0])
        left, right = _scaled(columns[0], columns[-1] + 1, image.width / mask.shape[1])
        part = Image.fromarray(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
        inside = np.asarray(part.resize((right - left, bottom - top), Image.Resampling.NEAREST))
        padded = np.pad(inside, 1)
        core = inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        view = pixels[top:bottom, left:right]
        view[core] = (1 - FILL) * view[core] + FILL * np.array(color)
        view[inside & ~core] = color
    return Image.fromarray(pixels.round().astype(np.uint8))


def _scaled(start: int, end: int, factor: float) -> tuple[int, int]:
    """A range of pixels after a resize; never empty."""
    first = round(start * factor)
    return first, max(round(end * factor), first + 1)


def _tag(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: np.ndarray,
    text: str,
    color: tuple[int, int, int],
    taken: list[tuple[float, float, float, float]],
) -> None:
    """Writes a box's name on its color, above the box or inside its upper edge, unless that covers another's.

    A box lower and narrower than two lines of text gets none.
    """
    font = load_font(text_size(size))
    width, height = font.getlength(text) + 4, 1.25 * font.size
    if max(box[2] - box[0], box[3] - box[1]) < 2 * height:
        return
    x = min(max(box[0], 0), max(size[0] - width, 0))
    for y in (box[1] - height, max(box[1], 0)):
        place = (x, y, x + width, y + height)
        if y >= 0 and not any(
            place[0] < right and left < place[2] and place[1] < bottom and top < place[3]
            for left, top, right, bottom in taken
        ):
            pen.rectangle(place, fill=color)
            dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 150
            pen.text((x + 2, y + height / 2), text, fill=TEXT_COLOR if dark else BACKGROUND, font=font, anchor="lm")
            taken.append(place)
            return


def _line(image: Image.Image) -> int:
    return max(2, round(max(image.size) / 400))
