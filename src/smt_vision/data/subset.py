"""A fixed part of a dataset's images."""

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..text import get_logger
from .dataset import RawDataset
from .fingerprint import hash_bytes

log = get_logger(__name__)
Images = TypeVar("Images", bound=RawDataset[Any])


def take_fraction(images: Images, fraction: float) -> Images:
    """A fraction of the images of each class, in their order.

    Of n images of a class, round(fraction * n) are kept, at least one: those whose ids have the lowest hashes. So the
    images depend on nothing but their ids, a smaller fraction is a part of a larger one, and as the order by hash is
    common to all classes, the same fraction is kept of images with several classes.

    Args:
        images: The dataset.
        fraction: In (0, 1]; at 1, the dataset itself is returned.
    """
    if fraction == 1 or not len(images):
        return images
    hashes = np.array([hash_bytes(images.id(i).encode("utf-8", "surrogateescape")) for i in range(len(images))])
    kept = np.zeros(len(images), dtype=bool)
    for members in images.by_class():
        count = max(round(fraction * len(members)), 1)
        kept[members[np.argsort(hashes[members], kind="stable")[:count]]] = True
    subset = images.select(np.flatnonzero(kept))
    log.info("%s: train_fraction=%g of %d images: %s", images.where, fraction, len(images), subset.describe())
    return subset


def group_by(keys: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """The values of each key that occurs, in the order of the keys."""
    order = np.argsort(keys, kind="stable")
    ends = np.flatnonzero(np.diff(keys[order])) + 1
    return np.split(values[order], ends)
