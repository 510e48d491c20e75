"""The image decoder: files of the formats that are read, and any image in memory, to 8-bit RGB or gray, or bands."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageFile
from torch import Tensor

from ..recipe import Input
from ..text import printable
from .bands import TIFF_MAGIC, bands_to_picture, bands_to_tensor, has_arrays, is_numpy, pillow_array, read_array
from .files import FORMATS, image_formats

MAX_PIXELS = 178_956_970  # Pillow's own limit: about 0.5 GB of decoded RGB
_EXPECTED = f"expected one of {', '.join(FORMATS)}; convert it, e.g. to PNG"
_MODES: dict[int, Literal["L", "RGB"]] = {1: "L", 3: "RGB"}
_TRANSPOSE = Image.Transpose
_UPRIGHT = {  # by EXIF orientation: what turns the stored pixels upright
    2: _TRANSPOSE.FLIP_LEFT_RIGHT,
    3: _TRANSPOSE.ROTATE_180,
    4: _TRANSPOSE.FLIP_TOP_BOTTOM,
    5: _TRANSPOSE.TRANSPOSE,
    6: _TRANSPOSE.ROTATE_270,
    7: _TRANSPOSE.TRANSVERSE,
    8: _TRANSPOSE.ROTATE_90,
}
_VIA = {"La": "LA", "LAB": "RGB"}  # Pillow converts these modes to no other
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF tags, and a value of the second
_ORIENTATION_KEYS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # in Image.info


class UnreadableImage(ValueError):
    """Raised for an image that cannot be decoded; the message, of one printable line, names the file and the reason."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@contextlib.contextmanager
def open_image(data: bytes | Path | Image.Image, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image with Pillow and check its format and size; every error becomes UnreadableImage.

    An image in memory is passed through and not closed; its pixels may not have been decoded yet.
    """
    try:
        with warnings.catch_warnings():
            # max_pixels is the limit; Pillow's warning at half of its own would only be noise for large photographs.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = data if isinstance(data, Image.Image) else Image.open(_file(data), formats=image_formats())
        with contextlib.nullcontext() if image is data else image:
            width, height = image.size
            if not width * height:
                raise UnreadableImage(f"{name}: {width} x {height} pixels")
            if width * height > max_pixels:
                raise UnreadableImage(f"{name}: {width} x {height} pixels, more than max_pixels={max_pixels}")
            _check_readable(image, name)
            yield image
    except UnreadableImage:
        raise
    except MemoryError as error:
        raise UnreadableImage(f"{name}: not enough memory to decode it; save it with fewer pixels") from error
    except Exception as error:  # Pillow's readers can raise almost any exception on a damaged file
        raise UnreadableImage(f"{name}: {_reason(data, error)}") from error


def _check_readable(image: Image.Image, name: str) -> None:
    """Check what Pillow 13.0 would read wrongly, or not read with an unclear error."""
    if not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return
    if image.fp is None:
        raise UnreadableImage(
            f"{name}: the image was closed before its pixels were loaded; pass its path, or call load() before close()"
        )
    if image.format not in (*image_formats(), "MPO", None):
        raise UnreadableImage(f"{name}: an image in the format {image.format}, which is not read; {_EXPECTED}")
    if image.format == "BMP" and image.mode == "1":
        tile = image.tile[0]
        stride = tile.args[1] if tile.codec_name == "raw" and isinstance(tile.args, tuple) else None
        if stride != (image.width + 31) // 32 * 4:  # Pillow takes each bit for a pixel
            raise UnreadableImage(
                f"{name}: a BMP file with more than 1 bit per pixel whose only colors are black and white, which "
                "Pillow misreads; save it as PNG"
            )


def stores_white_as_0(image: Image.Image) -> bool:
    """Whether an image was opened from a grayscale TIFF file of type WhiteIsZero.

    Pillow inverts those of up to 8 bits, so that black is 0, and no others.
    """
    return getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def decode(
    data: bytes | Path | Image.Image, channels: Literal[1, 3], *, name: str, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode an image to 8 bits per channel.

    EXIF orientation is applied. Transparent pixels are blended onto white. 16-bit grayscale is divided by 257, not
    clipped. The first frame of an animation is used, and the current frame of an image in memory. For plain RGB the
    result is bitwise equal to ``Image.open(...).convert("RGB")``.

    An image in memory gives the same result as its file: its EXIF orientation is applied unless it has been removed, as
    ``ImageOps.exif_transpose`` does, and if it was opened but not yet decoded, it can turn out to be unreadable.

    Args:
        data: Content of an image file, its path, or an image in memory, which is neither modified nor closed. The
            format of a file is recognized by its content; :func:`smt_vision.data.files.image_formats` lists those that
            are read.
        channels: 3 for RGB, 1 for grayscale.
        name: Name of the image in error messages.
        max_pixels: Maximum width x height, checked before any pixel is decoded. Pillow never opens files with more than
            178,956,970.

    Returns:
        An image of mode ``RGB`` or ``L``.

    Raises:
        UnreadableImage: If the data is not an image, is truncated or too large, or its pixel format has no
            standard range.
    """
    if channels not in _MODES:
        raise ValueError(f"invalid channels={channels!r}: expected 1 (gray) or 3 (RGB)")
    if not isinstance(data, Image.Image) and is_numpy(data):
        data = _numpy_image(data, name)
    with open_image(data, name, max_pixels) as image:
        white = 0
        if image.mode.startswith("I;16") and stores_white_as_0(image):
            white = 2 ** image.tag_v2[_BITS_PER_SAMPLE][0] - 1  # type: ignore[attr-defined]
        image = load_upright(image)
        if white:
            image = Image.fromarray((white - np.asarray(image)).astype(np.uint16))
        return _to_mode(image, _MODES[channels], name)


def _numpy_image(data: bytes | Path, name: str) -> Image.Image:
    """The image in a NumPy file of uint8."""
    try:
        array = read_array(data)
        if array.dtype != np.uint8 or array.shape[2:] not in ((), (1,), (3,), (4,)):
            raise ValueError(
                f"a NumPy array of shape {array.shape} and type {array.dtype}; without input.max_value, expected uint8 "
                "(H, W), (H, W, 3) or (H, W, 4); set input.channels to the number of bands and input.max_value to the "
                "largest value"
            )
        return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array))
    except (OSError, ValueError) as error:
        raise UnreadableImage(f"{name}: {error}") from error


