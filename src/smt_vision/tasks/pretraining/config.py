"""The fields of a pretraining recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from ...bounds import Ascending, Channels, Count, Fraction, PositiveFraction, Range
from ...recipe import Augment, Group, Recipe
from ..classification.config import ClassificationInput, LabelsConfig

INFERENCE_OVERRIDES: Mapping[str, tuple[str, ...]] = {}  # nothing is predicted


@dataclass(frozen=True)
class PretrainingAugment(Augment):
    """Augmentation of the two views of an image: SimCLR's.

    Args:
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        scale: Range of the area of the random resized crop, as a fraction of the image.
        color_jitter: Strength of the color jitter, which is applied to 80 % of the views.
        grayscale: Probability of converting a view to grayscale.
        blur: Probability of Gaussian blur.
    """

    scale: Annotated[tuple[PositiveFraction, PositiveFraction], Ascending()] = (0.08, 1.0)
    color_jitter: Annotated[float, Range(ge=0, le=1.25)] = 1.0
    grayscale: Fraction = 0.2
    blur: Fraction = 0.5


@dataclass(frozen=True)
class PretrainConfig(Group):
    """Projection head, loss and evaluation of SimCLR (Chen et al., ICML 2020, arXiv 2002.05709).

    Args:
        hidden: Channels of the projection head's hidden layer.
        dim: Output channels of the projection head.
        temperature: Temperature of the contrastive loss.
        neighbors: Number of neighbors in the k-nearest-neighbor evaluation.
    """

    group: ClassVar[str] = "pretrain"

    hidden: Channels = 2048
    dim: Channels = 128
    temperature: Annotated[float, Range(ge=0.01, le=100)] = 0.5
    neighbors: Count = 20


@dataclass(frozen=True, kw_only=True)
class PretrainingRecipe(Recipe):
    """Self-supervised pretraining of a network.

    Args:
        data: Any folder of images, or what a classification recipe takes; classes are used for evaluation only.
        input: How images become tensors.
        augment: Augmentation of the two views of an image.
        pretrain: Projection head, loss and evaluation.
        labels: How a label file is read.
    """

    task: ClassVar[str] = "pretrain"
    head_group: ClassVar[str] = "pretrain"

    input: ClassificationInput = field(default_factory=ClassificationInput)
    augment: PretrainingAugment = field(default_factory=PretrainingAugment)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distill.teacher is not None:
            raise ValueError(f"distill.teacher={self.distill.teacher}: pretraining has no teacher; set it to null")
        if self.engine.patience is not None:
            raise ValueError(
                f"engine.patience={self.engine.patience}: the primary metric of pretraining does not say when to stop, "
                "and the weights of the latest evaluation are kept; set it to null, and epochs to the length of the run"
            )
        if self.batch_size < 2:
            raise ValueError(f"invalid batch_size={self.batch_size}: a contrastive loss needs at least two images")
        if self.input.has_bands and (self.augment.color_jitter or self.augment.grayscale):
            raise ValueError(
                f"augment.color_jitter={self.augment.color_jitter} and augment.grayscale={self.augment.grayscale} are "
                f"for 8-bit RGB, not for input.channels={self.input.channels} and input.max_value="
                f"{self.input.max_value}: set both to 0"
            )
