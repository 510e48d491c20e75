"""What every source of images becomes: a map-style set of raw images with targets; and the held-out split."""

import copy
import hashlib
import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
from timm.data import ImageNetInfo

from ....data.dataset import Raw, RawDataset, Split


class ImageDataset(RawDataset[int]):
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


def held_out(images: ImageDataset, split: Split, *, val_fraction: float, seed: int) -> ImageDataset:
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


def relabel(images: ImageDataset, classes: Sequence[str]) -> ImageDataset:
    """The same images with their classes numbered as a model numbers them.

    Matched by name where the names are the model's, or ImageNet's (WordNet ids, for a model of 1000 classes), a subset
    of them included. Where they are neither, the numbers are taken as they are, as timm's own validation does.

    Raises:
        ValueError: there are more classes than the model has.
    """
    if len(images.classes) > len(classes):
        raise ValueError(
            f"{images.where} has {len(images.classes)} classes and the model {len(classes)}; evaluate a model "
            "trained on these classes"
        )
    for names in (tuple(classes), tuple(ImageNetInfo("imagenet-1k").label_names()) if len(classes) == 1000 else ()):
        if set(images.classes) <= set(names):
            place = {name: i for i, name in enumerate(names)}
            matched = images.select(np.arange(len(images)))
            matched.targets = np.array([place[name] for name in images.classes])[images.targets]
            matched.classes = tuple(classes)
            return matched
    return images
