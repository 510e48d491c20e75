"""Images of any number of bands and of 16 bits or floating point, from NumPy and TIFF files, as tensors.

:mod:`smt_vision.data.decode` decodes all other images; tifffile reads TIFF files whose bands or types Pillow does not.
"""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ..extras import require

MAX_VALUES = 1 << 28  # H x W x bands of an image: 1 GB as float32
NUMPY_MAGIC = b"\x93NUMPY"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_RANGES = {"uint8": 255.0, "uint16": 65535.0}  # largest value by type, where there is a standard one
_MODES = {"1": "L", "P": "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA"}  # what Pillow's other modes are converted to
_MIN_IS_WHITE = 0  # of a TIFF file's photometric interpretation
_UPRIGHT: dict[int, Callable[[Any], Any]] = {  # by EXIF orientation, for (H, W, bands)
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


def has_arrays(head: bytes) -> bool:
    """Whether a file with these first bytes is read here: a NumPy array or a TIFF file."""
    return head.startswith((NUMPY_MAGIC, *TIFF_MAGIC))


def is_numpy(data: bytes | Path) -> bool:
    """Whether data are a NumPy file; a file is recognized by its suffix."""
    return data.startswith(NUMPY_MAGIC) if isinstance(data, bytes) else data.suffix.lower() == ".npy"


def stored_size(path: Path) -> tuple[int, int]:
    """Height and width of a NumPy or TIFF file, without reading its pixels; upright.

    Raises:
        ValueError: The file is damaged or of another layout.
        ImportError: It is a TIFF file, and tifffile is not installed.
    """
    if is_numpy(path):
        with open(path, "rb") as file:
            (height, width, *_), _, _ = _read_numpy_header(file)
        return height, width
    tifffile = require("tifffile", "bands")
    with tifffile.TiffFile(path) as tiff:
        series, orientation = tiff.series[0], tiff.pages[0].tags.get("Orientation")
        height, width = (series.shape[series.axes.index(axis)] for axis in "YX")
        return (width, height) if orientation is not None and orientation.value >= 5 else (height, width)


def read_array(data: bytes | Path) -> npt.NDArray[Any]:
    """Read a NumPy or TIFF file.

    Returns:
        (H, W) or (H, W, bands), of any type.

    Raises:
        ValueError: The file is damaged, larger than ``MAX_VALUES``, or of another layout.
        ImportError: It is a TIFF file, and tifffile is not installed.
    """
    with io.BytesIO(data) if isinstance(data, bytes) else open(data, "rb") as file:
        head = file.read(len(NUMPY_MAGIC))
        file.seek(0)
        return _read_numpy(file) if head == NUMPY_MAGIC else _read_tiff(file)


def _read_numpy_header(file: Any) -> tuple[tuple[int, ...], bool, Any]:
    """Shape, whether the order is Fortran's, and type."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(file)
    _check_size(shape)
    return shape, is_fortran, dtype


def _read_numpy(file: Any) -> npt.NDArray[Any]:
    shape, is_fortran, dtype = _read_numpy_header(file)
    if dtype.hasobject or dtype.kind not in "iuf":
        raise ValueError(f"an array of type {dtype}; expected integers or floating point")
    size, start = math.prod(shape) * dtype.itemsize, file.tell()
    if file.seek(0, io.SEEK_END) - start < size:  # before memory of the size that a damaged header claims is taken
        raise ValueError(f"truncated: an array of shape {shape} and type {dtype} needs {size} bytes")
    file.seek(start)
    content = file.read(size)
    return np.frombuffer(content, dtype=dtype, count=math.prod(shape)).reshape(shape, order="F" if is_fortran else "C")


def _read_tiff(file: Any) -> npt.NDArray[Any]:
    tifffile = require("tifffile", "bands")
    with tifffile.TiffFile(file) as tiff:
        series, page = tiff.series[0], tiff.pages[0]
        _check_size(series.shape)
        axes = series.axes
        bands = [i for i, (name, length) in enumerate(zip(axes, series.shape, strict=True)) if name not in "YX"]
        several = [i for i in bands if series.shape[i] > 1]
        if "Y" not in axes or "X" not in axes or len(several) > 1:
            raise ValueError(f"axes {axes} of shape {series.shape}; expected height, width and bands (YXS, SYX)")
        array = series.asarray()
        array = array.reshape([n for i, n in enumerate(array.shape) if i not in bands or i in several])
        if several:
            kept = [name for i, name in enumerate(axes) if i not in bands or i in several]
            array = array.transpose(kept.index("Y"), kept.index("X"), kept.index(axes[several[0]]))
        if page.photometric == _MIN_IS_WHITE and array.dtype.kind == "u":
            array = array.dtype.type(2**page.bitspersample - 1) - array
        orientation = page.tags.get("Orientation")
        turn = _UPRIGHT.get(orientation.value) if orientation is not None else None
        return turn(array[..., None] if array.ndim == 2 else array) if turn else array


def _check_size(shape: tuple[int, ...]) -> None:
    if len(shape) < 2 or min(shape) < 1 or math.prod(shape) > MAX_VALUES:
        raise ValueError(f"an array of shape {shape}; expected (H, W) or (H, W, bands), at most {MAX_VALUES} values")


def pillow_array(image: Image.Image) -> npt.NDArray[Any]:
    """The bands of a Pillow image, (H, W) or (H, W, bands)."""
    return np.asarray(image.convert(_MODES[image.mode]) if image.mode in _MODES else image)


def bands_to_tensor(array: npt.NDArray[Any], channels: int, max_value: float | None) -> Tensor:
    """Convert an array to a tensor.

    Args:
        array: (H, W) or (H, W, bands).
        channels: Expected number of bands.
        max_value: Value that becomes 1; ``None``: 255 for uint8 and 65535 for uint16.

    Returns:
        (channels, H, W) float32.

    Raises:
        ValueError: The array has other bands, no standard range, or values that are not finite.
    """
    pixels = array[..., None] if array.ndim == 2 else array
    if pixels.ndim != 3 or pixels.shape[2] != channels:
        hint = "; its bands are first: transpose it" if array.shape[0] == channels else ""
        raise ValueError(
            f"an array of shape {array.shape}; expected (H, W, {channels}), as input.channels={channels}{hint}"
        )
    scale = _RANGES.get(array.dtype.name) if max_value is None else max_value
    if scale is None:
        raise ValueError(
            f"values of type {array.dtype.name} have no standard range; set input.max_value to the largest"
        )
    tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))
    if not tensor.isfinite().all():
        raise ValueError("values that are not finite; replace them, e.g. by 0")
    return tensor.div_(scale)


def bands_to_picture(pixels: Tensor) -> Image.Image:
    """An RGB picture of the first three bands, or of the first one; the darkest and brightest 2 % are cut off.

    Args:
        pixels: (C, H, W).
    """
    shown = pixels[: 3 if len(pixels) >= 3 else 1].numpy()
    low, high = np.percentile(shown, (2, 98))
    levels = ((shown - low) / max(high - low, 1e-9)).clip(0, 1) * 255
    return Image.fromarray(levels.round().astype(np.uint8).transpose(1, 2, 0).repeat(3 // len(shown), axis=2))
