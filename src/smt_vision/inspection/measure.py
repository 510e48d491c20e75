"""What is measured of each image, by several threads.

Shapes: n images that are read.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..data.dataset import RawDataset
from ..data.decode import UnreadableImage, decode
from ..tasks.inspection import Counts, TaskInspection

THREADS = max(1, min(8, os.cpu_count() or 1))  # each holds a decoded image
CHUNK = 256  # images between two reports of progress
CELLS = (9, 8)  # columns and rows of the reduced image that the hash is made of
MEASURES = np.dtype(
    [
        ("width", np.int32),
        ("height", np.int32),
        ("mean", np.float64, 3),
        ("square", np.float64, 3),  # mean of the squares
        ("brightness", np.float64),  # mean of the gray values, in [0, 1] as all values
        ("contrast", np.float64),  # their standard deviation
        ("is_gray", np.bool_),
        ("hash", np.uint64),
        ("cells", np.uint8, CELLS[0] * CELLS[1]),
    ]
)
_LEVELS = np.arange(256) / 255


@dataclass(frozen=True)
class Measured:
    """The images of a split that were read.

    Args:
        rows: Indices of the readable images (n,).
        values: Their measures (n,), of type ``MEASURES``.
        labels: What the task measures of their labels (n, ...).
        broken: Id and error of each image that cannot be read, or whose label cannot be used.
    """

    rows: Counts
    values: npt.NDArray[Any]
    labels: Counts
    broken: list[tuple[str, str]]


def measure_images(
    images: RawDataset[Any], rows: Counts, task: TaskInspection[Any], on_images: Callable[[int], None]
) -> Measured:
    """Read images; memory does not grow with their size, except for that of one per thread.

    Args:
        images: A split.
        rows: Indices of the images to read.
        task: The task's part of the inspection.
        on_images: Called with the number of images that have been read since the last call.
    """
    values = np.zeros(len(rows), dtype=MEASURES)
    readable = np.zeros(len(rows), dtype=bool)
    labels: list[Counts] = []
    broken = []
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK].tolist()
            results = pool.map(lambda i: _measure(images, i, task), chunk)
            for k, (i, result) in enumerate(zip(chunk, results, strict=True), start):
                if isinstance(result, str):
                    broken.append((images.id(i), result))
                    continue
                values[k], label = result
                readable[k] = True
                if label is not None:
                    labels.append(label)
            on_images(len(chunk))
    return Measured(rows[readable], values[readable], np.array(labels, dtype=np.int64), broken)


def _measure(images: RawDataset[Any], i: int, task: TaskInspection[Any]) -> tuple[tuple[Any, ...], Counts | None] | str:
    """The measures of an image and of its label, or why it cannot be used."""
    try:
        raw, target, name = images.read(i)
        image = decode(raw, 3, name=name)
        label = task.measure(image, target, name)
    except (UnreadableImage, OSError) as error:
        return str(error)
    return measure(image), label


def measure(image: Image.Image) -> tuple[Any, ...]:
    """The measures of an RGB image, in the order of ``MEASURES``."""
    channels = np.array(image.histogram(), dtype=np.float64).reshape(3, 256)
    gray_image = image.convert("L")
    gray = np.array(gray_image.histogram(), dtype=np.float64)
    pixels = image.width * image.height
    brightness = float(gray @ _LEVELS / pixels)
    contrast = np.sqrt(max(float(gray @ _LEVELS**2 / pixels) - brightness**2, 0.0))
    cells = np.asarray(gray_image.resize(CELLS, Image.Resampling.BILINEAR))
    # Difference hash: whether each cell is brighter than its left neighbor.
    bits = np.packbits(cells[:, 1:] > cells[:, :-1])
    return (
        image.width,
        image.height,
        channels @ _LEVELS / pixels,
        channels @ _LEVELS**2 / pixels,
        brightness,
        contrast,
        bool((channels == channels[0]).all()),
        bits.view(np.uint64)[0],
        cells.ravel(),
    )
