"""Images by index, not decoded, each with a target: what every dataset becomes."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, Literal, TypeVar

import numpy as np
from PIL import Image

Split = Literal["train", "val"]


Raw = bytes | Path | Image.Image


T = TypeVar("T")


class RawDataset(ABC, Generic[T]):
    """Images by index, not decoded, each with a target.

    Names are an array, not a list: worker processes then share its memory, and pickle it fast.

    Args:
        classes: names of the classes, in the order of their numbers.
        ids: N names, unique within the set and the same wherever the set is stored.
        where: what comes before an id in messages, as the folder with a slash.
    """

    def __init__(self, classes: Sequence[str], ids: Sequence[str], where: str) -> None:
        self.classes = tuple(classes)
        self.where = where
        self._ids = np.array([os.fsencode(name) for name in ids], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self._ids)

    def name(self, i: int) -> str:
        """What the image is called in messages, as its path."""
        return self.where + self.id(i)

    def id(self, i: int) -> str:
        """The image's name within the set."""
        return os.fsdecode(bytes(self._ids[i]))

    @abstractmethod
    def read(self, i: int) -> tuple[Raw, T, str]:
        """Image ``i`` as it is stored, its target, and its name for messages."""

    @abstractmethod
    def describe(self) -> str:
        """One line for the log: how much of what."""
