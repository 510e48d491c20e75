"""Preprocessing and augmentation: timm's, with faster resizing."""

import math
import random
from collections.abc import Callable
from typing import Any

from PIL import Image
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import ResizeKeepRatio
from timm.data.transforms_factory import transforms_imagenet_train
from torch import Tensor
from torchvision.transforms import Compose, RandomHorizontalFlip, RandomVerticalFlip
from torchvision.transforms.functional import crop

from ....data.decode import LargeJpeg, OpenedImage, decoded
from ....data.resample import AnyImage, RandomCrop, ResizeTo, image_size
from ....data.transforms import ToNormalized, channel_statistics, resize_filter, square_transform
from ..config import ClassificationAugment, ClassificationInput, check_augment
from .operations import replace_posterize

Transform = Callable[[OpenedImage], Tensor]


def eval_transform(input: ClassificationInput) -> Transform:
    """Evaluation preprocessing as in timm: resize, center crop, normalize.

    With ``input.exact``, values are bitwise equal to timm's. Otherwise torch resizes RGB images, and values before
    normalization differ from timm's by at most 2 of 255 (:func:`smt_vision.data.resample.resize`), and by more where a
    large JPEG file is decoded at a lower resolution (:class:`smt_vision.data.decode.LargeJpeg`).

    Returns:
        A function from an image of ``input.channels`` channels to a float32 tensor (channels, size, size).
    """
    if input.crop_mode != "border":
        return square_transform(input, input.size, input.crop_pct, squash=input.crop_mode == "squash")
    mean, std = channel_statistics(input)
    transform = create_transform(
        input_size=(input.channels, input.size, input.size),
        is_training=False,
        interpolation=resize_filter(input),
        mean=mean,
        std=std,
        crop_pct=input.crop_pct,
        crop_mode=input.crop_mode,
        normalize=True,
    )
    size = math.floor(input.size / input.crop_pct)
    transform.transforms[0] = ResizeLongSide((size, size), interpolation=resize_filter(input), longest=1.0)
    return transform


def train_transform(input: ClassificationInput, augment: ClassificationAugment) -> Compose:
    """Training augmentation and preprocessing: crop, flips, color jitter or RandAugment, normalize, random erasing.

    Random parameters are sampled by timm's code from the global generators of Python, NumPy and torch, so that their
    distributions are timm's. With ``input.exact``, values are bitwise equal to timm's; otherwise torch resizes RGB
    images, and values before normalization differ by at most 2 of 255. Mixup and CutMix take a batch and are
    applied elsewhere.

    Returns:
        A function from an image of ``input.channels`` channels to a float32 tensor (channels, size, size).
    """
    check_augment(input, augment)
    mean, std = channel_statistics(input)
    _, secondary, final = transforms_imagenet_train(
        img_size=input.size,
        color_jitter=augment.color_jitter,
        auto_augment=augment.auto_augment,
        interpolation=input.interpolation,
        mean=mean,
        std=std,
        re_prob=augment.random_erasing,
        re_mode=augment.erasing_mode,
        separate=True,
    )
    geometry: list[Callable[[Any], Any]] = []
    # A random interpolation is part of random resized crops only.
    interpolation = resize_filter(input)
    if augment.crop == "rrc":
        geometry, interpolation = [RandomCrop(augment.scale, augment.ratio)], input.interpolation
    geometry += [ResizeTo(input.size, interpolation, square=True, exact=input.exact)]
    geometry += [PadCrop(augment.pad)] if augment.crop == "pad" and augment.pad else []
    geometry += [RandomHorizontalFlip(augment.hflip)] if augment.hflip else []
    geometry += [RandomVerticalFlip(augment.vflip)] if augment.vflip else []
    # timm's color jitter of strength 0 would still consume random numbers for each image.
    color = secondary.transforms if augment.auto_augment or augment.color_jitter else []
    for step in color:
        replace_posterize(step)
    erasing = [step for step in final.transforms if isinstance(step, RandomErasing)]
    return Compose([*geometry, *color, ToNormalized(mean, std), *erasing])


class ResizeLongSide(ResizeKeepRatio):
    """timm's resize, but to at least one pixel: the short side of a very long image would be rounded to 0."""

    def __call__(self, image: Image.Image | LargeJpeg) -> Image.Image:
        return super().__call__(decoded(image))

    @staticmethod
    def get_params(*args: Any, **kwargs: Any) -> list[int]:
        return [max(1, side) for side in ResizeKeepRatio.get_params(*args, **kwargs)]


class PadCrop:
    """Pad each side of an image with ``pad`` black pixels, then crop randomly to its original size."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, image: AnyImage) -> AnyImage:
        left, top = random.randint(-self.pad, self.pad), random.randint(-self.pad, self.pad)
        width, height = image_size(image)
        return crop(image, top, left, height, width)  # what is outside the image is filled with zeros
