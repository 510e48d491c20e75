"""The parts of preprocessing that all tasks share."""

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose

from ..recipe import Input
from .region import Region
from .resample import ResizeTo


class ToNormalized:
    """torchvision's ``ToTensor`` and ``Normalize`` in one, equal to the bit; a third of the time for small images."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean = torch.tensor(mean).view(-1, 1, 1)
        self.std = torch.tensor(std).view(-1, 1, 1)

    def __call__(self, image: Image.Image) -> Tensor:
        out = torch.empty(len(image.getbands()), image.height, image.width)
        for plane, band in zip(out, image.split(), strict=True):  # Pillow's is the faster way to planes
            plane.copy_(torch.from_numpy(np.array(band)))
        return out.div_(255).sub_(self.mean).div_(self.std)


class RegionPixels:
    """What a view shows of an image, resized and normalized.

    Args:
        input: filter, mean and standard deviation.
    """

    def __init__(self, input: Input) -> None:
        self.interpolation = resize_filter(input)
        self.exact = input.exact
        self.normalized = ToNormalized(*channel_statistics(input))

    def __call__(
        self, image: Image.Image, view: Region, change: Callable[[Image.Image], Image.Image] | None = None
    ) -> Tensor:
        """A float32 tensor ``(C, h, w)`` of the view's size; ``change`` is made of the resized image."""
        seen = view.image(image, self.interpolation, self.exact)
        return self.normalized(change(seen) if change else seen)


def resize_filter(input: Input) -> str:
    """timm's name of the filter where nothing is drawn."""
    return "bicubic" if input.interpolation == "random" else input.interpolation


def channel_statistics(input: Input) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel; where the input names none, ImageNet's, averaged for grey."""
    if input.channels not in (1, 3):
        raise ValueError(f"input.channels must be 1 (grey) or 3 (RGB), not {input.channels!r}")
    grey = input.channels == 1
    mean = input.mean or ((sum(IMAGENET_DEFAULT_MEAN) / 3,) if grey else IMAGENET_DEFAULT_MEAN)
    std = input.std or ((sum(IMAGENET_DEFAULT_STD) / 3,) if grey else IMAGENET_DEFAULT_STD)
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != input.channels:
            raise ValueError(
                f"input.{name} has {len(values)} values for {input.channels} channel(s): {values}; give one for each"
            )
    return mean, std


def square_transform(input: Input, size: int, crop_pct: float = 1.0, squash: bool = False) -> Compose:
    """Preprocessing of evaluation to squares: resize, center crop, normalize.

    Args:
        input: Interpolation, mean and standard deviation.
        size: Side of the square in pixels.
        crop_pct: The short side is resized to size / crop_pct.
        squash: Resize both sides instead of cropping.
    """
    resized = math.floor(size / crop_pct)
    geometry = ResizeTo(resized, resize_filter(input), square=squash, exact=input.exact)
    return Compose([geometry, CenterCrop(size), ToNormalized(*channel_statistics(input))])
