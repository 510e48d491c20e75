"""The image decoder: files of the formats that are read, and any image in memory, to 8-bit RGB or gray, or bands."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from PIL import ExifTags, Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor
from torch.utils.data import get_worker_info

from ..recipe import Input
from ..text import get_logger, printable
from .bands import (
    TIFF_MAGIC,
    bands_to_picture,
    bands_to_tensor,
    has_arrays,
    is_numpy,
    pillow_array,
    read_array,
    stored_size,
)
from .files import FORMATS, image_formats
from .stored import stored_scale

log = get_logger(__name__)
DARK = 1 << 12  # a 16-bit image whose values are all below is probably one of fewer bits
_dark_images: list[str] = []  # the one that this process has logged a warning about
MAX_PIXELS = 178_956_970  # Pillow's own limit: about 0.5 GB of decoded RGB
_EXPECTED = f"expected one of {', '.join(FORMATS)}; convert it, e.g. to PNG"
LARGE = 1 << 20  # pixels from which a JPEG may be decoded at a lower resolution; smaller ones are decoded in a moment
# Pixels of the decoded crop per pixel that it is resized to, along each axis, at least. With 2, photographs differ from
# those decoded at full resolution by half a level of 255 on average; with 1, by three times as much.
MARGIN = 2
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
_ON_ITS_SIDE = (5, 6, 7, 8)  # the orientations that exchange width and height
_VIA = {"La": "LA", "LAB": "RGB"}  # Pillow converts these modes to no other
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF tags, and a value of the second
_ORIENTATION_KEYS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # in Image.info


# max_pixels is the limit; Pillow's warning at half of its own would only be noise for large photographs. It is not
# turned off around each call: images are opened in threads, and all threads have the same filters.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnreadableImage(ValueError):
    """Raised for an image that cannot be decoded; the message, of one printable line, names the file and the reason."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@contextlib.contextmanager
