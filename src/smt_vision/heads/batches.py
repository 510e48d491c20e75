"""Batches of images of unlike sizes, in parts of one size: then an image's result does not depend on the others."""

from collections.abc import Iterator

from torch import Tensor


def by_size(sizes: Tensor) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """Rows of equal sizes, and their size; the sizes in the order of their first rows.

    Args:
        sizes: (B, 2) int64, height and width.
    """
    rows: dict[tuple[int, int], list[int]] = {}
    for row, (height, width) in enumerate(sizes.tolist()):
        rows.setdefault((height, width), []).append(row)
    yield from ((same, size) for size, same in rows.items())
