"""Detectors by name, and their results in the pixels of the images as they are stored.

Shapes: B images of H x W pixels, K classes; N objects or detections of an image, boxes ``(x1, y1, x2, y2)``.
"""

from math import ceil
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d
from torch import Tensor, nn

from ....data.padding import LARGEST_STRIDE, group_by_size, padded
from ...backbone import Backbone
from ..config import DetectConfig
from .pyramid import Pyramid, head_norm
from .rcnn import RCNN
from .retinanet import RetinaNet

LEVELS = 5
COUNTED_RATIO = 1.6  # width over height of the image that costs are told for: 1280 x 800 in published tables


class Detector(Protocol):
    """What every detector offers.

    Attributes:
        has_masks: detections come with masks.
    """

    has_masks: bool

    def __call__(
        self, image: Tensor, sizes: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation.

        Args:
            image: (B, 3, H, W), normalized, zero-padded to a multiple of 32.
            sizes: (B, 2) int64, height and width inside the padding.
            targets: for training, of each image: ``boxes`` (N, 4) float32 in pixels, ``labels`` (N,) int64 from 0 to
                K - 1, and ``masks`` (N, h, w) uint8 where the detector has masks; N may be 0.

        Returns:
            In training, losses by name, float32. In evaluation, of each image, best first: ``boxes`` (N, 4) in pixels
            of the image given, ``scores`` (N,), ``labels`` (N,), and ``masks`` (N, 28, 28), probabilities inside the
            box.
        """

    def detect(self, image: Tensor, shapes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """The detections that evaluation gives; ``shapes`` has B heights and widths, inside the padding."""

    def forward_flops(self, image: Tensor) -> object:
        """What published costs count, without anything that depends on the data."""


def build_detector(backbone: Backbone, num_classes: int, config: DetectConfig) -> nn.Module:
    """A :class:`Detector`.

    ``config.norm`` is about BatchNorm at a few images a process, where the statistics of a batch are noise. ``train``
    takes them all the same, which suits a training from scratch; ``frozen`` keeps the backbone's statistics and
    factors as they are loaded, which suits fine-tuning, and needs pretrained weights; ``sync`` takes those of all
    processes' images, in the heads too, and needs GPUs.

    Args:
        backbone: with the weights it starts from.
        num_classes: K.
        config: the head, its sizes and thresholds.

    Raises:
        ValueError: the anchors are not of five levels, or there is no class.
    """
    if len(config.anchor_sizes) != LEVELS:
        raise ValueError(
            f"detect.anchor_sizes={config.anchor_sizes!r} has {len(config.anchor_sizes)} entries; the pyramid has "
            f"{LEVELS} levels and needs a size each, as (32, 64, 128, 256, 512)"
        )
    if num_classes < 1:
        raise ValueError(f"a detector of {num_classes} classes finds nothing; the data must name at least one")
    if config.norm == "frozen":
        freeze_batch_norm_2d(backbone)
    top: Literal["convs", "pool"] = "convs" if config.head == "retinanet" else "pool"
    pyramid = Pyramid(backbone, config.fpn_channels, top, head_norm(config))
    make = RetinaNet if config.head == "retinanet" else RCNN
    detector = make(pyramid, num_classes, config)
    return convert_sync_batchnorm(detector) if config.norm == "sync" else detector


class FlopsView(nn.Module):
    """A detector as the tables count it: :meth:`Detector.forward_flops` as the forward pass."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> object:
        return self.detector.forward_flops(image)  # type: ignore[operator]


def flops_view(detector: nn.Module, channels: int, config: DetectConfig) -> tuple[nn.Module, tuple[int, int, int]]:
    """A module whose parameters and GMAC are the detector's, and the ``(C, H, W)`` that they are told for."""
    height = padded(config.short_side)
    width = padded(min(round(COUNTED_RATIO * config.short_side), config.long_side))
    return FlopsView(detector), (channels, height, width)


def run_detector(model: nn.Module, image: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
    """What a :class:`Detector` in evaluation finds in each image.

    An image's result does not depend on the others of its batch: each is cut out of the batch's padding, up to a
    multiple of 32 pixels, and those of equal size go through the model together.

    Args:
        model: the detector.
        image: (B, 3, H, W), normalized, zero-padded at the right and the bottom.
        sizes: (B, 2) int64, height and width inside the padding.
    """
    found: dict[int, dict[str, Tensor]] = {}
    for same, (height, width) in group_by_size(-(-sizes // LARGEST_STRIDE) * LARGEST_STRIDE):
        found.update(zip(same, model(image[same, :, :height, :width], sizes[same]), strict=True))
    return [found[row] for row in range(len(sizes))]


def to_original(detections: list[dict[str, Tensor]], sizes: Tensor, original: Tensor) -> list[dict[str, Tensor]]:
    """Detections in the pixels of the images as they are stored.

    Args:
        detections: what a detector gave, of B images.
        sizes: (B, 2) height and width that the detector saw.
        original: (B, 2) height and width as stored.

    Returns:
        The same with ``boxes`` scaled, and ``masks`` (N, H, W) bool, of whole images.
    """
    out = []
    for found, (h, w), (H, W) in zip(detections, sizes.tolist(), original.tolist(), strict=True):
        boxes = found["boxes"] * found["boxes"].new_tensor([W / w, H / h, W / w, H / h])
        result = {**found, "boxes": boxes}
        if "masks" in found:
            result["masks"] = paste_masks(found["masks"], boxes, (H, W))
        out.append(result)
    return out


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks from the frames of their boxes into the image.

    The box is taken to the fraction of a pixel, where torchvision's ``paste_masks_in_image`` takes whole ones, which
    objects of a few pixels feel.

    Args:
        masks: (N, M, M) probabilities.
        boxes: (N, 4) in pixels of the image.
        size: H and W of the image.

    Returns:
        (N, H, W) bool: a probability of a half or more.
    """
    H, W = size
    out = torch.zeros(len(masks), H, W, dtype=torch.bool, device=masks.device)
    for mask, (x1, y1, x2, y2), image in zip(masks.float(), boxes.tolist(), out, strict=True):
        left, top, right, bottom = max(int(x1), 0), max(int(y1), 0), min(ceil(x2), W), min(ceil(y2), H)
        if left >= right or top >= bottom:
            continue
        # Centres of the pixels in the frame of the box, which is from -1 to 1.
        x = (torch.arange(left, right, device=masks.device) + 0.5 - x1) * (2 / (x2 - x1)) - 1
        y = (torch.arange(top, bottom, device=masks.device) + 0.5 - y1) * (2 / (y2 - y1)) - 1
        places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        seen = F.grid_sample(mask[None, None], places[None], align_corners=False)
        image[top:bottom, left:right] = seen[0, 0] >= 0.5
    return out
