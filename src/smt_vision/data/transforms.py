"""Images to tensors, in training and evaluation: what timm does, with the slow pieces replaced."""

import math
import random
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform, resolve_model_data_config
from timm.data.random_erasing import RandomErasing
from timm.data.transforms_factory import transforms_imagenet_train
from torch import Tensor, nn
from torchvision.transforms import CenterCrop, Compose, RandomHorizontalFlip, RandomVerticalFlip

from ..recipes import Augment, Input
from .operations import FASTER, MENDED, replace_operations
from .resample import RandomCrop, ResizeTo
from .view import View

Transform = Callable[[Image.Image], Tensor]


def eval_transform(input: Input) -> Transform:
    """The pipeline of evaluation, timm's own: resize, centre crop, normalise.

    With ``input.exact`` equal to timm's to the bit. Otherwise RGB images are resized by torch, before normalisation
    within two levels of 255 of timm's (:func:`smt_vision.data.resample.resize`).

    Returns:
        A function from an image of ``input.channels`` channels to a float32 tensor (channels, size, size).
    """
    mean, std = channel_statistics(input)
    if input.crop_mode != "border":
        resized = math.floor(input.size / input.crop_pct)
        geometry = ResizeTo(resized, resize_filter(input), square=input.crop_mode == "squash", exact=input.exact)
        return Compose([geometry, CenterCrop(input.size), ToNormalized(mean, std)])
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


def train_transform(input: Input, augment: Augment) -> Compose:
    """The pipeline of training: crop, flips, colour or RandAugment, normalise, random erasing.

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
    colour = secondary.transforms if augment.auto_augment or augment.color_jitter else []
    for step in colour:
        replace_operations(step, MENDED if input.exact else FASTER)
    erasing = [step for step in final.transforms if isinstance(step, RandomErasing)]
    return Compose([*geometry, *colour, ToNormalized(mean, std), *erasing])


class PadCrop:
    """A random crop of an image's own size out of the image with ``pad`` black pixels on each side."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, image: Image.Image) -> Image.Image:
        left, top = random.randint(-self.pad, self.pad), random.randint(-self.pad, self.pad)
        # Pillow fills what lies outside of the image with zeros: the padding needs no copy of its own.
        return image.crop((left, top, left + image.width, top + image.height))


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


class ViewPixels:
    """What a view shows of an image, resized and normalised.

    Args:
        input: filter, mean and standard deviation.
    """

    def __init__(self, input: Input) -> None:
        self.interpolation = resize_filter(input)
        self.exact = input.exact
        self.normalized = ToNormalized(*channel_statistics(input))

    def __call__(
        self, image: Image.Image, view: View, change: Callable[[Image.Image], Image.Image] | None = None
    ) -> Tensor:
        """A float32 tensor ``(C, h, w)`` of the view's size; ``change`` is made of the resized image."""
        seen = view.image(image, self.interpolation, self.exact)
        return self.normalized(change(seen) if change else seen)


def input_from_model(model: nn.Module, *, workers: int = 8, max_broken: int = 10, val_fraction: float = 0.1) -> Input:
    """The input that a timm model was published with, from its ``pretrained_cfg``; ``exact``, as its numbers are.

    Args:
        model: any timm model.
        workers: as in ``Input``; the model does not say.
        max_broken: as in ``Input``.
        val_fraction: as in ``Input``.

    Raises:
        ValueError: the model wants an input that ``Input`` cannot say: not square, or another crop mode.
    """
    config = resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    if height != width:
        raise ValueError(f"the model's input is {height} x {width}; only square inputs are evaluated here")
    if config["crop_mode"] not in ("center", "squash"):
        raise ValueError(f"the model's crop_mode is {config['crop_mode']!r}; expected 'center' or 'squash'")
    return Input(
        size=height,
        channels=channels,
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        val_fraction=val_fraction,
        workers=workers,
        max_broken=max_broken,
        exact=True,
    )


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
