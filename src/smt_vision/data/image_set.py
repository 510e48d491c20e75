"""What every source of images becomes: a map-style set of raw images with targets; and the held-out split."""

import copy
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

Split = Literal["train", "val"]
Raw = bytes | Path | Image.Image
T = TypeVar("T")


class RawSet(ABC, Generic[T]):
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


class ImageSet(RawSet[int]):
    """Images of one class each.

    Args:
        classes: names of the classes, in the order of their numbers.
        targets: (N,) the class of each image.
        ids: N names, unique within the set and the same wherever the set is stored.
        where: what comes before an id in messages, as the folder with a slash.
    """

    def __init__(
        self, classes: Sequence[str], targets: Sequence[int] | npt.NDArray[np.int64], ids: Sequence[str], where: str
    ) -> None:
        super().__init__(classes, ids, where)
        self.targets: npt.NDArray[np.int64] = np.asarray(targets, dtype=np.int64)
        if len(self.targets) and not 0 <= self.targets.min() <= self.targets.max() < len(self.classes):
            raise ValueError(
                f"{where}: class numbers from {self.targets.min()} to {self.targets.max()} for {len(self.classes)} "
                f"classes; expected 0 to {len(self.classes) - 1} (-1 often marks images without labels)"
            )
        self._rows = np.arange(len(self.targets))  # each image's place in the source

    def read(self, i: int) -> tuple[Raw, int, str]:
        return self._read(int(self._rows[i]), self.id(i)), int(self.targets[i]), self.name(i)

    def select(self, keep: npt.NDArray[np.int64]) -> Self:
        """The same set with the images at ``keep`` alone, in that order."""
        part = copy.copy(self)
        part.targets, part._ids, part._rows = self.targets[keep], self._ids[keep], self._rows[keep]
        return part

    def describe(self) -> str:
        """Images, classes, and the smallest and largest class."""
        counts = np.bincount(self.targets, minlength=len(self.classes))
        few, many = int(counts.argmin()), int(counts.argmax())
        return (
            f"{len(self)} images of {len(self.classes)} classes, "
            f"{counts[few]} ({self.classes[few]}) to {counts[many]} ({self.classes[many]}) a class"
        )

    @abstractmethod
    def _read(self, row: int, name: str) -> Raw:
        """The image at a place in the source; ``name`` is its id."""


def held_out(images: ImageSet, split: Split, *, val_fraction: float, seed: int) -> ImageSet:
    """One side of a stratified, seeded split of a set that has none of its own.

    Each class gives round(val_fraction * its images) to validation, at least one, and keeps at least one to train
    on. Which ones depends on their ids and the seed alone: not on where the set is stored, nor on its order, and
    images that are added later move few others.

    Args:
        images: the whole set.
        split: the side wanted.
        val_fraction: share held out, in (0, 1]; 1 makes the whole set validation, as for a set to evaluate on.
        seed: which images are held out.
    """
    if val_fraction == 1.0:
        if split == "train":
            raise ValueError(
                f"{images.where}: val_fraction=1.0 leaves nothing to train on; give a share below 1, as 0.1"
            )
        return images
    if not 0.0 < val_fraction < 1.0:
        raise ValueError(
            f"{images.where}: has no validation split of its own, so val_fraction must be a share in (0, 1], as 0.1; "
            f"it is {val_fraction}"
        )
    keys = (os.fsencode(f"{seed}/{images.id(i)}") for i in range(len(images)))
    hashes = [hashlib.blake2b(key, digest_size=8).digest() for key in keys]
    in_val = np.zeros(len(images), dtype=bool)
    for target in range(len(images.classes)):
        members = sorted(np.flatnonzero(images.targets == target).tolist(), key=hashes.__getitem__)
        count = min(max(round(val_fraction * len(members)), 1), len(members) - 1)
        in_val[members[: max(count, 0)]] = True
    return images.select(np.flatnonzero(in_val if split == "val" else ~in_val))
