"""The fields of a recipe, and what each means."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

PAPER = "Lin et al., Scale-Aware Modulation Meet Transformer, ICCV 2023, arXiv 2307.08579"

LARGEST_STRIDE = 32  # of a backbone's last map: padded sides are multiples of it, so that no stage rounds
IGNORED = 255  # the label of pixels that are neither learnt nor counted

T = TypeVar("T")


@dataclass(frozen=True)
class Input:
    """How images become tensors.

    Detection and segmentation have sizes of their own (``Detect``, ``Segment``): size, the crop and val_fraction are
    classification's.

    Args:
        size: side of the square the model sees, in pixels.
        channels: 3 for RGB, 1 for grey.
        crop_pct: evaluation resizes the short side to size / crop_pct and takes the centre.
        crop_mode: ``center``: as above; ``squash``: resize both sides to size, no crop;
            ``border``: resize the long side, pad the rest.
        interpolation: of every resize: ``bicubic``, ``bilinear``, ``nearest``, or ``random`` (training alone).
        mean: subtracted from each channel, of values in [0, 1]; ``None``: what the model's weights were trained with.
        std: each channel is divided by it; ``None`` likewise.
        val_fraction: share of a set without a validation split that is held out, stratified and seeded.
        workers: loader processes for each training process; 0 loads in the process itself.
        max_broken: unreadable images to name, count and skip before the run stops with an error.
        exact: images as timm and Pillow make them, to the bit, for numbers that are compared with published ones;
            otherwise torch resizes, in less time, a level or two of 255 away.
    """

    size: int = 224
    channels: int = 3
    crop_pct: float = 224 / 256
    crop_mode: Literal["center", "squash", "border"] = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    val_fraction: float = 0.1
    workers: int = 8
    max_broken: int = 10
    exact: bool = False


@dataclass(frozen=True)
class Augment:
    """What training does to images and labels; detection takes its flips and color_jitter, segmentation its flips.

    Args:
        crop: ``rrc``: a random area, resized; ``pad``: a random crop of the zero-padded image; ``none``.
        scale: areas of ``rrc``, as shares of the image.
        ratio: aspect ratios of ``rrc``.
        pad: pixels of padding on each side, for ``pad``.
        hflip: probability of a horizontal flip.
        vflip: probability of a vertical flip.
        color_jitter: strength of brightness, contrast and saturation changes; unused beside auto_augment.
        auto_augment: timm's policy string, as ``rand-m9-mstd0.5-inc1``; ``None`` for none.
        random_erasing: probability of erasing a rectangle.
        erasing_mode: ``pixel`` (noise), ``rand`` (one random colour) or ``const`` (zero).
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of cutmix; 0 for none.
        mix_prob: probability that a batch is mixed at all.
        switch_prob: probability of cutmix, where both are on.
        label_smoothing: share of the target spread over all classes.
    """

    crop: Literal["rrc", "pad", "none"] = "rrc"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    pad: int = 4
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.4
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    random_erasing: float = 0.25
    erasing_mode: Literal["pixel", "rand", "const"] = "pixel"
    mixup: float = 0.2
    cutmix: float = 1.0
    mix_prob: float = 1.0
    switch_prob: float = 0.5
    label_smoothing: float = 0.1


@dataclass(frozen=True)
class Optim:
    """The optimiser, and the learning rate as a function of the step.

    Args:
        name: timm's name of the optimiser.
        lr: peak rate, for ``lr_batch`` images an update.
        min_lr: rate at the end of ``cosine`` and ``poly``.
        warmup_lr: rate at the first step.
        lr_batch: all three rates are multiplied by (images an update) / lr_batch; ``None`` takes them as they are.
        schedule: after the warm-up: ``cosine``; ``step``: a tenth from each of the milestones on; ``poly``: a straight
            line.
        milestones: epochs after which ``step`` lowers the rate.
        warmup_epochs: epochs of linear warm-up; may be a fraction.
        betas: of Adam.
        eps: of Adam.
        weight_decay: on all but what ``no_decay`` says.
        no_decay: ``1d``: biases and 1-D parameters; ``norm``: the parameters of normalisation layers alone.
        layer_decay: factor on the rate for each layer from the head down; ``None`` for one rate.
        clip_grad: largest gradient norm; ``None`` for no clipping.
    """

    name: str = "adamw"
    lr: float = 1e-3
    min_lr: float = 1e-6
    warmup_lr: float = 1e-7
    lr_batch: int | None = 512
    schedule: Literal["cosine", "step", "poly"] = "cosine"
    milestones: tuple[float, ...] = ()
    warmup_epochs: float = 5.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    no_decay: Literal["1d", "norm"] = "1d"
    layer_decay: float | None = None
    clip_grad: float | None = 5.0


@dataclass(frozen=True)
class Detect:
    """Detection and instance segmentation: the head, and the sizes of images; unused by other tasks.

    Args:
        head: ``retinanet``, ``faster_rcnn``, or, with masks, ``mask_rcnn`` or ``cascade_mask_rcnn``.
        short_side: of an image in evaluation, in pixels, unless the long one would pass long_side.
        long_side: the longest that an image may be.
        train_short_sides: training draws one of these for an image.
        crop_branch: half of the training images are first resized to a short side of 400, 500 or 600, and cropped to
            384 to 600 pixels a side: the augmentation of the 3x schedule (DETR's).
        norm: the backbone's BatchNorm: ``train``; ``frozen`` at the statistics it starts with, for few images a
            process; ``sync``: statistics over all processes.
        head_norm: ``none``: pyramid and heads as published; ``group``: GroupNorm in their convolutions, without which
            they learn slowly from scratch (He et al., ICCV 2019). A cascade's box heads have BatchNorm as published.
        box_loss: ``l1``: torchvision's own of that head; ``giou``: of decoded boxes.
        anchor_sizes: sides of the anchors in pixels, one a level; ``retinanet`` makes three octave scales of each.
        fpn_channels: of the feature pyramid.
        head_channels: of the box head's linear layers.
        rois: proposals a box head sees of an image in training.
        score_threshold: detections below it are dropped.
        nms_threshold: overlap (IoU) from which the weaker of two detections of a class is dropped.
        max_detections: kept of an image.
        min_box: training boxes with a side below it, in pixels after augmentation, are dropped.
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
        """Whether the head finds masks beside boxes, and so learns from them."""
        return self.head in ("mask_rcnn", "cascade_mask_rcnn")


@dataclass(frozen=True)
class Segment:
    """Semantic and binary segmentation: the head, the sizes of images and the test; unused by other tasks.

    Args:
        head: ``upernet``.
        kind: ``classes``: one of the classes a pixel; ``binary``: one map of objects (salient, camouflaged), learnt by
            binary cross-entropy and IoU.
        short_side: images are first resized to it, in pixels, unless the long side would pass long_side; 0 keeps them.
        long_side: the longest that a resized image may be, before scale.
        crop: height and width of training crops, and of the windows of ``slide``.
        scale: training multiplies the resize by a draw from this range.
        max_class_share: a crop with a larger share of one class is drawn again, up to ten times.
        photometric: training changes brightness, contrast, saturation and hue.
        channels: of the head.
        dropout: before the classifier.
        aux_weight: of the auxiliary head's loss; 0 for no such head.
        aux_channels: of the auxiliary head.
        test: ``whole``: an image at once; ``slide``: in windows of crop, averaged where they overlap.
        stride: of the windows: down, across.
        test_scales: sizes at which an image is tested, as multiples of its own; probabilities are averaged.
        test_flip: test the mirror image, too.
        zero_is_ignored: label 0 means none of the classes, and class k is stored as k + 1, as in ADE20K.
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


@dataclass(frozen=True)
class Engine:
    """How a run is carried out.

    Args:
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        devices: processes on this machine; -1 for all devices (one on a CPU).
        nodes: machines.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        accumulate: batches an update.
        channels_last: keep images channels-last in memory.
        compile: run the model through ``torch.compile``.
        grad_checkpointing: recompute activations in the backward pass.
        deterministic: only deterministic kernels, for a rerun that is equal to the bit; slower on a GPU.
        ema: decay of the averaged weights, which are then what is evaluated and saved as best; ``None`` for none.
        log_every: updates between two lines of the log.
        eval_every: epochs between two evaluations.
        checkpoint_minutes: longest time between two checkpoints.
        loggers: Experiment loggers by name: tensorboard, wandb, trackio, mlflow; empty for none.
    """

    accelerator: str = "auto"
    devices: int = -1
    nodes: int = 1
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "bf16-mixed"
    accumulate: int = 1
    channels_last: bool = True
    compile: bool = False
    grad_checkpointing: bool = False
    deterministic: bool = False
    ema: float | None = None
    log_every: int = 50
    eval_every: int = 1
    checkpoint_minutes: float = 10.0
    loggers: tuple[str, ...] = ("tensorboard",)


@dataclass(frozen=True)
class Recipe:
    """One run.

    Args:
        name: what the recipe is called.
        about: one line on what it is for.
        task: what is learnt: ``classify``, ``detect`` or ``segment``.
        model: timm's name of the model, or of the backbone.
        model_args: further constructor arguments of the model.
        pretrained: start from the model's published weights.
        checkpoint: start from the weights of this file or run folder; a classifier of another size starts afresh.
        data: where the images are: a folder or tar of class folders, webdataset shards, ``torch/NAME``,
            ``hfds/NAME``, or ``auto`` for the digits that ship with a package; for detection a folder in COCO's or
            Pascal VOC's layout, for segmentation one of images and label maps.
        epochs: passes over the training images.
        batch_size: images a batch, for each process.
        seed: of everything random.
        input: how images become tensors.
        augment: what training does to them.
        optim: the optimiser and its rate.
        detect: head and image sizes of detection.
        segment: head and image sizes of segmentation.
        engine: how the run is carried out.
        expected: the result, by metric, in percent.
        expected_source: who measured it, where.
        hardware: what the recipe was written for.
        citation: where its values are from.
    """

    name: str
    about: str
    model: str
    data: str
    epochs: int
    batch_size: int
    hardware: str
    citation: str
    task: Literal["classify", "detect", "segment"] = "classify"
    model_args: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    checkpoint: str | None = None
    seed: int = 0
    input: Input = field(default_factory=Input)
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(default_factory=Optim)
    detect: Detect = field(default_factory=Detect)
    segment: Segment = field(default_factory=Segment)
    engine: Engine = field(default_factory=Engine)
    expected: dict[str, float] = field(default_factory=dict)
    expected_source: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON and YAML know it: dicts, lists, numbers and strings."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """The reverse of :meth:`to_dict`."""
        return from_plain(cls, {k: from_plain(GROUPS[k], v) if k in GROUPS else v for k, v in values.items()})


GROUPS: dict[str, type] = {
    "input": Input,
    "augment": Augment,
    "optim": Optim,
    "detect": Detect,
    "segment": Segment,
    "engine": Engine,
}


# What may be another in use than it was in training, by task and group.
CHANGEABLE: dict[str, dict[str, tuple[str, ...]]] = {
    "classify": {"input": ("size", "crop_pct", "exact")},
    "detect": {
        "input": ("exact",),
        "detect": ("short_side", "long_side", "score_threshold", "nms_threshold", "max_detections"),
    },
    "segment": {
        "input": ("exact",),
        "segment": ("short_side", "long_side", "crop", "test", "stride", "test_scales", "test_flip"),
    },
}


def from_plain(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass from what JSON, YAML or a checkpoint made of it: lists become tuples again."""
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
