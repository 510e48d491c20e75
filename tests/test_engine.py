"""The training loop: learning rate, optimizer, exact resume, signals, checkpoints, several processes."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Literal

import numpy as np
import pytest
import timm
import torch
from lightning_fabric import Fabric
from PIL import Image
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from timm.data import IMAGENET_DEFAULT_MEAN
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from layer_types import types_in_training
from same_run import assert_identical, assert_same_run
from smt_vision import checkpoints, load
from smt_vision.cli import main
from smt_vision.data.decode import UnreadableImage
from smt_vision.engine import loop, processes
from smt_vision.engine import step as step_module
from smt_vision.engine.launch import LAUNCHER, launch
from smt_vision.engine.log import read_log
from smt_vision.engine.loop import train
from smt_vision.engine.optim import build_optimizer, learning_rate, set_learning_rate
from smt_vision.engine.run import Run
from smt_vision.engine.step import train_step
from smt_vision.engine.stored_state import check_optimizer
from smt_vision.engine.watchdog import Watchdog
from smt_vision.recipe import Engine, Input, Optim, Recipe
from smt_vision.signals import Stopped, StopSignals, stop_signals
from smt_vision.spec import ModelSpec
from smt_vision.tasks import get_task
from smt_vision.tasks.build import build_backbone
from smt_vision.tasks.classification.task import ClassificationTraining
from smt_vision.tasks.detection.config import DetectConfig
from smt_vision.tasks.segmentation.config import SegmentConfig
from smt_vision.tasks.task import MetricFormat
from tiny_run import COLORS, MODEL_ARGS, environment, tiny, write_config, write_images
from waiting import DEADLINE, wait_until

# Everything random that a run can have: crops, flips, RandAugment, erasing, mixup and cutmix; drop path; an average.
RANDOM: dict[str, Any] = dict(
    model_args={**MODEL_ARGS, "stem_stride": 2, "drop_path_rate": 0.3, "drop_rate": 0.1},
    epochs=3,
    augment=dict(crop="rrc", hflip=0.5, auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5, mixup=0.2, cutmix=1.0),
    engine=dict(ema=0.9, accumulate=2),
)  # 24 images in batches of 4, 2 batches per step: 3 steps per epoch, 9 in all


pytestmark = pytest.mark.usefixtures("one_thread", "no_report")


# --- the learning rate


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 2e-6), (10, 2 * 0.5005e-3), (20, 2e-3), (60, 2 * 0.505e-3), (100, 2e-5)],
    ids=["first", "half of warm-up", "peak", "half of cosine", "end"],
)
def test_learning_rate_known_values(step: int, rate: float) -> None:
    config = Optim(lr=1e-3, min_lr=1e-5, warmup_lr=1e-6, lr_batch=512, warmup_epochs=2)
    assert learning_rate(step, config, 100, 10, images_per_step=1024) == pytest.approx(rate, rel=1e-12)


def test_cosine_schedule_matches_timm() -> None:
    config = Optim(lr=1e-3, min_lr=1e-6, warmup_lr=1e-7, lr_batch=None, warmup_epochs=5)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr)
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=300 - 50,
        lr_min=config.min_lr,
        warmup_t=50,
        warmup_lr_init=config.warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    for step in range(300):
        schedule.step_update(step)
        ours = learning_rate(step, config, total_steps=300, steps_per_epoch=10, images_per_step=64)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step


@pytest.mark.parametrize(("epochs", "peak"), [(0, 0), (0.25, 2), (1.5, 15), (2.04, 20)])
def test_warmup_of_fractional_epochs(epochs: float, peak: int) -> None:
    config = Optim(lr=1.0, min_lr=0.0, warmup_lr=0.1, lr_batch=None, warmup_epochs=epochs)
    rates = [learning_rate(step, config, 100, 10, 1) for step in range(100)]
    assert int(np.argmax(rates)) == peak
    assert max(rates) == 1.0
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_warmup_longer_than_the_run() -> None:
    config = Optim(lr=1.0, warmup_lr=0.0, lr_batch=None, warmup_epochs=50)
    assert [learning_rate(step, config, 4, 2, 1) for step in range(4)] == [0.0, 0.25, 0.5, 0.75]
    assert math.isfinite(learning_rate(4, config, 4, 2, 1))


@pytest.mark.parametrize(("lr_batch", "factor"), [(None, 1.0), (128, 2.0), (512, 0.5)])
def test_learning_rates_scale_with_images_per_step(lr_batch: int | None, factor: float) -> None:
    config = Optim(lr=1e-3, min_lr=1e-5, warmup_lr=1e-6, lr_batch=lr_batch, warmup_epochs=1)
    rates = [learning_rate(step, config, 20, 10, images_per_step=256) for step in (0, 10, 20)]
    assert rates == pytest.approx([factor * 1e-6, factor * 1e-3, factor * 1e-5])


def test_step_schedule_divides_by_ten_at_each_milestone() -> None:
    config = Optim(lr=1.0, warmup_lr=0.0, lr_batch=8, warmup_epochs=0.5, schedule="step", milestones=(8, 11))
    rates = {
        step: learning_rate(step, config, 120, 10, images_per_step=16) for step in (0, 2, 5, 79, 80, 109, 110, 120)
    }
    assert rates == pytest.approx({0: 0, 2: 0.8, 5: 2, 79: 2, 80: 0.2, 109: 0.2, 110: 0.02, 120: 0.02})


def test_poly_schedule_is_linear() -> None:
    config = Optim(lr=1.0, min_lr=0.2, warmup_lr=0.0, lr_batch=None, warmup_epochs=2, schedule="poly")
    rates = [learning_rate(step, config, 100, 10, 1) for step in (0, 10, 20, 60, 80, 100)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.6, 0.4, 0.2])


# --- the optimizer


def test_no_decay_on_biases_and_one_dimensional_parameters() -> None:
    model = timm.create_model("smt_atto", **MODEL_ARGS, layer_scale=1e-4)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, free = set(), set()
    for group in build_optimizer(model, Optim(weight_decay=0.05)).param_groups:
        (decayed if group["weight_decay"] else free).update(names[id(p)] for p in group["params"])
        assert group["weight_decay"] in (0.05, 0.0)
    parameters = dict(model.named_parameters())
    assert decayed == {n for n, p in parameters.items() if p.ndim > 1 and not n.endswith("bias")}
    assert decayed | free == parameters.keys()
    assert any("layer_scale" in n or "norm" in n for n in free)


class Wrapped(nn.Module):
    """A head over a backbone that has more to keep from decay than its norms."""

    def __init__(self) -> None:
        super().__init__()
        self.body = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=2)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(24, 2)
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)


def test_no_decay_on_normalization_layers_only() -> None:
    model = Wrapped()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, free = (
        {names[id(p)] for p in group["params"]}
        for group in build_optimizer(model, Optim(weight_decay=0.05, no_decay="norm")).param_groups
    )
    assert free == {n for n in names.values() if "norm" in n} | {"body.pos_embed", "body.cls_token"}
    assert {"head.weight", "head.bias", "body.blocks.0.attn.qkv.bias"} <= decayed
    assert decayed | free == set(names.values()) - {"frozen"}
    (group,) = build_optimizer(model, Optim(weight_decay=0.05, no_decay="none")).param_groups
    assert {names[id(p)] for p in group["params"]} == set(names.values()) - {"frozen"}
    assert group["weight_decay"] == 0.05


@pytest.mark.parametrize(
    ("name", "arguments", "kept"),
    [
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1, 1, 1)}, "relative_position_bias_table"),
        ("mvitv2_tiny", {}, "rel_pos_"),
    ],
)
def test_no_decay_on_what_the_classifier_of_a_backbone_keeps(name: str, arguments: Any, kept: str) -> None:
    backbone = build_backbone(ModelSpec("segment", name, (), Input(), arguments), False, None)
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    expected = {name for name in names.values() if kept in name}
    assert len(expected) >= 4
    for no_decay in ("1d", "norm"):
        groups = build_optimizer(nn.Sequential(backbone), Optim(weight_decay=0.05, no_decay=no_decay)).param_groups
        free = {names[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]}
        assert expected <= free
        assert {name for name in names.values() if name.endswith("qkv.weight")}.isdisjoint(free)


def test_layer_decay_of_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layer_decay=0\.5 .*group_matcher.* Wrapped"):
        build_optimizer(Wrapped(), Optim(layer_decay=0.5))


@pytest.mark.parametrize(("layer_decay", "warns"), [(0.2, True), (0.4, False), (None, False)])
def test_first_layers_that_hardly_change_are_a_warning(
    layer_decay: float | None, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = build_optimizer(timm.create_model("smt_atto"), Optim(layer_decay=layer_decay))
    smallest = min(group.get("lr_scale", 1.0) for group in optimizer.param_groups)
    assert (smallest < 1e-4) is warns
    assert (f"optim.layer_decay={layer_decay}: the learning rate" in caplog.text) is warns
    assert (f"multiplied by {smallest:.1e}" in caplog.text) is warns


def test_layer_decay_is_strongest_at_the_stem() -> None:
    model = timm.create_model("smt_atto", **MODEL_ARGS)
    optimizer = build_optimizer(model, Optim(layer_decay=0.5))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    factor = {names[id(p)]: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    along = [factor["stem.conv1.weight"]]
    along += [max(v for n, v in factor.items() if n.startswith(f"stages.{i}.")) for i in range(4)]
    along += [factor["head.fc.weight"]]
    assert along == sorted(along)
    assert len(set(along)) >= 5
    assert along[0] == min(factor.values()) < 0.1
    assert along[-1] == 1.0
    set_learning_rate(optimizer, 0.2)
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(0.2 * group["lr_scale"])
    set_learning_rate(optimizer, 0.1)  # scales the factor, not the previous learning rate
    assert max(group["lr"] for group in optimizer.param_groups) == pytest.approx(0.1)


@pytest.mark.parametrize("no_decay", ["1d", "norm"])
def test_backbone_lr_scale(no_decay: Literal["1d", "norm"]) -> None:
    spec = ModelSpec("segment", "smt_atto", ("a", "b"), Input(), MODEL_ARGS, head=SegmentConfig(channels=8))
    model = get_task("segment").build_model(spec)
    plain = build_optimizer(model, Optim(no_decay=no_decay))
    optimizer = build_optimizer(model, Optim(no_decay=no_decay, backbone_lr_scale=0.1))
    set_learning_rate(optimizer, 0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    lr = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert lr == {name: 0.05 if name.startswith("backbone.") else 0.5 for name in names.values()}
    scales = [group["lr_scale"] for group in optimizer.param_groups]
    assert scales == [0.1, 1.0] * (len(scales) // 2)  # checkpoints depend on this order
    decay, expected = (
        {names[id(p)]: group["weight_decay"] for group in o.param_groups for p in group["params"]}
        for o in (optimizer, plain)
    )
    assert decay == expected


@pytest.mark.parametrize("model", ["smt_atto", "convnext_atto"])
@pytest.mark.parametrize("task", ["segment", "detect"])
def test_layer_decay_of_a_backbone(task: str, model: str) -> None:
    """The learning rates of the classifier's layers, and the full one of neck and heads."""
    head = SegmentConfig(channels=8) if task == "segment" else DetectConfig(head="fcos", fpn_channels=8)
    arguments = MODEL_ARGS if model == "smt_atto" else {}
    spec = ModelSpec(task, model, ("a", "b"), Input(), arguments, head=head)
    net = get_task(task).build_model(spec)
    optim = Optim(layer_decay=0.5, backbone_lr_scale=0.1, weight_decay=0.05)
    lr, classifier_lr, decay, classifier_decay = {}, {}, {}, {}
    for trained, values, decays, config in (
        (net, lr, decay, optim),
        (timm.create_model(model, **arguments), classifier_lr, classifier_decay, replace(optim, backbone_lr_scale=1)),
    ):
        names = {id(p): name for name, p in trained.named_parameters()}
        for group in build_optimizer(trained, config, spec).param_groups:
            values |= {names[id(p)]: group["lr_scale"] for p in group["params"]}
            decays |= {names[id(p)]: group["weight_decay"] for p in group["params"]}
    inside = {
        name.rpartition("backbone.net.")[2].removeprefix("model."): name for name in lr if "backbone.net." in name
    }
    assert len(inside) > 20
    for name, full in inside.items():
        theirs = name if name in classifier_lr else name.replace("_", ".", 1)
        assert lr[full] == pytest.approx(0.1 * classifier_lr[theirs]), name
        assert decay[full] == classifier_decay[theirs], name
    assert {lr[name] for name in lr.keys() - set(inside.values())} == {1.0}
    assert len({lr[full] for full in inside.values()}) >= 4


