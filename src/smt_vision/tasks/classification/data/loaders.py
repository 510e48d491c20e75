"""Batches of labeled images.

Shapes: B images of C channels, S x S pixels, K classes.
"""

from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from ....data.decode import OpenedImage
from ....data.loaders import EvalLoader, Item, TrainLoader, eval_loader, train_loader
from ....recipe import Sampling
from ..config import ClassificationAugment, ClassificationInput
from .dataset import ImageDataset, Target
from .transforms import Transform, eval_transform, train_transform


class ClassificationBatch(TypedDict):
    """A batch for training or evaluation.

    Args:
        image: (B, C, S, S) float32.
        target: (B,) int64 class indices; (B, K) float32 of 0 and 1 where an image may have any number of classes.
        index: (B,) int64, indices of the images in their dataset.
        unreadable: One message per unreadable image.
    """

    image: Tensor
    target: Tensor
    index: Tensor
    unreadable: list[str]


@dataclass(frozen=True)
class _LabeledTransform:
    """Applies ``transform`` to the image and adds the target."""

    transform: Transform

    def __call__(self, image: OpenedImage, target: Target, name: str) -> Item:
        return {"image": self.transform(image), "target": target}


def _stack(items: list[Item]) -> dict[str, Any]:
    targets = torch.from_numpy(np.stack([item["target"] for item in items]))
    return {
        # In a worker, torch's own collation stacks directly into shared memory, which saves a copy.
        "image": default_collate([item["image"] for item in items]),
        "target": targets.float() if targets.ndim == 2 else targets.long(),
    }


def classification_train_loader(
    images: ImageDataset,
    input: ClassificationInput,
    augment: ClassificationAugment,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    sampling: Sampling | None = None,
) -> TrainLoader[ClassificationBatch]:
    """Shuffled and augmented batches; see :func:`smt_vision.data.loaders.train_loader`."""
    transform = _LabeledTransform(train_transform(input, augment))
    return train_loader(images, transform, _stack, input, batch_size, seed, rank, world, sampling=sampling)


def classification_eval_loader(
    images: ImageDataset, input: ClassificationInput, batch_size: int, rank: int = 0, world: int = 1
) -> EvalLoader[ClassificationBatch]:
    """Batches for evaluation, in order; see :func:`smt_vision.data.loaders.eval_loader`."""
    return eval_loader(images, _LabeledTransform(eval_transform(input)), _stack, input, batch_size, rank, world)
