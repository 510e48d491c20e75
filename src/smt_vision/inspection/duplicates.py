"""Images that occur more than once: the same file, or nearly the same picture.

Shapes: n images.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..data.subset import group_by

BITS, BANDS = 6, 8  # bits in which two hashes may differ, and parts of a hash of which two are compared if one is equal
BRIGHTNESS = 10.0  # gray levels of 255 by which the brightness of two reduced images may differ
DETAIL = 0.15  # deviation of their difference, as a share of the contrast, that counts as the same
NOISE = 2.0  # gray levels; a smaller deviation counts as zero, e.g. in images of one color


def same_files(fingerprints: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Groups of images with the same fingerprint (n,), in the order of their first images."""
    groups = group_by(fingerprints, np.arange(len(fingerprints)))
    return sorted((group for group in groups if len(group) > 1), key=lambda group: int(group[0]))


def near_duplicates(hashes: npt.NDArray[np.uint64], cells: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.int64]]:
    """Groups of images that differ little, e.g. in size or compression.

    Two images are near duplicates if their difference hashes differ in at most ``BITS`` of 64 bits, and their reduced
    images little in brightness and little compared with their contrast. A group is connected by such pairs. Only images
    with an equal part of the hash are compared, which all pairs that differ in fewer than ``BANDS`` bits have.

    Args:
        hashes: Difference hashes (n,).
        cells: Gray values of the reduced images (n, 72).
    """
    group = np.arange(len(hashes))
    parts = hashes[:, None].copy().view(np.uint8)
    for band in range(BANDS):
        for members in group_by(parts[:, band].astype(np.int64), np.arange(len(hashes))):
            for k, i in enumerate(members[:-1].tolist()):
                others = members[k + 1 :]
                others = others[group[others] != group[i]]  # few, where most images are alike
                if not len(others):
                    continue
                bits = np.unpackbits(parts[others] ^ parts[i], axis=1).sum(axis=1)
                close = others[bits <= BITS]
                change = cells[close].astype(np.float32) - cells[i]
                same = change.std(axis=1) <= max(NOISE, DETAIL * float(cells[i].std()))
                close = close[same & (np.abs(change.mean(axis=1)) <= BRIGHTNESS)]
                if len(close):
                    group[np.isin(group, group[close])] = group[i]
    return same_files(group)


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