def load_upright(image: Image.Image) -> Image.Image:
    """Load an image and apply its EXIF orientation, so that the result has none; it may be the image itself."""
    _load(image)
    orientation = None
    with contextlib.suppress(Exception):  # damaged metadata must not make valid pixels unreadable
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    if orientation not in _UPRIGHT:
        return image
    turned = image.transpose(_UPRIGHT[orientation])
    for key in _ORIENTATION_KEYS:  # otherwise a second call would turn the image again
        turned.info.pop(key, None)
    return turned


def _load(image: Image.Image) -> None:
    """Load an image's pixels without mapping its file into memory.

    Pillow 13.0 maps uncompressed TIFF files with one channel, and then reads their rows with the wrong length if the
    EXIF orientation exchanges width and height. It maps only files whose name it knows.
    """
    filename = getattr(image, "filename", "")
    try:
        if filename:
            image.filename = ""  # type: ignore[attr-defined]
        image.load()
    finally:
        if filename:
            image.filename = filename  # type: ignore[attr-defined]


def _to_mode(image: Image.Image, mode: Literal["L", "RGB"], name: str) -> Image.Image:
    if image.mode.startswith("I"):
        image = _from_16_bit(image, name)
    elif image.mode == "F":
        raise UnreadableImage(f"{name}: floating-point pixels have no standard range; save the image with 8 or 16 bits")
    elif image.mode in _VIA:
        image = image.convert(_VIA[image.mode])
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, (255, 255, 255))
        image.paste(rgba, mask=rgba.getchannel("A"))
    return image if image.mode == mode else image.convert(mode)  # convert() copies even if the mode is the same


def _from_16_bit(image: Image.Image, name: str) -> Image.Image:
    # Pillow's own conversion clips at 255, which turns most 16-bit images white.
    pixels = np.asarray(image)
    if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
        raise UnreadableImage(
            f"{name}: integer pixels from {pixels.min()} to {pixels.max()}, outside 16 bits (0 to 65535); "
            "save the image with 8 or 16 bits"
        )
    gray = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    gray[pixels == image.info.get("transparency", -1)] = 255
    return Image.fromarray(gray)


def _file(data: bytes | Path) -> io.BytesIO | Path:
    return io.BytesIO(data) if isinstance(data, bytes) else data


def _reason(data: bytes | Path | Image.Image, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, Image.UnidentifiedImageError) and not isinstance(data, Image.Image):
        length = len(data) if isinstance(data, bytes) else data.stat().st_size
        if _head(data).startswith(TIFF_MAGIC):
            return "a damaged TIFF file, or one that is not 8-bit RGB or grayscale; set input.channels to its bands"
        return (
            "an empty file" if length == 0 else f"not an image in a format that is read ({length} bytes); {_EXPECTED}"
        )
    return f"{error} ({type(error).__name__})"


def decode_input(data: bytes | Path | Image.Image, input: Input, *, name: str) -> Image.Image | Tensor:
    """Decode an image as a model's input needs it.

    Args:
        data: Content of an image file, its path, or an image in memory.
        input: Its ``channels`` and ``max_value`` are used.
        name: Name of the image in error messages.

    Returns:
        The result of :func:`decode`; with ``input.has_bands``, (channels, H, W) float32, divided by the largest value.

    Raises:
        UnreadableImage: The image cannot be decoded, or has other bands.
    """
    if not input.has_bands:
        return decode(data, 1 if input.channels == 1 else 3, name=name)
    try:
        if isinstance(data, Image.Image) or not has_arrays(_head(data)):
            with open_image(data, name, MAX_PIXELS) as image:
                array = pillow_array(load_upright(image))
        else:
            array = read_array(data)
        return bands_to_tensor(array, input.channels, getattr(input, "max_value", None))
    except (UnreadableImage, ImportError):
        raise
    except MemoryError as error:
        raise UnreadableImage(f"{name}: not enough memory to decode it; save it with fewer pixels") from error
    except Exception as error:  # tifffile can raise almost any exception on a damaged file
        raise UnreadableImage(f"{name}: {_reason(data, error)}") from error


def decode_picture(data: bytes | Path | Image.Image, input: Input, *, name: str) -> Image.Image:
    """Decode an image to RGB, for display; of an image of bands, the first three."""
    decoded = decode_input(data, input, name=name) if input.has_bands else decode(data, 3, name=name)
    return bands_to_picture(decoded) if isinstance(decoded, Tensor) else decoded


def _head(data: bytes | Path) -> bytes:
    if isinstance(data, bytes):
        return data[:8]
    with open(data, "rb") as file:
        return file.read(8)
