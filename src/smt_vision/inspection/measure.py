"""What is measured of each image, by several threads.

Shapes: n images that are read.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops
from torch import Tensor

from ..data.bands import bands_to_picture
from ..data.dataset import RawDataset
from ..data.decode import UnreadableImage, decode, decode_input
from ..data.fingerprint import hash_pixels
from ..recipe import Input
from ..tasks.inspection import Counts, Labels, TaskInspection

THREADS = max(1, min(8, os.cpu_count() or 1))  # each holds a decoded image
CHUNK = 256  # images between two reports of progress
CELLS = (9, 8)  # columns and rows of the reduced image that the hash is made of
_LEVELS = np.arange(256) / 255


def measures(channels: int) -> np.dtype[Any]:
    """The type of what is measured of an image with this many channels."""
    return np.dtype(
        [
            ("width", np.int32),
            ("height", np.int32),
            ("mean", np.float64, channels),
            ("square", np.float64, channels),  # mean of the squares
            ("brightness", np.float64),  # mean of the gray values, in [0, 1] as all values
            ("contrast", np.float64),  # their standard deviation
            ("is_gray", np.bool_),
            ("hash", np.uint64),
            ("cells", np.uint8, CELLS[0] * CELLS[1]),
            ("content", np.int64),  # of an image that is not a file: hash of its pixels; else 0
        ]
    )


@dataclass(frozen=True)
class Measured:
    """The images of a split that were read.

    Args:
        rows: Indices of the readable images (n,).
        values: Their measures (n,), of the type :func:`measures`.
        labels: What the task measures of their labels (n, ...).
        unreadable: Id and error of each image that cannot be read, or whose label cannot be used.
    """

    rows: Counts
    values: npt.NDArray[Any]
    labels: Counts
    unreadable: list[tuple[str, str]]


@dataclass(frozen=True)
class SplitInspection:
    """A split, what was measured of its images, and what its labels say."""

    images: RawDataset[Any]
    measured: Measured
    labels: Labels


def measure_images(
    images: RawDataset[Any], rows: Counts, task: TaskInspection[Any], input: Input, on_images: Callable[[int], None]
) -> Measured:
    """Read images; memory does not grow with their size, except for that of one per thread.

    Args:
        images: A split.
        rows: Indices of the images to read.
        task: The task's part of the inspection.
        input: How the images are decoded: with bands, the statistics are theirs; else those of red, green and blue.
        on_images: Called with the number of images that have been read since the last call.
    """
    values = np.zeros(len(rows), dtype=measures(input.channels if input.has_bands else 3))
    readable = np.zeros(len(rows), dtype=bool)
    labels: list[Counts] = []
    unreadable = []
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK].tolist()
            results = pool.map(lambda i: _measure(images, i, task, input), chunk)
            for k, (i, result) in enumerate(zip(chunk, results, strict=True), start):
                if isinstance(result, str):
                    unreadable.append((images.id(i), result))
                    continue
                values[k], label = result
                readable[k] = True
                if label is not None:
                    labels.append(label)
            on_images(len(chunk))
    return Measured(rows[readable], values[readable], np.array(labels, dtype=np.int64), unreadable)


def _measure(
    images: RawDataset[Any], i: int, task: TaskInspection[Any], input: Input
) -> tuple[tuple[Any, ...], Counts | None] | str:
    """The measures of an image and of its label, or why it cannot be used."""
    try:
        raw, target, name = images.read(i)
        decoded = decode_input(raw, input, name=name) if input.has_bands else decode(raw, 3, name=name)
        picture = bands_to_picture(decoded) if isinstance(decoded, Tensor) else decoded
        label = task.measure(picture, target, name)
    except (UnreadableImage, OSError) as error:
        return str(error)
    content = 0 if isinstance(raw, bytes | Path) else hash_pixels(picture)
    return measure(picture, decoded if isinstance(decoded, Tensor) else None, content), label


def _is_gray(picture: Image.Image) -> bool:
    red, *others = picture.split()
    return all(ImageChops.difference(red, other).getbbox() is None for other in others)


def measure(picture: Image.Image, bands: Tensor | None = None, content: int = 0) -> tuple[Any, ...]:
    """What is measured of an image, in the order of :func:`measures`.

    Args:
        picture: The image in RGB.
        bands: Its bands (C, H, W), if these are the input instead.
        content: Hash of its pixels if it is not a file.
    """
    histograms = np.array(picture.histogram(), dtype=np.float64).reshape(3, 256)
    pixels = picture.width * picture.height
    if bands is None:
        mean, square = histograms @ _LEVELS / pixels, histograms @ _LEVELS**2 / pixels
    else:
        mean, square = (values.double().mean(dim=(1, 2)).numpy() for values in (bands, bands.double() ** 2))
    gray_picture = picture.convert("L")
    gray = np.array(gray_picture.histogram(), dtype=np.float64)
    brightness = gray @ _LEVELS / pixels
    contrast = np.sqrt(max(float(gray @ _LEVELS**2 / pixels - brightness**2), 0.0))
    cells = np.asarray(gray_picture.resize(CELLS, Image.Resampling.BILINEAR))
    # Difference hash: whether each cell is brighter than its left neighbor.
    bits = np.packbits(cells[:, 1:] > cells[:, :-1])
    return (
        picture.width,
        picture.height,
        mean,
        square,
        brightness,
        contrast,
        bands is None and bool((histograms == histograms[0]).all()) and _is_gray(picture),
        bits.view(np.uint64)[0],
        cells.ravel(),
        content,
    )
