"""Batches of images of one class each.

Shapes: B images of C channels, S x S pixels.
"""

from typing import Any, Literal, TypedDict

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from ....data.decode import channels_of
from ....data.loaders import Collate, DecodedImages, EvalLoader, Item, TrainLoader
from ....data.samplers import EvalSampler, TrainSampler
from ..config import ClassificationAugment, ClassificationInput
from .dataset import ImageDataset
from .transforms import Transform, eval_transform, train_transform


class ClassificationBatch(TypedDict):
    """image (B, C, S, S) float32, target (B,) int64, index (B,) int64, and a message for each unreadable image."""

    image: Tensor
    target: Tensor
    index: Tensor
    unreadable: list[str]


class ClassificationDataset(DecodedImages[int]):
    """Images as tensors (C, S, S) with their class; ``transform`` makes the tensor, the rest is as above."""

    def __init__(
        self, images: ImageDataset, transform: Transform, channels: Literal[1, 3], seed: int, attempts: int = 1
    ) -> None:
        super().__init__(images, channels, seed, attempts)
        self.transform = transform

    def convert(self, image: Image.Image, target: int, name: str) -> Item:
        return {"image": self.transform(image), "target": target}


class ClassificationCollate(Collate):
    """Images of one size and their classes."""

    def stack(self, items: list[Item]) -> dict[str, Any]:
        return {
            # torch's own collation: a worker stacks straight into the memory that it shares, and saves a copy.
            "image": default_collate([item["image"] for item in items]),
            "target": torch.tensor([item["target"] for item in items], dtype=torch.long),
        }


def train_loader(
    images: ImageDataset,
    input: ClassificationInput,
    augment: ClassificationAugment,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
) -> TrainLoader[ClassificationBatch]:
    """Shuffled, augmented batches.

    The whole stream is a function of (seed, rank, world): not of the number of workers, nor of where it was resumed.
    An unreadable image is named in the log and replaced by the next one, so that batches keep their size.

    Args:
        images: the training images.
        input: how images become tensors.
        augment: what training does to them.
        batch_size: images a batch, on each rank.
        seed: of order and augmentation.
        rank: of this process.
        world: processes.

    Raises:
        UnreadableImage: while iterating, when more than ``input.max_unreadable`` images are unreadable.
    """
    dataset = ClassificationDataset(
        images, train_transform(input, augment), channels_of(input), seed, attempts=input.max_unreadable + 1
    )
    sampler = TrainSampler(len(images), batch_size, rank, world, seed)
    return TrainLoader(dataset, ClassificationCollate(), sampler, input)


def eval_loader(
    images: ImageDataset, input: ClassificationInput, batch_size: int, rank: int = 0, world: int = 1
) -> EvalLoader[ClassificationBatch]:
    """Batches in order, each image once over all ranks. Unreadable ones are named in the log and left out.

    Args:
        images: the validation images.
        input: how images become tensors.
        batch_size: images a batch.
        rank: of this process.
        world: processes.

    Raises:
        UnreadableImage: while iterating, when more than ``input.max_unreadable`` images are unreadable.
    """
    dataset = ClassificationDataset(images, eval_transform(input), channels_of(input), seed=0)
    return EvalLoader(dataset, ClassificationCollate(), EvalSampler(len(images), batch_size, rank, world), input)
