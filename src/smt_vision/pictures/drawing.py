"""Pictures of what a detector or a segmenter says: boxes, masks and label maps drawn over an image.

Drawn on Pillow images at the image's own size, so that they can be looked at pixel for pixel. A class has the same
color in every picture.
"""

import colorsys
from collections.abc import Iterable, Sequence
from functools import cache

from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from .style import short

# Of the first classes: apart from each other in hue and lightness. Further ones go round the color circle.
PALETTE = (
    (230, 75, 53), (60, 120, 216), (60, 170, 90), (240, 180, 30), (150, 90, 200), (40, 185, 200),
    (225, 110, 180), (140, 95, 60), (165, 200, 60), (110, 120, 135), (20, 60, 120), (120, 20, 50),
)  # fmt: skip
GOLDEN = 0.618034  # of the circle, from one color to the next: no two of a hundred come close
INK, PAPER, PALE = (27, 36, 48), (255, 255, 255), (102, 111, 122)
GAP, TEXT = 6, 13  # pixels between the panels of a grid, and of its text


def class_color(index: int) -> tuple[int, int, int]:
    """RGB of a class, the same wherever it is drawn."""
    if index < len(PALETTE):
        return PALETTE[index]
    turn = index - len(PALETTE)
    r, g, b = colorsys.hsv_to_rgb(turn * GOLDEN % 1, (0.85, 0.5, 0.65)[turn % 3], (0.9, 0.8, 0.55)[turn % 3])
    return round(255 * r), round(255 * g), round(255 * b)


def with_legend(
    image: Image.Image, labels: Iterable[int], classes: Sequence[str], size: int | None = None
) -> Image.Image:
    """The image with the classes of ``labels`` in their colors beneath it, in the order of their indices.

    Args:
        image: RGB.
        labels: any number of times each.
        classes: names, by index.
        size: of the text, in pixels; by default as it fits an image of this size.
    """
    shown = sorted(set(labels))
    if not shown:
        return image
    font = font_of(size or text_size(image.size))
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
        pen.rectangle((left, middle - square / 2, left + square, middle + square / 2), fill=class_color(k))
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
        pen.text((left + width / 2, head / 2), title, fill=INK, font=font_of(TEXT), anchor="mm")
    top = head
    for row, height, name in zip(rows, heights, names, strict=True):
        for left, width, panel in zip(lefts, widths, row, strict=True):
            out.paste(panel, (left + (width - panel.width) // 2, top))
        pen.text((GAP, top + height - foot / 2), short(name, 80), fill=PALE, font=font_of(TEXT - 2), anchor="lm")
        top += height
    return with_legend(out, labels, classes, TEXT)


def resize_long_side(image: Image.Image, side: int | None) -> tuple[Image.Image, float]:
    """The image with a long side of ``side`` pixels, and the factor; enlarged pixels stay sharp."""
    scale = 1.0 if side is None else side / max(image.size)
    if scale == 1.0:
        return image, 1.0
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS), scale


def text_size(size: tuple[int, int]) -> int:
    """Points of the text on an image: legible on it, whatever its size."""
    return max(10, round(max(size) / 55))


@cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib, so that a name with an accent is written right on any machine."""
    return ImageFont.truetype(findfont("DejaVu Sans"), size)
