"""Masks of detections, stored relative to their boxes. Shapes: N detections of an image of H x W pixels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor

PIXELS_AT_ONCE = 64_000_000  # of full-size masks in memory


@dataclass(frozen=True)
class BoxMasks(Sequence[Tensor]):
    """Masks (H, W) bool, each made when it is read, because N masks of a large image may take gigabytes.

    Args:
        probabilities: Probabilities (N, M, M) inside the boxes.
        boxes: Boxes (N, 4), ``(x1, y1, x2, y2)`` in pixels of the image.
        size: Height H and width W of the image.
    """

    probabilities: Tensor
    boxes: Tensor
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.boxes)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice | Tensor) -> "BoxMasks": ...

    def __getitem__(self, index: int | slice | Tensor) -> "Tensor | BoxMasks":
        if isinstance(index, int):
            return paste_masks(self.probabilities[index, None], self.boxes[index, None], self.size)[0]
        return BoxMasks(self.probabilities[index], self.boxes[index], self.size)

    def stacked(self) -> Tensor:
        """All masks (N, H, W) bool."""
        return paste_masks(self.probabilities, self.boxes, self.size)

    def chunks(self) -> Iterator[Tensor]:
        """All masks in turn, as many at once (n, H, W) as have ``PIXELS_AT_ONCE`` pixels, and at least one."""
        count = max(1, PIXELS_AT_ONCE // max(self.size[0] * self.size[1], 1))
        for start in range(0, len(self), count):
            yield self[start : start + count].stacked()


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample masks from their boxes into the image.

    Box coordinates keep their fractional part; torchvision's ``paste_masks_in_image`` truncates them to integers, which
    distorts the masks of objects of a few pixels.

    Args:
        masks: Probabilities (N, M, M) inside the boxes.
        boxes: Boxes (N, 4) in pixels of the image.
        size: Image height H and width W.

    Returns:
        Masks (N, H, W) bool, true where the probability is at least 0.5.
    """
    H, W = size
    out = torch.zeros(len(masks), H, W, dtype=torch.bool, device=masks.device)
    for mask, (x1, y1, x2, y2), image in zip(masks.float(), boxes.tolist(), out, strict=True):
        left, top, right, bottom = max(int(x1), 0), max(int(y1), 0), min(ceil(x2), W), min(ceil(y2), H)
        if left >= right or top >= bottom:
            continue
        # Pixel centers in coordinates of the box, from -1 to 1.
        x = (torch.arange(left, right, device=masks.device) + 0.5 - x1) * (2 / (x2 - x1)) - 1
        y = (torch.arange(top, bottom, device=masks.device) + 0.5 - y1) * (2 / (y2 - y1)) - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        probabilities = F.grid_sample(mask[None, None], grid[None], align_corners=False)
        image[top:bottom, left:right] = probabilities[0, 0] >= 0.5
    return out
