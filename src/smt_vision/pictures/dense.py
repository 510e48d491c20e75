"""Pictures of what a detector or a segmenter says: boxes, masks and label maps drawn over an image.

Drawn on Pillow images at the image's own size, so that they can be looked at pixel for pixel. A class has the same
colour in every picture.
"""

import colorsys
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from ..recipes import IGNORED
from .style import short

FILL = 0.45  # opacity of a mask
# Of the first classes: apart from each other in hue and lightness. Further ones go round the colour circle.
PALETTE = (
    (230, 75, 53), (60, 120, 216), (60, 170, 90), (240, 180, 30), (150, 90, 200), (40, 185, 200),
    (225, 110, 180), (140, 95, 60), (165, 200, 60), (110, 120, 135), (20, 60, 120), (120, 20, 50),
)  # fmt: skip
GOLDEN = 0.618034  # of the circle, from one colour to the next: no two of a hundred come close
INK, PAPER, PALE = (27, 36, 48), (255, 255, 255), (102, 111, 122)
GAP, TEXT = 6, 13  # pixels between the panels of a grid, and of its text


def class_colour(index: int) -> tuple[int, int, int]:
    """RGB of a class, the same wherever it is drawn."""
    if index < len(PALETTE):
        return PALETTE[index]
    turn = index - len(PALETTE)
    r, g, b = colorsys.hsv_to_rgb(turn * GOLDEN % 1, (0.85, 0.5, 0.65)[turn % 3], (0.9, 0.8, 0.55)[turn % 3])
    return round(255 * r), round(255 * g), round(255 * b)


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
    its colour tells the class. Of a single class the score alone is written.

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
    canvas, scale = _resized(image.convert("RGB"), side)
    order = range(len(boxes)) if certain is None else np.argsort(certain, kind="stable").tolist()
    if shapes is not None:
        canvas = _with_masks(canvas, [shapes[i] for i in order], [class_colour(labels[i]) for i in order])
    pen, width = ImageDraw.Draw(canvas), _line(canvas)
    for i in order:
        x0, y0, x1, y1 = boxes[i] * scale
        corners = (x0, y0, max(x1 - 1, x0), max(y1 - 1, y0))  # a box ends before its last coordinate
        pen.rectangle(corners, outline=class_colour(labels[i]), width=1 if shapes is not None else width)
    taken: list[tuple[float, float, float, float]] = []
    for i in reversed(order):
        words = [short(classes[labels[i]])] if len(classes) > 1 else []
        words += [f"{certain[i]:.2f}"] if certain is not None else []
        if words:
            _tag(pen, canvas.size, boxes[i] * scale, " ".join(words), class_colour(labels[i]), taken)
    return with_legend(canvas, labels.tolist(), classes) if legend else canvas


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
        opacity: of the colours; 1 hides the image.
        legend: put the classes that occur beneath the picture.
        side: resize the picture first, so that its long side has so many pixels.

    Raises:
        ValueError: the label map is not of the image's size.
    """
    values = np.asarray(label)
    if values.shape != image.size[::-1]:
        raise ValueError(f"the label map is {values.shape}; of this image it must be ({image.height}, {image.width})")
    known = values != IGNORED
    table = np.array([class_colour(k) for k in range(len(classes))] + [PAPER], dtype=np.float64)
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    painted = (1 - opacity) * pixels + opacity * table[np.where(known, values, len(classes))]
    canvas, _ = _resized(Image.fromarray(np.where(known[..., None], painted, pixels).round().astype(np.uint8)), side)
    return with_legend(canvas, np.unique(values[known]).tolist(), classes) if legend else canvas


def with_legend(
    image: Image.Image, labels: Iterable[int], classes: Sequence[str], size: int | None = None
) -> Image.Image:
    """The image with the classes of ``labels`` in their colours beneath it, in the order of their indices.

    Args:
        image: RGB.
        labels: any number of times each.
        classes: names, by index.
        size: of the text, in pixels; by default as it fits an image of this size.
    """
    shown = sorted(set(labels))
    if not shown:
        return image
    font = _font(size or _text_size(image.size))
    square, pad = round(0.9 * font.size), round(0.5 * font.size)
    places: list[tuple[int, int, int]] = []  # class, x, row
    x = row = 0
    for k in shown:
        needed = 3 * pad + square + round(font.getlength(short(classes[k])))
        if x and x + needed > image.width:
            x, row = 0, row + 1
        places.append((k, x, row))
        x += needed
    height = round(1.6 * font.size)
    out = Image.new("RGB", (image.width, image.height + pad + (row + 1) * height), PAPER)
    out.paste(image)
    pen = ImageDraw.Draw(out)
    for k, left, line in places:
        middle = image.height + pad // 2 + line * height + height / 2
        left += pad
        pen.rectangle((left, middle - square / 2, left + square, middle + square / 2), fill=class_colour(k))
        pen.text((left + square + pad, middle), short(classes[k]), fill=INK, font=font, anchor="lm")
    return out


def sample_grid(
    rows: Sequence[Sequence[Image.Image]],
    columns: Sequence[str],
    names: Sequence[str],
    labels: Iterable[int],
    classes: Sequence[str],
) -> Image.Image:
    """Panels in rows, one an image, with the columns' titles above, the images' names beneath and one legend.

    Args:
        rows: panels drawn without a legend; one for each column.
        columns: titles, as ``truth`` and ``prediction``.
        names: of the images, one a row.
        labels: classes that the legend names.
        classes: names, by index.
    """
    widths = [max(panel.width for panel in column) for column in zip(*rows, strict=True)]
    head, foot = round(1.8 * TEXT), round(1.6 * TEXT)
    heights = [max(panel.height for panel in row) + foot for row in rows]
    out = Image.new("RGB", (sum(widths) + GAP * (len(widths) + 1), head + sum(heights)), PAPER)
    pen = ImageDraw.Draw(out)
    lefts = [GAP + sum(widths[:i]) + GAP * i for i in range(len(widths))]
    for left, width, title in zip(lefts, widths, columns, strict=True):
        pen.text((left + width / 2, head / 2), title, fill=INK, font=_font(TEXT), anchor="mm")
    top = head
    for row, height, name in zip(rows, heights, names, strict=True):
        for left, width, panel in zip(lefts, widths, row, strict=True):
            out.paste(panel, (left + (width - panel.width) // 2, top))
        pen.text((GAP, top + height - foot / 2), short(name, 80), fill=PALE, font=_font(TEXT - 2), anchor="lm")
        top += height
    return with_legend(out, labels, classes, TEXT)


def _resized(image: Image.Image, side: int | None) -> tuple[Image.Image, float]:
    """The image with a long side of ``side`` pixels, and the factor; enlarged pixels stay sharp."""
    scale = 1.0 if side is None else side / max(image.size)
    if scale == 1.0:
        return image, 1.0
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS), scale


def _with_masks(
    image: Image.Image, masks: Sequence[np.ndarray], colours: Sequence[tuple[int, int, int]]
) -> Image.Image:
    """Masks filled in their colours, each with an outline, so that neighbours of one class stay apart."""
    pixels = np.asarray(image, dtype=np.float64).copy()
    for mask, colour in zip(masks, colours, strict=True):
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
        view[core] = (1 - FILL) * view[core] + FILL * np.array(colour)
        view[inside & ~core] = colour
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
    colour: tuple[int, int, int],
    taken: list[tuple[float, float, float, float]],
) -> None:
    """Writes a box's name on its colour, above the box or inside its upper edge, unless that covers another's.

    A box lower and narrower than two lines of text gets none.
    """
    font = _font(_text_size(size))
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
            pen.rectangle(place, fill=colour)
            dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 150
            pen.text((x + 2, y + height / 2), text, fill=INK if dark else PAPER, font=font, anchor="lm")
            taken.append(place)
            return


def _line(image: Image.Image) -> int:
    return max(2, round(max(image.size) / 400))


def _text_size(size: tuple[int, int]) -> int:
    """Points of the text on an image: legible on it, whatever its size."""
    return max(10, round(max(size) / 55))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib, so that a name with an accent is written right on any machine."""
    return ImageFont.truetype(findfont("DejaVu Sans"), size)
