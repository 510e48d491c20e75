"""A training run as data: the fields that the recipes of all tasks share.

A recipe says everything that decides a run's result. Each task has its own subclass of :class:`Recipe` with the fields
that only it reads (``tasks/TASK/config.py``). This module imports nothing of ours.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, ClassVar, Literal, TypeVar, get_type_hints

PAPER = "Lin et al., Scale-Aware Modulation Meet Transformer, ICCV 2023, arXiv 2307.08579"

T = TypeVar("T")


@dataclass(frozen=True)
class Input:
    """How images become tensors, in every task.

    Args:
        channels: Image channels: 3 for RGB, 1 for grayscale.
        interpolation: Interpolation of every resize: ``bicubic``, ``bilinear`` or ``nearest``.
        mean: Subtracted from each channel, for values in [0, 1]; ``None``: the mean that the model's weights were
            trained with.
        std: Each channel is divided by it; ``None`` likewise.
        workers: Data loading processes per training process; 0 loads in the training process.
        max_unreadable: Unreadable images to report and skip before the run stops with an error.
        exact: Resize with Pillow exactly as timm does, for numbers that are compared with published ones; otherwise
            with torch, which is faster and differs by a level or two of 255.
    """

    channels: int = 3
    interpolation: str = "bicubic"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    workers: int = 8
    max_unreadable: int = 10
    exact: bool = False


@dataclass(frozen=True)
class Augment:
    """Training augmentation that every task has.

    Args:
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
    """

    hflip: float = 0.5
    vflip: float = 0.0


@dataclass(frozen=True)
class Optim:
    """The optimizer, and the learning rate as a function of the step.

    Args:
        name: timm's name of the optimizer.
        lr: Peak learning rate, for ``lr_batch`` images per step.
        min_lr: Learning rate at the end of ``cosine`` and ``poly``.
        warmup_lr: Learning rate at the first step.
        lr_batch: All three learning rates are multiplied by (images per step) / lr_batch; ``None`` uses them as they
            are.
        schedule: Schedule after the warm-up: ``cosine``; ``step``: a tenth from each milestone on; ``poly``: linear.
        milestones: Epochs after which ``step`` lowers the learning rate.
        warmup_epochs: Epochs of linear warm-up; may be a fraction.
        betas: Adam's betas.
        eps: Adam's epsilon.
        weight_decay: Weight decay of all parameters but those that ``no_decay`` names.
        no_decay: ``1d``: biases and 1-D parameters; ``norm``: parameters of normalization layers only.
        layer_decay: Factor on the learning rate per layer, from the head down; ``None`` for none.
        clip_grad: Largest gradient norm; ``None`` for no clipping.
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
class Engine:
    """How a run is carried out.

    Args:
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        devices: Processes on this machine; -1 for all devices (one process on a CPU).
        nodes: Number of machines.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        accumulate: Batches per optimizer step.
        channels_last: Keep images channels-last in memory.
        compile: Run the model through ``torch.compile``.
        grad_checkpointing: Recompute activations in the backward pass.
        deterministic: Use deterministic kernels only, for reruns that are bitwise equal; slower on a GPU.
        ema: Decay of the exponential moving average of the weights, which is then what is evaluated and saved as
            best; ``None`` for none.
        log_every: Steps between two lines of the training log.
        eval_every: Epochs between two evaluations.
        checkpoint_minutes: Longest time between two checkpoints, in minutes.
        keep_last: Number of checkpoints that are kept, the newest of them as ``last.pt``.
        keep_every_hours: Keep a checkpoint for good each time that the run has taken this many hours; ``None`` for
            none.
        on_nonfinite: What happens after a step whose loss or gradient is not finite, or whose gradient norm is above
            ``max_grad_norm``: ``stop`` ends the run; ``skip`` leaves the batch out; ``rollback`` returns to the last
            checkpoint and leaves out the batches since. After 10 such steps in a row the run ends.
        max_grad_norm: Gradient norm from which a step is treated as one that is not finite; ``None`` for no limit.
        allow_changed_data: Resume a run although its images or labels have changed since it was stopped.
        timeout_minutes: Longest time without any progress, e.g. because a file system or another process stands still;
            then the run ends, with a checkpoint where that is possible.
        loggers: Experiment loggers by name: ``tensorboard``, ``wandb``, ``trackio``, ``mlflow``;
            empty for none.
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
    keep_last: int = 2
    keep_every_hours: float | None = None
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    max_grad_norm: float | None = None
    allow_changed_data: bool = False
    timeout_minutes: float = 30.0
    loggers: tuple[str, ...] = ("tensorboard",)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run.

    Args:
        name: Name of the recipe.
        about: One line on what it is for.
        model: timm name of the model, or of the backbone.
        model_args: Further constructor arguments of the model.
        pretrained: Start from the model's published weights.
        checkpoint: Start from the weights in this file or run folder; layers with an output per class are
            reinitialized where the classes differ.
        data: Where the images are; see the task's guide for the layouts.
        train_fraction: Fraction of the training images that is used, above 0 and at most 1; the same of each class, and
            at least one image. The images are the same for every seed, and those of a smaller fraction are among them.
        epochs: Passes over the training images.
        batch_size: Images per batch and process.
        seed: Seed of everything random.
        input: How images become tensors.
        augment: Training augmentation.
        optim: Optimizer and learning rate.
        engine: How the run is carried out.
        expected: Expected result, in percent by metric.
        expected_source: Who measured it, and where.
        hardware: Hardware that the recipe was written for.
        citation: Where its values come from.
    """

    task: ClassVar[str]
    head_group: ClassVar[str | None] = None  # name of the field that holds the task's head

    name: str
    about: str = ""
    model: str
    model_args: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    checkpoint: str | None = None
    data: str
    train_fraction: float = 1.0
    epochs: int
    batch_size: int
    seed: int = 0
    input: Input = field(default_factory=Input)
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(default_factory=Optim)
    engine: Engine = field(default_factory=Engine)
    expected: dict[str, float] = field(default_factory=dict)
    expected_source: str = ""
    hardware: str = ""
    citation: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.train_fraction <= 1:
            raise ValueError(
                f"invalid train_fraction={self.train_fraction}: expected a fraction above 0 and at most 1, e.g. 0.1"
            )

    @classmethod
    @cache
    def groups(cls) -> dict[str, type]:
        """The fields that are dataclasses themselves, by name: ``input``, ``optim`` and so on."""
        hints = get_type_hints(cls)
        return {f.name: hints[f.name] for f in fields(cls) if is_dataclass(hints[f.name])}

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON and YAML hold it (dicts, lists, numbers and strings), with its ``task``."""
        return {"task": self.task, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """A recipe of this class from :meth:`to_dict`'s form; of any task: :func:`smt_vision.tasks.read_recipe`."""
        groups = cls.groups()
        given = {k: v for k, v in values.items() if k != "task"}
        return from_plain(cls, {k: from_plain(groups[k], v) if k in groups else v for k, v in given.items()})


def from_plain(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass from its fields as JSON, YAML or a checkpoint holds them; lists become tuples again.

    Raises:
        ValueError: A field is unknown.
    """
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"unknown field {unknown[0]!r} of {kind.__name__}: expected one of {', '.join(known)}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
