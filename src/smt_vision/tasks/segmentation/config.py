"""Configuration of a segmentation recipe."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from ...bounds import Ascending, Channels, FractionBelow1, NotEmpty, PositiveFraction, Range, Side
from ...recipe import BandsInput, FocalLoss, Group, Recipe

LARGEST_STRIDE = 32  # of the backbone's last feature map
IGNORE_INDEX = 255  # label of pixels that losses and metrics ignore
# Fields that may be changed after training, by group, e.g. --segment.test_flip.
INFERENCE_OVERRIDES = {
    "input": ("exact",),
    "segment": (
        "short_side",
        "long_side",
        "squash",
        "crop",
        "test",
        "stride",
        "test_scales",
        "test_flip",
        "zero_is_ignored",
    ),
}

Scale = Annotated[float, Range(ge=0.01, le=16)]


@dataclass(frozen=True)
class SegmentationInput(BandsInput):
    """How images become tensors.

    Args:
        channels: Image channels: 3 for RGB, 1 for grayscale; any other number of bands, in TIFF or NumPy (.npy) files.
        max_value: Pixel value that becomes 1. If set, images of 1 or 3 channels keep all their bits, too. ``None``: 255
            for 8 bits and 65535 for 16 bits; other types need it.
        interpolation: Interpolation of every resize: ``bicubic``, ``bilinear``, ``nearest``, ``box``, ``hamming`` or
            ``lanczos``; the last three are not for bands.
        mean: Subtracted from each channel, for values in [0, 1]; ``None``: the mean that the model's weights were
            trained with.
        std: Each channel is divided by it; ``None`` likewise.
        workers: Data loading processes per training process; 0 loads in the training process. At most one per batch,
            and per CPU core of the training process's share.
        max_unreadable: Unreadable images to report and skip before the run stops with an error; counted by each
            training process, in training and in validation, since its start.
        exact: Decode and resize with Pillow exactly as timm does, for numbers that are compared with published ones;
            otherwise resize with torch, which is faster and differs by a level or two of 255, and decode large JPEG
            files at the resolution that is needed. Not for bands.
        val_fraction: Fraction held out from a dataset without a validation split; seeded.
    """

    val_fraction: PositiveFraction = 0.1


@dataclass(frozen=True)
class SegmentConfig(Group):
    """Segmentation head, image sizes and test-time options.

    Args:
        head: Segmentation head: ``upernet``, or a decoder of segmentation_models.pytorch (extra ``segment``): ``fpn``,
            ``linknet``, ``manet``, ``segformer``, ``unet`` or ``unetplusplus``.
        kind: ``classes``: one class per pixel; ``binary``: object probabilities (salient, camouflaged), trained with
            binary cross-entropy and IoU losses.
        short_side: Images are first resized to this short side in pixels, unless the long side would exceed
            long_side; 0 keeps their size.
        long_side: Maximum long side of a resized image in pixels, before scale.
        squash: Resize images to ``short_side`` x ``short_side`` pixels, whatever their aspect ratio, before scale: the
            protocol of salient and camouflaged object detection. ``long_side`` then has no effect.
        crop: Height and width of training crops and of sliding windows in pixels; multiples of 32, except for
            ``upernet``.
        scale: Range of the random factor that scales the resize in training.
        max_class_share: A crop with a larger fraction of one class is sampled again, up to ten times.
        photometric: Randomly change brightness, contrast, saturation and hue in training.
        channels: Channels of the head; U-shaped decoders have this many in their first block, halved in each following
            one.
        dropout: Dropout before the classifier.
        aux_weight: Weight of the auxiliary head's loss; 0 for no auxiliary head.
        aux_channels: Channels of the auxiliary head.
        test: ``whole``: the full image in one pass; ``slide``: sliding windows of size crop, averaged where they
            overlap.
        stride: Vertical and horizontal stride of sliding windows in pixels.
        test_scales: Test-time scales relative to the resized image; probabilities are averaged.
        test_flip: Average with the prediction of the horizontally flipped image.
        zero_is_ignored: Label 0 is ignored and class k is stored as k + 1, as in ADE20K.
    """

    group: ClassVar[str] = "segment"

    head: Literal["upernet", "fpn", "linknet", "manet", "segformer", "unet", "unetplusplus"] = "upernet"
    kind: Literal["classes", "binary"] = "classes"
    short_side: Annotated[int, Range(ge=0, le=16_384)] = 512
    long_side: Side = 2048
    squash: bool = False
    crop: tuple[Side, Side] = (512, 512)
    scale: Annotated[tuple[Scale, Scale], Ascending()] = (0.5, 2.0)
    max_class_share: PositiveFraction = 0.75
    photometric: bool = True
    channels: Channels = 512
    dropout: FractionBelow1 = 0.1
    aux_weight: Annotated[float, Range(ge=0, le=1000)] = 0.4
    aux_channels: Channels = 256
    test: Literal["whole", "slide"] = "whole"
    stride: tuple[Side, Side] = (341, 341)
    test_scales: Annotated[tuple[Scale, ...], NotEmpty()] = (1.0,)
    test_flip: bool = False
    zero_is_ignored: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.squash and not self.short_side:
            raise ValueError("invalid segment.squash=true for segment.short_side=0: set the side of the square")
        if self.test == "slide" and any(step > side for step, side in zip(self.stride, self.crop, strict=True)):
            raise ValueError(
                f"invalid segment.stride={self.stride}: expected at most segment.crop={self.crop} in each direction, "
                "otherwise windows do not cover every pixel"
            )

        if self.head != "upernet" and any(side % LARGEST_STRIDE for side in self.crop):
            raise ValueError(
                f"invalid segment.crop={self.crop}: segment.head={self.head} needs multiples of {LARGEST_STRIDE} pixels"
            )

    @property
    def is_binary(self) -> bool:
        """Whether the model predicts object probabilities instead of classes."""
        return self.kind == "binary"


@dataclass(frozen=True)
class SegmentationLoss(FocalLoss):
    """The loss of a segmenter, and how it weights the classes.

    Args:
        class_weights: Weight of each class: ``none``; ``balanced``: inversely proportional to its number of pixels in
            the training images; ``effective``: to its effective number of training images (Cui et al., CVPR 2019; the
            pixels of an image are not independent samples); or a list, one per class in their order. Computed weights
            have a mean of 1 over the labeled pixels, which preserves the scale of the loss. For ``binary``, the
            classes are background and object; the IoU loss is not weighted.
        beta: For ``effective``: beta of the effective number (1 - beta^n) / (1 - beta) of n images; 0 weights
            all classes equally, near 1 the weights become inversely proportional to the number of images.
        gamma: For ``focal``: focusing exponent, which down-weights well-classified pixels.
        name: ``cross_entropy``; ``focal`` (Lin et al., ICCV 2017): cross-entropy that down-weights well-classified
            pixels. For ``binary``, both are of the sigmoid.
        dice: Weight of the Dice loss (Milletari et al., 3DV 2016), which is added; 0 for none. It needs the extra
            ``segment``.
    """

    name: Literal["cross_entropy", "focal"] = "cross_entropy"
    dice: Annotated[float, Range(ge=0, le=1000)] = 0.0


@dataclass(frozen=True, kw_only=True)
class SegmentationRecipe(Recipe):
    """A training run of a segmenter.

    Args:
        data: Folder of images and label maps.
        input: How images become tensors.
        segment: Segmentation head, image sizes and test-time options.
        loss: The loss, and how it weights the classes.
    """

    task: ClassVar[str] = "segment"
    head_group: ClassVar[str] = "segment"

    input: SegmentationInput = field(default_factory=SegmentationInput)
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    loss: SegmentationLoss = field(default_factory=SegmentationLoss)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input.has_bands and self.segment.photometric:
            raise ValueError(
                f"invalid segment.photometric=true for input.channels={self.input.channels} and "
                f"input.max_value={self.input.max_value}: it is for 8-bit RGB; set it to false"
            )
