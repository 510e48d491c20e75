"""A segmenter on images of any size: whole or in windows, at several scales, mirrored.

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

CLASSES_AT_ONCE = 16


def predict_probabilities(model: nn.Module, image: Tensor, sizes: Tensor, config: SegmentConfig) -> list[Tensor]:
    """Probabilities of the classes, at each pixel of each image.

    An image's result does not depend on the others of its batch: each is cut out of the batch's padding first, and
    those of equal size go through the model together.

    Args:
        model: ``(B, 3, H, W)`` to ``(B, K, H, W)`` logits, in evaluation.
        image: ``(B, 3, H, W)``, normalized; at the right and the bottom there may be padding.
        sizes: ``(B, 2)``, height and width of each image inside the padding.
        config: ``test`` (``whole``, or ``slide``: windows of ``crop`` every ``stride`` pixels, logits averaged where
            they overlap), ``test_scales`` and ``test_flip`` (probabilities averaged). Scales are of ``image``, not of
            the file's pixels.

    Returns:
        For each image ``(K, h, w)`` float32: softmax, or for ``config.kind`` ``binary`` sigmoid.
    """
    found: dict[int, Tensor] = {}
    for same, (height, width) in group_by_size(sizes):
        found.update(zip(same, _probabilities(model, image[same, :, :height, :width], config), strict=True))
    return [found[row] for row in range(len(sizes))]


def label_map(probabilities: Tensor, size: tuple[int, int]) -> Tensor:
    """The most probable class at each pixel of the original image.

    The probabilities are resized, not the labels; a few classes at a time, since 150 of them at 12 million pixels would
    take 7 GB.

    Args:
        probabilities: ``(K, h, w)``.
        size: height and width of the original.

    Returns:
        ``(*size)`` int64.
    """
    best = probabilities.new_full(size, -1.0)
    label = torch.zeros(size, dtype=torch.long, device=probabilities.device)
    for first in range(0, len(probabilities), CLASSES_AT_ONCE):
        value, index = resize(probabilities[None, first : first + CLASSES_AT_ONCE], size)[0].max(dim=0)
        better = value > best
        best, label = torch.where(better, value, best), torch.where(better, first + index, label)
    return label


def _probabilities(model: nn.Module, image: Tensor, config: SegmentConfig) -> Tensor:
    """The mean over scales and mirrorings: ``(B, 3, H, W) -> (B, K, H, W)``."""
    size = image.shape[-2:]
    views = list(itertools.product(config.test_scales, (False, True) if config.test_flip else (False,)))
    total: Tensor | float = 0.0
    for scale, mirrored in views:
        view = image
        if scale != 1:
            sides = [max(1, round(side * scale)) for side in size]
            view = F.interpolate(image, sides, mode="bilinear", align_corners=False, antialias=True)
        logits = _logits(model, view.flip(-1) if mirrored else view, config)
        logits = resize(logits.flip(-1) if mirrored else logits, size)
        total = total + (logits.sigmoid() if config.is_binary else logits.softmax(dim=1))
    return cast(Tensor, total) / len(views)


def _logits(model: nn.Module, image: Tensor, config: SegmentConfig) -> Tensor:
    """Of images of one size, whole or in windows: ``(B, 3, H, W) -> (B, K, H, W)`` float32."""
    height, width = image.shape[-2:]
    padded = F.pad(image, (0, -width % LARGEST_STRIDE, 0, -height % LARGEST_STRIDE))
    if config.test == "whole":
        logits = model(padded).float()
    else:
        logits = _slide(model, padded, config.crop, config.stride)
    return logits[..., :height, :width]


def _slide(model: nn.Module, image: Tensor, crop: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """The mean of the logits of overlapping windows: ``(B, 3, H, W) -> (B, K, H, W)`` float32."""
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
    """Where windows begin: every ``stride`` pixels; the last one ends with the image, and overlaps more."""
    last = max(length - crop, 0)
    return [*range(0, last, stride), last]
