"""The fields of a classification recipe."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ...recipe import Augment, Input, Recipe

# Groups and fields that may differ in use from training, e.g. --input.size.
INFERENCE_OVERRIDES = {"input": ("size", "crop_pct", "exact")}


@dataclass(frozen=True)
class ClassificationInput(Input):
    """How images become tensors: squares of one size.

    Args:
        channels: See :class:`smt_vision.recipe.Input`, as for the other fields that are not described here.
        interpolation: Interpolation of every resize: ``bicubic``, ``bilinear``, ``nearest`` or ``random`` (training
            only).
        mean: See ``Input``.
        std: See ``Input``.
        workers: See ``Input``.
        max_unreadable: See ``Input``.
        exact: See ``Input``.
        size: Side of the model's square input in pixels.
        crop_pct: Evaluation resizes the short side to size / crop_pct and takes the center.
        crop_mode: ``center``: as above; ``squash``: resize both sides to size, no crop; ``border``: resize the long
            side, pad the rest.
        val_fraction: Fraction of a dataset without a validation split that is held out, stratified and seeded.
    """

    size: int = 224
    crop_pct: float = 224 / 256
    crop_mode: Literal["center", "squash", "border"] = "center"
    val_fraction: float = 0.1


@dataclass(frozen=True)
class ClassificationAugment(Augment):
    """Augmentation of images and labels.

    Args:
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        crop: ``rrc``: random resized crop; ``pad``: random crop of the zero-padded image; ``none``.
        scale: Range of areas of ``rrc``, as fractions of the image.
        ratio: Range of aspect ratios of ``rrc``.
        pad: Pixels of padding on each side, for ``pad``.
        color_jitter: Strength of brightness, contrast and saturation changes; unused with auto_augment.
        auto_augment: timm's policy string, e.g. ``rand-m9-mstd0.5-inc1``; ``None`` for none.
        random_erasing: Probability of erasing a rectangle.
        erasing_mode: ``pixel`` (noise), ``rand`` (one random color) or ``const`` (zero).
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of cutmix; 0 for none.
        mix_prob: Probability that a batch is mixed at all.
        switch_prob: Probability of cutmix where both are on.
        label_smoothing: Fraction of the target that is spread over all classes.
    """

    crop: Literal["rrc", "pad", "none"] = "rrc"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    pad: int = 4
    color_jitter: float = 0.4
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    random_erasing: float = 0.25
    erasing_mode: Literal["pixel", "rand", "const"] = "pixel"
    mixup: float = 0.2
    cutmix: float = 1.0
    mix_prob: float = 1.0
    switch_prob: float = 0.5
    label_smoothing: float = 0.1


@dataclass(frozen=True, kw_only=True)
class ClassificationRecipe(Recipe):
    """A training run of a classifier; see :class:`smt_vision.recipe.Recipe` for the other fields.

    Args:
        data: A folder or tar of class folders, webdataset shards, ``torch/NAME``, ``hfds/NAME``, or ``auto`` for the
            digits that ship with a package.
        input: How images become tensors.
        augment: Augmentation of images and labels.
    """

    task: ClassVar[str] = "classify"

    input: ClassificationInput = field(default_factory=ClassificationInput)
    augment: ClassificationAugment = field(default_factory=ClassificationAugment)
