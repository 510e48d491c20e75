"""Images and label maps to tensors: resize, random scale, crop, flips and photometric changes."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.v2 import ColorJitter, Compose, RandomApply

from ....data.decode import OpenedImage
from ....data.region import Region, fit_size
from ....data.resample import image_size
from ....data.transforms import RegionPixels
from ....recipe import Augment, Input
from ..config import IGNORE_INDEX, SegmentConfig
from .dataset import Labels, check_size

RETRIES = 10  # further samples of a crop with too much of one class


def eval_region(width: int, height: int, config: SegmentConfig) -> Region:
    """The entire image, resized as in evaluation."""
    size = (config.short_side, config.short_side)
    if not config.squash:
        size = fit_size(width, height, config.short_side, config.long_side) if config.short_side else (width, height)
    return Region(0, 0, width, height, *size)


def train_region(labels: Labels, config: SegmentConfig, augment: Augment) -> Region:
    """A random training crop of at most ``crop`` pixels, smaller where the resized image is smaller.

    Uses Python's global random generator.

    Args:
        labels: ``(H, W)`` label map; it decides whether a crop has too much of one class, or no labeled pixel.
        config: Sizes, ``scale``, ``crop`` and ``max_class_share`` are used.
        augment: ``hflip`` and ``vflip`` are used.
    """
    height, width = labels.shape
    resized = eval_region(width, height, config)
    scale = random.uniform(*config.scale)
    horizontal = _Side(width, config.crop[1], scale * resized.width / width)
    vertical = _Side(height, config.crop[0], scale * resized.height / height)
    for _ in range(1 + RETRIES):
        left, top = horizontal.random_start(), vertical.random_start()
        right, bottom = left + horizontal.window, top + vertical.window
        region = Region(left, top, right, bottom, horizontal.size, vertical.size)
        counts = np.bincount(region.labels(labels).ravel(), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
        if 0 < counts.max() <= config.max_class_share * counts.sum():
            break
    hflip, vflip = random.random() < augment.hflip, random.random() < augment.vflip
    return Region(left, top, right, bottom, horizontal.size, vertical.size, hflip, vflip)


class _Side:
    """One axis of a random crop: ``window`` image pixels are resized to ``size``.

    Args:
        length: Length of the image along this axis in pixels.
        crop: Requested size of the crop in pixels.
        scale: Scale of the resize.
    """

    def __init__(self, length: int, crop: int, scale: float) -> None:
        self.length = length
        self.window = min(length, max(1, round(crop / scale)))
        self.size = crop if self.window < length else min(crop, max(1, round(length * scale)))

    def random_start(self) -> int:
        """Random first pixel of the window."""
        return random.randint(0, self.length - self.window)


def segmentation_eval_transform(input: Input, config: SegmentConfig) -> Callable[[Any], Tensor]:
    """The preprocessing of evaluation and prediction: an image, or its bands, to ``(C, h, w)``, not cropped."""
    pixels = RegionPixels(input)
    return lambda image: pixels(image, eval_region(*image_size(image), config))


class SegmentationTransform:
    """An image and its label map to a sample.

    Args:
        input: Interpolation, mean and standard deviation are used.
        config: Sizes and training augmentation.
        augment: ``hflip`` and ``vflip`` for training; ``None`` for evaluation.
    """

    def __init__(self, input: Input, config: SegmentConfig, augment: Augment | None) -> None:
        self.config = config
        self.augment = augment
        self.pixels = RegionPixels(input)
        self.photometric = _photometric() if config.photometric else None

    def __call__(self, image: OpenedImage, labels: Labels, name: str) -> dict[str, Any]:
        """``image`` ``(C, h, w)`` and ``label``, which is ``(h, w)`` in training and ``(H, W)`` in evaluation.

        In training both have the size ``crop``; in evaluation the label map keeps its stored size.

        Raises:
            UnreadableImage: The label map differs in size from the image.
        """
        width, height = image_size(image)
        check_size((width, height), labels, name)
        if self.augment is None:
            region = eval_region(width, height, self.config)
            return {"image": self.pixels(image, region), "label": torch.from_numpy(labels)}
        region = train_region(labels, self.config, self.augment)
        pixels = self.pixels(image, region, self.photometric)
        label = torch.from_numpy(np.ascontiguousarray(region.labels(labels))).long()
        margin = (0, self.config.crop[1] - region.width, 0, self.config.crop[0] - region.height)
        size = torch.tensor([region.height, region.width])
        return {"image": pad(pixels, margin), "label": pad(label, margin, value=IGNORE_INDEX), "sizes": size}


def _photometric() -> Compose:
    """Changes of brightness, contrast, saturation and hue, each with probability 0.5.

    Saturation and hue have MMSegmentation's ranges. Its brightness is a shift by up to 32 of 255, here it is a factor
    of up to 12.5 % more or less; its contrast is a factor of the values, here of their distance to the mean.
    """
    ranges = (dict(brightness=0.125), dict(contrast=0.5), dict(saturation=0.5), dict(hue=0.1))
    return Compose([RandomApply([ColorJitter(**kwargs)]) for kwargs in ranges])
