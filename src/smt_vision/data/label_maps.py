"""Decoders of label maps, whose pixels are class indices, and of binary masks, whose pixels are gray levels.

Shapes: a label map or mask has H x W pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from .decode import MAX_PIXELS, UnreadableImage, load_upright, open_image, stores_white_as_0
from .stored import stored_scale

OBJECT_ABOVE = 128  # gray level above which a pixel of a binary mask is an object, as in the published metrics
_COLORFUL = 32  # difference of a pixel's channels from which it has a color; compression changes grays by less
_REPLACE_COLORS = "replace each color by its class index and save it as a grayscale or palette image"
_STRAIGHT = {"La": "LA", "RGBa": "RGBA"}  # premultiplied alpha
_NEW_SUBFILE_TYPE, _REDUCED_OR_MASK = 254, 0b101  # TIFF tag, and its bits for pages that belong to the main image


def decode_labels(
    path: Path, *, name: str, max_pixels: int = MAX_PIXELS, colors: Sequence[tuple[int, int, int]] | None = None
) -> npt.NDArray[np.integer]:
    """Decode a label map to the values stored in it; EXIF orientation is applied.

    The values are the indices of a palette image (its colors and transparency have no meaning), 0 (black) and 1 (white)
    in a 1-bit image, and the numbers of a grayscale image of 2, 4, 8, 16 or 32 bits, also if it is stored as RGB with
    three equal channels of 8 bits; floats must be integers.

    Args:
        path: Path of an image with one value per pixel; an alpha channel must be opaque.
        name: Name of the label map in error messages.
        max_pixels: Maximum width x height, as in :func:`smt_vision.data.decode.decode`.
        colors: Color of each class, where images of colors or with a palette show the classes by them.

    Returns:
        (H, W) array of uint8 or a wider integer type.

    Raises:
        UnreadableImage: The file cannot be decoded, has different channels, several pages, or values that are not
            integers.
    """
    with open_image(path, name, max_pixels) as image:
        _check_one_page(image, name)
        if image.mode != "1":
            _check_black_is_0(image, name)
        factor = stored_scale(image)
        image = load_upright(image)
        if colors is not None and image.mode in ("P", "PA", "RGB", "RGBA", "RGBX"):
            return _indices_of(np.asarray(image.convert("RGB")), colors, name)
        values = np.asarray(image)
        if image.mode in ("LA", "PA", "RGB", "RGBA", "RGBX"):
            return _equal_channels(image, name, factor)
        if image.mode == "F":
            return _integers(values, name)
        if image.mode == "1":
            return values.astype(np.uint8)
        if image.mode not in ("L", "P") and not image.mode.startswith("I"):
            raise UnreadableImage(f"{name}: a label map cannot have mode {image.mode}; {_REPLACE_COLORS}")
        return values if factor == 1 else np.rint(values / factor).astype(np.int64)


def decode_mask(path: Path, *, name: str, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Decode a binary mask to gray levels from 0 to 255, of which those above 128 are the object.

    Colors become gray as in Pillow's ``convert("L")``. A mask without values above 1 is multiplied by 255, one with
    values above 255 divided by 257. A palette image that has only the indices 0 and 1, of which 0 is black, is a mask
    of 0 and 1; in others the palette's colors count. EXIF orientation is applied.

    Args:
        path: Path of an image of any mode.
        name: Name of the mask in error messages.
        max_pixels: Maximum width x height, as in :func:`smt_vision.data.decode.decode`.

    Returns:
        (H, W) array.

    Raises:
        UnreadableImage: The file cannot be decoded, has several pages, colors that are not bright, transparency that
            shows another object, or values of an unknown range.
    """
    with open_image(path, name, max_pixels) as image:
        _check_one_page(image, name)
        if image.mode == "F" or image.mode.startswith("I"):
            _check_black_is_0(image, name)
        factor = stored_scale(image)
        image = load_upright(image)
        if image.mode in _STRAIGHT:
            image = image.convert(_STRAIGHT[image.mode])
        gray = _gray(image, name)
        if factor < 1 and not gray.any():
            raise UnreadableImage(
                f"{name}: a mask of mode {image.mode} with 16 bits per channel, of which Pillow reads only the upper "
                "8, and these are all 0; save it with 8 bits"
            )
        high = gray.max(initial=0)
        ones, whites = np.count_nonzero(gray == 1), np.count_nonzero(gray == 255)
        if 10 * ones > whites > 0 and np.isin(gray, (0, 1, 255)).all():  # a few ones are left from compression
            raise UnreadableImage(
                f"{name}: a mask with the values 1 and 255, so it is not clear whether 1 is an object, or 255; save it "
                "as 0 and 255 (if 1 is an object and 255 is to be ignored, use --segment.kind classes with two classes)"
            )
        levels = _levels(gray / factor if high <= factor else gray, name)
        if image.mode in ("LA", "PA", "RGBA", "P") and image.has_transparency_data:
            alpha = np.asarray(image.convert("RGBA").getchannel("A")).astype(np.int64)
            varies = alpha.min() != alpha.max()
            if varies and ((255 * alpha > OBJECT_ABOVE * alpha.max()) != (levels > OBJECT_ABOVE)).any():
                raise UnreadableImage(
                    f"{name}: its gray values and its transparency show different objects; save the mask as a "
                    "grayscale image without transparency"
                )
        return levels


