"""The one decoder of images: any file that Pillow reads, to 8-bit RGB or grey, or to the numbers of a label map."""

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

MAX_PIXELS = 178_956_970  # Pillow's own limit: a decoded RGB image of half a gigabyte
_MODES: dict[int, Literal["L", "RGB"]] = {1: "L", 3: "RGB"}


class UnreadableImage(ValueError):
    """An image that cannot be decoded; the message names the file and the reason."""


@contextlib.contextmanager
def _opened(data: bytes | Path, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """A file opened by Pillow, once its size is known to be bounded; every error becomes UnreadableImage."""
    try:
        with warnings.catch_warnings():
            # Our own limit decides; Pillow's warning at half of it would be noise for each large photograph.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
        with image:
            width, height = image.size
            if width * height > max_pixels:
                raise UnreadableImage(f"{name}: {width} x {height} pixels, more than max_pixels={max_pixels}")
            yield image
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # a damaged file can make Pillow's readers raise nearly anything
        raise UnreadableImage(f"{name}: {_reason(data, error)}") from error


def decode(
    data: bytes | Path | Image.Image, channels: Literal[1, 3], *, name: str, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode an image to 8 bits a channel.

    EXIF orientation is applied; transparency is laid over white; 16-bit grey is divided by 257, not clipped; the
    first frame of an animation is taken. Plain RGB equals ``Image.open(...).convert("RGB")`` to the bit.

    Args:
        data: an encoded file's bytes, its path, or an image that is decoded already.
        channels: 3 for RGB, 1 for grey.
        name: what errors call the image.
        max_pixels: largest width x height accepted, checked before any pixel is decoded. Pillow refuses more than
            178,956,970 whatever this says.

    Returns:
        An image of mode ``RGB`` or ``L``.

    Raises:
        UnreadableImage: not an image, truncated, too large, or of a pixel format with no agreed range.
    """
    if channels not in _MODES:
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), not {channels!r}")
    if isinstance(data, Image.Image):
        return _to_mode(data, _MODES[channels], name)
    with _opened(data, name, max_pixels) as image:
        image.load()
        with contextlib.suppress(Exception):  # damaged metadata does not make good pixels unreadable
            ImageOps.exif_transpose(image, in_place=True)
        return _to_mode(image, _MODES[channels], name)


def decode_labels(path: Path, *, name: str, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.integer]:
    """Decode a label map: an image whose pixels are numbers, not colors.

    Args:
        path: of one channel: 8 or 16 bits, or a palette, whose indices are then the labels.
        name: what errors call the map.
        max_pixels: as in :func:`decode`.

    Returns:
        (H, W), uint8 or a wider integer, as stored.

    Raises:
        UnreadableImage: unreadable, or of several channels.
    """
    with _opened(path, name, max_pixels) as image:
        if image.mode == "1":
            image = image.convert("L")
        if image.mode not in ("L", "P") and not image.mode.startswith("I"):
            raise UnreadableImage(
                f"{name}: a label map has one number a pixel, this has mode {image.mode}; save it as grey or palette "
                "image whose values are the labels"
            )
        return np.asarray(image)


def _to_mode(image: Image.Image, mode: Literal["L", "RGB"], name: str) -> Image.Image:
    if image.mode.startswith("I"):
        image = _from_16_bit(image, name)
    elif image.mode == "F":
        raise UnreadableImage(f"{name}: floating-point pixels have no agreed range; save the image with 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, (255, 255, 255))
        image.paste(rgba, mask=rgba.getchannel("A"))
    return image if image.mode == mode else image.convert(mode)  # to convert to the same mode is to copy


def _from_16_bit(image: Image.Image, name: str) -> Image.Image:
    # Pillow's own conversion clips at 255, which turns nearly every 16-bit image white.
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
        return "an empty file" if length == 0 else f"not an image that Pillow knows ({length} bytes)"
    return f"{error} ({type(error).__name__})"


def channels_of(input: Input) -> Literal[1, 3]:
    """The input's number of channels as :func:`smt_vision.data.decode.decode` takes it."""
    return 1 if input.channels == 1 else 3  # any other number has been refused by the transform
