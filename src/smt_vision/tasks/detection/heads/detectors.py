"""Detectors by name, and conversion of their detections to the pixels of the original images.

Shapes: B images of H x W pixels, K classes; N objects or detections per image, boxes ``(x1, y1, x2, y2)``.
"""

from typing import Protocol

import torch
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d
from torch import Tensor, nn

from ....data.padding import LARGEST_STRIDE, group_by_size, padded
from ...backbone import Backbone
from ..config import DetectConfig
from .dino import DINO
from .pyramid import Pyramid, checked_outputs, head_norm
from .rcnn import RCNN
from .single_stage import FCOS, RetinaNet

LEVELS = 5
FLOPS_RATIO = 1.6  # width / height of the image that GMACs are reported for: 1280 x 800 in published tables


class Detector(Protocol):
    """Interface of all detectors.

    Attributes:
        has_masks: Whether detections have masks.
    """

    has_masks: bool

    def __call__(
        self, image: Tensor, sizes: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, detections in evaluation mode.

        Args:
            image: Normalized images (B, 3, H, W), zero-padded to a multiple of 32.
            sizes: Height and width inside the padding (B, 2), int64.
            targets: For training, per image: ``boxes`` (N, 4) float32 in pixels, ``labels`` (N,) int64 class indices,
                0 to K - 1, and ``masks`` (N, h, w) uint8 if the detector has masks; N may be 0.

        Returns:
            In training mode, float32 losses by name. In evaluation mode, per image and best first: ``boxes`` (N, 4) in
            pixels of the input, ``scores`` (N,), ``labels`` (N,), and with masks ``masks`` (N, 28, 28), probabilities
            inside the box.
        """

    def detect(self, image: Tensor, shapes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Detections as in evaluation mode; ``shapes`` has B heights and widths inside the padding."""

    def forward_flops(self, image: Tensor) -> object:
        """The forward pass that published GMACs count, independent of the data."""


def build_detector(backbone: Backbone, num_classes: int, config: DetectConfig) -> nn.Module:
    """Build a :class:`Detector`.

    ``config.norm`` selects how BatchNorm treats a few images per process, for which batch statistics are noisy.
    ``train`` uses batch statistics nevertheless, which suits training from scratch. ``frozen`` keeps the loaded
    statistics and affine parameters of the backbone, which suits fine-tuning and requires pretrained weights. ``sync``
    uses the statistics over all processes, in the heads too, and requires GPUs.

    Args:
        backbone: Backbone with its initial weights.
        num_classes: Number of classes K.
        config: Detection head, image sizes and thresholds.

    Raises:
        ValueError: The anchor sizes are not five, there are no classes, or ``dino`` cannot have that many channels.
        ImportError: ``dino`` without the packages of the extra ``detr``.
    """
    if config.head not in ("fcos", "dino") and len(config.anchor_sizes) != LEVELS:
        raise ValueError(
            f"invalid detect.anchor_sizes={config.anchor_sizes!r}: expected one size for each of the {LEVELS} pyramid "
            "levels, e.g. (32, 64, 128, 256, 512)"
        )
    if num_classes < 1:
        raise ValueError(f"invalid num_classes={num_classes}: expected at least 1")
    if config.norm == "frozen":
        freeze_batch_norm_2d(backbone)
    detector = _build(backbone, num_classes, config)
    return convert_sync_batchnorm(detector) if config.norm == "sync" else detector


def _build(backbone: Backbone, num_classes: int, config: DetectConfig) -> nn.Module:
    if config.head == "dino":
        return DINO(backbone, num_classes, config)
    single_stage = {"retinanet": RetinaNet, "fcos": FCOS}.get(config.head)
    pyramid = Pyramid(backbone, config.fpn_channels, "convs" if single_stage else "pool", head_norm(config))
    return (single_stage or RCNN)(pyramid, num_classes, config)


class FlopsView(nn.Module):
    """A detector whose forward pass is :meth:`Detector.forward_flops`."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> object:
        return self.detector.forward_flops(image)  # type: ignore[operator]


def flops_view(detector: nn.Module, channels: int, config: DetectConfig) -> tuple[nn.Module, tuple[int, int, int]]:
    """A module with the parameters and GMACs of the detector, and the ``(C, H, W)`` that they are reported for."""
    height = padded(config.short_side)
    width = padded(min(round(FLOPS_RATIO * config.short_side), config.long_side))
    return FlopsView(detector), (channels, height, width)


def run_detector(model: nn.Module, image: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
    """Detections of a :class:`Detector` in evaluation mode, per image.

    The result for an image does not depend on the other images of the batch: each image is cropped to its own padding,
    a multiple of 32 pixels, and images of equal padded size are processed together. Where the model's outputs for an
    image are infinite or not a number, its only detection has a score of NaN; see :func:`is_finite`.

    Args:
        model: Detector in evaluation mode.
        image: Normalized images (B, 3, H, W), zero-padded at the right and the bottom.
        sizes: Height and width inside the padding (B, 2), int64.
    """
    detections: dict[int, dict[str, Tensor]] = {}
    for rows, (height, width) in group_by_size(-(-sizes // LARGEST_STRIDE) * LARGEST_STRIDE):
        detections.update(zip(rows, _checked(model, image[rows, :, :height, :width], sizes[rows]), strict=True))
    return [detections[row] for row in range(len(sizes))]


def is_finite(detections: dict[str, Tensor]) -> bool:
    """Whether the outputs of which :func:`run_detector` has made an image's detections were finite."""
    return not detections["scores"].isnan().any()


def _checked(model: nn.Module, image: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
    """Detections of images of equal size; if an output is not finite, each image is run by itself."""
    with checked_outputs(model) as checks:
        found: list[dict[str, Tensor]] = model(image, sizes)
    if not checks or torch.stack(checks).all():
        return found
    if len(sizes) > 1:
        return [own for row in range(len(sizes)) for own in _checked(model, image[row, None], sizes[row, None])]
    (own,) = found
    return [{name: values.new_full((1, *values.shape[1:]), 0 if name == "labels" else torch.nan)
             for name, values in own.items()}]  # fmt: skip


def to_original(detections: list[dict[str, Tensor]], sizes: Tensor, original: Tensor) -> list[dict[str, Tensor]]:
    """Scale the boxes of detections to the original images; masks stay as they are, relative to their boxes.

    Args:
        detections: Detections of B resized images.
        sizes: Height and width of the resized images (B, 2).
        original: Height and width of the original images (B, 2).

    Returns:
        Detections with ``boxes`` in pixels of the original images.
    """
    return [
        {**resized, "boxes": resized["boxes"] * resized["boxes"].new_tensor([W / w, H / h, W / w, H / h])}
        for resized, (h, w), (H, W) in zip(detections, sizes.tolist(), original.tolist(), strict=True)
    ]