def open_image(data: bytes | Path | IO[bytes] | Image.Image, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image with Pillow and check its format and size; every error becomes UnreadableImage.

    An image in memory is passed through and not closed; its pixels may not have been decoded yet.
    """
    try:
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
        raise UnreadableImage(f"{name}: an image in the unsupported format {image.format}; {_EXPECTED}")
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
        return _to_picture(image, channels, name)


def _to_picture(image: Image.Image, channels: Literal[1, 3], name: str) -> Image.Image:
    """Load an opened image; its pixels, upright, of mode ``RGB`` or ``L``."""
    white = 0
    if image.mode.startswith("I;16") and stores_white_as_0(image):
        white = 2 ** image.tag_v2[_BITS_PER_SAMPLE][0] - 1  # type: ignore[attr-defined]
    image = load_upright(image)
    if white:
        image = Image.fromarray((white - np.asarray(image)).astype(np.uint16))
    return _to_mode(image, _MODES[channels], name)


@dataclass(frozen=True)
class LargeJpeg:
    """A large JPEG image, or a crop of one, whose pixels are decoded when the size that they are resized to is known.

    libjpeg can decode an image at 1/2, 1/4 or 1/8 of its resolution, from the low frequencies of each block.

    Args:
        data: Content of the file, its path, or an image that is opened, but not loaded, and is left so.
        channels: 3 for RGB, 1 for grayscale.
        name: Name of the image in error messages.
        upright: Width and height of the complete image, after EXIF orientation.
        box: Left, top, right and bottom of the crop in the complete image.
    """

    data: bytes | Path | Image.Image
    channels: Literal[1, 3]
    name: str
    upright: tuple[int, int]
    box: tuple[int, int, int, int]
    _decoded: dict[int, Image.Image] = field(default_factory=dict)  # by scale; for several crops of an image

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the crop at full resolution."""
        left, top, right, bottom = self.box
        return right - left, bottom - top

    def crop(self, box: tuple[int, int, int, int]) -> "LargeJpeg":
        """A crop of this one, of which ``box`` has the left, top, right and bottom."""
        left, top = self.box[:2]
        return replace(self, box=(left + box[0], top + box[1], left + box[2], top + box[3]))

    def reduced(self, width: int, height: int) -> Image.Image:
        """The crop, decoded at the lowest resolution of at least ``MARGIN`` times a width and height.

        At a reduced resolution, its sides are rounded to whole pixels: by less than 1/2 pixel of width x height.

        Raises:
            UnreadableImage: The image cannot be decoded.
        """
        columns, rows = self.size
        scale = next((s for s in (8, 4, 2) if columns >= s * MARGIN * width and rows >= s * MARGIN * height), 1)
        if scale not in self._decoded:
            self._decoded[scale] = self._decode(scale)
        picture = self._decoded[scale]
        left, right = (round(x * picture.width / self.upright[0]) for x in self.box[::2])
        top, bottom = (round(y * picture.height / self.upright[1]) for y in self.box[1::2])
        box = (left, top, right, bottom)
        return picture if box == (0, 0, *picture.size) else picture.crop(box)

    def _decode(self, scale: int) -> Image.Image:
        # Reducing the caller's image would change its size: it is opened a second time.
        data: Any = self.data.fp if isinstance(self.data, ImageFile.ImageFile) else self.data
        with open_image(data, self.name, MAX_PIXELS) as image:
            width, height = image.size
            if scale > 1 and image.draft(None, (width // scale, height // scale)):
                # Where the sides are not multiples of the scale, the last row and column may be mostly padding.
                image = image.crop((0, 0, round(width / scale), round(height / scale)))
            return _to_picture(image, self.channels, self.name)


OpenedImage = Image.Image | Tensor | LargeJpeg  # what :func:`decode_for_resize` returns


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
    orientation = _orientation(image)
    if orientation not in _UPRIGHT:
        return image
    turned = image.transpose(_UPRIGHT[orientation])
    for key in _ORIENTATION_KEYS:  # otherwise a second call would turn the image again
        turned.info.pop(key, None)
    return turned


def _orientation(image: Image.Image) -> int | None:
    """EXIF orientation of an image, as stored: any value, or none."""
    with contextlib.suppress(Exception):  # damaged metadata must not make valid pixels unreadable
        return image.getexif().get(ExifTags.Base.Orientation)
    return None


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
    if pixels.size and 0 < pixels.max() < DARK:
        _warn_of_dark_image(name, int(pixels.max()))
    gray = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    gray[pixels == image.info.get("transparency", -1)] = 255
    return Image.fromarray(gray)


def _warn_of_dark_image(name: str, largest: int) -> None:
    """Log that values of fewer bits become nearly black: once, and of several worker processes by the first."""
    worker = get_worker_info()
    if not _dark_images and (worker is None or worker.id == 0):
        _dark_images.append(name)
        log.warning(
            "%s: the largest value of this 16-bit image is %d, so it becomes nearly black in 8 bits; if the others are "
            "like it, set input.channels to 1 and input.max_value, e.g. to 4095 for values of 12 bits",
            printable(name), largest,
        )  # fmt: skip


def _file(data: bytes | Path | IO[bytes]) -> IO[bytes] | Path:
    return io.BytesIO(data) if isinstance(data, bytes) else data


def _reason(data: bytes | Path | IO[bytes] | Image.Image, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, Image.UnidentifiedImageError) and isinstance(data, bytes | Path):
        length = len(data) if isinstance(data, bytes) else data.stat().st_size
        if _head(data).startswith(TIFF_MAGIC):
            return "a damaged TIFF file, or one that is not 8-bit RGB or grayscale; set input.channels to its bands"
        return "an empty file" if length == 0 else f"not an image in a supported format ({length} bytes); {_EXPECTED}"
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
    max_value = getattr(input, "max_value", None)
    try:
        if isinstance(data, Image.Image) or not has_arrays(_head(data)):
            with open_image(data, name, MAX_PIXELS) as image:
                factor = 1.0 if max_value is None else stored_scale(image)
                array = pillow_array(load_upright(image))
            if factor < 1:
                raise UnreadableImage(
                    f"{name}: several channels of 16 bits, of which Pillow reads only the upper 8 bits, and "
                    "input.max_value is of all bits; save it as TIFF or .npy"
                )
            array = array if factor == 1 else np.rint(array / factor)
        else:
            array = read_array(data)
        return bands_to_tensor(array, input.channels, max_value)
    except (UnreadableImage, ImportError):
        raise
    except MemoryError as error:
        raise UnreadableImage(f"{name}: not enough memory to decode it; save it with fewer pixels") from error
    except Exception as error:  # tifffile can raise almost any exception on a damaged file
        raise UnreadableImage(f"{name}: {_reason(data, error)}") from error


def decode_for_resize(data: bytes | Path | Image.Image, input: Input, *, name: str) -> OpenedImage:
    """As :func:`decode_input`, for a transform that resizes the image; a large JPEG is not decoded yet.

    With ``input.exact``, every image is decoded at its full resolution, and so is one in memory that is loaded.
    """
    if input.exact or input.has_bands or (not isinstance(data, Image.Image) and is_numpy(data)):
        return decode_input(data, input, name=name)
    channels: Literal[1, 3] = 1 if input.channels == 1 else 3
    with open_image(data, name, MAX_PIXELS) as image:
        if not _is_large_jpeg(image):
            return _to_picture(image, channels, name)
        width, height = image.size if _orientation(image) not in _ON_ITS_SIDE else image.size[::-1]
        return LargeJpeg(data, channels, name, (width, height), (0, 0, width, height))


def count_pixels(path: Path) -> int:
    """Height times width of an image file, from its header; 0 if it cannot be read."""
    with contextlib.suppress(Exception), Image.open(path, formats=image_formats()) as image:
        return image.width * image.height
    with contextlib.suppress(Exception), open(path, "rb") as file:  # the readers can raise almost any exception
        if has_arrays(file.read(8)):
            height, width = stored_size(path)
            return height * width
    return 0


def _is_large_jpeg(image: Image.Image) -> bool:
    """Whether an image is a large JPEG that was opened, but not loaded, nor reduced by its caller."""
    return (
        isinstance(image, JpegImageFile)
        and bool(image.tile)
        and not image.decoderconfig
        and image.tell() == 0  # MPO files have several images
        and image.width * image.height >= LARGE
    )


def decoded(image: OpenedImage) -> Image.Image | Tensor:
    """An image of :func:`decode_for_resize` at its full resolution."""
    return image.reduced(*image.size) if isinstance(image, LargeJpeg) else image


def decode_picture(data: bytes | Path | Image.Image, input: Input, *, name: str) -> Image.Image:
    """Decode an image to RGB, for display; of an image of bands, the first three."""
    decoded = decode_input(data, input, name=name) if input.has_bands else decode(data, 3, name=name)
    return bands_to_picture(decoded) if isinstance(decoded, Tensor) else decoded


def _head(data: bytes | Path) -> bytes:
    if isinstance(data, bytes):
        return data[:8]
    with open(data, "rb") as file:
        return file.read(8)
