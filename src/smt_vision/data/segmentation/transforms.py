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

from ...recipes import IGNORED, Augment, Input, Segment
from ..transforms import ViewPixels
from ..view import View, fit
from .label_maps import Labels, check_size

REDRAWS = 10  # of a crop with too much of one class


def eval_view(width: int, height: int, config: Segment) -> View:
    """The whole image at evaluation's size."""
    size = fit(width, height, config.short_side, config.long_side) if config.short_side else (width, height)
    return View(0, 0, width, height, *size)


def train_view(labels: Labels, config: Segment, augment: Augment) -> View:
    """What training sees of an image: at most ``crop``, and less where the resized image is smaller.

    Draws from Python's generator.

    Args:
        labels: (H, W), which decide whether a crop has too much of one class.
        config: sizes, ``scale``, ``crop`` and ``max_class_share``.
        augment: ``hflip`` and ``vflip``.
    """
    height, width = labels.shape
    whole = eval_view(width, height, config)
    scale = random.uniform(*config.scale)
    across = _Side(width, config.crop[1], scale * whole.width / width)
    down = _Side(height, config.crop[0], scale * whole.height / height)
    for _ in range(1 + REDRAWS):
        left, top = across.draw(), down.draw()
        view = View(left, top, left + across.window, top + down.window, across.size, down.size)
        counts = np.bincount(view.labels(labels).ravel(), minlength=IGNORED + 1)[:IGNORED]
        if counts.max() <= config.max_class_share * counts.sum():
            break
    hflip, vflip = random.random() < augment.hflip, random.random() < augment.vflip
    return View(view.left, view.top, view.right, view.bottom, view.width, view.height, hflip, vflip)


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


def segmentation_eval_transform(input: Input, config: Segment) -> Callable[[Image.Image], Tensor]:
    """The preprocessing of evaluation and prediction: ``PIL.Image`` -> float tensor ``(C, h, w)``, whole."""
    pixels = ViewPixels(input)
    return lambda image: pixels(image, eval_view(*image.size, config))


class SegmentationTransform:
    """An image and its labels to a sample.

    Args:
        input: filter, mean and standard deviation.
        config: sizes, and the changes of training.
        augment: what training does, of it ``hflip`` and ``vflip``; ``None`` for evaluation.
    """

    def __init__(self, input: Input, config: Segment, augment: Augment | None) -> None:
        self.config = config
        self.augment = augment
        self.pixels = ViewPixels(input)
        self.photometric = _photometric() if config.photometric else None

    def __call__(self, image: Image.Image, labels: Labels, name: str) -> dict[str, Any]:
        """``image`` (C, h, w) and ``label``: in training (h, w), both of ``crop``; in evaluation (H, W), as stored.

        Raises:
            BrokenImage: the label map has another size than the image.
        """
        check_size(image.size, labels, name)
        if self.augment is None:
            view = eval_view(*image.size, self.config)
            return {"image": self.pixels(image, view), "label": torch.from_numpy(labels).long()}
        view = train_view(labels, self.config, self.augment)
        pixels = self.pixels(image, view, self.photometric)
        label = torch.from_numpy(np.ascontiguousarray(view.labels(labels))).long()
        margin = (0, self.config.crop[1] - view.width, 0, self.config.crop[0] - view.height)
        return {"image": pad(pixels, margin), "label": pad(label, margin, value=IGNORED)}


def _photometric() -> Compose:
    """Brightness, contrast, saturation and hue, each for half of the images: the ranges of MMSegmentation's recipes."""
    changes = (dict(brightness=0.125), dict(contrast=0.5), dict(saturation=0.5), dict(hue=0.1))
    return Compose([RandomApply([ColorJitter(**change)]) for change in changes])
