"""Images to tensors: timm's own pieces, in training and evaluation."""

import random
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform, resolve_model_data_config
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import str_to_interp_mode
from timm.data.transforms_factory import transforms_imagenet_train
from torch import Tensor, nn
from torchvision.transforms import Compose, RandomHorizontalFlip, RandomVerticalFlip, Resize

from ..recipes import Augment, Input

Transform = Callable[[Image.Image], Tensor]


def eval_transform(input: Input) -> Transform:
    """The pipeline of evaluation: resize, centre crop, normalise; equal to timm's own validation to the bit.

    Returns:
        A function from an image of ``input.channels`` channels to a float32 tensor (channels, size, size).
    """
    mean, std = _statistics(input)
    return create_transform(
        input_size=(input.channels, input.size, input.size),
        is_training=False,
        interpolation=_interpolation(input),
        mean=mean,
        std=std,
        crop_pct=input.crop_pct,
        crop_mode=input.crop_mode,
        normalize=True,
    )


def train_transform(input: Input, augment: Augment) -> Transform:
    """The pipeline of training: crop, flips, colour or RandAugment, normalise, random erasing.

    Mixup and CutMix need a batch and are applied elsewhere. Draws come from Python's, NumPy's and torch's global
    generators.

    Returns:
        A function from an image of ``input.channels`` channels to a float32 tensor (channels, size, size).
    """
    mean, std = _statistics(input)
    primary, secondary, final = transforms_imagenet_train(
        img_size=input.size,
        scale=augment.scale,
        ratio=augment.ratio,
        hflip=augment.hflip,
        vflip=augment.vflip,
        color_jitter=augment.color_jitter,
        auto_augment=augment.auto_augment,
        interpolation=input.interpolation,
        mean=mean,
        std=std,
        re_prob=augment.random_erasing,
        re_mode=augment.erasing_mode,
        separate=True,
    )
    steps = list(primary.transforms)
    if augment.crop != "rrc":
        steps = [ResizeTo(input.size, _interpolation(input))]
        steps += [PadCrop(augment.pad)] if augment.crop == "pad" and augment.pad else []
        steps += [RandomHorizontalFlip(augment.hflip)] if augment.hflip else []
        steps += [RandomVerticalFlip(augment.vflip)] if augment.vflip else []
    # A jitter of strength zero would still be drawn for each image.
    colour = secondary.transforms if augment.auto_augment or augment.color_jitter else []
    erasing = [step for step in final.transforms if isinstance(step, RandomErasing)]
    return Compose([*steps, *colour, ToNormalized(mean, std), *erasing])


class ResizeTo:
    """Resize an image to a square, unless it is one of that size already."""

    def __init__(self, size: int, interpolation: str) -> None:
        self.size = size
        self.resize = Resize((size, size), str_to_interp_mode(interpolation))

    def __call__(self, image: Image.Image) -> Image.Image:
        return image if image.size == (self.size, self.size) else self.resize(image)


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
        pixels = np.array(image)
        channels_first = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)
        out = channels_first.to(torch.float32, memory_format=torch.contiguous_format)
        return out.div_(255).sub_(self.mean).div_(self.std)


def input_from_model(model: nn.Module, *, workers: int = 8, max_broken: int = 10, val_fraction: float = 0.1) -> Input:
    """The input that a timm model was published with, from its ``pretrained_cfg``.

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
    )


def _interpolation(input: Input) -> str:
    # "random" is a kind of augmentation: of random-area crops alone.
    return "bicubic" if input.interpolation == "random" else input.interpolation


def _statistics(input: Input) -> tuple[tuple[float, ...], tuple[float, ...]]:
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
