"""Decoders of label maps, whose pixels are class indices, and of binary masks, whose pixels are gray levels.

Shapes: a label map or mask has H x W pixels.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from .decode import MAX_PIXELS, UnreadableImage, load_upright, open_image

OBJECT_ABOVE = 128  # gray level above which a pixel of a binary mask is an object, as in the published metrics
_COLORFUL = 32  # difference of a pixel's channels from which it has a color; compression changes grays by less
_STRAIGHT = {"La": "LA", "RGBa": "RGBA"}  # premultiplied alpha
_NEW_SUBFILE_TYPE, _REDUCED_OR_MASK = 254, 0b101  # TIFF tag, and its bits for pages that belong to the main image


def decode_labels(path: Path, *, name: str, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.integer]:
    """Decode a label map to the values stored in it; EXIF orientation is applied.

    The values are the indices of a palette image (its colors and transparency have no meaning), 0 (black) and 1 (white)
    in a 1-bit image, and the numbers of a grayscale image of 2, 4, 8, 16 or 32 bits; floats must be integers.

    Args:
        path: Path of an image with one value per pixel; an alpha channel must be opaque.
        name: Name of the label map in error messages.
        max_pixels: Maximum width x height, as in :func:`smt_vision.data.decode.decode`.

    Returns:
        (H, W) array of uint8 or a wider integer type.

    Raises:
        UnreadableImage: The file cannot be decoded, has several channels or pages, or values that are not integers.
    """
    with open_image(path, name, max_pixels) as image:
        _check_one_page(image, name)
        factor, inverted = _stored_scale(image)
        if inverted:
            raise UnreadableImage(
                f"{name}: a grayscale image that stores white as 0 (WhiteIsZero), so its labels are ambiguous; save it "
                "with black as 0"
            )
        image = load_upright(image)
        if image.mode in ("LA", "PA") and image.getchannel("A").getextrema() == (255, 255):
            return np.asarray(image)[..., 0]
        if image.mode == "F":
            return _integers(np.asarray(image), name)
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
            raise UnreadableImage(f"{name}: {_several_channels(image)}")
        values = np.asarray(image)
        if image.mode == "1":
            return values.astype(np.uint8)
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
        UnreadableImage: The file cannot be decoded, has several pages, colors that are not bright, an alpha channel
            that shows another object, or values of an unknown range.
    """
    with open_image(path, name, max_pixels) as image:
        _check_one_page(image, name)
        factor, _ = _stored_scale(image)
        image = load_upright(image)
        if image.mode in _STRAIGHT:
            image = image.convert(_STRAIGHT[image.mode])
        gray = _gray(image, name)
        levels = _levels(gray / factor if gray.max(initial=0) <= factor else gray, name)
        if image.mode in ("LA", "PA", "RGBA"):
            alpha = np.asarray(image.getchannel("A"))
            varies = alpha.min(initial=255) != alpha.max(initial=0)
            if varies and ((alpha > OBJECT_ABOVE) != (levels > OBJECT_ABOVE)).any():
                raise UnreadableImage(
                    f"{name}: its gray values and its transparency show different objects; save the mask as a "
                    "grayscale image without an alpha channel"
                )
        return levels


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


def _stored_scale(image: Image.Image) -> tuple[float, bool]:
    """How Pillow changes the stored values of an image that is not loaded yet.

    Returns:
        The factor by which it multiplies them, where they have less than 8 bits or another maximum, and whether it
        inverts them.
    """
    tiles = getattr(image, "tile", [])
    if not tiles or image.mode not in ("L", "I"):
        return 1.0, False
    decoder, _, _, args = tiles[0]
    raw_mode, *more = args if isinstance(args, tuple) else (args,)
    if decoder in ("ppm", "ppm_plain"):
        return (255 if image.mode == "L" else 65535) / more[0], False
    if isinstance(raw_mode, str) and raw_mode.startswith("L;"):
        return {"2": 85.0, "4": 17.0}.get(raw_mode[2], 1.0), "I" in raw_mode
    return 1.0, False


def _integers(values: npt.NDArray[np.floating], name: str) -> npt.NDArray[np.int64]:
    invalid = ~((values == np.rint(values)) & (np.abs(values) < 2**31))  # true for NaN as well
    if invalid.any():
        raise UnreadableImage(
            f"{name}: a label map has integers, but this one has the value {values[invalid][0]:g}; save it as integers"
        )
    return values.astype(np.int64)


def _several_channels(image: Image.Image) -> str:
    """Why an image of several channels is not a label map."""
    text = f"a label map has one value per pixel, but this image has mode {image.mode}; "
    if image.mode in ("LA", "PA"):
        return f"{text}its alpha channel is not opaque; save it as a grayscale or palette image without transparency"
    channels = np.asarray(image)[..., :3]
    if image.mode.startswith("RGB") and (channels == channels[..., :1]).all():
        return f"{text}its channels are equal, so save one of them as a grayscale image"
    return f"{text}replace each color by its class index and save it as a grayscale or palette image"


def _gray(image: Image.Image, name: str) -> npt.NDArray[Any]:
    """Gray values of a mask."""
    if image.mode in ("1", "L", "F") or image.mode.startswith("I"):
        return np.asarray(image)
    if image.mode == "P":
        indices = np.asarray(image)
        if indices.max(initial=0) <= 1 and not any((image.getpalette("RGB") or [0, 0, 0])[:3]):
            return indices
    rgb = image.convert("RGB")
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
