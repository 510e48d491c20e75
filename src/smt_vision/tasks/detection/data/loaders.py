"""Batches of images with objects.

Shapes: B images padded with zeros to H x W, multiples of 32; n objects of an image.
"""

from typing import Any, Literal, NotRequired, TypedDict

import torch
from PIL import Image
from torch import Tensor

from ....data.decode import channels_of
from ....data.loaders import Collate, DecodedImages, EvalLoader, Item, TrainLoader
from ....data.padding import pad_together
from ....data.samplers import EvalSampler, TrainSampler
from ....recipe import Input
from ..config import DetectConfig, DetectionAugment
from .dataset import DetectionDataset, DetectionTarget
from .transforms import DetectionTransform


class DetectionBatch(TypedDict):
    """Images of unlike sizes, and in training their objects.

    image: (B, C, H, W) float32. sizes: (B, 2) int64, height and width inside the padding. original: (B, 2) int64, of
    the file. index: (B,) int64. unreadable: a message for each unreadable image. targets: of each image, boxes (n, 4)
    float32, x0 y0 x1 y1 in pixels of the resized image, labels (n,) int64 from 0, and for a head with masks, masks
    (n, h, w) uint8; crowds are left out.
    """

    image: Tensor
    sizes: Tensor
    original: Tensor
    index: Tensor
    unreadable: list[str]
    targets: NotRequired[list[dict[str, Tensor]]]


class DetectionImages(DecodedImages[DetectionTarget]):
    """Samples of :class:`DetectionTransform` by (epoch, index)."""

    def __init__(
        self,
        images: DetectionDataset,
        transform: DetectionTransform,
        channels: Literal[1, 3],
        seed: int,
        attempts: int = 1,
    ) -> None:
        super().__init__(images, channels, seed, attempts)
        self.transform = transform

    def convert(self, image: Image.Image, target: DetectionTarget, name: str) -> Item:
        return self.transform(image, target, name)


class DetectionCollate(Collate):
    """Images padded to one size; targets stay a list."""

    def stack(self, items: list[Item]) -> dict[str, Any]:
        image, sizes = pad_together([item["image"] for item in items])
        batch: dict[str, Any] = {
            "image": image,
            "sizes": sizes,
            "original": torch.tensor([item["original"] for item in items]),
        }
        return batch | ({"targets": [item["target"] for item in items]} if "target" in items[0] else {})


def detection_train_loader(
    images: DetectionDataset,
    input: Input,
    augment: DetectionAugment,
    detect: DetectConfig,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
) -> TrainLoader[DetectionBatch]:
    """Shuffled, augmented batches, portrait images apart from wide ones; else as :func:`smt_vision.data.train_loader`.

    Args:
        images: the training images.
        input: how images become tensors; sizes are ``detect``'s.
        augment: of it, ``hflip``, ``vflip`` and ``color_jitter``.
        detect: the head, which decides whether there are masks, and sizes.
        batch_size: images a batch, on each rank.
        seed: of order and augmentation.
        rank: of this process.
        world: processes.

    Raises:
        ValueError: the head learns masks and the set lacks them.
        UnreadableImage: while iterating, when more than ``input.max_unreadable`` images are unreadable.
    """
    if detect.has_masks:
        images.require_masks()
    transform = DetectionTransform(input, detect, augment)
    dataset = DetectionImages(images, transform, channels_of(input), seed, attempts=input.max_unreadable + 1)
    sampler = TrainSampler(len(images), batch_size, rank, world, seed, groups=images.portrait())
    return TrainLoader(dataset, DetectionCollate(), sampler, input)


def detection_eval_loader(
    images: DetectionDataset, input: Input, detect: DetectConfig, batch_size: int, rank: int = 0, world: int = 1
) -> EvalLoader[DetectionBatch]:
    """Batches in order, each image once over all ranks, without targets: evaluation has the set's ``ground_truth``.

    Args:
        images: the validation images.
        input: how images become tensors; sizes are ``detect``'s.
        detect: sizes.
        batch_size: images a batch.
        rank: of this process.
        world: processes.

    Raises:
        UnreadableImage: while iterating, when more than ``input.max_unreadable`` images are unreadable.
    """
    dataset = DetectionImages(images, DetectionTransform(input, detect, None), channels_of(input), seed=0)
    return EvalLoader(dataset, DetectionCollate(), EvalSampler(len(images), batch_size, rank, world), input)