def test_backbone_lr_scale_of_a_classifier_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backbone_lr_scale=0\.1 .* Linear has no separate backbone"):
        build_optimizer(nn.Linear(2, 2), Optim(backbone_lr_scale=0.1))


@pytest.mark.parametrize("unused", [0, 1])
def test_a_parameter_that_never_had_a_gradient_has_no_state_in_a_checkpoint(unused: int) -> None:
    def built() -> torch.optim.Optimizer:
        return build_optimizer(nn.ParameterList([torch.zeros(3), torch.zeros(3)]), Optim(no_decay="none"))

    before, after = built(), built()
    (group,) = before.param_groups
    assert group["fused"]
    group["params"][1 - unused].grad = torch.ones(3)
    before.step()
    state = before.state_dict()
    assert list(state["state"]) == [1 - unused]
    check_optimizer(state, after)
    after.load_state_dict(state)
    for parameter in after.param_groups[0]["params"]:
        parameter.grad = torch.ones(3)
    after.step()
    assert [float(after.state_dict()["state"][i]["step"]) for i in (unused, 1 - unused)] == [1, 2]
    state["state"][unused] = {"step": torch.ones(())}
    with pytest.raises(ValueError, match=r"parameter 1 has"):
        check_optimizer(state, after)


def test_one_learning_rate_without_layer_decay() -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), Optim(name="sgd"))
    set_learning_rate(optimizer, 0.3)
    assert {group["lr"] for group in optimizer.param_groups} == {0.3}


