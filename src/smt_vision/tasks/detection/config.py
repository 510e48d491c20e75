"""Configuration of a detection recipe."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from ...bounds import Channels, Count, Fraction, NotEmpty, Range, Side
from ...recipe import Augment, Group, Recipe

# Groups and fields that can be changed at inference, e.g. --detect.score_threshold.
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

    color_jitter: Annotated[float, Range(ge=0, le=10)] = 0.0


@dataclass(frozen=True)
class DetectConfig(Group):
    """Detection head and image sizes.

    Args:
        head: ``retinanet``, ``fcos``, ``faster_rcnn`` or ``dino`` (extra ``detr``), or with masks ``mask_rcnn`` or
            ``cascade_mask_rcnn``.
        short_side: Short side of an evaluation image in pixels, unless the long side would exceed ``long_side``.
        long_side: Longest side of an image in pixels.
        train_short_sides: Short sides in pixels from which training samples one per image.
        crop_branch: Half of the training images are first resized to a short side of 400, 500 or 600 pixels and cropped
            to 384 to 600 pixels per side: the augmentation of the 3x schedule (from DETR).
        norm: BatchNorm of the backbone. ``train``: batch statistics; ``frozen``: fixed at the initial statistics, for
            few images per process; ``sync``: batch statistics over all processes.
        head_norm: ``none``: pyramid and heads as published; ``group``: GroupNorm in their convolutions, without which
            training from scratch is slow (He et al., ICCV 2019). A cascade's box heads always have BatchNorm, and the
            heads of ``fcos`` and ``dino`` GroupNorm and LayerNorm, as published.
        box_loss: ``l1``: torchvision's default loss of the head; ``giou``: GIoU of decoded boxes. Without effect on
            ``fcos`` (GIoU) and ``dino`` (L1 and GIoU).
        anchor_sizes: Anchor sides in pixels, one per level; ``retinanet`` adds two octave scales per level. Not used by
            ``fcos`` and ``dino``, which have no anchors.
        fpn_channels: Channels of the feature pyramid, or of the transformer of ``dino``.
        head_channels: Channels of the box head's linear layers, or of the feed-forward layers of ``dino``.
        layers: Layers of the encoder and of the decoder of ``dino``.
        queries: Queries of ``dino``: the most objects per image that it can detect.
        rois: Proposals per image sampled to train a box head.
        score_threshold: Detections with a lower score are dropped.
        nms_threshold: IoU above which the lower-scoring of two detections of a class is dropped; ``dino`` needs no such
            step.
        max_detections: Detections kept per image.
        min_box: Training boxes with a shorter side, in pixels after augmentation, are dropped.
    """

    group: ClassVar[str] = "detect"

    head: Literal["retinanet", "fcos", "faster_rcnn", "dino", "mask_rcnn", "cascade_mask_rcnn"] = "mask_rcnn"
    short_side: Side = 800
    long_side: Side = 1333
    train_short_sides: Annotated[tuple[Side, ...], NotEmpty()] = (800,)
    crop_branch: bool = False
    norm: Literal["train", "frozen", "sync"] = "train"
    head_norm: Literal["none", "group"] = "none"
    box_loss: Literal["l1", "giou"] = "l1"
    anchor_sizes: Annotated[tuple[Side, ...], NotEmpty()] = (32, 64, 128, 256, 512)
    fpn_channels: Channels = 256
    head_channels: Channels = 1024
    layers: Annotated[int, Range(ge=1, le=100)] = 6
    queries: Annotated[int, Range(ge=1, le=100_000)] = 900
    rois: Count = 512
    score_threshold: Fraction = 0.05
    nms_threshold: Fraction = 0.5
    max_detections: Count = 100
    min_box: Annotated[float, Range(ge=0, le=16_384)] = 1.0

    @property
    def has_masks(self) -> bool:
        """Whether the head predicts masks in addition to boxes."""
        return self.head in ("mask_rcnn", "cascade_mask_rcnn")


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(Recipe):
    """A training run of a detector.

    Args:
        data: Folder in COCO or Pascal VOC layout.
        augment: Augmentation of images and objects.
        detect: Detection head and image sizes.
    """

    task: ClassVar[str] = "detect"
    head_group: ClassVar[str | None] = "detect"

    augment: DetectionAugment = field(default_factory=DetectionAugment)
    detect: DetectConfig = field(default_factory=DetectConfig)
