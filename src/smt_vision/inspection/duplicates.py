"""Images that occur more than once: the same file, or nearly the same picture.

Shapes: n images.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..data.subset import group_by

BITS, BANDS = 6, 8  # bits in which two hashes may differ, and parts of a hash of which two are compared if one is equal
LEVELS = 6.0  # mean difference of two reduced images, in gray levels of 255


def same_files(fingerprints: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Groups of images with the same fingerprint (n,), in the order of their first images."""
    groups = group_by(fingerprints, np.arange(len(fingerprints)))
    return sorted((group for group in groups if len(group) > 1), key=lambda group: int(group[0]))


def near_duplicates(hashes: npt.NDArray[np.uint64], cells: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.int64]]:
    """Groups of images that differ little, e.g. in size or compression.

    Two images are near duplicates if their difference hashes differ in at most ``BITS`` of 64 bits, and their reduced
    images by at most ``LEVELS`` gray levels on average. A group is connected by such pairs. Only images with an equal
    part of the hash are compared, which all pairs that differ in fewer than ``BANDS`` bits have.

    Args:
        hashes: Difference hashes (n,).
        cells: Gray values of the reduced images (n, 72).
    """
    parent = list(range(len(hashes)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    parts = hashes[:, None].copy().view(np.uint8)
    for band in range(BANDS):
        for members in group_by(parts[:, band].astype(np.int64), np.arange(len(hashes))):
            for k, i in enumerate(members[:-1].tolist()):
                others = members[k + 1 :]
                bits = np.unpackbits(parts[others] ^ parts[i], axis=1).sum(axis=1)
                close = others[bits <= BITS]
                levels = np.abs(cells[close].astype(np.int16) - cells[i]).mean(axis=1)
                for j in close[levels <= LEVELS].tolist():
                    parent[root(j)] = root(i)
    roots = np.array([root(i) for i in range(len(parent))], dtype=np.int64)
    return same_files(roots)


def count_between_splits(
    groups: Sequence[npt.NDArray[np.int64]], split: npt.NDArray[np.int64]
) -> Counter[tuple[int, int]]:
    """Number of images with a duplicate in an earlier split, by the earliest such split and the image's own.

    Args:
        groups: Groups of duplicates.
        split: Index of the split of each image (n,).
    """
    splits = (split[group].tolist() for group in groups)
    return Counter((min(group), own) for group in splits for own in group if own > min(group))