def test_adam_constants_are_passed_on() -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), Optim(betas=(0.8, 0.7), eps=1e-3))
    assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {((0.8, 0.7), 1e-3)}


# --- training, and resuming it


def test_learns_easy_images(colored: Path, trained: Path) -> None:
    state = checkpoints.load(trained / "best.pt").state
    assert state["metrics"]["top1"] == 100.0
    losses = [line["loss"] for line in read_log(trained) if line["kind"] == "train"]
    assert len(losses) == 36
    assert losses[0] > 0.9
    assert np.mean(losses[-6:]) < 0.3


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_learns_with_clipped_gradients(
    colored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Literal["bf16-mixed", "16-mixed"]
) -> None:
    norms: list[tuple[float, float]] = []  # before and after
    clip = step_module._clip_gradients

    def clip_and_record(run: Any) -> Any:
        if (before := clip(run)) is not None:  # else the loss scale is lowered
            gradients = [p.grad for p in run.raw.parameters() if p.grad is not None]
            norms.append((float(before), float(torch.nn.utils.get_total_norm(gradients))))
        return before

    monkeypatch.setattr(step_module, "_clip_gradients", clip_and_record)
    recipe = tiny(colored, engine=dict(precision=precision), optim=dict(clip_grad=0.1))
    with types_in_training(nn.Linear) as types:
        run = train(recipe, tmp_path / "run", display=False, max_steps=4)
    assert run.step == 4
    assert types == {torch.bfloat16 if precision == "bf16-mixed" else torch.float16}
    assert len(norms) == 4
    for before, after in norms:
        assert before > 0.2
        assert after == pytest.approx(0.1, rel=1e-3)
    assert all(math.isfinite(line["loss"]) for line in read_log(tmp_path / "run") if line["kind"] == "train")


