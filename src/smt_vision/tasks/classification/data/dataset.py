"""Base class of the classification datasets."""

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

from ....data.dataset import Raw, RawDataset
from ....data.fingerprint import hash_bytes
from ....data.subset import group_by

MAX_CLASSES = 1_000_000  # a larger class index is damage, not a class


class ImageDataset(RawDataset[int]):
    """Undecoded images with one class each.

    Args:
        classes: Class names, in the order of class indices.
        targets: Class index of each image, (N,).
        ids: N image ids, unique within the dataset and independent of where it is stored.
        where: Prefix of image ids in messages, e.g. the directory with a trailing slash.
    """

    def __init__(
        self, classes: Sequence[str], targets: Sequence[int] | npt.NDArray[np.int64], ids: Sequence[str], where: str
    ) -> None:
        super().__init__(classes, ids, where)
        self.targets: npt.NDArray[np.int64] = np.asarray(targets, dtype=np.int64)
        if len(self.targets) and not 0 <= self.targets.min() <= self.targets.max() < len(self.classes):
            raise ValueError(
                f"{where}: class indices from {self.targets.min()} to {self.targets.max()} for {len(self.classes)} "
                f"classes; expected 0 to {len(self.classes) - 1} (-1 often marks unlabeled images)"
            )
        self._rows = np.arange(len(self.targets))  # row of each image in the source

    def raw(self, i: int) -> Raw:
        return self._read(int(self._rows[i]), self.id(i))

    def read(self, i: int) -> tuple[Raw, int, str]:
        return self.raw(i), int(self.targets[i]), self.name(i)

    def hash_labels(self) -> int:
        return hash_bytes(self.targets.astype("<i8").tobytes())

    def select(self, keep: npt.NDArray[np.int64]) -> Self:
        subset = super().select(keep)
        subset.targets, subset._rows = self.targets[keep], self._rows[keep]
        return subset

    def by_class(self) -> list[npt.NDArray[np.int64]]:
        return group_by(self.targets, np.arange(len(self)))

    def presence(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        image = np.argsort(self.targets, kind="stable")
        return image, self.targets[image]

    def describe(self) -> str:
        """Number of images and classes, and the smallest and largest class."""
        counts = np.bincount(self.targets, minlength=len(self.classes))
        smallest, largest = int(counts.argmin()), int(counts.argmax())
        return (
            f"{len(self)} images of {len(self.classes)} classes, {counts[smallest]} ({self.classes[smallest]}) to "
            f"{counts[largest]} ({self.classes[largest]}) images per class"
        )

    def unused_classes(self) -> list[int]:
        """Indices of the classes without an image."""
        return np.flatnonzero(np.bincount(self.targets, minlength=len(self.classes)) == 0).tolist()

    def relabel(self, classes: Sequence[str], indices: Sequence[int]) -> Self:
        relabeled = copy.copy(self)
        relabeled.targets = np.asarray(indices, dtype=np.int64)[self.targets]
        relabeled.classes = tuple(classes)
        return relabeled

    @abstractmethod
    def _read(self, row: int, name: str) -> Raw:
        """Return the image at a row of the source; ``name`` is its id."""


def numbered_classes(targets: npt.NDArray[np.int64], where: str) -> list[str]:
    """Names of classes that have none: their indices, from 0 to the largest one.

    Raises:
        ValueError: If there are no targets, or the largest one is not below ``MAX_CLASSES``.
    """
    if not len(targets):
        raise ValueError(f"{where}: no images")
    largest = int(targets.max())
    if largest >= MAX_CLASSES:
        raise ValueError(f"{where}: class index {largest}; expected indices from 0 to {MAX_CLASSES - 1}")
    return [str(class_id) for class_id in range(largest + 1)]
