"""Images of unlike sizes in one tensor."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

LARGEST_STRIDE = 32  # stride of a backbone's last map: padded sides are multiples of it, so that no stage rounds


def padded(side: int) -> int:
    """The next multiple of 32 pixels."""
    return (side + LARGEST_STRIDE - 1) // LARGEST_STRIDE * LARGEST_STRIDE  # exporters round negative numbers otherwise


def pad_together(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Lay images (C, h, w) into the top left corners of a batch of zeros.

    Returns:
        (B, C, H, W), H and W the largest of them, up to the next multiple of 32; and (B, 2) int64, each h and w.
    """
    sizes = torch.tensor([image.shape[-2:] for image in images])
    height, width = (padded(side) for side in sizes.amax(0).tolist())
    out = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    for i, image in enumerate(images):
        out[i, :, : image.shape[1], : image.shape[2]] = image
    return out, sizes


def group_by_size(sizes: Tensor) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """Rows of equal sizes, and their size; the sizes in the order of their first rows.

    Args:
        sizes: (B, 2) int64, height and width.
    """
    rows: dict[tuple[int, int], list[int]] = {}
    for row, (height, width) in enumerate(sizes.tolist()):
        rows.setdefault((height, width), []).append(row)
    yield from ((same, size) for size, same in rows.items())
