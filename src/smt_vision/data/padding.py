"""Batches of images of different sizes."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

LARGEST_STRIDE = 32  # of the backbone's last feature map; multiples of it divide evenly in every stage


def padded(side: int) -> int:
    """Round a side in pixels up to a multiple of 32."""
    # Not -(-side // 32) * 32: integer division in ONNX and OpenVINO truncates toward zero.
    return (side + LARGEST_STRIDE - 1) // LARGEST_STRIDE * LARGEST_STRIDE


def pad_together(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Batch images (C, h, w) of different sizes, zero-padded at the bottom and on the right.

    Returns:
        The batch (B, C, H, W), where H and W are the largest h and w, rounded up to a multiple of 32; and the sizes
        (B, 2) int64, h and w of each image.
    """
    sizes = torch.tensor([image.shape[-2:] for image in images])
    height, width = (padded(side) for side in sizes.amax(0).tolist())
    out = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    for i, image in enumerate(images):
        out[i, :, : image.shape[1], : image.shape[2]] = image
    return out, sizes


def group_by_size(sizes: Tensor) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """Yield the rows of each distinct size and that size, in order of first occurrence.

    Args:
        sizes: Heights and widths (B, 2), int64.
    """
    rows: dict[tuple[int, int], list[int]] = {}
    for row, (height, width) in enumerate(sizes.tolist()):
        rows.setdefault((height, width), []).append(row)
    yield from ((same_size, size) for size, same_size in rows.items())
