"""Batches of images with label maps.

Shapes: B images of H x W pixels: in training the crop's, in evaluation padded with zeros to multiples of 32.
"""

from typing import Any, Literal, NotRequired, TypedDict

import torch
from PIL import Image
from torch import Tensor

from ....data.decode import channels_of
from ....data.loaders import Collate, DecodedImages, EvalLoader, Item, TrainLoader
from ....data.padding import pad_together
from ....data.samplers import EvalSampler, TrainSampler
from ....recipe import Augment, Input
from ..config import SegmentConfig
from .dataset import Labels, SegmentationDataset
from .transforms import SegmentationTransform


class SegmentationBatch(TypedDict):
    """Images and their labels: 0 to K - 1, and 255 where a pixel is ignored or padding.

    image: (B, C, H, W) float32. label: in training (B, H, W) int64; in evaluation a list, each (h, w) of its file's
    size. sizes: in evaluation, (B, 2) int64, height and width inside the padding. index: (B,) int64. unreadable: a message
    for each unreadable image.
    """

    image: Tensor
    label: Tensor | list[Tensor]
    sizes: NotRequired[Tensor]
    index: Tensor
    unreadable: list[str]


class SegmentationImages(DecodedImages[Labels]):
    """Samples of :class:`SegmentationTransform` by (epoch, index)."""

    def __init__(
        self,
        images: SegmentationDataset,
        transform: SegmentationTransform,
        channels: Literal[1, 3],
        seed: int,
        attempts: int = 1,
    ) -> None:
        super().__init__(images, channels, seed, attempts)
        self.transform = transform

    def convert(self, image: Image.Image, target: Labels, name: str) -> Item:
        return self.transform(image, target, name)


class CropCollate(Collate):
    """Training crops of one size."""

    def stack(self, items: list[Item]) -> dict[str, Any]:
        return {key: torch.stack([item[key] for item in items]) for key in ("image", "label")}


class WholeCollate(Collate):
    """Whole images padded to one size; labels stay a list."""

    def stack(self, items: list[Item]) -> dict[str, Any]:
        image, sizes = pad_together([item["image"] for item in items])
        return {"image": image, "sizes": sizes, "label": [item["label"] for item in items]}


def segmentation_train_loader(
    images: SegmentationDataset,
    input: Input,
    augment: Augment,
    segment: SegmentConfig,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
) -> TrainLoader[SegmentationBatch]:
    """Shuffled, augmented crops; else as :func:`smt_vision.data.train_loader`.

    Args:
        images: the training images.
        input: how images become tensors; sizes are ``segment``'s.
        augment: of it, ``hflip`` and ``vflip``.
        segment: sizes and the other changes.
        batch_size: images a batch, on each rank.
        seed: of order and augmentation.
        rank: of this process.
        world: processes.

    Raises:
        UnreadableImage: while iterating, when more than ``input.max_unreadable`` images or label maps are unreadable.
    """
    transform = SegmentationTransform(input, segment, augment)
    dataset = SegmentationImages(images, transform, channels_of(input), seed, attempts=input.max_unreadable + 1)
    return TrainLoader(dataset, CropCollate(), TrainSampler(len(images), batch_size, rank, world, seed), input)


def segmentation_eval_loader(
    images: SegmentationDataset, input: Input, segment: SegmentConfig, batch_size: int, rank: int = 0, world: int = 1
) -> EvalLoader[SegmentationBatch]:
    """Whole images in order, each once over all ranks.

    Args:
        images: the validation images.
        input: how images become tensors; sizes are ``segment``'s.
        segment: sizes.
        batch_size: images a batch.
        rank: of this process.
        world: processes.

    Raises:
        UnreadableImage: while iterating, when more than ``input.max_unreadable`` images or label maps are unreadable.
    """
    dataset = SegmentationImages(images, SegmentationTransform(input, segment, None), channels_of(input), seed=0)
    return EvalLoader(dataset, WholeCollate(), EvalSampler(len(images), batch_size, rank, world), input)
