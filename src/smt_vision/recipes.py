"""Runs as data: frozen dataclasses, and the recipes that ship.

A recipe says everything that decides a run's result. Any field can be overridden from the command line, typed and
dotted (``--optim.lr 5e-4``), or from a YAML file. This module holds names and numbers and imports nothing of ours.

The paper's values: arXiv 2307.08579 (ICCV 2023) and the configurations of the authors' release.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar

PAPER = "Lin et al., Scale-Aware Modulation Meet Transformer, ICCV 2023, arXiv 2307.08579"

T = TypeVar("T")


@dataclass(frozen=True)
class Input:
    """How images become tensors.

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
    """What training does to images and labels.

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
        min_lr: rate at the end of the cosine.
        warmup_lr: rate at the first step.
        lr_batch: all three rates are multiplied by (images an update) / lr_batch; ``None`` takes them as they are.
        warmup_epochs: epochs of linear warm-up; may be a fraction.
        betas: of Adam.
        eps: of Adam.
        weight_decay: on all but biases and 1-D parameters.
        layer_decay: factor on the rate for each layer from the head down; ``None`` for one rate.
        clip_grad: largest gradient norm; ``None`` for no clipping.
    """

    name: str = "adamw"
    lr: float = 1e-3
    min_lr: float = 1e-6
    warmup_lr: float = 1e-7
    lr_batch: int | None = 512
    warmup_epochs: float = 5.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    layer_decay: float | None = None
    clip_grad: float | None = 5.0


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


@dataclass(frozen=True)
class Recipe:
    """One run.

    Args:
        name: what the recipe is called.
        about: one line on what it is for.
        task: what is learnt.
        model: timm's name of the model.
        model_args: further constructor arguments of the model.
        pretrained: start from the model's published weights.
        checkpoint: start from the weights of this file or run folder; a classifier of another size starts afresh.
        data: where the images are: a folder or tar of class folders, webdataset shards, ``torch/NAME``,
            ``hfds/NAME``, or ``auto`` for the digits that ship with a package.
        epochs: passes over the training images.
        batch_size: images a batch, for each process.
        seed: of everything random.
        input: how images become tensors.
        augment: what training does to them.
        optim: the optimiser and its rate.
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
    task: Literal["classify"] = "classify"
    model_args: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    checkpoint: str | None = None
    seed: int = 0
    input: Input = field(default_factory=Input)
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(default_factory=Optim)
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


GROUPS: dict[str, type] = {"input": Input, "augment": Augment, "optim": Optim, "engine": Engine}


def from_plain(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass from what JSON, YAML or a checkpoint made of it: lists become tuples again."""
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _imagenet(variant: str, params: str, drop_path: float, top1: float | None, top5: float | None) -> Recipe:
    measured = {} if top1 is None or top5 is None else {"top1": top1, "top5": top5}
    return Recipe(
        name=f"imagenet1k_{variant}",
        about=f"smt_{variant} ({params} parameters) from scratch on ImageNet-1K, as in the paper",
        model=f"smt_{variant}",
        model_args=dict(drop_path_rate=drop_path),
        data="imagenet",
        epochs=300,
        batch_size=128,
        expected=measured,
        expected_source="the paper, table 1" if measured else "not published: the paper trains large on 22K first",
        hardware="8 GPUs of 32 GB, 128 images each",
        citation=PAPER,
    )


