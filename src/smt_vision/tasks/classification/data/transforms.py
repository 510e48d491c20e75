"""Training and evaluation transforms: timm's, with the slow operations replaced."""

import random
from collections.abc import Callable

from PIL import Image
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms_factory import transforms_imagenet_train
from torch import Tensor
from torchvision.transforms import Compose, RandomHorizontalFlip, RandomVerticalFlip

from ....data.resample import RandomCrop, ResizeTo
from ....data.transforms import ToNormalized, channel_statistics, resize_filter, square_transform
from ..config import ClassificationAugment, ClassificationInput
from .operations import ACCELERATED, PATCHED, replace_operations

Transform = Callable[[Image.Image], Tensor]


def eval_transform(input: ClassificationInput) -> Transform:
    """Build the evaluation transform, the same as timm's: resize, center crop, normalize.

    With ``input.exact`` the output is bitwise equal to timm's. Otherwise PyTorch resizes RGB images; before
    normalization these are within two levels of 255 of timm's (see :func:`smt_vision.data.resample.resize`).

    Returns:
        A function from an image of ``input.channels`` channels to a float32 tensor (channels, size, size).
    """
    if input.crop_mode != "border":
        return square_transform(input, input.size, input.crop_pct, squash=input.crop_mode == "squash")
    mean, std = channel_statistics(input)
    return create_transform(
        input_size=(input.channels, input.size, input.size),
        is_training=False,
        interpolation=resize_filter(input),
        mean=mean,
        std=std,
        crop_pct=input.crop_pct,
        crop_mode=input.crop_mode,
        normalize=True,
    )


def train_transform(input: ClassificationInput, augment: ClassificationAugment) -> Compose:
    """Build the training transform: crop, flips, color jitter or RandAugment, normalize, random erasing.

    All random parameters are sampled by timm's own code, from the global generators of Python, NumPy and PyTorch, so
    all distributions are timm's. With ``input.exact`` the output is bitwise equal to timm's. Otherwise PyTorch
    resizes, shears and translates RGB images, within two levels of 255 for a resize and one for a shear or
    translation. Mixup and CutMix operate on batches and are applied by the training task.

    Returns:
        A function from an image of ``input.channels`` channels to a float32 tensor (channels, size, size).
    """
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
    geometry: list[Callable[[Image.Image], Image.Image]] = []
    # Random interpolation is an augmentation; it applies only to random-area crops.
    interpolation = resize_filter(input)
    if augment.crop == "rrc":
        geometry, interpolation = [RandomCrop(augment.scale, augment.ratio)], input.interpolation
    geometry += [ResizeTo(input.size, interpolation, square=True, exact=input.exact)]
    geometry += [PadCrop(augment.pad)] if augment.crop == "pad" and augment.pad else []
    geometry += [RandomHorizontalFlip(augment.hflip)] if augment.hflip else []
    geometry += [RandomVerticalFlip(augment.vflip)] if augment.vflip else []
    # With strength zero, timm would still sample a jitter for each image.
    color = secondary.transforms if augment.auto_augment or augment.color_jitter else []
    for step in color:
        replace_operations(step, PATCHED if input.exact else ACCELERATED)
    erasing = [step for step in final.transforms if isinstance(step, RandomErasing)]
    return Compose([*geometry, *color, ToNormalized(mean, std), *erasing])


class PadCrop:
    """Pad an image with ``pad`` black pixels on each side and take a random crop of the original size."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, image: Image.Image) -> Image.Image:
        left, top = random.randint(-self.pad, self.pad), random.randint(-self.pad, self.pad)
        # Pillow fills pixels outside of the image with zeros, so no padded copy is needed.
        return image.crop((left, top, left + image.width, top + image.height))
