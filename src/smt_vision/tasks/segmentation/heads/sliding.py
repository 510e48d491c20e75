"""Inference of a segmenter on images of any size: in one pass or in sliding windows, at several scales, flipped.

Shapes: B images, K classes.
"""

import itertools
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....data.padding import LARGEST_STRIDE, group_by_size
from ..config import SegmentConfig
from .upernet import resize

CLASS_CHUNK = 16  # classes resized at a time


def predict_probabilities(model: nn.Module, image: Tensor, sizes: Tensor, config: SegmentConfig) -> list[Tensor]:
    """Class probabilities of each pixel of each image.

    An image's result does not depend on the other images of its batch: batch padding is removed first, and images of
    equal size go through the model together.

    Args:
        model: Maps ``(B, 3, H, W)`` to logits ``(B, K, H, W)``; in evaluation mode.
        image: Normalized images ``(B, 3, H, W)``, possibly padded on the right and bottom.
        sizes: ``(B, 2)``, height and width of each image without padding.
        config: ``test``, ``test_scales`` and ``test_flip`` are used. Probabilities are averaged over scales and flips.
            With ``slide``, logits are averaged where windows overlap. Scales are relative to ``image``, not to the
            size of the file.

    Returns:
        ``(K, h, w)`` float32 per image: softmax, or sigmoid if ``config.kind`` is ``binary``.
    """
    by_row: dict[int, Tensor] = {}
    for rows, (height, width) in group_by_size(sizes):
        by_row.update(zip(rows, _probabilities(model, image[rows, :, :height, :width], config), strict=True))
    return [by_row[row] for row in range(len(sizes))]


def label_map(probabilities: Tensor, size: tuple[int, int]) -> Tensor:
    """The most probable class of each pixel of the original image.

    The probabilities are resized, not the labels. This is done for a few classes at a time: 150 classes at 12 million
    pixels would take 7 GB.

    Args:
        probabilities: ``(K, h, w)``.
        size: Height and width of the original image in pixels.

    Returns:
        ``(*size)`` int64.
    """
    best = probabilities.new_full(size, -1.0)
    label = torch.zeros(size, dtype=torch.long, device=probabilities.device)
    for first in range(0, len(probabilities), CLASS_CHUNK):
        value, index = resize(probabilities[None, first : first + CLASS_CHUNK], size)[0].max(dim=0)
        better = value > best
        best, label = torch.where(better, value, best), torch.where(better, first + index, label)
    return label


def _probabilities(model: nn.Module, image: Tensor, config: SegmentConfig) -> Tensor:
    """Mean over scales and flips: ``(B, 3, H, W) -> (B, K, H, W)``."""
    size = image.shape[-2:]
    variants = list(itertools.product(config.test_scales, (False, True) if config.test_flip else (False,)))
    total: Tensor | float = 0.0
    for scale, flipped in variants:
        x = image
        if scale != 1:
            scaled_size = [max(1, round(side * scale)) for side in size]
            x = F.interpolate(image, scaled_size, mode="bilinear", align_corners=False, antialias=True)
        logits = _logits(model, x.flip(-1) if flipped else x, config)
        logits = resize(logits.flip(-1) if flipped else logits, size)
        total = total + (logits.sigmoid() if config.is_binary else logits.softmax(dim=1))
    return cast(Tensor, total) / len(variants)


def _logits(model: nn.Module, image: Tensor, config: SegmentConfig) -> Tensor:
    """Logits of images of one size, in one pass or in windows: ``(B, 3, H, W) -> (B, K, H, W)`` float32."""
    height, width = image.shape[-2:]
    padded = F.pad(image, (0, -width % LARGEST_STRIDE, 0, -height % LARGEST_STRIDE))
    if config.test == "whole":
        logits = model(padded).float()
    else:
        logits = _slide(model, padded, config.crop, config.stride)
    return logits[..., :height, :width]


def _slide(model: nn.Module, image: Tensor, crop: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Mean logits of overlapping windows: ``(B, 3, H, W) -> (B, K, H, W)`` float32."""
    size = image.shape[-2:]
    tops, lefts = (window_starts(*lengths) for lengths in zip(size, crop, stride, strict=True))
    total: Tensor | None = None
    count = torch.zeros(size, device=image.device)
    for top, left in itertools.product(tops, lefts):
        window = (..., slice(top, top + crop[0]), slice(left, left + crop[1]))
        logits = model(image[window]).float()
        if total is None:
            total = logits.new_zeros(*logits.shape[:2], *size)
        total[window] += logits
        count[window] += 1
    assert total is not None
    return total / count


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Start of each window: every ``stride`` pixels. The last window ends at the image border and overlaps more."""
    last = max(length - crop, 0)
    return [*range(0, last, stride), last]
