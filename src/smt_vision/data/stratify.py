"""Splits in which every group of images, e.g. those of a class, is divided in the same proportion."""

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .dataset import RawDataset
from .fingerprint import hash_bytes

Images = TypeVar("Images", bound=RawDataset[Any])


def seeded_hashes(images: RawDataset[Any], seed: int) -> npt.NDArray[np.int64]:
    """(N,) hashes of the images' ids and a seed: an order that depends neither on the source's nor on its place."""
    return np.array([hash_bytes(os.fsencode(f"{seed}/{images.id(i)}")) for i in range(len(images))], dtype=np.int64)


def stratify(
    groups: Sequence[npt.NDArray[np.int64]], hashes: npt.NDArray[np.int64], demands: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Divide images into subsets so that each group is divided as demanded; an image may be in several groups.

    Iterative stratification (Sechidis et al., On the Stratification of Multi-Label Data, 2011): the group with the
    fewest images left comes first, and each of its images goes to the subset that lacks most images of the group, then
    most images at all.

    Args:
        groups: Image indices of each group; every image is in at least one.
        hashes: (N,) order of the images within a group.
        demands: (groups, S) number of images of each group that each subset should have.

    Returns:
        (N,) index of each image's subset.
    """
    lacking = demands.tolist()
    room = [sum(column) for column in zip(*lacking, strict=True)]
    left = np.array([len(members) for members in groups])
    groups_of: list[list[int]] = [[] for _ in hashes]
    for group, members in enumerate(groups):
        for image in members.tolist():
            groups_of[image].append(group)
    subset = np.full(len(hashes), -1, dtype=np.int64)
    while left.any():
        group = int(np.where(left > 0, left, len(hashes) + 1).argmin())
        members = groups[group][subset[groups[group]] < 0]
        for image in members[np.argsort(hashes[members], kind="stable")].tolist():
            need = lacking[group]
            chosen = max(range(len(room)), key=lambda s, need=need: (need[s], room[s], -s))  # type: ignore[misc]
            subset[image] = chosen
            for other in groups_of[image]:
                lacking[other][chosen] -= 1
                room[chosen] -= 1
                left[other] -= 1
    return subset


def split_fold(images: Images, fold: int, folds: int, seed: int) -> tuple[Images, Images]:
    """The training and the validation images of one fold of a cross-validation.

    The folds' validation images are a partition of all images, stratified by class where the classes are known without
    reading the images. They depend on nothing but the images' ids and classes, and the seed.

    Args:
        images: The images to divide.
        fold: The fold, from 1 on.
        folds: Number of folds.
        seed: Random seed.

    Raises:
        ValueError: There are fewer images than folds.
    """
    if len(images) < folds:
        raise ValueError(f"{images.where}: {len(images)} images for folds={folds}; expected at least one per fold")
    groups = images.by_class()
    demands = np.array([[len(members) / folds] * folds for members in groups])
    subset = stratify(groups, seeded_hashes(images, seed), demands)
    held_out = subset == fold - 1
    return images.select(np.flatnonzero(~held_out)), images.select(np.flatnonzero(held_out))
