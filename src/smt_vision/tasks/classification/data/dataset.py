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


Target = int | npt.NDArray[np.bool_]  # class index, or which of K classes the image has
Targets = npt.NDArray[np.int64] | npt.NDArray[np.bool_]


class ImageDataset(RawDataset[Target]):
    """Undecoded images with one class each, or with any number of classes.

    Args:
        classes: Class names, in the order of class indices.
        targets: Class index of each image, (N,), or which classes it has, (N, K) bool.
        ids: N image ids, unique within the dataset and independent of where it is stored.
        where: Prefix of image ids in messages, e.g. the directory with a trailing slash.
    """

    def __init__(
        self, classes: Sequence[str], targets: Sequence[int] | Targets, ids: Sequence[str], where: str
    ) -> None:
        super().__init__(classes, ids, where)
        array = np.asarray(targets)
        self.targets: Targets = array if array.ndim == 2 else array.astype(np.int64)
        if (
            array.ndim == 1
            and len(self.targets)
            and not 0 <= self.targets.min() <= self.targets.max() < len(self.classes)
        ):
            raise ValueError(
                f"{where}: class indices from {self.targets.min()} to {self.targets.max()} for {len(self.classes)} "
                f"classes; expected 0 to {len(self.classes) - 1} (-1 often marks unlabeled images)"
            )
        self._rows = np.arange(len(self.targets))  # row of each image in the source

    @property
    def multi_label(self) -> bool:
        """Whether an image may have any number of classes."""
        return self.targets.ndim == 2

    def raw(self, i: int) -> Raw:
        return self._read(int(self._rows[i]), self.id(i))

    def read(self, i: int) -> tuple[Raw, Target, str]:
        return self.raw(i), self.targets[i] if self.multi_label else int(self.targets[i]), self.name(i)

    def hash_labels(self) -> int:
        return hash_bytes(self.targets.tobytes() if self.multi_label else self.targets.astype("<i8").tobytes())

    def select(self, keep: npt.NDArray[np.int64]) -> Self:
        subset = super().select(keep)
        subset.targets, subset._rows = self.targets[keep], self._rows[keep]
        return subset

    def by_class(self) -> list[npt.NDArray[np.int64]]:
        rows, targets = self.presence()
        unlabeled = np.setdiff1d(np.arange(len(self)), rows)
        return [*group_by(targets, rows), *([unlabeled] if len(unlabeled) else [])]

    def presence(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Image index (P,) and class index (P,) of each pair of an image and a class that it has, by class."""
        if self.multi_label:
            targets, rows = np.nonzero(self.targets.T)
            return rows, targets
        rows = np.argsort(self.targets, kind="stable")
        return rows, self.targets[rows].astype(np.int64)

    def describe(self) -> str:
        """Number of images and classes, and the smallest and largest class."""
        counts = np.bincount(self.presence()[1], minlength=len(self.classes))
        smallest, largest = int(counts.argmin()), int(counts.argmax())
        return (
            f"{len(self)} images of {len(self.classes)} classes, {counts[smallest]} ({self.classes[smallest]}) to "
            f"{counts[largest]} ({self.classes[largest]}) images per class"
        )

    def unused_classes(self) -> list[int]:
        """Indices of the classes without an image."""
        return np.flatnonzero(np.bincount(self.presence()[1], minlength=len(self.classes)) == 0).tolist()

    def relabel(self, classes: Sequence[str], indices: Sequence[int]) -> Self:
        relabeled = copy.copy(self)
        if self.multi_label:
            rows, targets = self.presence()
            relabeled.targets = np.zeros((len(self), len(classes)), dtype=np.bool_)
            relabeled.targets[rows, np.asarray(indices, dtype=np.int64)[targets]] = True
        else:
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
