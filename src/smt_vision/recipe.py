"""A training run as data: the fields that the recipes of all tasks share.

A recipe says everything that decides a run's result. Each task has its own subclass of :class:`Recipe` with the fields
that only it reads (``tasks/TASK/config.py``). The type of a field has its range, and all fields are checked when a
recipe is made: in Python, from a file or from the command line.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_type_hints

from .bounds import (
    Count,
    CountOrZero,
    Fraction,
    FractionBelow1,
    ModelArgs,
    NotEmpty,
    OneOf,
    PositiveFraction,
    Processes,
    Range,
    Seed,
    Where,
    Workers,
    check_fields,
    short,
)

OWN_DATA = "PATH"  # ``data`` of the recipes for one's own images, in place of a folder
PAPER = "Lin et al., Scale-Aware Modulation Meet Transformer, ICCV 2023, arXiv 2307.08579"

T = TypeVar("T")

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
LearningRate = Annotated[float, Range(ge=0)]


def is_optimizer(name: str) -> bool:
    """Whether timm has this optimizer and the training loop can use it."""
    if name in ("adamw", "sgd"):  # those of the recipes: timm need not be imported
        return True
    from timm.optim import list_optimizers

    # adahessian needs second derivatives.
    return name.removeprefix("lookahead_") in list_optimizers(exclude_filters=["adahessian"])


@dataclass(frozen=True)
class Group:
    """Fields of a recipe that belong together; their values are checked when an instance is made.

    Raises:
        ValueError: A value is not of its field's type or not in its range.
    """

    group: ClassVar[str]  # the field of a recipe that holds it, e.g. "optim"

    def __post_init__(self) -> None:
        check_fields(self, f"{self.group}.")


@dataclass(frozen=True)
class Input(Group):
    """How images become tensors, in every task.

    Args:
        channels: Image channels: 3 for RGB, 1 for grayscale.
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
    """

    group: ClassVar[str] = "input"

    channels: Annotated[int, OneOf((1, 3))] = 3
    interpolation: Annotated[str, OneOf(INTERPOLATIONS)] = "bicubic"
    mean: tuple[Fraction, ...] | None = None
    std: tuple[PositiveFraction, ...] | None = None
    workers: Workers = 8
    max_unreadable: CountOrZero = 10
    exact: bool = False

    @property
    def has_bands(self) -> bool:
        """Whether images are arrays of any number of bands, not 8-bit RGB or grayscale."""
        return False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise ValueError(
                    f"input.{name} has {len(values)} values for {self.channels} channel(s): {short(values)}; give one "
                    "per channel"
                )


@dataclass(frozen=True)
class BandsInput(Input):
    """How images become tensors, where they may have any number of bands.

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
    """

    band_values: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "interpolation": ("nearest", "bilinear", "bicubic"), "exact": (False,)
    }  # fmt: skip

    channels: Annotated[int, Range(ge=1, le=1024)] = 3
    max_value: Annotated[float, Range(gt=0, le=1e11)] | None = None

    @property
    def has_bands(self) -> bool:
        return self.channels not in (1, 3) or self.max_value is not None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in self.band_values.items() if self.has_bands else ():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(
                    f"invalid input.{name}={value} for {self.channels} channels of any range (input.channels, "
                    f"input.max_value): expected {' or '.join(map(str, allowed))}"
                )


@dataclass(frozen=True)
class Augment(Group):
    """Training augmentation that every task has.

    Args:
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
    """

    group: ClassVar[str] = "augment"

    hflip: Fraction = 0.5
    vflip: Fraction = 0.0


@dataclass(frozen=True)
class Sampling(Group):
    """How often each training image is sampled per epoch, by the classes of its labels, objects or pixels.

    Args:
        method: ``uniform``: each image once. ``balanced``: each class equally often, and ``sqrt``: in proportion to the
            square root of its number of images (Mahajan et al., ECCV 2018); the epoch has as many images as the
            dataset, those without a class as often as before. ``repeat_factor``: images with a class that fewer than
            ``threshold`` of the images have are repeated, by LVIS's repeat factors (Gupta et al., CVPR 2019); all
            others occur once, so the epoch is longer.
        threshold: For ``repeat_factor``: fraction of the images below which a class is rare.
    """

    group: ClassVar[str] = "sampling"

    method: Literal["uniform", "balanced", "sqrt", "repeat_factor"] = "uniform"
    threshold: PositiveFraction = 0.001


@dataclass(frozen=True)
class Loss(Group):
    """How the classes are weighted in a loss; each task adds the name of the loss.

    Args:
        class_weights: Weight of each class: ``none``; ``balanced``: inversely proportional to its frequency in the
            training images; ``effective``: to its effective number (Cui et al., CVPR 2019); or a list, one per class
            in their order. Computed weights have a mean of 1 over the training labels, which preserves the scale of
            the loss.
        beta: For ``effective``: beta of the effective number (1 - beta^n) / (1 - beta) of n samples; 0 weights
            all classes equally, near 1 the weights approach those of ``balanced``.
    """

    group: ClassVar[str] = "loss"

    class_weights: Literal["none", "balanced", "effective"] | tuple[Annotated[float, Range(ge=0, le=1e6)], ...] = "none"
    beta: FractionBelow1 = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.class_weights, str) and not any(self.class_weights):
            raise ValueError(f"invalid loss.class_weights={short(self.class_weights)}: expected a weight above 0")


@dataclass(frozen=True)
class FocalLoss(Loss):
    """How the classes and the examples are weighted in a loss that may be focal; each task adds the name of the loss.

    Args:
        class_weights: Weight of each class, see :class:`Loss`.
        beta: For ``effective``, see :class:`Loss`.
        gamma: For ``focal``: focusing exponent, which down-weights well-classified examples.
    """

    gamma: Annotated[float, Range(ge=0, le=100)] = 2.0


@dataclass(frozen=True)
class Optim(Group):
    """The optimizer, and the learning rate as a function of the step.

    Args:
        name: timm's name of the optimizer.
        lr: Peak learning rate, for ``lr_batch`` images per step.
        min_lr: Final learning rate of ``cosine`` and ``poly``.
        warmup_lr: Learning rate at the first step.
        lr_batch: All three learning rates are multiplied by (images per step) / lr_batch; ``None`` uses them as they
            are.
        schedule: Schedule after the warm-up: ``cosine``; ``step``: divided by 10 at each milestone; ``poly``: linear.
        milestones: Epochs after which ``step`` lowers the learning rate.
        warmup_epochs: Epochs of linear warm-up; may be a fraction. A warm-up longer than the run ends with it.
        betas: Adam's betas; other optimizers keep their own defaults unless these are changed.
        eps: Adam's epsilon; other optimizers keep their own default unless it is changed.
        weight_decay: Weight decay of all parameters except those that ``no_decay`` excludes.
        no_decay: ``1d``: biases and 1-D parameters; ``norm``: parameters of normalization layers only; ``none``: all
            parameters have weight decay.
        layer_decay: Factor on the learning rate per layer, from the head down; of a detector or segmenter, per layer of
            the backbone. ``None`` for none.
        backbone_lr_scale: Factor on the learning rate of a detector's or segmenter's backbone.
        clip_grad: Maximum gradient norm; ``None`` for no clipping.
    """

    group: ClassVar[str] = "optim"

    name: Annotated[str, Where(is_optimizer, "an optimizer of timm, e.g. adamw, sgd, lion or lamb")] = "adamw"
    lr: LearningRate = 1e-3
    min_lr: LearningRate = 1e-6
    warmup_lr: LearningRate = 1e-7
    lr_batch: Count | None = 512
    schedule: Literal["cosine", "step", "poly"] = "cosine"
    milestones: tuple[Annotated[float, Range(ge=0, le=1_000_000)], ...] = ()
    warmup_epochs: Annotated[float, Range(ge=0, le=1_000_000)] = 5.0
    betas: tuple[FractionBelow1, FractionBelow1] = (0.9, 0.999)
    eps: Annotated[float, Range(ge=0, le=1)] = 1e-8
    weight_decay: Annotated[float, Range(ge=0, le=1000)] = 0.05
    no_decay: Literal["1d", "norm", "none"] = "1d"
    layer_decay: PositiveFraction | None = None
    backbone_lr_scale: PositiveFraction = 1.0
    clip_grad: Annotated[float, Range(gt=0)] | None = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule == "step" and not self.milestones:
            raise ValueError(
                "optim.schedule=step needs optim.milestones, the epochs after which it lowers the learning rate"
            )
        if self.milestones and self.schedule != "step":
            raise ValueError(
                f"optim.milestones={short(list(self.milestones))} has no effect with optim.schedule={self.schedule}: "
                "expected step, or no milestones ([])"
            )
        if self.layer_decay is not None and self.no_decay != "1d":
            raise ValueError(f"optim.layer_decay={self.layer_decay} requires optim.no_decay=1d, not {self.no_decay}")


Freeze = Literal["none", "stem", "backbone"] | Annotated[int, Range(ge=1, le=1000)]


@dataclass(frozen=True)
class Lora(Group):
    """Low-rank adapters (Hu et al., ICLR 2022, arXiv 2106.09685) in the linear layers of the backbone.

    The weights of the backbone stay as they are; the adapters and the head are trained. The best weights are saved with
    the adapters merged into the linear layers, as those of any other run.

    Args:
        rank: Rank of the adapters; 0 for none.
        alpha: The output of the adapters is multiplied by ``alpha / rank``.
        dropout: Dropout rate of the adapters' input.
        targets: Names of the linear layers that get adapters, e.g. ``qkv`` and ``proj``; empty for all linear layers.
        norms: Train the normalization layers of the backbone too.
    """

    group: ClassVar[str] = "lora"

    rank: Annotated[int, Range(ge=0, le=16_384)] = 0
    alpha: Annotated[float, Range(gt=0, le=1_000_000)] = 16.0
    dropout: FractionBelow1 = 0.0
    targets: tuple[Annotated[str, NotEmpty()], ...] = ()
    norms: bool = False


@dataclass(frozen=True)
class Distill(Group):
    """A frozen teacher that the model learns from, in addition to the labels.

    Args:
        teacher: Run folder, checkpoint, or timm name of a model with published weights; ``None`` for no distillation.
        features: Weight of the loss between the feature maps of model and teacher (attention transfer: Zagoruyko and
            Komodakis, ICLR 2017); 0 for none.
    """

    group: ClassVar[str] = "distill"
    weights: ClassVar[tuple[str, ...]] = ("features",)  # fields that weight the losses

    teacher: Annotated[str, NotEmpty()] | None = None
    features: Annotated[float, Range(ge=0, le=1_000_000)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher is not None and not any(getattr(self, name) for name in self.weights):
            names = " or ".join(f"distill.{name}" for name in self.weights)
            raise ValueError(f"distill.teacher={self.teacher} has no effect: set {names} above 0")


@dataclass(frozen=True)
class Engine(Group):
    """How a run is carried out.

    Args:
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        devices: Processes on this machine; -1 for all devices (one process on a CPU). With several, each
            process runs the entire script, including what follows the training.
        nodes: Number of machines.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        accumulate: Batches per optimizer step.
        channels_last: Use the channels-last memory format for images.
        compile: Run the model through ``torch.compile``.
        grad_checkpointing: Recompute activations in the backward pass.
        deterministic: Use deterministic kernels only, for reruns that are bitwise equal; slower on a GPU.
        ema: Decay of the exponential moving average of the weights, which is then what is evaluated and saved as
            best; ``None`` for none. It is warmed up: after step t the decay is at most 1 - (t + 1)^(-2/3), e.g. 0.99
            after 1,000 steps and 0.998 after 11,200, so that the average does not keep the initial weights.
        log_every: Optimizer steps between two lines of the training log.
        eval_every: Epochs between two evaluations.
        patience: Stop the run after this many evaluations in a row without an improvement of the primary metric;
            ``None`` trains all epochs.
        min_delta: Smallest improvement of the primary metric that counts for ``patience``, in percentage points.
        checkpoint_minutes: Longest time between two checkpoints, in minutes.
        keep_last: Number of checkpoints that are kept, the newest of them as ``last.pt``.
        keep_every_hours: Keep a checkpoint permanently every this many hours of training; ``None`` for none.
        on_nonfinite: What happens after a step whose loss or gradient is not finite, or whose gradient norm is above
            ``max_grad_norm``: ``stop`` ends the run; ``skip`` skips the batch; ``rollback`` returns to the last
            checkpoint and skips the batches since. After 10 such steps in a row the run ends.
        max_grad_norm: Gradient norm above which a step is treated as non-finite; ``None`` for no limit.
        allow_changed_data: Resume a run although its images or labels have changed since it was stopped.
        timeout_minutes: Longest time without any progress, e.g. because a file system or another process hangs; then
            the run ends, with a checkpoint if possible.
        loggers: Experiment loggers by name: ``tensorboard``, ``wandb``, ``trackio``, ``mlflow``;
            empty for none.
    """

    group: ClassVar[str] = "engine"

    accelerator: Annotated[str, OneOf(("auto", "cpu", "cuda", "gpu", "mps"))] = "auto"
    devices: Literal[-1] | Processes = -1
    nodes: Processes = 1
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "bf16-mixed"
    accumulate: Count = 1
    channels_last: bool = True
    compile: bool = False
    grad_checkpointing: bool = False
    deterministic: bool = False
    ema: FractionBelow1 | None = None
    log_every: Annotated[int, Range(ge=1)] = 50
    eval_every: Annotated[int, Range(ge=1)] = 1
    patience: Count | None = None
    min_delta: Annotated[float, Range(ge=0, le=100)] = 0.0
    checkpoint_minutes: Annotated[float, Range(ge=0)] = 10.0
    keep_last: Annotated[int, Range(ge=1, le=1000)] = 2
    keep_every_hours: Annotated[float, Range(gt=0)] | None = None
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    max_grad_norm: Annotated[float, Range(gt=0)] | None = None
    allow_changed_data: bool = False
    timeout_minutes: Annotated[float, Range(gt=0)] = 30.0
    loggers: tuple[Annotated[str, OneOf(("tensorboard", "wandb", "trackio", "mlflow"))], ...] = ("tensorboard",)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run.

    Args:
        name: Name of the recipe.
        about: Its purpose, in one line.
        model: timm name of the model, or of the backbone.
        model_args: Further constructor arguments of the model; not those that name weights.
        pretrained: Start from the model's published weights.
        checkpoint: Start from the weights in this file or run folder; layers with an output per class are
            reinitialized where the classes differ.
        freeze: The part of the backbone that keeps its weights and its BatchNorm statistics: ``none``; ``stem``; a
            number k for the stem and the first k stages; ``backbone`` for everything below the head.
        lora: Low-rank adapters.
        distill: A teacher to learn from.
        data: Where the images are; see the task's guide for the layouts.
        train_fraction: Fraction of the training images that is used, above 0 and at most 1; the same of each class, at
            least one image. The subsets are nested, and the same for every model and, with a validation split of the
            dataset, every seed.
        split_seed: Seed by which images are held out for validation and divided into folds, e.g. for runs with several
            seeds that are evaluated on the same images; ``None``: ``seed``.
        folds: Number of folds of a cross-validation: the training images (without a validation split, all images) are
            divided into this many parts, stratified and seeded; ``None`` for none.
        fold: The fold that this run validates on, counted from 1; it trains on the others. ``None``: all folds in turn.
        epochs: Passes over the training images.
        batch_size: Images per batch and process.
        seed: Seed of everything random.
        input: How images become tensors.
        augment: Training augmentation.
        sampling: How often each training image is sampled per epoch.
        optim: Optimizer and learning rate.
        engine: How the run is carried out.
        expected: Expected result, in percent by metric.
        expected_source: Who measured it, and where.
        hardware: Hardware that the recipe was written for.
        citation: Where its values come from.
    """

    task: ClassVar[str]
    head_group: ClassVar[str]  # name of the field that holds the task's head

    name: str
    about: str = ""
    model: Annotated[str, NotEmpty()]
    model_args: ModelArgs = field(default_factory=dict)
    pretrained: bool = False
    checkpoint: Annotated[str, NotEmpty()] | None = None
    freeze: Freeze = "none"
    lora: Lora = field(default_factory=Lora)
    distill: Distill = field(default_factory=Distill)
    data: str
    train_fraction: PositiveFraction = 1.0
    split_seed: Seed | None = None
    folds: Annotated[int, Range(ge=2, le=1000)] | None = None
    fold: Annotated[int, Range(ge=1, le=1000)] | None = None
    epochs: Count
    batch_size: Count
    seed: Seed = 0
    input: Input = field(default_factory=Input)
    augment: Augment = field(default_factory=Augment)
    sampling: Sampling = field(default_factory=Sampling)
    optim: Optim = field(default_factory=Optim)
    engine: Engine = field(default_factory=Engine)
    expected: dict[str, Annotated[float, Range()]] = field(default_factory=dict)
    expected_source: str = ""
    hardware: str = ""
    citation: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.freeze == "backbone" and self.lora.rank:
            raise ValueError(
                f"freeze=backbone leaves no layer for the adapters of lora.rank={self.lora.rank}: set freeze to none, "
                "stem or a number of stages, or lora.rank to 0"
            )
        if self.distill.teacher is not None and self.distill.features and self.engine.compile:
            raise ValueError(
                f"distill.features={self.distill.features} requires engine.compile=false: a compiled model does not "
                "give its feature maps"
            )
        if self.fold is not None and (self.folds is None or self.fold > self.folds):
            raise ValueError(f"invalid fold={self.fold}: expected 1 to the number of folds, with folds={self.folds}")

    @property
    def seed_of_split(self) -> int:
        """The seed by which images are held out and divided into folds."""
        return self.seed if self.split_seed is None else self.split_seed

    @classmethod
    @cache
    def groups(cls) -> dict[str, type]:
        """The fields that are dataclasses themselves, by name: ``input``, ``optim`` and so on."""
        hints = get_type_hints(cls)
        return {f.name: hints[f.name] for f in fields(cls) if is_dataclass(hints[f.name])}

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data for JSON and YAML (dicts, lists, numbers and strings), with its ``task``."""
        values = json.loads(json.dumps(asdict(self)))
        # A task's own groups are not last, where they would not be missed in a file that is cut off: there were
        # versions without them.
        own = {name: values.pop(name) for name in list(values) if name not in Recipe.__dataclass_fields__}
        return {"task": self.task, **own, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """A recipe of this class from :meth:`to_dict`'s output; for any task: :func:`smt_vision.tasks.read_recipe`.

        Raises:
            ValueError: A field is unknown or missing, or a value is not of its field's type or not in its range.
        """
        groups = cls.groups()
        given = {k: v for k, v in values.items() if k != "task"}
        return from_plain(cls, {k: from_plain(groups[k], v, k) if k in groups else v for k, v in given.items()})


# The type of an argument: the error names a way to a recipe.
GivenRecipe = Annotated[
    Recipe, Where(lambda recipe: True, "a Recipe, e.g. replace(smt_vision.RECIPES['finetune'], data='MY_IMAGES')")
]


def from_plain(kind: type[T], values: Any, name: str = "recipe") -> T:
    """A dataclass from its fields as JSON, YAML or a checkpoint holds them; lists become tuples again.

    Args:
        kind: The dataclass.
        values: Its fields.
        name: What the values are, for messages.

    Raises:
        ValueError: ``values`` is not a mapping, or a field is unknown or missing.
    """
    declared = fields(kind)  # type: ignore[arg-type]
    known = [field.name for field in declared]
    if not isinstance(values, Mapping):
        raise ValueError(f"invalid {name}={short(values)}: expected a mapping of {', '.join(known)}")
    if unknown := [field for field in values if field not in known]:
        raise ValueError(f"unknown field {short(unknown[0])} of {kind.__name__}: expected one of {', '.join(known)}")
    required = [field.name for field in declared if field.default is field.default_factory is MISSING]
    if missing := [field for field in required if field not in values]:
        raise ValueError(f"missing field {missing[0]!r} of {kind.__name__}: expected all of {', '.join(required)}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