_TINY = _imagenet("tiny", "11.5 M", 0.1, 82.2, 96.0)
_LARGE_22K = Recipe(
    name="imagenet22k_large",
    about="smt_large (80.6 M parameters) from scratch on ImageNet-22K, to be fine-tuned",
    model="smt_large",
    model_args=dict(drop_path_rate=0.1),
    data="imagenet22k",
    epochs=90,
    batch_size=128,
    optim=Optim(lr=1.25e-4, warmup_lr=1.25e-7, min_lr=1.25e-6),
    engine=Engine(accumulate=4),
    expected_source="no top-1 on 22K is published",
    hardware="8 GPUs of 40 GB, 128 images each, 4 batches accumulated",
    citation=PAPER,
)
_LARGE_224 = replace(
    _LARGE_22K,
    name="imagenet1k_large_ft224",
    about="smt_large from 22K weights, fine-tuned on ImageNet-1K at 224",
    model="smt_large.in22k",
    pretrained=True,
    data="imagenet",
    epochs=30,
    optim=Optim(lr=1e-5, warmup_lr=1e-8, min_lr=1e-7),
    engine=Engine(),
    expected={"top1": 87.1, "top5": 98.1},
    expected_source="the paper, table 2",
    hardware="8 GPUs of 40 GB, 128 images each",
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _TINY,
        _imagenet("small", "22.6 M", 0.2, 83.7, 96.5),
        _imagenet("base", "32.0 M", 0.3, 84.3, 96.9),
        _imagenet("large", "80.6 M", 0.4, None, None),
        _LARGE_22K,
        _LARGE_224,
        replace(
            _LARGE_224,
            name="imagenet1k_large_ft384",
            about="smt_large from 22K weights, fine-tuned on ImageNet-1K at 384",
            batch_size=64,
            input=Input(size=384, crop_mode="squash", crop_pct=1.0),
            optim=Optim(lr=2e-5, warmup_lr=2e-8, min_lr=2e-7),
            expected={"top1": 88.1, "top5": 98.4},
            hardware="8 GPUs of 40 GB, 64 images each",
        ),
        Recipe(
            name="finetune",
            about="your own folder of images, from pretrained weights, with layer-wise rate decay and EMA",
            model="smt_tiny",
            model_args=dict(drop_path_rate=0.1),
            pretrained=True,
            data="PATH",
            epochs=20,
            batch_size=64,
            augment=Augment(scale=(0.3, 1.0), mixup=0.0, cutmix=0.0),
            optim=Optim(
                lr=5e-4, min_lr=1e-6, warmup_lr=1e-6, lr_batch=256, warmup_epochs=2.0, layer_decay=0.75, clip_grad=1.0
            ),
            engine=Engine(ema=0.998, log_every=10),
            expected_source="depends on your data",
            hardware="one GPU of 8 GB; hours, not days, on a CPU with a small set",
            citation="layer-wise decay after Bao et al., BEiT, arXiv 2106.08254; the rest after the paper",
        ),
        Recipe(
            name="cifar10",
            about="a small model from scratch on CIFAR-10, on two CPU cores",
            model="smt_femto",
            model_args=dict(stem_stride=1, depths=(1, 1, 4, 1)),
            data="torch/cifar10",
            epochs=18,
            batch_size=128,
            input=Input(size=32, crop_pct=1.0, workers=1),
            augment=Augment(
                crop="pad", auto_augment=None, color_jitter=0.0, random_erasing=0.0, mixup=0.0, mix_prob=0.5
            ),
            optim=Optim(lr=2e-3, min_lr=1e-5, warmup_lr=1e-5, lr_batch=None, warmup_epochs=1.5, clip_grad=1.0),
            engine=Engine(ema=0.998),
            expected={"top1": 85.5},
            expected_source="measured here, docs/results/cifar10.md: 85.56 at seed 0",
            hardware="2 CPU cores",
            citation="ours",
        ),
        Recipe(
            name="quickstart",
            about="handwritten digits in minutes on two CPU cores: see it work",
            model="smt_atto",
            model_args=dict(stem_stride=2),
            data="auto",
            epochs=12,
            batch_size=64,
            input=Input(size=32, channels=1, crop_pct=1.0, mean=(0.1307,), std=(0.3081,), val_fraction=0.2, workers=0),
            augment=Augment(
                crop="pad",
                pad=3,
                hflip=0.0,
                auto_augment=None,
                color_jitter=0.0,
                random_erasing=0.0,
                mixup=0.0,
                cutmix=0.0,
                label_smoothing=0.05,
            ),
            optim=Optim(lr=3e-3, min_lr=1e-5, warmup_lr=1e-5, lr_batch=None, warmup_epochs=1.0, clip_grad=1.0),
            engine=Engine(precision="32-true", ema=0.98, log_every=10),
            expected={"top1": 98.0},
            expected_source="measured here: 98.00 at seed 0",
            hardware="2 CPU cores",
            citation="ours",
        ),
    )
}
