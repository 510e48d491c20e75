"""Drawing on images, for detection and segmentation: class colors, legends, grids of samples, text.

Pictures are Pillow images at the size of the original image, so that they can be inspected pixel by pixel. A class has
the same color in every picture.
"""

import colorsys
from collections.abc import Iterable, Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from .style import short

# Colors of the first classes, distinct in hue and lightness. Further colors are spaced around the color wheel.
PALETTE = (
    (230, 75, 53), (60, 120, 216), (60, 170, 90), (240, 180, 30), (150, 90, 200), (40, 185, 200),
    (225, 110, 180), (140, 95, 60), (165, 200, 60), (110, 120, 135), (20, 60, 120), (120, 20, 50),
)  # fmt: skip
GOLDEN_RATIO = 0.618034  # hue step in turns of the color wheel; keeps a hundred colors apart
TEXT_COLOR, BACKGROUND, MUTED = (27, 36, 48), (255, 255, 255), (102, 111, 122)
GAP, GRID_TEXT_SIZE = 6, 13  # pixels


def class_color(index: int) -> tuple[int, int, int]:
    """RGB color of a class index."""
    if index < len(PALETTE):
        return PALETTE[index]
    k = index - len(PALETTE)
    r, g, b = colorsys.hsv_to_rgb(k * GOLDEN_RATIO % 1, (0.85, 0.5, 0.65)[k % 3], (0.9, 0.8, 0.55)[k % 3])
    return round(255 * r), round(255 * g), round(255 * b)


def with_legend(
    image: Image.Image, labels: Iterable[int], classes: Sequence[str], size: int | None = None
) -> Image.Image:
    """Add a legend of classes below an image, in the order of class indices.

    Args:
        image: RGB image.
        labels: Class indices to list; duplicates are ignored.
        classes: Class names, in the order of class indices.
        size: Text size in pixels; by default it depends on the image size.

    Returns:
        The image with the legend, or the image itself if there are no labels.
    """
    class_ids = sorted(set(labels))
    if not class_ids:
        return image
    font = load_font(size or text_size(image.size))
    square, pad = round(0.9 * font.size), round(0.5 * font.size)
    positions: list[tuple[int, int, int]] = []  # class index, x, row
    x = row = 0
    for k in class_ids:
        width = 3 * pad + square + round(font.getlength(short(classes[k])))
        if x and x + width > image.width:
            x, row = 0, row + 1
        positions.append((k, x, row))
        x += width
    row_height = round(1.6 * font.size)
    out = Image.new("RGB", (image.width, image.height + pad + (row + 1) * row_height), BACKGROUND)
    out.paste(image)
    draw = ImageDraw.Draw(out)
    for k, x, row in positions:
        left = x + pad
        middle = image.height + pad // 2 + row * row_height + row_height / 2
        draw.rectangle((left, middle - square / 2, left + square, middle + square / 2), fill=class_color(k))
        draw.text((left + square + pad, middle), short(classes[k]), fill=TEXT_COLOR, font=font, anchor="lm")
    return out


def with_caption(image: Image.Image, text: str) -> Image.Image:
    """Write one line of text into the upper left corner of a copy of an RGB image."""
    out = image.copy()
    draw, font = ImageDraw.Draw(out), load_font(2 * text_size(image.size))
    pad = font.size // 4
    draw.rectangle((0, 0, font.getlength(text) + 2 * pad, 1.25 * font.size), fill=BACKGROUND)
    draw.text((pad, 0.625 * font.size), text, fill=TEXT_COLOR, font=font, anchor="lm")
    return out


def sample_grid(
    rows: Sequence[Sequence[Image.Image]],
    columns: Sequence[str],
    names: Sequence[str],
    labels: Iterable[int],
    classes: Sequence[str],
) -> Image.Image:
    """Arrange panels in a grid with one row per image, column titles, image names and a common legend.

    Args:
        rows: Panels of each image, one per column, without legends.
        columns: Column titles, e.g. ``truth`` and ``prediction``.
        names: Image names, one per row.
        labels: Class indices in the legend.
        classes: Class names, in the order of class indices.
    """
    widths = [max(panel.width for panel in column) for column in zip(*rows, strict=True)]
    header, footer = round(1.8 * GRID_TEXT_SIZE), round(1.6 * GRID_TEXT_SIZE)
    heights = [max(panel.height for panel in row) + footer for row in rows]
    out = Image.new("RGB", (sum(widths) + GAP * (len(widths) + 1), header + sum(heights)), BACKGROUND)
    draw = ImageDraw.Draw(out)
    title_font, name_font = load_font(GRID_TEXT_SIZE), load_font(GRID_TEXT_SIZE - 2)
    lefts = [GAP + sum(widths[:i]) + GAP * i for i in range(len(widths))]
    for left, width, title in zip(lefts, widths, columns, strict=True):
        draw.text((left + width / 2, header / 2), title, fill=TEXT_COLOR, font=title_font, anchor="mm")
    top = header
    for row, height, name in zip(rows, heights, names, strict=True):
        for left, width, panel in zip(lefts, widths, row, strict=True):
            out.paste(panel, (left + (width - panel.width) // 2, top))
        draw.text((GAP, top + height - footer / 2), short(name, 80), fill=MUTED, font=name_font, anchor="lm")
        top += height
    return with_legend(out, labels, classes, GRID_TEXT_SIZE)


def resize_long_side(image: Image.Image, side: int | None) -> tuple[Image.Image, float]:
    """Resize an image to a long side of ``side`` pixels, with sharp pixels if enlarged.

    Args:
        image: Image to resize.
        side: Long side in pixels; ``None`` keeps the size.

    Returns:
        The resized image, and the scale factor.
    """
    scale = 1.0 if side is None else side / max(image.size)
    if scale == 1.0:
        return image, 1.0
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS), scale


def text_size(size: tuple[int, int]) -> int:
    """Text size in pixels that is legible on an image of size (width, height)."""
    return max(10, round(max(size) / 55))


@cache
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans, which ships with matplotlib and has accented letters, at a size in pixels."""
    from matplotlib.font_manager import findfont  # imported late: slow, and prediction loads this module

    return ImageFont.truetype(findfont("DejaVu Sans"), size)