def test_a_checkpoint_is_continued_with_its_normalization(colored: Path, tmp_path: Path) -> None:
    own = dict(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    train(tiny(colored, input=own, epochs=1), tmp_path / "first", display=False)
    copied = str(tmp_path / "first")
    recipe = tiny(colored, checkpoint=copied, epochs=1)
    run = train(recipe, tmp_path / "second", display=False, max_steps=3)
    assert (run.task.spec.input.mean, run.task.spec.input.std) == (own["mean"], own["std"])
    # What the recipe says comes first; a checkpoint of other channels has nothing to say.
    given = train(
        tiny(colored, checkpoint=copied, input=dict(std=(1.0,) * 3)), tmp_path / "a", display=False, max_steps=1
    )
    assert (given.task.spec.input.mean, given.task.spec.input.std) == (own["mean"], (1.0,) * 3)
    gray = train(tiny(colored, checkpoint=copied, input=dict(channels=1)), tmp_path / "b", display=False, max_steps=1)
    assert gray.task.spec.input.mean == (pytest.approx(sum(IMAGENET_DEFAULT_MEAN) / 3),)
    # The first checkpoint is gone when the run is resumed.
    (tmp_path / "first" / "best.pt").unlink()
    train(recipe, tmp_path / "second", display=False)
    assert load(tmp_path / "second").spec.input.mean == own["mean"]


@pytest.mark.parametrize(
    ("name", "optim", "expected"),
    [
        ("adamw", {}, {"betas": (0.9, 0.999), "eps": 1e-8}),
        ("adabelief", {}, {"betas": (0.9, 0.999), "eps": 1e-16}),  # its own
        ("adabelief", {"betas": (0.8, 0.85), "eps": 1e-3}, {"betas": (0.8, 0.85), "eps": 1e-3}),
        ("lion", {}, {"betas": (0.9, 0.99)}),
        ("lion", {"betas": (0.8, 0.85)}, {"betas": (0.8, 0.85)}),
        ("nadamw", {"betas": (0.8, 0.85), "eps": 1e-3}, {"betas": (0.8, 0.85), "eps": 1e-3}),
        ("sgd", {}, {}),
    ],
)
def test_betas_and_eps_of_optimizers(name: str, optim: dict[str, Any], expected: dict[str, Any]) -> None:
    for group in build_optimizer(nn.Linear(2, 2), Optim(name=name, **optim)).param_groups:
        assert {key: group[key] for key in ("betas", "eps") if key in group} == expected


@pytest.mark.parametrize(("name", "optim"), [("sgd", {"betas": (0.8, 0.9)}), ("lion", {"eps": 1e-3})])
def test_betas_and_eps_are_not_dropped(name: str, optim: dict[str, Any]) -> None:
    (field,) = optim
    with pytest.raises(ValueError, match=rf"optim\.{field}=.* does not apply to optimizer '{name}'"):
        build_optimizer(nn.Linear(2, 2), Optim(name=name, **optim))


def test_learning_rate_is_scaled_by_the_images_of_a_step(colored: Path, tmp_path: Path) -> None:
    constant = dict(lr=1e-3, min_lr=1e-3, warmup_epochs=0.0, lr_batch=48)
    for batch_size, images in ((256, 24), (12, 12)):  # there are 24 images
        recipe = tiny(colored, batch_size=batch_size, epochs=1, optim=constant)
        train(recipe, tmp_path / str(batch_size), display=False)
        (first, *_) = (line for line in read_log(tmp_path / str(batch_size)) if line["kind"] == "train")
        assert first["lr"] == pytest.approx(1e-3 * images / 48)


@pytest.fixture(scope="module")
def whole(colored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything random, uninterrupted."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(tiny(colored, **RANDOM), folder, display=False)
    return folder


def test_same_seed_gives_the_same_run_for_any_workers(colored: Path, whole: Path, tmp_path: Path) -> None:
    recipe = tiny(colored, **RANDOM, input=dict(workers=2))
    train(recipe, tmp_path / "again", display=False)
    assert_same_run(tmp_path / "again", whole)


def test_seed_changes_the_run(colored: Path, whole: Path, tmp_path: Path) -> None:
    train(tiny(colored, **RANDOM, seed=1), tmp_path / "other", display=False, max_steps=1)
    assert read_log(tmp_path / "other")[0]["loss"] != read_log(whole)[0]["loss"]


@pytest.mark.parametrize(("stops", "workers"), [((4,), 0), ((1, 3, 5), 0), ((4,), 2)])
def test_resumed_equals_uninterrupted(
    colored: Path, whole: Path, tmp_path: Path, stops: tuple[int, ...], workers: int
) -> None:
    recipe = tiny(colored, **RANDOM)
    folder = tmp_path / "run"
    train(recipe, folder, display=False, max_steps=stops[0])
    recipe = replace(recipe, input=replace(recipe.input, workers=workers))
    for stop in (*stops[1:], None):
        torch.manual_seed(99)  # random state in between must not matter
        np.random.seed(99)
        run = train(recipe, folder, display=False, max_steps=stop)
    assert run.step == run.total_steps == 9
    assert_same_run(whole, folder)


def test_every_checkpoint_can_be_resumed_from(
    colored: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checkpoints after each step, as a killed run may leave them; those at an epoch's end included.
    copies: list[Path] = []
    save_last = Run.save_last

    def save_and_copy(run: Run) -> None:
        save_last(run)
        copies.append(tmp_path / f"copy{len(copies)}")
        shutil.copytree(run.folder, copies[-1])

    recipe = tiny(colored, **RANDOM)
    often = replace(recipe, engine=replace(recipe.engine, checkpoint_minutes=0.0))
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_last", save_and_copy)
        train(often, tmp_path / "run", display=False)
    steps = [checkpoints.load(copy / "last.pt").state["step"] for copy in copies]
    assert steps == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9]  # at an epoch's end before and after the evaluation
    for copy in (copies[2], copies[3], copies[5], copies[6], copies[10]):
        train(recipe, copy, display=False)
        assert_same_run(whole, copy)


@pytest.mark.parametrize("epoch", [1, 3])
def test_failing_evaluation_costs_no_training(
    colored: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    recipe, folder = tiny(colored, **RANDOM), tmp_path / "run"
    evaluate = loop.run_evaluation
    with monkeypatch.context() as patch:
        evaluations = iter(range(1, 4))

        def fail(*args: Any, **kwargs: Any) -> dict[str, Any]:
            if next(evaluations) == epoch:
                raise ValueError("12 unreadable images")
            return evaluate(*args, **kwargs)

        patch.setattr(loop, "run_evaluation", fail)
        with pytest.raises(ValueError, match="12 unreadable"):
            train(recipe, folder, display=False)
    assert checkpoints.load(folder / "last.pt").state["step"] == 3 * epoch
    steps: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate", lambda step, *args: steps.append(step) or learning_rate(step, *args))
        train(recipe, folder, display=False)
    assert steps == list(range(3 * epoch, 9))
    assert_same_run(whole, folder)


@pytest.mark.parametrize("step", [1, 2], ids=["mid-epoch", "last step of an epoch"])
def test_signal_and_resume_equals_uninterrupted(
    colored: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    def rate(now: int, *args: Any) -> float:
        if now == step:
            signal.raise_signal(signal.SIGTERM)
        return learning_rate(now, *args)

    recipe, folder = tiny(colored, **RANDOM), tmp_path / "run"
    message = f"step {step + 1} of 9\\b.*smt train --resume {folder}"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate", rate)
        with pytest.raises(Stopped, match=message) as stopped:
            train(recipe, folder, display=False)
    assert stopped.value.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    train(recipe, folder, display=False)
    assert_same_run(whole, folder)


def test_first_signal_is_collected_and_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]  # a shell may have them ignored
    with stop_signals() as signals:
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] != before
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # the same event: timeout(1) signals the process and its group
        assert signals.received == [signal.SIGINT]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_run_that_was_not_evaluated_says_what_it_has(colored: Path, tmp_path: Path) -> None:
    train(tiny(colored), tmp_path / "run", display=False, max_steps=1)
    with pytest.raises(FileNotFoundError, match=r"pass its last checkpoint, .*run/last\.pt$"):
        load(tmp_path / "run")
    predictor = load(tmp_path / "run" / "last.pt")
    with pytest.raises(TypeError, match="Classifier has no option 'topk'; its options are top_k"):
        predictor([], topk=2)
    (tmp_path / "folds" / "fold-1").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"pass one of its runs, e\.g\. .*fold-1$"):
        load(tmp_path / "folds")


def test_another_number_of_processes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under SLURM's srun without a number of tasks."""
    monkeypatch.setattr(Fabric, "launch", lambda self: None)
    monkeypatch.setattr(Fabric, "world_size", 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(ValueError, match=r"1 processes were started for engine.devices=4.*--ntasks-per-node"):
        launch(Engine(accelerator="cpu", devices=4))


@pytest.mark.parametrize(
    ("variables", "devices", "refused"),
    [
        ({}, -1, True),
        ({}, 2, True),
        ({}, 1, False),  # a run of each process, as asked for
        ({"SLURM_NTASKS": "1"}, -1, False),
        ({"SLURM_JOB_NAME": "interactive"}, -1, False),
        ({"SLURM_STEP_ID": None}, -1, False),  # a batch script, without srun
    ],
)
def test_processes_of_slurm_that_would_each_start_a_run_are_an_error(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str | None], devices: int, refused: bool
) -> None:
    """As where each of them sees one GPU only."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    step = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "train"}
    for name, value in {**step, **variables}.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    engine = Engine(accelerator="cpu", devices=devices)
    if refused:
        with pytest.raises(ValueError, match=r"srun started 4 processes for . devices .*--engine\.nodes.*all GPUs"):
            launch(engine)
    else:
        assert launch(engine).world_size == 1


def test_processes_that_are_started_after_a_launch_do_not_end_with_this_one() -> None:
    """As those of another launcher, which sets their LOCAL_RANK and has this process above it."""
    launch(Engine(accelerator="cpu", devices=1))
    assert LAUNCHER not in os.environ


def test_second_signal_ends_the_process() -> None:
    code = """
import signal, time
from smt_vision import signals
signals.ONE_EVENT_SECONDS = 0.1
with signals.stop_signals():
    signal.raise_signal(signal.SIGINT)
    time.sleep(0.2)
    print("alive", flush=True)
    signal.raise_signal(signal.SIGTERM)
    print("not reached", flush=True)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (-signal.SIGTERM, "alive\n")


def test_another_recipe_in_the_folder_is_refused(colored: Path, tmp_path: Path) -> None:
    recipe, folder = tiny(colored), tmp_path / "run"
    train(recipe, folder, display=False, max_steps=1)
    other = tiny(colored, batch_size=2, optim=dict(lr=0.5))
    with pytest.raises(ValueError, match=r"batch_size\b.* 4 .* 2 .*optim\.lr\b.* 0\.003 .* 0\.5 ") as error:
        train(other, folder, display=False, max_steps=2)
    assert "epochs" not in str(error.value)
    assert checkpoints.load(folder / "last.pt").state["step"] == 1
    engine = dict(log_every=7, checkpoint_minutes=1.0, loggers=())
    free = tiny(colored, name="renamed", engine=engine, input=dict(workers=1))
    assert train(free, folder, display=False, max_steps=2).step == 2


def test_finished_run_is_not_trained_further(
    trained: Path, colored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    run = train(tiny(colored, epochs=6), folder)
    assert run.step == 36
    assert run.metrics["top1"] == 100.0
    assert "36 steps" in capsys.readouterr().out
    assert_identical(
        checkpoints.load(folder / "last.pt").state["model"], checkpoints.load(trained / "last.pt").state["model"]
    )


@pytest.mark.parametrize("log_every", [1, 1000], ids=["checked when logged", "checked before saving"])
def test_nonfinite_loss_ends_the_run(
    colored: Path, tmp_path: Path, log_every: int, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny(colored, optim=dict(lr=1e20, warmup_epochs=0.0), engine=dict(log_every=log_every))
    config = write_config(recipe, tmp_path / "tiny.yaml")
    assert main(["train", "quickstart", "--config", config, "--run", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert re.match(r"smt train: error: .*\bloss\b.*\bnan\b.*\boptim\.lr\b", error)
    assert not (tmp_path / "run" / "last.pt").exists()


def test_no_readable_training_image_is_an_error(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data" / "train", COLORS, [1] * 3).parent
    write_images(data / "val", COLORS, [1] * 3)
    for file in (data / "train").rglob("*.png"):
        file.write_bytes(b"not an image")
    with pytest.raises(ValueError, match=str(data)):
        train(tiny(data, batch_size=3), tmp_path / "run", display=False)


def test_incomplete_accumulation_is_dropped(colored: Path, tmp_path: Path) -> None:
    # 24 images in batches of 5: 4 batches; 3 per step: 1 step per epoch, and the 4th batch is not used
    run = train(tiny(colored, batch_size=5, engine=dict(accumulate=3)), tmp_path / "a", display=False, max_steps=1)
    assert run.total_steps == 2
    # more than an epoch has: all of an epoch
    run = train(tiny(colored, batch_size=5, engine=dict(accumulate=9)), tmp_path / "b", display=False, max_steps=1)
    assert run.total_steps == 2


def test_accumulated_batches_equal_one_large_batch(colored: Path, tmp_path: Path) -> None:
    # LayerNorm only: no layer depends on the rest of its batch
    model = dict(model="vit_tiny_patch16_224", model_args=dict(img_size=32, embed_dim=24, depth=2, num_heads=2))
    optim = dict(name="sgd", lr=0.1, warmup_epochs=0.0)
    a = train(tiny(colored, **model, optim=optim, batch_size=8), tmp_path / "a", display=False, max_steps=1)
    b = train(
        tiny(colored, **model, optim=optim, batch_size=4, engine=dict(accumulate=2)),
        tmp_path / "b",
        display=False,
        max_steps=1,
    )
    moved = 0.0
    start = timm.create_model(model["model"], num_classes=3, **model["model_args"]).state_dict()
    for (name, x), y in zip(a.raw.state_dict().items(), b.raw.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6, msg=name)
        moved = max(moved, float((x - start[name]).abs().max()))
    assert moved > 1e-3


# --- what other tasks have and a classifier has not


class Several(ClassificationTraining):
    """Two losses, another metric that decides, and sample pictures."""

    primary_metric = "mean_class_accuracy"
    metric_formats = {"mean_class_accuracy": MetricFormat("class mean")}  # noqa: RUF012

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        (loss,) = super().loss(model, batch).values()
        return {"half": loss / 2, "rest": loss / 2}

    def samples(self, model: nn.Module, device: torch.device) -> Any:
        assert not model.training
        assert torch.is_inference_mode_enabled()
        return Image.new("RGB", (8, 6), (0, 0, 200))


def test_several_losses_another_primary_metric_and_samples(
    colored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(colored), tmp_path / "one", display=False)
    monkeypatch.setattr(loop, "get_task", lambda name: SimpleNamespace(training=Several))
    run = train(tiny(colored), tmp_path / "run")
    assert run.raw.training
    one, several = ([line for line in read_log(tmp_path / name) if line["kind"] == "train"] for name in ("one", "run"))
    assert "loss/half" not in one[0]
    for a, b in zip(one, several, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["loss/half"] == b["loss/rest"] == pytest.approx(b["loss"] / 2)
    assert "class mean" in capsys.readouterr().out
    best = checkpoints.load(tmp_path / "run" / "best.pt").state["metrics"]["mean_class_accuracy"]
    assert (
        best
        == run.metrics["mean_class_accuracy"]
        == max(line["mean_class_accuracy"] for line in read_log(tmp_path / "run") if line["kind"] == "eval")
    )
    assert sorted(p.name for p in (tmp_path / "run" / "samples").iterdir()) == ["epoch_001.png", "epoch_002.png"]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [(event.step, event.width) for event in events.Images("samples")] == [(6, 8), (12, 8)]
    assert not (tmp_path / "one" / "samples").exists()


def test_checkpoint_older_than_a_recipe_field_is_resumed(colored: Path, tmp_path: Path) -> None:
    recipe, folder = tiny(colored), tmp_path / "run"
    train(recipe, folder, display=False, max_steps=1)
    state = checkpoints.load(folder / "last.pt").state
    del state["recipe"]["optim"]["schedule"]
    checkpoints.save(state, folder / "last.pt")
    with pytest.raises(ValueError, match=r"optim\.schedule\b.*'cosine'.*'poly'"):
        train(tiny(colored, optim=dict(schedule="poly")), folder, display=False, max_steps=2)
    assert train(recipe, folder, display=False, max_steps=2).step == 2


# --- stopped from outside


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "smt_vision", *words]


def test_signal_from_outside_and_resume(colored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny(colored, epochs=10, engine=dict(eval_every=10, checkpoint_minutes=0.0))
    config, folder = write_config(recipe, tmp_path / "tiny.yaml"), tmp_path / "run"
    words = command("train", "quickstart", "--config", config, "--run", str(folder))
    pipe = subprocess.PIPE
    with subprocess.Popen(words, env=environment(), stderr=pipe, stdout=pipe, text=True) as process:
        wait_until(lambda: (folder / "last.pt").exists() or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=DEADLINE)
    state = checkpoints.load(folder / "last.pt").state
    assert 0 < state["step"] < 60
    assert process.returncode == 128 + signal.SIGINT
    stopped = rf"smt train: .*step {state['step']} of 60\b.*smt train --resume {folder}"
    assert re.fullmatch(stopped, error.splitlines()[-1])
    assert main(["train", "--resume", str(folder), "--engine.checkpoint_minutes", "10", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["step"] == 60
    assert result["top1"] == 100.0
    kinds = [line["step"] for line in read_log(folder) if line["kind"] == "train"]
    assert kinds == list(range(1, 61))


# --- checkpoints


def test_failed_save_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    checkpoints.save({"model": {"w": torch.ones(3)}, "step": 1}, path)

    def fail(content: Any, file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space"):
        checkpoints.save({"model": {"w": torch.zeros(3)}, "step": 2}, path)
    assert checkpoints.load(path).state["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_open_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoints.save({"model": {"w": torch.ones(3)}}, path)
    content = path.read_bytes()
    with path.open("rb") as reader:
        checkpoints.save({"model": {"w": torch.zeros(3000)}}, path)
        assert reader.read() == content
    assert path.read_bytes() != content


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_file_is_named(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"best{suffix}"
    checkpoints.save({"model": {"w": torch.ones(1000)}, "step": 1}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=f"best{suffix}"):
        checkpoints.load(path)


def test_files_that_are_not_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        checkpoints.load(tmp_path / "none.pt")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt.*\blist\b"):
        checkpoints.load(tmp_path / "list.pt")
    checkpoints.save({"model": {}, "format": checkpoints.FORMAT + 1}, tmp_path / "later.pt")
    with pytest.raises(ValueError, match=r"later\.pt.* format 3"):
        checkpoints.load(tmp_path / "later.pt")


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    torch.save({"model": {}, "spec": Evil(tmp_path / "done")}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt"):
        checkpoints.load(tmp_path / "evil.pt")
    assert not (tmp_path / "done").exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)  # it would have
    assert (tmp_path / "done").exists()


def test_safetensors_keep_the_spec(tmp_path: Path) -> None:
    path = tmp_path / "new" / "best.safetensors"
    weights = {"a": torch.randn(3, 4).t(), "b": torch.tensor(7), "c": torch.randn(2).half()}
    spec = {"task": "classify", "classes": ["a", "ä"], "input": {"size": 32, "mean": [0.5]}, "head": {}}
    checkpoints.save({"model": weights, "spec": spec, "epoch": 3}, path)
    checkpoint = checkpoints.load(path)
    assert_identical(checkpoint.weights, {k: v.contiguous() for k, v in weights.items()})
    assert (checkpoint.spec, checkpoint.task) == (spec, "classify")
    assert {k: v for k, v in checkpoint.state.items() if k != "model"} == {
        "format": checkpoints.FORMAT, "spec": spec, "epoch": 3
    }  # fmt: skip
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_allocator_is_set_by_the_command_and_not_by_the_library(
    colored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    monkeypatch.setattr("smt_vision.allocator.keep_large_allocations", lambda: calls.append("set"))
    recipe = tiny(colored)
    train(recipe, tmp_path / "library", display=False, max_steps=1)
    assert calls == []
    config = write_config(recipe, tmp_path / "tiny.yaml")
    folder = str(tmp_path / "command")
    assert main(["train", "quickstart", "--config", config, "--run", folder, "--max_steps", "1", "--json"]) == 0
    assert calls == ["set"]
    capsys.readouterr()


# --- several processes

SCRIPT = """
import contextlib, io, json, os, signal, sys
from smt_vision.cli import main
from smt_vision.engine import loop
results = []
for words in json.loads(open(sys.argv[1]).read()):
    out = io.StringIO()
    words = [word.replace("RANK", os.environ.get("LOCAL_RANK", "0")) for word in words]
    if words[-1] == "SIGNAL":  # which the second process receives in its first step
        def step(*args, train_step=loop.train_step):
            if args[0].step == 0 and os.environ["LOCAL_RANK"] == "1":
                os.kill(os.getpid(), signal.SIGTERM)
            return train_step(*args)

        loop.train_step = step
        words.pop()
    with contextlib.redirect_stdout(out):
        code = main(words)
    results.append((code, out.getvalue()))
with open(sys.argv[1] + os.environ["LOCAL_RANK"], "w") as file:
    json.dump(results, file)
"""
TWO = ["--engine.accelerator", "cpu", "--engine.devices", "2"]
COUNTS = {7: [3, 1, 3], 11: [4, 2, 5]}
BATCHES = (1, 3, 64)
VIT: dict[str, Any] = dict(
    model="vit_tiny_patch16_224",
    model_args=dict(img_size=32, embed_dim=24, depth=2, num_heads=2),
    optim=dict(name="sgd", lr=0.1, warmup_epochs=0.0),
)


@pytest.fixture(scope="module")
def two(colored: Path, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Commands carried out by two processes, one after the other: their outputs by name, and the folder."""
    root = tmp_path_factory.mktemp("two")
    for count, counts in COUNTS.items():
        write_images(root / str(count), {**COLORS, "blue": COLORS["green"]}, counts)  # blue ones will be mistaken

    def train_arguments(name: str, recipe: Recipe, *more: str) -> list[str]:
        config = write_config(recipe, root / f"{name.removesuffix('RANK')}.yaml")
        return ["train", "quickstart", "--config", config, "--run", str(root / name), "--json", *TWO, *more]

    random = tiny(colored, **{**RANDOM, "engine": dict(ema=0.9)})
    jobs = {
        f"eval {count} {batch}": ["eval", str(whole), "--data", str(root / str(count)), "--json", *TWO,
                                  "--batch_size", str(batch), "--workers", "0", "--bootstrap", "100"]
        for count in COUNTS for batch in BATCHES
    }  # fmt: skip
    jobs["whole"] = train_arguments("whole", random)
    jobs["halves"] = train_arguments("halves", random, "--max_steps", "4")
    jobs["rest"] = ["train", "--resume", str(root / "halves"), "--json"]
    jobs["vit"] = train_arguments("vit", tiny(colored, **VIT), "--max_steps", "1")
    frozen = tiny(colored, checkpoint=str(whole), freeze=2, model_args=RANDOM["model_args"])
    jobs["frozen"] = train_arguments("frozen", frozen, "--max_steps", "2")
    # A folder on each machine, of which that of the first one has the checkpoints.
    jobs["apart"], jobs["apart again"] = (train_arguments("apartRANK", random, "--max_steps", n) for n in ("2", "4"))
    for rank, counts in enumerate(((6, 6, 6), (6, 6, 7))):
        write_images(root / f"data{rank}" / "train", COLORS, counts)
        write_images(root / f"data{rank}" / "val", COLORS, counts)
    jobs["other images"] = train_arguments("other", random, "--data", str(root / "dataRANK"))
    jobs["eval other"] = ["eval", str(whole), "--data", str(root / "dataRANK"), "--json", *TWO, "--workers", "0"]
    shutil.copytree(colored, root / "damaged data")
    damaged = replace(random, data=str(root / "damaged data"), batch_size=1)
    damaged = replace(damaged, input=replace(damaged.input, max_unreadable=2))
    task = get_task(damaged.task).training(damaged)
    for row in [int(batch["index"]) for batch in task.train_loader(1, 2).epoch(0)][2:5]:
        (root / "damaged data" / "train" / task.train_set.name(row)).write_bytes(b"")
    jobs["damaged"] = train_arguments("damaged", damaged)
    jobs["signaled"] = [*train_arguments("signaled", random), "SIGNAL"]
    (root / "jobs").write_text(json.dumps(list(jobs.values())))
    (root / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(root / "script.py"), str(root / "jobs")],
        env=environment(), capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    first, second = (json.loads((root / f"jobs{rank}").read_text()) for rank in (0, 1))
    failing = ("apart again", "other images", "eval other", "damaged")
    expected = [1 if name in failing else 143 if name == "signaled" else 0 for name in jobs]
    assert [code for code, _ in first] == expected, done.stderr
    assert second[-1][0] == 0  # Fabric kills the first process if another ends with a code
    assert [out for _, out in second] == [""] * len(jobs)  # only the first process prints
    out = {name: json.loads(out) for name, (_, out) in zip(jobs, first, strict=True) if out}
    return SimpleNamespace(root=root, out=out, errors=done.stderr)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("batch", BATCHES)
def test_evaluation_is_exact_on_two_processes(
    two: SimpleNamespace, whole: Path, count: int, batch: int, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(two.root / str(count))
    assert main(["eval", str(whole), "--data", data, "--json", "--workers", "0", "--bootstrap", "100",
                 "--engine.accelerator", "cpu"]) == 0  # fmt: skip
    alone, both = json.loads(capsys.readouterr().out), two.out[f"eval {count} {batch}"]
    assert alone["count"] == both["count"] == count
    assert [row["count"] for row in both["per_class"]] == COUNTS[count]
    assert 0 < len(both["worst"]) == count - round(count * both["top1"] / 100)
    for name in ("loss", "ece"):  # a forward pass of another batch size rounds otherwise in the 7th digit
        assert both.pop(name) == pytest.approx(alone.pop(name), rel=1e-5)
    for row, other in zip(both.pop("calibration"), alone.pop("calibration"), strict=True):
        assert row == pytest.approx(other, rel=1e-5)
    for row, other in zip(both["worst"], alone["worst"], strict=True):
        assert row.pop("score") == pytest.approx(other.pop("score"), rel=1e-5)
    assert both == alone


def test_two_processes_train_and_resume(two: SimpleNamespace) -> None:
    # 24 images in batches of 2 x 4 images: 3 steps per epoch; stopped in the middle of the second
    assert two.out["whole"]["step"] == 9
    assert two.out["halves"]["step"] == 4
    assert {k: v for k, v in two.out["rest"].items() if k not in ("run", "seconds")} == {
        k: v for k, v in two.out["whole"].items() if k not in ("run", "seconds")
    }
    log = [line for line in read_log(two.root / "whole") if line["kind"] == "train"]
    assert [line["step"] for line in log] == list(range(1, 10))
    assert all(math.isfinite(line["loss"]) for line in log)
    assert_same_run(two.root / "whole", two.root / "halves")


def test_all_processes_stop_in_the_step_after_a_signal_to_one(two: SimpleNamespace) -> None:
    assert checkpoints.load(two.root / "signaled" / "last.pt").state["step"] == 2


def test_processes_that_read_different_checkpoints_are_an_error(two: SimpleNamespace) -> None:
    message = r"different checkpoints \(process 0: step 2, process 1: step 0\): the folder must be on storage"
    assert re.search(rf"smt train: error: .*apart0: the processes read {message}", two.errors)
    assert re.search(rf"smt train \(rank 1\): error: .*apart1: the processes read {message}", two.errors)


def test_processes_with_different_images_are_an_error(two: SimpleNamespace) -> None:
    message = r"the processes opened different {} images or labels \(.*process 0: 18, process 1: 19\)"
    for name in ("training", "evaluation"):
        for rank, who in enumerate(("", r" \(rank 1\)")):
            assert re.search(rf"{who}: error: .*data{rank}: {message.format(name)}", two.errors)


def test_a_process_without_images_ends_the_others_after_it_was_saved(two: SimpleNamespace) -> None:
    message = r"3 unreadable images, more than max_unreadable=2"
    assert re.search(rf"smt train: error: process 1 has no more training images: {message}", two.errors)
    assert re.search(rf"smt train \(rank 1\): error: {message}", two.errors)
    steps = len(read_log(two.root / "damaged"))
    assert checkpoints.load(two.root / "damaged" / "last.pt").state["step"] == steps > 0


def test_a_process_that_fails_at_the_start_of_an_epoch_has_the_last_batches_of_the_one_before() -> None:
    signals = StopSignals()
    several: Any = SimpleNamespace(fabric=SimpleNamespace(world_size=2))
    each = loop._Loop(several, several, several, several, signals, Watchdog(1, signals, "run"))

    def damaged() -> Iterator[Any]:
        raise UnreadableImage("3 unreadable images")
        yield

    batches: Any = [["first"], ["second"]]
    epoch = iter(batches)
    each._last = next(epoch)
    assert each._next(epoch) == ["second"]
    assert each._failure is None
    assert each._next(damaged()) == ["second"]
    assert isinstance(each._failure, UnreadableImage)


def test_a_step_that_is_given_up_changes_nothing(colored: Path, tmp_path: Path) -> None:
    run = train(tiny(colored), tmp_path / "run", display=False, max_steps=1)
    before = {name: value.clone() for name, value in run.raw.state_dict().items()}
    assert any(name.endswith("running_mean") for name in before)
    batch = next(iter(run.task.train_loader(0, 1).epoch(1)))
    run.train_mode()
    train_step(run, [batch], lr=0.1, flags=[False, False, True])
    assert run.step == 1
    assert all(torch.equal(value, before[name]) for name, value in run.raw.state_dict().items())
    train_step(run, [batch], lr=0.1, flags=[False] * 3)
    assert run.step == 2
    assert not torch.equal(run.raw.state_dict()["head.fc.weight"], before["head.fc.weight"])


def test_two_processes_evaluate_the_saved_model(
    two: SimpleNamespace, colored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # each process has its own images, and the BatchNorm statistics of both
    best = checkpoints.load(two.root / "whole" / "best.pt").state
    assert main(["eval", str(two.root / "whole"), "--workers", "0", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["data"] == str(colored)
    for name in ("loss", "top1", "ece"):
        assert result[name] == pytest.approx(best["metrics"][name], rel=1e-5), name


def test_only_the_first_process_writes_the_results_of_an_evaluation(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["eval", str(whole), "--workers", "0", "--out", str(tmp_path / "results")]
    with monkeypatch.context() as patch:
        patch.setattr(processes, "is_first", lambda: False)
        assert main(command) == 0
    assert not (tmp_path / "results").exists()
    assert main(command) == 0
    assert json.loads((tmp_path / "results" / "metrics.json").read_text())["count"] > 0


def test_two_processes_equal_one_with_twice_the_batch(two: SimpleNamespace, colored: Path, tmp_path: Path) -> None:
    # without BatchNorm, whose statistics would be those of each process's half
    run = train(tiny(colored, **VIT, batch_size=8), tmp_path / "run", display=False, max_steps=1)
    theirs = checkpoints.load(two.root / "vit" / "last.pt").state["model"]
    for name, value in run.raw.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-6, msg=name)


def test_two_processes_keep_what_is_frozen(two: SimpleNamespace, whole: Path) -> None:
    before = checkpoints.load(whole).weights
    after = checkpoints.load(two.root / "frozen" / "last.pt").state["model"]
    kept = {name for name in before if name.startswith(("stem.", "stages.0.", "stages.1."))}
    assert any("running_var" in name for name in kept)
    assert {name for name in before if torch.equal(before[name], after[name])} == kept
    assert two.out["frozen"]["trained_parameters"] < two.out["frozen"]["parameters"]
