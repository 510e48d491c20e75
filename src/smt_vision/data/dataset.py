"""Base class of the datasets: undecoded images with targets, accessed by index."""

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from .fingerprint import Fingerprints, hash_bytes, hash_content, hash_file, map_images
from .retry import retried

Split = Literal["train", "val"]
Raw = bytes | Path | Image.Image
T = TypeVar("T")


class RawDataset(ABC, Generic[T]):
    """Map-style dataset of undecoded images, each with a target.

    Ids are kept in an array instead of a list: worker processes share its memory, and it pickles fast.

    Args:
        classes: Class names, in the order of class indices.
        ids: N image ids, unique within the dataset and independent of where it is stored.
        where: Prefix of image ids in messages, e.g. the directory with a trailing slash.

    Attributes:
        counterpart: Of training images, the validation images that were held out of the same dataset; ``None`` if they
            have to be opened.
    """

    def __init__(self, classes: Sequence[str], ids: Sequence[str], where: str) -> None:
        self.classes = tuple(classes)
        self.where = where
        self._ids = np.array([os.fsencode(name) for name in ids], dtype=np.bytes_)
        self._fingerprints: Fingerprints | None = None
        self.counterpart: Self | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def name(self, i: int) -> str:
        """Name of the image in messages, e.g. its path."""
        return self.where + self.id(i)

    def id(self, i: int) -> str:
        """Id of the image within the dataset."""
        return os.fsdecode(bytes(self._ids[i]))

    @abstractmethod
    def raw(self, i: int) -> Raw:
        """Image ``i`` as stored."""

    @abstractmethod
    def read(self, i: int) -> tuple[Raw, T, str]:
        """Return image ``i`` as stored, its target, and its name for messages."""

    @abstractmethod
    def describe(self) -> str:
        """Summarize the dataset in one line for the log."""

    @abstractmethod
    def relabel(self, classes: Sequence[str], indices: Sequence[int]) -> Self:
        """Return the dataset with other classes; ``indices`` are their indices of the present ones, -1 if unused."""

    def select(self, keep: npt.NDArray[np.int64]) -> Self:
        """Return the dataset with only the images at indices ``keep``, in that order."""
        subset = copy.copy(self)
        subset._ids = self._ids[keep]
        subset.counterpart = None
        if self._fingerprints is not None:
            subset._fingerprints = self._fingerprints[keep]
        return subset

    def by_class(self) -> list[npt.NDArray[np.int64]]:
        """Image indices of each class that occurs, and those of the images without one.

        An image of several classes is in several groups. Where the classes of an image are not known before it is
        read, all images are one group.
        """
        return [np.arange(len(self))]

    @abstractmethod
    def presence(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Image index (P,) and class index (P,) of each pair of an image and a class that occurs in it, by class."""

    def unused_classes(self) -> list[int]:
        """Indices of the classes that are known not to occur."""
        return []

    def listing(self) -> bytes:
        """The ids of all images, in order."""
        return self._ids.tobytes()

    @abstractmethod
    def hash_labels(self) -> int:
        """64-bit hash of the labels of all images, in order."""

    def fingerprints(self, limit: int | None = None) -> Fingerprints:
        """(N,) 64-bit hashes of the images' content, the same wherever they are stored.

        Args:
            limit: Maximum number of images. If there are more, those whose ids have the lowest hashes: a smaller sample
                is a part of a larger one, and does not depend on the order.
        """
        if limit is not None and len(self) > limit:
            hashes = np.array([hash_bytes(bytes(name)) for name in self._ids])
            rows = np.sort(np.argsort(hashes, kind="stable")[:limit])
            return map_images(lambda k: self._fingerprint(int(rows[k])), limit)
        if self._fingerprints is None:
            self._fingerprints = map_images(self._fingerprint, len(self))
        return self._fingerprints

    def identities(self) -> Fingerprints:
        """(N,) 64-bit hashes of the images' ids and content, which tell copies of an image in one dataset apart."""
        pairs = zip(self._ids, self.fingerprints().astype("<i8"), strict=True)
        return np.array([hash_bytes(bytes(name), value.tobytes()) for name, value in pairs], dtype=np.int64)

    def _fingerprint(self, i: int) -> int:
        with suppress(OSError, ValueError):  # the data loaders report unreadable images
            if (content := retried(lambda: self._hash_content(i))) is not None:
                return content
        return hash_bytes(os.fsencode(self.name(i)))

    def _hash_content(self, i: int) -> int | None:
        """Hash of the content of image ``i``; ``None`` if it is not stored as a file."""
        raw = self.raw(i)
        if isinstance(raw, Path):
            return hash_file(raw)
        if isinstance(raw, bytes):
            return hash_content(len(raw), lambda offset, length: raw[offset : offset + length])
        return None
