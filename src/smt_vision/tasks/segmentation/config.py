"""The fields of a segmentation recipe."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ...recipe import Recipe

IGNORE_INDEX = 255  # label of pixels that are neither trained on nor counted
# Groups and fields that may differ in use from training, e.g. --segment.test_flip.
INFERENCE_OVERRIDES = {
    "input": ("exact",),
    "segment": ("short_side", "long_side", "crop", "test", "stride", "test_scales", "test_flip"),
}


@dataclass(frozen=True)
class SegmentConfig:
    """The segmentation head, image sizes and test-time options.

    Args:
        head: ``upernet``.
        kind: ``classes``: one class per pixel; ``binary``: one map of objects (salient, camouflaged), trained with
            binary cross-entropy and IoU.
        short_side: Images are first resized to this short side in pixels, unless the long side would exceed
            long_side; 0 keeps their size.
        long_side: Longest side of a resized image in pixels, before scale.
        crop: Height and width of training crops, and of the windows of ``slide``, in pixels.
        scale: Training multiplies the resize by a random factor from this range.
        max_class_share: A crop with a larger fraction of one class is sampled again, up to ten times.
        photometric: Training changes brightness, contrast, saturation and hue.
        channels: Channels of the head.
        dropout: Dropout before the classifier.
        aux_weight: Weight of the auxiliary head's loss; 0 for no such head.
        aux_channels: Channels of the auxiliary head.
        test: ``whole``: the full image at once; ``slide``: windows of crop, averaged where they overlap.
        stride: Vertical and horizontal stride of the windows in pixels.
        test_scales: Test-time scales, as multiples of the image's own size; probabilities are averaged.
        test_flip: Test the mirrored image, too.
        zero_is_ignored: Label 0 means none of the classes, and class k is stored as k + 1, as in ADE20K.
    """

    head: Literal["upernet"] = "upernet"
    kind: Literal["classes", "binary"] = "classes"
    short_side: int = 512
    long_side: int = 2048
    crop: tuple[int, int] = (512, 512)
    scale: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = 0.75
    photometric: bool = True
    channels: int = 512
    dropout: float = 0.1
    aux_weight: float = 0.4
    aux_channels: int = 256
    test: Literal["whole", "slide"] = "whole"
    stride: tuple[int, int] = (341, 341)
    test_scales: tuple[float, ...] = (1.0,)
    test_flip: bool = False
    zero_is_ignored: bool = False

    @property
    def is_binary(self) -> bool:
        """Whether there is one map of objects instead of classes."""
        return self.kind == "binary"


@dataclass(frozen=True, kw_only=True)
class SegmentationRecipe(Recipe):
    """A training run of a segmenter; see :class:`smt_vision.recipe.Recipe` for the other fields.

    Args:
        data: A folder of images and label maps.
        segment: Segmentation head, image sizes and test-time options.
    """

    task: ClassVar[str] = "segment"
    head_group: ClassVar[str | None] = "segment"

    segment: SegmentConfig = field(default_factory=SegmentConfig)
