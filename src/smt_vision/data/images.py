"""Images without labels as a dataset."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from .dataset import RawDataset
from .files import relative_names


class ImageFiles(RawDataset[None]):
    """Image files without labels; the id of an image is its path relative to the common folder of all.

    Args:
        paths: Different files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__((), relative_names(paths), "")
        self.paths = tuple(paths)

    def name(self, i: int) -> str:
        return str(self.paths[i])

    def raw(self, i: int) -> Path:
        return self.paths[i]

    def read(self, i: int) -> tuple[Path, None, str]:
        return self.paths[i], None, self.name(i)

    def select(self, keep: npt.NDArray[np.int64]) -> Self:
        subset = super().select(keep)
        subset.paths = tuple(self.paths[i] for i in keep)
        return subset

    def describe(self) -> str:
        return f"{len(self)} images without labels"

    def relabel(self, classes: Sequence[str], indices: Sequence[int]) -> Self:
        return self

    def presence(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)

    def hash_labels(self) -> int:
        return 0
