"""Images and label maps to tensors: resize, scale, crop, flips, photometric changes."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.v2 import ColorJitter, Compose, RandomApply

from ....data.region import Region, fit_size
from ....data.transforms import RegionPixels
from ....recipe import Augment, Input
from ..config import IGNORE_INDEX, SegmentConfig
from .dataset import Labels, check_size

REDRAWS = 10  # of a crop with too much of one class


def eval_region(width: int, height: int, config: SegmentConfig) -> Region:
    """The whole image at evaluation's size."""
    size = fit_size(width, height, config.short_side, config.long_side) if config.short_side else (width, height)
    return Region(0, 0, width, height, *size)


def train_region(labels: Labels, config: SegmentConfig, augment: Augment) -> Region:
    """What training sees of an image: at most ``crop``, and less where the resized image is smaller.

    Draws from Python's generator.

    Args:
        labels: (H, W), which decide whether a crop has too much of one class.
        config: sizes, ``scale``, ``crop`` and ``max_class_share``.
        augment: ``hflip`` and ``vflip``.
    """
    height, width = labels.shape
    whole = eval_region(width, height, config)
    scale = random.uniform(*config.scale)
    across = _Side(width, config.crop[1], scale * whole.width / width)
    down = _Side(height, config.crop[0], scale * whole.height / height)
    for _ in range(1 + REDRAWS):
        left, top = across.draw(), down.draw()
        view = Region(left, top, left + across.window, top + down.window, across.size, down.size)
        counts = np.bincount(view.labels(labels).ravel(), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
        if counts.max() <= config.max_class_share * counts.sum():
            break
    hflip, vflip = random.random() < augment.hflip, random.random() < augment.vflip
    return Region(view.left, view.top, view.right, view.bottom, view.width, view.height, hflip, vflip)


class _Side:
    """One side of a crop: ``window`` pixels of the image that become ``size``.

    Args:
        length: of the image's side.
        crop: the size wanted.
        scale: of the resize.
    """

    def __init__(self, length: int, crop: int, scale: float) -> None:
        self.length = length
        self.window = min(length, max(1, round(crop / scale)))
        self.size = crop if self.window < length else min(crop, max(1, round(length * scale)))

    def draw(self) -> int:
        """The window's first pixel."""
        return random.randint(0, self.length - self.window)


def segmentation_eval_transform(input: Input, config: SegmentConfig) -> Callable[[Image.Image], Tensor]:
    """The preprocessing of evaluation and prediction: ``PIL.Image`` -> float tensor ``(C, h, w)``, whole."""
    pixels = RegionPixels(input)
    return lambda image: pixels(image, eval_region(*image.size, config))


class SegmentationTransform:
    """An image and its labels to a sample.

    Args:
        input: filter, mean and standard deviation.
        config: sizes, and the changes of training.
        augment: what training does, of it ``hflip`` and ``vflip``; ``None`` for evaluation.
    """

    def __init__(self, input: Input, config: SegmentConfig, augment: Augment | None) -> None:
        self.config = config
        self.augment = augment
        self.pixels = RegionPixels(input)
        self.photometric = _photometric() if config.photometric else None

    def __call__(self, image: Image.Image, labels: Labels, name: str) -> dict[str, Any]:
        """``image`` (C, h, w) and ``label``: in training (h, w), both of ``crop``; in evaluation (H, W), as stored.

        Raises:
            UnreadableImage: the label map has another size than the image.
        """
        check_size(image.size, labels, name)
        if self.augment is None:
            view = eval_region(*image.size, self.config)
            return {"image": self.pixels(image, view), "label": torch.from_numpy(labels).long()}
        view = train_region(labels, self.config, self.augment)
        pixels = self.pixels(image, view, self.photometric)
        label = torch.from_numpy(np.ascontiguousarray(view.labels(labels))).long()
        margin = (0, self.config.crop[1] - view.width, 0, self.config.crop[0] - view.height)
        return {"image": pad(pixels, margin), "label": pad(label, margin, value=IGNORE_INDEX)}


def _photometric() -> Compose:
    """Brightness, contrast, saturation and hue, each for half of the images: the ranges of MMSegmentation's recipes."""
    changes = (dict(brightness=0.125), dict(contrast=0.5), dict(saturation=0.5), dict(hue=0.1))
    return Compose([RandomApply([ColorJitter(**change)]) for change in changes])
