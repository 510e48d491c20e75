"""The image decoder: any file that Pillow reads, to 8-bit RGB or grayscale, or to the class indices of a label map."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ..recipe import Input

MAX_PIXELS = 178_956_970  # Pillow's own limit: about 0.5 GB of decoded RGB
_MODES: dict[int, Literal["L", "RGB"]] = {1: "L", 3: "RGB"}


class UnreadableImage(ValueError):
    """Raised for an image that cannot be decoded; the message names the file and the reason."""


@contextlib.contextmanager
def _opened(data: bytes | Path, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """Open a file with Pillow and check its size; every error becomes UnreadableImage."""
    try:
        with warnings.catch_warnings():
            # max_pixels is the limit; Pillow's warning at half of its own would only be noise for large photographs.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
        with image:
            width, height = image.size
            if width * height > max_pixels:
                raise UnreadableImage(f"{name}: {width} x {height} pixels, more than max_pixels={max_pixels}")
            yield image
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # Pillow's readers can raise almost any exception on a damaged file
        raise UnreadableImage(f"{name}: {_reason(data, error)}") from error


def decode(
    data: bytes | Path | Image.Image, channels: Literal[1, 3], *, name: str, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode an image to 8 bits per channel.

    EXIF orientation is applied. Transparent pixels are blended onto white. 16-bit grayscale is divided by 257, not
    clipped. The first frame of an animation is used. For plain RGB the result is bitwise equal to
    ``Image.open(...).convert("RGB")``.

    Args:
        data: Content of an image file, its path, or a decoded image.
        channels: 3 for RGB, 1 for grayscale.
        name: Name of the image in error messages.
        max_pixels: Maximum width x height, checked before any pixel is decoded. Pillow never accepts more than
            178,956,970.

    Returns:
        An image of mode ``RGB`` or ``L``.

    Raises:
        UnreadableImage: If the data is not an image, is truncated or too large, or its pixel format has no
            standard range.
    """
    if channels not in _MODES:
        raise ValueError(f"invalid channels={channels!r}: expected 1 (gray) or 3 (RGB)")
    if isinstance(data, Image.Image):
        return _to_mode(data, _MODES[channels], name)
    with _opened(data, name, max_pixels) as image:
        image.load()
        with contextlib.suppress(Exception):  # damaged metadata must not make valid pixels unreadable
            ImageOps.exif_transpose(image, in_place=True)
        return _to_mode(image, _MODES[channels], name)


def decode_labels(path: Path, *, name: str, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.integer]:
    """Decode a label map: an image whose pixel values are class indices, not colors.

    Args:
        path: Path of a single-channel image of 8 or 16 bits, or of a palette image whose indices are the labels.
        name: Name of the label map in error messages.
        max_pixels: Maximum width x height, as in :func:`decode`.

    Returns:
        (H, W) array of uint8 or a wider integer type, as stored.

    Raises:
        UnreadableImage: If the file cannot be decoded or has several channels.
    """
    with _opened(path, name, max_pixels) as image:
        if image.mode == "1":
            image = image.convert("L")
        if image.mode not in ("L", "P") and not image.mode.startswith("I"):
            raise UnreadableImage(
                f"{name}: a label map has one value per pixel, but this image has mode {image.mode}; save it as a "
                "grayscale or palette image whose values are the labels"
            )
        return np.asarray(image)


def _to_mode(image: Image.Image, mode: Literal["L", "RGB"], name: str) -> Image.Image:
    if image.mode.startswith("I"):
        image = _from_16_bit(image, name)
    elif image.mode == "F":
        raise UnreadableImage(f"{name}: floating-point pixels have no standard range; save the image with 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, (255, 255, 255))
        image.paste(rgba, mask=rgba.getchannel("A"))
    return image if image.mode == mode else image.convert(mode)  # convert() copies even if the mode is the same


def _from_16_bit(image: Image.Image, name: str) -> Image.Image:
    # Pillow's own conversion clips at 255, which turns most 16-bit images white.
    pixels = np.asarray(image).astype(np.int64)
    if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
        raise UnreadableImage(
            f"{name}: integer pixels from {pixels.min()} to {pixels.max()}, outside 16 bits (0 to 65535); "
            "save the image with 8 or 16 bits"
        )
    return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))


def _reason(data: bytes | Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, Image.UnidentifiedImageError):
        length = len(data) if isinstance(data, bytes) else data.stat().st_size
        return "an empty file" if length == 0 else f"not an image that Pillow can read ({length} bytes)"
    return f"{error} ({type(error).__name__})"


def channels_of(input: Input) -> Literal[1, 3]:
    """Return the number of input channels in the form that :func:`decode` expects."""
    return 1 if input.channels == 1 else 3  # the transforms have rejected any other number
