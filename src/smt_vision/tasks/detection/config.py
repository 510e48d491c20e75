"""The fields of a detection recipe."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ...recipe import Augment, Recipe

# Groups and fields that may differ in use from training, e.g. --detect.score_threshold.
INFERENCE_OVERRIDES = {
    "input": ("exact",),
    "detect": ("short_side", "long_side", "score_threshold", "nms_threshold", "max_detections"),
}
DRAWN_SCORE = 0.4  # detections with a lower score are not drawn


@dataclass(frozen=True)
class DetectionAugment(Augment):
    """Augmentation of images and objects.

    Args:
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        color_jitter: Strength of brightness, contrast and saturation changes.
    """

    color_jitter: float = 0.0


@dataclass(frozen=True)
class DetectConfig:
    """The detection head, and image sizes.

    Args:
        head: ``retinanet``, ``faster_rcnn``, or, with masks, ``mask_rcnn`` or ``cascade_mask_rcnn``.
        short_side: Short side of an image in evaluation in pixels, unless the long one would exceed long_side.
        long_side: Longest side of an image in pixels.
        train_short_sides: Training samples one of these short sides per image.
        crop_branch: Half of the training images are first resized to a short side of 400, 500 or 600, and cropped to
            384 to 600 pixels per side: the augmentation of the 3x schedule (DETR's).
        norm: BatchNorm of the backbone: ``train``; ``frozen`` at the statistics it starts with, for few images per
            process; ``sync``: statistics over all processes.
        head_norm: ``none``: pyramid and heads as published; ``group``: GroupNorm in their convolutions, without which
            they learn slowly from scratch (He et al., ICCV 2019). A cascade's box heads have BatchNorm as published.
        box_loss: ``l1``: torchvision's own loss of that head; ``giou``: GIoU of decoded boxes.
        anchor_sizes: Sides of the anchors in pixels, one per level; ``retinanet`` makes three octave scales of each.
        fpn_channels: Channels of the feature pyramid.
        head_channels: Channels of the box head's linear layers.
        rois: Proposals per image that a box head is trained on.
        score_threshold: Detections with a lower score are dropped.
        nms_threshold: IoU from which the lower-scoring of two detections of a class is dropped.
        max_detections: Detections kept per image.
        min_box: Training boxes with a shorter side, in pixels after augmentation, are dropped.
    """

    head: Literal["retinanet", "faster_rcnn", "mask_rcnn", "cascade_mask_rcnn"] = "mask_rcnn"
    short_side: int = 800
    long_side: int = 1333
    train_short_sides: tuple[int, ...] = (800,)
    crop_branch: bool = False
    norm: Literal["train", "frozen", "sync"] = "train"
    head_norm: Literal["none", "group"] = "none"
    box_loss: Literal["l1", "giou"] = "l1"
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    fpn_channels: int = 256
    head_channels: int = 1024
    rois: int = 512
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100
    min_box: float = 1.0

    @property
    def has_masks(self) -> bool:
        """Whether the head predicts masks beside boxes, and is trained on them."""
        return self.head in ("mask_rcnn", "cascade_mask_rcnn")


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(Recipe):
    """A training run of a detector.

    Args:
        data: A folder in COCO's or Pascal VOC's layout.
        augment: Augmentation of images and objects.
        detect: Detection head and image sizes.
    """

    task: ClassVar[str] = "detect"
    head_group: ClassVar[str | None] = "detect"

    augment: DetectionAugment = field(default_factory=DetectionAugment)
    detect: DetectConfig = field(default_factory=DetectConfig)
