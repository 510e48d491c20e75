"""Images to tensors, in training and evaluation: what timm does, with the slow pieces replaced."""

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
    """The pipeline of evaluation, timm's own: resize, centre crop, normalize.

    With ``input.exact`` equal to timm's to the bit. Otherwise RGB images are resized by torch, before normalization
    within two levels of 255 of timm's (:func:`smt_vision.data.resample.resize`).

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
    """The pipeline of training: crop, flips, color or RandAugment, normalize, random erasing.

    All draws, hence all distributions, are timm's: its own code makes them, from Python's, NumPy's and torch's global
    generators. With ``input.exact`` the values are timm's to the bit; otherwise torch resizes, shears and translates
    RGB images, within two levels of 255 for a resize and one for a move. Mixup and CutMix need a batch and are applied
    elsewhere.

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
    # "random" is a kind of augmentation: of random-area crops alone.
    interpolation = resize_filter(input)
    if augment.crop == "rrc":
        geometry, interpolation = [RandomCrop(augment.scale, augment.ratio)], input.interpolation
    geometry += [ResizeTo(input.size, interpolation, square=True, exact=input.exact)]
    geometry += [PadCrop(augment.pad)] if augment.crop == "pad" and augment.pad else []
    geometry += [RandomHorizontalFlip(augment.hflip)] if augment.hflip else []
    geometry += [RandomVerticalFlip(augment.vflip)] if augment.vflip else []
    # A jitter of strength zero would still be drawn for each image.
    color = secondary.transforms if augment.auto_augment or augment.color_jitter else []
    for step in color:
        replace_operations(step, PATCHED if input.exact else ACCELERATED)
    erasing = [step for step in final.transforms if isinstance(step, RandomErasing)]
    return Compose([*geometry, *color, ToNormalized(mean, std), *erasing])


class PadCrop:
    """A random crop of an image's own size out of the image with ``pad`` black pixels on each side."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, image: Image.Image) -> Image.Image:
        left, top = random.randint(-self.pad, self.pad), random.randint(-self.pad, self.pad)
        # Pillow fills what lies outside of the image with zeros: the padding needs no copy of its own.
        return image.crop((left, top, left + image.width, top + image.height))
