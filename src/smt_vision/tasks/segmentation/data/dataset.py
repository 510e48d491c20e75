"""A dataset of images with label maps, read from two folders.

Shapes: an image and its label map have H x W pixels.
"""

import copy
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ....data.dataset import RawDataset
from ....data.decode import UnreadableImage, decode, decode_labels
from ....data.validation import ValidationReport
from ..config import IGNORE_INDEX, SegmentConfig

log = logging.getLogger(__name__)
CHECKED = 64  # pairs read when a dataset is opened, so that systematic errors are found before a run starts
MASK_THRESHOLD = 128  # object pixels of a binary mask have a higher gray value, as in the published metrics
Labels = npt.NDArray[np.uint8]


class SegmentationDataset(RawDataset[Labels]):
    """Image paths by index, with label maps that are decoded on access.

    Args:
        images: Folder of the images.
        labels: Folder of the label maps.
        ids: N image paths relative to ``images``.
        label_ids: N label map paths relative to ``labels``.
        classes: K class names; one for binary masks.
        config: ``kind`` and ``zero_is_ignored`` are used.
        ignore: Stored label of ignored pixels.
    """

    def __init__(
        self,
        images: Path,
        labels: Path,
        ids: Sequence[str],
        label_ids: Sequence[str],
        classes: Sequence[str],
        config: SegmentConfig,
        ignore: int = IGNORE_INDEX,
    ) -> None:
        super().__init__(classes, ids, f"{images}/")
        self.images = images
        self.labels = labels
        self.binary = config.is_binary
        self.zero_is_ignored = config.zero_is_ignored
        self.ignore = ignore
        self._num_labels = len(classes)
        self._indices = np.arange(256, dtype=np.uint8)  # class index of each label
        self._label_ids = np.array([os.fsencode(name) for name in label_ids], dtype=np.bytes_)

    def raw(self, i: int) -> Path:
        return self.images / self.id(i)

    def read(self, i: int) -> tuple[Path, Labels, str]:
        """Path of image ``i``, its labels ``(H, W)`` uint8, and its name for messages.

        Labels are 0 to K - 1, or 255 for ignored pixels. In binary masks, 1 is the object and 0 the background.

        Raises:
            UnreadableImage: The label map cannot be read or contains invalid labels.
        """
        path = self.labels / os.fsdecode(bytes(self._label_ids[i]))
        stored = decode_labels(path, name=str(path))
        labels = self._objects(stored) if self.binary else self._indices[self._classes(stored, path)]
        return self.raw(i), labels, self.name(i)

    def relabel(self, classes: Sequence[str], indices: Sequence[int]) -> "SegmentationDataset":
        """Return the dataset with other classes; ``indices`` are their indices of the present classes."""
        relabeled = copy.copy(self)
        relabeled._indices = np.full(256, IGNORE_INDEX, dtype=np.uint8)
        relabeled._indices[: len(indices)] = indices
        relabeled.classes = tuple(classes)
        return relabeled

    def check(self, count: int = CHECKED) -> None:
        """Read up to ``count`` images and label maps, evenly spaced over the dataset.

        Unreadable images are not reported here; the data loaders count and skip them.

        Raises:
            ValueError: Label maps cannot be read, differ in size from their image, or contain invalid labels.
        """
        report = ValidationReport(self.where)
        for i in np.unique(np.linspace(0, len(self) - 1, count).astype(int)).tolist():
            try:
                raw, labels, name = self.read(i)
                if size := _image_size(raw, name):
                    check_size(size, labels, name)
            except UnreadableImage as error:
                report.error(f"of {min(count, len(self))} checked pairs are invalid", str(error), "fix them")
        report.raise_errors()

    def describe(self) -> str:
        """Number of images and classes."""
        kind = "binary masks" if self.binary else f"label maps of {len(self.classes)} classes"
        return f"{len(self)} images with {kind}"

    def _objects(self, stored: npt.NDArray[np.integer]) -> Labels:
        # Some datasets store masks as 0 and 1, others as 0 and 255.
        return (stored > (0 if stored.max(initial=0) <= 1 else MASK_THRESHOLD)).astype(np.uint8)

    def _classes(self, stored: npt.NDArray[np.integer], path: Path) -> Labels:
        ignored = stored == self.ignore
        labels = stored.astype(np.int64)
        if self.zero_is_ignored:
            ignored |= labels == 0
            labels = labels - 1
        labels[ignored] = IGNORE_INDEX
        invalid = np.unique(labels[~ignored & ((labels < 0) | (labels >= self._num_labels))])
        if len(invalid):
            first = int(self.zero_is_ignored)
            values = ", ".join(str(value + first) for value in invalid[:10]) + (" ..." if len(invalid) > 10 else "")
            raise UnreadableImage(
                f"{path}: labels {values}, expected {first} to {self._num_labels - 1 + first} for "
                f"{self._num_labels} classes, or {self.ignore} for ignored pixels (set --segment.zero_is_ignored if "
                "classes are numbered from 1, --segment.kind binary for object masks)"
            )
        return labels.astype(np.uint8)


def check_size(size: tuple[int, int], labels: Labels, name: str) -> None:
    """Check that a label map has its image's (width, height).

    Raises:
        UnreadableImage: The sizes differ.
    """
    height, width = labels.shape
    if size != (width, height):
        raise UnreadableImage(
            f"{name}: {size[0]} x {size[1]} pixels, but its label map has {width} x {height}; correct one of them "
            "(the EXIF orientation of the image is applied)"
        )


def _image_size(image: Path, name: str) -> tuple[int, int] | None:
    """Width and height of an image; ``None`` if it cannot be read."""
    try:
        return decode(image, 3, name=name).size
    except UnreadableImage:
        return None
