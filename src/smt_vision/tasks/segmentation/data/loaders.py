"""Batches of images with label maps.

Shapes: B images of H x W pixels, crops in training; in evaluation full images, zero-padded to multiples of 32.
"""

from typing import Any, TypedDict

import torch
from torch import Tensor

from ....data.loaders import EvalLoader, Item, TrainLoader, eval_loader, train_loader
from ....data.padding import pad_together
from ....recipe import Augment, Input, Sampling
from ..config import SegmentConfig
from .dataset import SegmentationDataset
from .transforms import SegmentationTransform


class SegmentationBatch(TypedDict):
    """A batch of training or evaluation. Labels are 0 to K - 1, and 255 where a pixel is ignored or padding.

    Args:
        image: (B, C, H, W) float32.
        label: In training (B, H, W) int64; in evaluation a list of label maps (h, w) uint8, at the stored size.
        sizes: (B, 2) int64, heights and widths without the padding.
        index: (B,) int64, indices of the images in their dataset.
        unreadable: One message per unreadable image.
    """

    image: Tensor
    label: Tensor | list[Tensor]
    sizes: Tensor
    index: Tensor
    unreadable: list[str]


def _stack_crops(items: list[Item]) -> dict[str, Any]:
    return {key: torch.stack([item[key] for item in items]) for key in ("image", "label", "sizes")}


def _stack_padded(items: list[Item]) -> dict[str, Any]:
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
    sampling: Sampling | None = None,
) -> TrainLoader[SegmentationBatch]:
    """Shuffled, augmented crops; see :func:`smt_vision.data.loaders.train_loader`."""
    transform = SegmentationTransform(input, segment, augment)
    return train_loader(images, transform, _stack_crops, input, batch_size, seed, rank, world, sampling=sampling)


def segmentation_eval_loader(
    images: SegmentationDataset, input: Input, segment: SegmentConfig, batch_size: int, rank: int = 0, world: int = 1
) -> EvalLoader[SegmentationBatch]:
    """Full images in order; see :func:`smt_vision.data.loaders.eval_loader`."""
    transform = SegmentationTransform(input, segment, None)
    return eval_loader(images, transform, _stack_padded, input, batch_size, rank, world)
