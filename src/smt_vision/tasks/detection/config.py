"""Configuration of a detection recipe."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from ...bounds import Ascending, Channels, Count, Fraction, NotEmpty, PositiveFraction, Range, Side
from ...recipe import Augment, BandsInput, Group, Loss, Recipe

# Groups and fields that can be changed at inference, e.g. --detect.score_threshold.
INFERENCE_OVERRIDES = {
    "input": ("exact", "clip_boxes"),
    "detect": (
        "short_side",
        "long_side",
        "score_threshold",
        "nms_threshold",
        "max_detections",
        "eval_detections",
        "tiles",
        "tile_overlap",
    ),
}
DRAWN_SCORE = 0.4  # detections with a lower score are not drawn
ScaleFactor = Annotated[float, Range(ge=0.05, le=10)]


@dataclass(frozen=True)
class DetectionInput(BandsInput):
    """How images become tensors.

    Args:
        channels: Image channels: 3 for RGB, 1 for grayscale; any other number of bands, in TIFF or NumPy (.npy) files.
        max_value: Pixel value that becomes 1. If set, images of 1 or 3 channels keep all their bits, too. ``None``: 255
            for 8 bits and 65535 for 16 bits; other types need it.
        interpolation: Interpolation of every resize: ``bicubic``, ``bilinear``, ``nearest``, ``box``, ``hamming`` or
            ``lanczos``.
        mean: Subtracted from each channel, for values in [0, 1]; ``None``: the mean that the model's weights were
            trained with.
        std: Each channel is divided by it; ``None`` likewise.
        workers: Data loading processes per training process; 0 loads in the training process. At most one per batch,
            and per CPU core of the training process's share.
        max_unreadable: Unreadable images to report and skip before the run stops with an error; counted by each
            training process, in training and in validation, since its start.
        exact: Decode and resize with Pillow exactly as timm does, for numbers that are compared with published ones;
            otherwise resize with torch, which is faster and differs by a level or two of 255, and decode large JPEG
            files at the resolution that is needed.
        val_fraction: Fraction held out from a dataset without a validation split, stratified and seeded.
        clip_boxes: Clip any number of boxes that extend outside of their image; otherwise they are an error if they are
            more than 5 % of the objects. Evaluation uses the boxes as stored, except those of YOLO's layout.
    """

    val_fraction: PositiveFraction = 0.1
    clip_boxes: bool = False


@dataclass(frozen=True)
class DetectionAugment(Augment):
    """Augmentation of images and objects. All of it depends on the seed, the epoch and the image only.

    Args:
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        color_jitter: Strength of brightness, contrast and saturation changes.
        scale_jitter: Range of a random factor on the size of the resized image: above 1, it is cropped to the size
            without jitter; below 1, it is smaller. Large-scale jitter is (0.1, 2.0) (Ghiasi et al., CVPR 2021).
        iou_crop: Probability of a random crop that has at least a random IoU with an object (Liu et al., SSD, ECCV
            2016), and keeps the objects whose center is inside.
        mosaic: Probability of composing an image from four that meet at a random point (Bochkovskiy et al., YOLOv4,
            2020).
        close_mosaic: Number of final epochs without mosaic.
        copy_paste: Probability of pasting a random half of the objects of another image; for heads with masks (Ghiasi
            et al., CVPR 2021).
    """

    color_jitter: Annotated[float, Range(ge=0, le=10)] = 0.0
    scale_jitter: Annotated[tuple[ScaleFactor, ScaleFactor], Ascending()] = (1.0, 1.0)
    iou_crop: Fraction = 0.0
    mosaic: Fraction = 0.0
    close_mosaic: Annotated[int, Range(ge=0, le=1_000_000)] = 10
    copy_paste: Fraction = 0.0


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
        box_loss: ``l1``: torchvision's default loss of the head, L1 for ``retinanet`` and smooth L1 with a beta of 1/9
            for the others; ``giou``: GIoU of decoded boxes. No effect on ``fcos`` (GIoU) and ``dino`` (L1 and
            GIoU).
        anchor_sizes: Anchor sides in pixels, one per level; ``retinanet`` adds two octave scales per level. Not used by
            ``fcos`` and ``dino``, which have no anchors.
        fpn_channels: Channels of the feature pyramid, or of the transformer of ``dino``.
        head_channels: Channels of the box head's linear layers, or of the feed-forward layers of ``dino``.
        layers: Layers of the encoder and of the decoder of ``dino``.
        cascade_boxes: Boxes that a stage of ``cascade_mask_rcnn`` predicts per region: one per ``class``, as in the
            paper's runs, or one ``shared`` by all classes, as in the Cascade R-CNN paper and in earlier runs.
        fcos_points: Point of a cell from which ``fcos`` measures distances: its ``center``, as published, or its upper
            left ``corner``, as in torchvision and in earlier runs.
        roi_aligned: Whether RoIAlign has the center of a cell at half a stride, as in MMDetection; if not, it has it
            at the cell's upper left corner, as torchvision and earlier runs.
        queries: Queries of ``dino``: the maximum number of objects it can detect per image.
        rois: Proposals per image sampled to train a box head.
        score_threshold: Detections with a lower score are dropped.
        nms_threshold: IoU above which the lower-scoring of two detections of a class is dropped; ``dino`` needs no such
            step.
        max_detections: Detections kept per image.
        eval_detections: Detections per image and class that average precision and recall count, 100 in COCO's;
            ``None`` for ``max_detections``, at least 100.
        min_box: Training boxes with a shorter side, in pixels after augmentation, are dropped.
        tiles: Side in pixels of the tiles in which larger images are evaluated and predicted, each tile resized like an
            image; 0 for none.
        tile_overlap: Minimum overlap of neighboring tiles, as a fraction of a tile's side. Objects up to 0.8 of the
            overlap are found in the tiles, larger ones in the whole image.
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
    cascade_boxes: Literal["class", "shared"] = "class"
    fcos_points: Literal["center", "corner"] = "center"
    roi_aligned: bool = True
    queries: Annotated[int, Range(ge=1, le=100_000)] = 900
    rois: Count = 512
    score_threshold: Fraction = 0.05
    nms_threshold: Fraction = 0.5
    max_detections: Count = 100
    eval_detections: Count | None = None
    min_box: Annotated[float, Range(ge=0, le=16_384)] = 1.0
    tiles: Literal[0] | Annotated[int, Range(ge=32, le=16_384)] = 0
    tile_overlap: Annotated[float, Range(ge=0.05, le=0.75)] = 0.2

    @property
    def has_masks(self) -> bool:
        """Whether the head predicts masks in addition to boxes."""
        return self.head in ("mask_rcnn", "cascade_mask_rcnn")


@dataclass(frozen=True)
class DetectionLoss(Loss):
    """How the loss of a detector weights the classes.

    Args:
        class_weights: Weight of each class: ``none``; ``balanced``: inversely proportional to its number of objects in
            the training images; ``effective``: to its effective number of objects (Cui et al., CVPR 2019); or a list,
            one per class in their order. Computed weights have a mean of 1 over the objects, which preserves the scale
            of the loss. A weight multiplies the terms of the classification loss in which its class is the target; the
            losses of boxes, masks and background are not weighted.
        beta: For ``effective``: beta of the effective number (1 - beta^n) / (1 - beta) of n objects; 0 weights
            all classes equally, near 1 the weights approach those of ``balanced``.
    """


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(Recipe):
    """A training run of a detector.

    Args:
        data: Folder in a layout of COCO, Pascal VOC, YOLO or CVAT, or YOLO's configuration file.
        input: How images become tensors.
        augment: Augmentation of images and objects.
        detect: Detection head and image sizes.
        loss: How the classes are weighted.
    """

    task: ClassVar[str] = "detect"
    head_group: ClassVar[str] = "detect"

    input: DetectionInput = field(default_factory=DetectionInput)
    augment: DetectionAugment = field(default_factory=DetectionAugment)
    detect: DetectConfig = field(default_factory=DetectConfig)
    loss: DetectionLoss = field(default_factory=DetectionLoss)

    def __post_init__(self) -> None:
        super().__post_init__()
        colors = {name: getattr(self.augment, name) for name in ("color_jitter", "mosaic", "copy_paste")}
        if self.input.has_bands and (used := [f"augment.{name}={value}" for name, value in colors.items() if value]):
            raise ValueError(
                f"{' and '.join(used)}: for 8-bit RGB, not for input.channels={self.input.channels} and "
                f"input.max_value={self.input.max_value}; set to 0"
            )
        if self.augment.copy_paste and not self.detect.has_masks:
            raise ValueError(
                f"invalid augment.copy_paste={self.augment.copy_paste}: detect.head={self.detect.head!r} has no masks, "
                "which objects are cut out with; set it to 0, or use mask_rcnn or cascade_mask_rcnn"
            )
        if self.augment.mosaic and self.augment.close_mosaic >= self.epochs:
            raise ValueError(
                f"invalid augment.close_mosaic={self.augment.close_mosaic}: no epoch of {self.epochs} would have a "
                "mosaic; expected less than epochs, or augment.mosaic 0"
            )
