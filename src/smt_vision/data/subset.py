"""A fixed part of a dataset's images: a fraction for training, and those held out for validation."""

import hashlib
import os
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..text import get_logger
from .dataset import RawDataset, Split
from .fingerprint import MAX_TRAIN, UsedImages, hash_bytes

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


def held_out(images: Images, split: Split, *, val_fraction: float, seed: int) -> Images:
    """Split a dataset that has no validation split; stratified and seeded.

    Of each class, round(val_fraction * number of images) are held out: at least one, and at least one is left for
    training. Images with several classes are chosen for the rarest of them, so that the shares of the frequent classes
    are approximate. The selection depends only on the image ids, their classes and the seed, not on the order or the
    storage location, and adding images later moves few others. With a ``val_fraction`` of 0, all images are for
    training. The training split has the validation split as ``counterpart``.

    Args:
        images: The complete dataset.
        split: The split to return.
        val_fraction: Fraction of images held out, in [0, 1]. With 1, all images are for validation, e.g. for a dataset
            that is only evaluated on.
        seed: Random seed of the selection.

    Raises:
        ValueError: ``val_fraction`` is out of range, or is 1 and the training split is requested.
    """
    part, others = _held_out(images, split, val_fraction, seed)
    if split == "train" and others is not None:
        part.counterpart = images.select(others)
    return part


def _held_out(
    images: Images, split: Split, val_fraction: float, seed: int
) -> tuple[Images, npt.NDArray[np.int64] | None]:
    """A split of a dataset, and the indices of the images of the other one, unless one split has all of them."""
    if val_fraction == 0.0 and split == "train":
        return images, None
    if val_fraction == 1.0:
        if split == "train":
            raise ValueError(
                f"{images.where}: val_fraction=1.0 leaves no images for training; use a fraction below 1, e.g. 0.1"
            )
        return images, None
    if not 0.0 < val_fraction < 1.0:
        raise ValueError(
            f"{images.where}: invalid val_fraction={val_fraction}: expected a fraction in (0, 1], e.g. 0.1, because "
            "the dataset has no validation split"
        )
    keys = (os.fsencode(f"{seed}/{images.id(i)}") for i in range(len(images)))
    hashes = [hashlib.blake2b(key, digest_size=8).digest() for key in keys]
    in_val, decided = np.zeros(len(images), dtype=bool), np.zeros(len(images), dtype=bool)
    by_class = images.by_class()
    left = [len(members) for members in by_class]  # images of each class that are not held out
    classes_of: dict[int, list[int]] = {}  # of images that have several
    if sum(left) > len(images):
        for c, members in enumerate(by_class):
            for i in members.tolist():
                classes_of.setdefault(i, []).append(c)
    for members in sorted(by_class, key=len):
        count = min(max(round(val_fraction * len(members)), 1), len(members) - 1) - int(in_val[members].sum())
        for i in sorted(members[~decided[members]].tolist(), key=hashes.__getitem__):
            if count > 0 and all(left[c] > 1 for c in classes_of.get(i, ())):
                in_val[i] = True
                count -= 1
                for c in classes_of.get(i, ()):
                    left[c] -= 1
        decided[members] = True
    if split == "train":
        in_val = ~in_val
    return images.select(np.flatnonzero(in_val)), np.flatnonzero(~in_val)


def hold_some_out(images: Images, split: Split, *, val_fraction: float, seed: int) -> Images:
    """:func:`held_out` of a dataset that must have images in both splits.

    Raises:
        ValueError: As :func:`held_out`, or there are too few images.
    """
    part, _ = _held_out(images, split, val_fraction, seed)
    if not len(part):
        raise ValueError(
            f"{images.where}: {len(images)} images, too few to hold any out for validation; add images, or a "
            "validation split"
        )
    return part


def held_out_in_training(images: Images, used: UsedImages, train_fraction: float) -> Images:
    """The images that training held out of a dataset, if it is the one that the model was trained on.

    It is if at least half of the held-out images are among its images, and at least half as many of the others as
    training uses of them were trained on, of which at most ``MAX_TRAIN`` are known. Any other dataset is returned as it
    is.
    """
    validated = np.isin(images.identities(), used.val)
    trained = np.isin(images.fingerprints(), used.train) & ~validated
    found, expected = int(validated.sum()), len(used.val)
    others = min(round(train_fraction * (len(images) - found)), MAX_TRAIN)
    if 2 * found < max(expected, 1) or 2 * trained.sum() < max(others, 1):
        return images
    log.info("%s: evaluating the %d images of %d that training held out", images.where, found, len(images))
    if found < expected:
        log.warning("%s: %d of the %d images that training held out are missing", images.where, expected - found,
                    expected)  # fmt: skip
    return images.select(np.flatnonzero(validated))


def group_by(keys: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """The values of each key that occurs, in the order of the keys."""
    order = np.argsort(keys, kind="stable")
    ends = np.flatnonzero(np.diff(keys[order])) + 1
    return np.split(values[order], ends)