def _indices_of(
    pixels: npt.NDArray[np.uint8], colors: Sequence[tuple[int, int, int]], name: str
) -> npt.NDArray[np.int64]:
    """The index of each pixel's color."""
    weights = np.array([1 << 16, 1 << 8, 1])
    known = np.array(colors) @ weights
    order = np.argsort(known)
    packed = pixels.astype(np.int64) @ weights
    places = np.minimum(np.searchsorted(known, packed, sorter=order), len(known) - 1)
    indices: npt.NDArray[np.int64] = order[places]
    wrong = known[indices] != packed
    if wrong.any():
        color = tuple(pixels[wrong][0].tolist())
        raise UnreadableImage(f"{name}: {int(wrong.sum())} pixels have other colors than the classes, e.g. {color}")
    return indices


def _check_one_page(image: Image.Image, name: str) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        frames -= sum(_belongs_to_main_image(image, i) for i in range(1, frames))
        image.seek(0)
    if frames > 1:
        raise UnreadableImage(f"{name}: {frames} pages or frames; expected one, so save the right one")


def _belongs_to_main_image(image: Image.Image, page: int) -> bool:
    """Whether a page of a TIFF file is a smaller copy or the transparency of the first page."""
    image.seek(page)
    return bool(getattr(image, "tag_v2", {}).get(_NEW_SUBFILE_TYPE, 0) & _REDUCED_OR_MASK)


def _check_black_is_0(image: Image.Image, name: str) -> None:
    if stores_white_as_0(image):
        raise UnreadableImage(
            f"{name}: a grayscale image that stores white as 0 (WhiteIsZero), so its values are ambiguous; save it "
            "with black as 0"
        )


def _equal_channels(image: Image.Image, name: str, factor: float) -> npt.NDArray[np.uint8]:
    """The values of an image whose channels are equal, and whose alpha channel, if it has one, is opaque."""
    alpha = image.mode.endswith("A")
    channels = np.asarray(image)[..., : 3 if image.mode.startswith("RGB") else 1]
    text = f"{name}: a label map has one value per pixel, but this image has mode {image.mode}; "
    if (channels != channels[..., :1]).any():
        raise UnreadableImage(f"{text}{_REPLACE_COLORS}")
    if alpha and image.getchannel("A").getextrema() != (255, 255):
        raise UnreadableImage(
            f"{text}its alpha channel is not opaque; save it as a grayscale or palette image without transparency"
        )
    if factor != 1:
        raise UnreadableImage(f"{text}its channels do not have 8 bits; save one of them as a grayscale image")
    return channels[..., 0]


def _integers(values: npt.NDArray[np.floating], name: str) -> npt.NDArray[np.int64]:
    invalid = ~((values == np.rint(values)) & (np.abs(values) < 2**31))  # true for NaN as well
    if invalid.any():
        raise UnreadableImage(
            f"{name}: a label map has integers, but this one has the value {values[invalid][0]:g}; save it as integers"
        )
    return values.astype(np.int64)


def _gray(image: Image.Image, name: str) -> npt.NDArray[Any]:
    """Gray values of a mask."""
    if image.mode in ("1", "L", "F") or image.mode.startswith("I"):
        return np.asarray(image)
    if image.mode == "P":
        indices = np.asarray(image)
        if indices.max(initial=0) <= 1 and not any((image.getpalette("RGB") or [0, 0, 0])[:3]):
            return indices
    # Pillow warns of palettes with alpha values unless their images are converted to RGBA.
    rgb = (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")
    gray, channels = np.asarray(rgb.convert("L")), np.asarray(rgb)
    unclear = (channels.max(axis=2) - channels.min(axis=2) >= _COLORFUL) & (gray <= OBJECT_ABOVE)
    if unclear.any():
        color = tuple(channels[unclear][0].tolist())
        raise UnreadableImage(
            f"{name}: a mask of mode {image.mode} with the color {color}, whose gray value {gray[unclear][0]} is not "
            f"above {OBJECT_ABOVE}, so it is not clear whether it is an object; save the mask as a grayscale image of "
            "0 and 255"
        )
    return gray


def _levels(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    """Gray levels 0 to 255 of values that span 0 to 1, 0 to 255 or 0 to 65535."""
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if not 0 <= low <= high <= 65535 or 255 < high <= 257 * OBJECT_ABOVE:
        raise UnreadableImage(
            f"{name}: a mask with values from {low:g} to {high:g}; expected 0 and 1, 0 to 255, or 0 to 65535"
        )
    if high <= 1:
        return np.rint(255 * values.astype(np.float64)).astype(np.uint8)
    return np.rint(values / 257 if high > 255 else values).astype(np.uint8)
