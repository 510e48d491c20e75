"""Batches of images with objects. Shapes: B images, zero-padded to H x W, multiples of 32; n objects per image."""

from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from ....data.decode import OpenedImage, decoded
from ....data.loaders import EvalLoader, Item, TrainLoader, eval_loader, train_loader
from ....data.padding import pad_together
from ....recipe import Input, Sampling
from ..config import DetectConfig, DetectionAugment
from .dataset import DetectionDataset, DetectionTarget
from .mixing import DetectionMix
from .transforms import DetectionTransform, check_size


class DetectionBatch(TypedDict):
    """A batch of training or evaluation.

    Args:
        image: (B, C, H, W) float32.
        sizes: (B, 2) int64, heights and widths without the padding.
        original: (B, 2) int64, heights and widths of the files.
        index: (B,) int64, indices of the images in their dataset.
        unreadable: One message per unreadable image.
        targets: In training, per image: ``boxes`` (n, 4) float32, ``(x1, y1, x2, y2)`` in pixels of the resized image;
            ``labels`` (n,) int64 from 0; and for a head with masks, ``masks`` (n, h, w) uint8. Without crowds.
    """

    image: Tensor
    sizes: Tensor
    original: Tensor
    index: Tensor
    unreadable: list[str]
    targets: NotRequired[list[dict[str, Tensor]]]


def _stack(items: list[Item]) -> dict[str, Any]:
    image, sizes = pad_together([item["image"] for item in items])
    original = torch.tensor([item["original"] for item in items])
    targets = {"targets": [item["target"] for item in items]} if "target" in items[0] else {}
    return {"image": image, "sizes": sizes, "original": original, **targets}


def detection_train_loader(
    images: DetectionDataset,
    input: Input,
    augment: DetectionAugment,
    detect: DetectConfig,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    sampling: Sampling | None = None,
    epochs: int | None = None,
) -> TrainLoader[DetectionBatch]:
    """Shuffled, augmented batches of either portrait or landscape images.

    See :func:`smt_vision.data.loaders.train_loader`. ``epochs`` is the length of the run, the last epochs of which have
    no mosaic; ``None``: all have.

    Raises:
        ValueError: The head has masks and the dataset has none.
    """
    if detect.has_masks:
        images.require_masks()
    transform = DetectionTransform(input, detect, augment)
    mix = DetectionMix(augment, detect, epochs) if augment.mosaic or augment.copy_paste else None
    return train_loader(
        images, transform, _stack, input, batch_size, seed, rank, world, images.portrait(), sampling, mix
    )


def detection_eval_loader(
    images: DetectionDataset, input: Input, detect: DetectConfig, batch_size: int, rank: int = 0, world: int = 1
) -> EvalLoader[DetectionBatch]:
    """Batches in order, without targets, which evaluation takes from the dataset's ``ground_truth``.

    With ``detect.tiles``, a batch is one image, and ``image`` a list with the decoded image: all of its tiles may need
    much more memory.

    See :func:`smt_vision.data.loaders.eval_loader`.
    """
    if detect.tiles:
        return eval_loader(images, _decoded, _stack_decoded, input, 1, rank, world)
    return eval_loader(images, DetectionTransform(input, detect, None), _stack, input, batch_size, rank, world)


def _decoded(image: OpenedImage, target: DetectionTarget, name: str) -> Item:
    check_size(image, target, name)
    return {"image": decoded(image), "original": target["size"]}


def _stack_decoded(items: list[Item]) -> dict[str, Any]:
    original = torch.tensor([item["original"] for item in items])
    return {"image": [item["image"] for item in items], "sizes": original, "original": original}
