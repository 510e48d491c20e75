"""What a run survives: numbers that are not finite, damaged files, signals, a second process, other data."""

import ctypes
import errno
import fcntl
import json
import logging
import multiprocessing
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from blank_pictures import without_report
from same_run import assert_identical
from smt_vision import checkpoints, load, signals
from smt_vision.checkpoints import training_checkpoints
from smt_vision.cli import main
from smt_vision.data import retry
from smt_vision.data.decode import UnreadableImage
from smt_vision.data.loaders import DeadWorker, TrainLoader
from smt_vision.engine import lock, loggers, loop, watchdog
from smt_vision.engine import step as step_module
from smt_vision.engine.display import PlainDisplay
from smt_vision.engine.lock import LOCK, FolderLock
from smt_vision.engine.log import read_log
from smt_vision.engine.loggers import ExperimentLogger
from smt_vision.engine.loop import train
from smt_vision.engine.report import write_report
from smt_vision.engine.run import Run
from smt_vision.engine.watchdog import Watchdog
from smt_vision.files import write_atomic
from smt_vision.recipe_files import read_recipe_file
from smt_vision.signals import Interrupted, stop_signals
from smt_vision.tasks import get_task
from tiny_run import environment, tiny, write_config, write_split
from waiting import DEADLINE, in_fork, wait_until

STEPS = 6  # per epoch


pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture(scope="module")
def colored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_split(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(colored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, left alone."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with without_report():
        train(tiny(colored), folder, display=False)
    return folder


@pytest.fixture(scope="module")
def started(colored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, with one checkpoint."""
    folder = tmp_path_factory.mktemp("started") / "run"
    with without_report():
        train(tiny(colored, engine=dict(keep_last=1)), folder, display=False, max_steps=2)
    return folder


def state(folder: Path, name: str = "last.pt") -> Any:
    return checkpoints.load(folder / name).state


def assert_same_weights(folder: Path, other: Path) -> None:
    assert_identical(state(folder)["model"], state(other)["model"])


@contextmanager
def broken_gradients(*steps: int, value: float = float("nan")) -> Iterator[None]:
    """The gradient has this value in some steps, the loss stays finite."""
    clip = step_module._clip_gradients

    def break_then_clip(run: Run) -> Any:
        if run.step + 1 in steps:
            next(p for p in run.raw.parameters() if p.grad is not None).grad.flatten()[0] = value  # type: ignore[union-attr]
        return clip(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_module, "_clip_gradients", break_then_clip)
        yield


# --- numbers that are not finite


@pytest.mark.parametrize("step", [STEPS, STEPS + 2], ids=["last step of an epoch", "mid-epoch"])
def test_gradient_that_is_not_finite_ends_the_run_and_is_not_saved(colored: Path, tmp_path: Path, step: int) -> None:
    recipe, folder = tiny(colored, engine=dict(checkpoint_minutes=0.0)), tmp_path / "run"
    with broken_gradients(step), pytest.raises(FloatingPointError, match=rf"gradient norm is nan at step {step}\b"):
        train(recipe, folder, display=False)
    assert state(folder)["step"] == step - 1
    note = next(line for line in read_log(folder) if line["kind"] == "note")
    assert len(note["images"]) == 4
    assert all(Path(name).is_file() for name in note["images"])
    assert train(recipe, folder, display=False).step == 2 * STEPS  # the cause is gone: the run goes on


def test_skip_leaves_the_batch_out(colored: Path, tmp_path: Path) -> None:
    recipe, folder = tiny(colored, engine=dict(on_nonfinite="skip", ema=0.9)), tmp_path / "run"
    with broken_gradients(3, 4):
        run = train(recipe, folder, display=False)
    assert run.left_out == [3, 4]
    assert state(folder)["left_out"] == [3, 4]
    assert all(value.isfinite().all() for value in state(folder)["model"].values())
    steps = [line["step"] for line in read_log(folder) if line["kind"] == "train"]
    assert steps == [step for step in range(1, 2 * STEPS + 1) if step not in (3, 4)]


@pytest.mark.parametrize("clip_grad", [1.0, None])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_limit_of_the_gradient_norm_at_any_precision(
    colored: Path, tmp_path: Path, precision: str, clip_grad: float | None
) -> None:
    engine = dict(precision=precision, max_grad_norm=1e-6)
    with pytest.raises(FloatingPointError, match=r"gradient norm is \d.*above engine\.max_grad_norm=1e-06 at step 1"):
        train(tiny(colored, engine=engine, optim=dict(clip_grad=clip_grad)), tmp_path / "run", display=False)


@pytest.mark.parametrize(("policy", "step"), [("stop", 6), ("skip", 15)])
def test_a_gradient_that_is_never_finite_in_float16_ends_the_run(
    colored: Path, tmp_path: Path, policy: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is now and then infinite only lowers the loss scale."""
    monkeypatch.setattr(step_module, "MAX_RESCALED", 5)
    recipe = tiny(colored, epochs=4, engine=dict(precision="16-mixed", on_nonfinite=policy, checkpoint_minutes=0.0))
    message = rf"not finite in float16, at any loss scale, for {step} steps at step {step}\b"
    with broken_gradients(*range(1, 25)), pytest.raises(FloatingPointError, match=message):
        train(recipe, tmp_path / "run", display=False)
    with broken_gradients(2, 3, 4, 5, 7, 8, 9):
        assert train(recipe, tmp_path / "other", display=False).step == 24


@pytest.mark.parametrize("clip_grad", [1.0, None])
@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_step_is_left_out_with_a_loss_scale(
    colored: Path, tmp_path: Path, policy: str, clip_grad: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient norm is that of float16's gradients divided by the scale, which may be done once per step."""
    failure = step_module._failure
    calls = iter(range(1, 100))

    def third_loss_is_nan(losses: Any, *rest: Any) -> str:
        return "loss is nan" if next(calls) == 3 else failure(losses, *rest)

    monkeypatch.setattr(step_module, "_failure", third_loss_is_nan)
    engine = dict(on_nonfinite=policy, precision="16-mixed", checkpoint_minutes=0.0)
    run = train(tiny(colored, engine=engine, optim=dict(clip_grad=clip_grad)), tmp_path / "run", display=False)
    assert (run.left_out, run.step) == ([3], 2 * STEPS)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "muon", "adamuon", "novograd", "lion", "adafactor"])
def test_runs_of_all_kinds_of_optimizers_can_be_resumed(colored: Path, tmp_path: Path, name: str) -> None:
    recipe = tiny(colored, epochs=1, optim=dict(name=name))
    train(recipe, tmp_path / "run", display=False, max_steps=3)
    train(recipe, tmp_path / "run", display=False)
    train(recipe, tmp_path / "whole", display=False)
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


def test_training_goes_on_when_nothing_can_be_displayed(
    colored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As behind `| tee` that was ended, or when the connection to the machine is lost.
    def closed(self: PlainDisplay, *args: Any) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(PlainDisplay, "line", closed)
    assert train(tiny(colored), tmp_path / "run").step == 2 * STEPS
    notes = [line["message"] for line in read_log(tmp_path / "run") if line["kind"] == "note"]
    assert sum("nothing is displayed any more: BrokenPipeError" in note for note in notes) == 1


def test_skipped_step_changes_nothing(colored: Path, tmp_path: Path) -> None:
    engine = dict(on_nonfinite="skip", checkpoint_minutes=0.0, ema=0.9)
    with broken_gradients(3):
        train(tiny(colored, engine=engine), tmp_path / "run", display=False, max_steps=3)
    before, after = (state(tmp_path / "run", name) for name in ("last-00000002.pt", "last.pt"))
    assert (before["step"], after["step"]) == (2, 3)
    for part in ("model", "ema"):  # the statistics of BatchNorm too
        assert all(torch.equal(before[part][name], after[part][name]) for name in before[part])
    for number, values in before["optimizer"]["state"].items():
        assert all(torch.equal(value, after["optimizer"]["state"][number][name]) for name, value in values.items())


def test_rollback_returns_to_the_last_checkpoint(colored: Path, tmp_path: Path) -> None:
    # Checkpoints at the end of epochs only: steps 7 to 9 are undone, and their images left out.
    recipe = tiny(colored, engine=dict(on_nonfinite="rollback"))
    saved: dict[int, Any] = {}

    def remember(folder: Path) -> None:
        saved[STEPS] = state(folder)["model"]

    train(recipe, tmp_path / "run", display=False, max_steps=STEPS)
    remember(tmp_path / "run")
    with broken_gradients(9):
        run = train(recipe, tmp_path / "run", display=False, max_steps=9)
    assert run.left_out == [7, 8, 9]
    assert all(torch.equal(saved[STEPS][name], value) for name, value in state(tmp_path / "run")["model"].items())
    assert train(recipe, tmp_path / "run", display=False).step == 2 * STEPS


def test_rollback_before_the_first_checkpoint(colored: Path, tmp_path: Path) -> None:
    with broken_gradients(1):
        run = train(tiny(colored, engine=dict(on_nonfinite="rollback")), tmp_path / "run", display=False)
    assert run.left_out == [1]
    assert run.step == 2 * STEPS


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_too_many_failures_in_a_row_end_the_run(colored: Path, tmp_path: Path, policy: str) -> None:
    recipe = tiny(colored, engine=dict(on_nonfinite=policy))
    with broken_gradients(*range(1, 13)), pytest.raises(FloatingPointError, match=r"step 10, the 10th time in a row"):
        train(recipe, tmp_path / "run", display=False)


def test_gradient_above_the_limit_is_left_out(colored: Path, tmp_path: Path) -> None:
    recipe = tiny(colored, engine=dict(on_nonfinite="skip", max_grad_norm=1e4))
    with broken_gradients(5, value=1e6):
        assert train(recipe, tmp_path / "run", display=False).left_out == [5]
    notes = [line["message"] for line in read_log(tmp_path / "run") if line["kind"] == "note"]
    assert re.match(r"gradient norm is 1e\+06, above engine\.max_grad_norm=10000 at step 5\b", notes[0])


def test_weights_that_are_not_finite_are_never_saved(
    colored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Run.save_last

    def break_then_save(run: Run) -> None:
        if run.step == STEPS:
            with torch.no_grad():
                next(run.raw.parameters()).flatten()[0] = float("inf")
        save(run)

    monkeypatch.setattr(Run, "save_last", break_then_save)
    recipe = tiny(colored, engine=dict(checkpoint_minutes=0.0))
    with pytest.raises(FloatingPointError, match=r"model\.stem\b.*not finite after step 6.*is of step 5\b"):
        train(recipe, tmp_path / "run", display=False)
    assert state(tmp_path / "run")["step"] == STEPS - 1


# --- several checkpoints


def test_last_checkpoints_are_kept(colored: Path, tmp_path: Path) -> None:
    recipe = tiny(colored, engine=dict(checkpoint_minutes=0.0, keep_last=3))
    train(recipe, tmp_path / "run", display=False, max_steps=5)
    found = training_checkpoints(tmp_path / "run")
    assert [path.name for path in found] == ["last.pt", "last-00000004.pt", "last-00000003.pt"]
    assert [checkpoints.load(path).state["step"] for path in found] == [5, 4, 3]
    recipe = tiny(colored, engine=dict(checkpoint_minutes=0.0, keep_last=1))
    train(recipe, tmp_path / "run", display=False, max_steps=6)
    assert [path.name for path in training_checkpoints(tmp_path / "run")] == ["last.pt"]


def test_checkpoints_are_kept_for_good_every_few_hours(
    colored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "seconds", property(lambda run: 3600.0 * run.step))  # an hour per step
    recipe = tiny(colored, engine=dict(checkpoint_minutes=0.0, keep_last=1, keep_every_hours=2.5))
    train(recipe, tmp_path / "run", display=False, max_steps=4)
    train(recipe, tmp_path / "run", display=False, max_steps=9)
    kept = [int(path.stem.partition("-")[2]) for path in sorted((tmp_path / "run").glob("step-*.pt"))]
    assert kept == [3, 6, 9]


@pytest.mark.parametrize("damage", ["bit", "truncated", "empty", "removed"])
def test_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    colored: Path, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    recipe, folder = tiny(colored), tmp_path / "run"
    train(tiny(colored, engine=dict(checkpoint_minutes=0.0)), folder, display=False, max_steps=4)
    last = folder / "last.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 16
    replacement = {"bit": bytes(content), "truncated": bytes(content[: len(content) // 2]), "empty": b""}
    last.unlink()
    if damage in replacement:
        last.write_bytes(replacement[damage])
    with caplog.at_level(logging.WARNING):
        train(recipe, folder, display=False)
    assert damage == "removed" or re.search(rf"{last}.*Continuing from .*last-00000003\.pt, of step 3", caplog.text)
    assert_same_weights(folder, whole)
    assert [line["step"] for line in read_log(folder) if line["kind"] == "train"] == list(range(1, 13))


def test_run_without_a_readable_checkpoint_is_an_error(colored: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(tiny(colored, engine=dict(checkpoint_minutes=0.0)), folder, display=False, max_steps=2)
    for path in training_checkpoints(folder):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"last\.pt.*last-00000001\.pt.*--run"):
        train(tiny(colored), folder, display=False)


def exit_code(pid: int) -> int:
    """Wait for a child process; a negative code is that of a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_leftovers_of_killed_saves_are_removed(colored: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def killed_while_it_writes() -> None:
        write_atomic(folder / "last.pt", lambda part: (part.write_bytes(b"half"), os._exit(9)))

    assert exit_code(in_fork(killed_while_it_writes)) == 9
    assert len(list(folder.iterdir())) == 1
    train(tiny(colored), folder, display=False, max_steps=1)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_flipped_bit_is_found_or_harmless(tmp_path: Path, suffix: str) -> None:
    path, changed = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    weights = {"w": torch.randn(40, 30), "b": torch.randn(40)}
    checkpoints.save({"model": weights, "recipes": [{"a": 1}], "step": 3}, path)
    content = path.read_bytes()
    refused = 0
    for position in range(0, len(content), 17):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        changed.write_bytes(flipped)
        message, found = "", None
        try:
            found = checkpoints.load(changed).state
        except ValueError as error:
            message = str(error)
        if found is None:
            assert str(changed) in message
            refused += 1
        else:
            assert all(torch.equal(found["model"][name], value) for name, value in weights.items())
            assert (found["step"], found["recipes"]) == (3, [{"a": 1}])
    assert refused > 0.8 * len(range(0, len(content), 17))


def _shape(state: Any) -> None:
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1)


def _expanded(state: Any) -> None:
    moment = state["optimizer"]["state"][0]["exp_avg"]
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1).expand(moment.shape)


def _steps(state: Any) -> None:
    state["optimizer"]["state"][0]["step"] = torch.zeros(2)


def _group(state: Any) -> None:
    state["optimizer"]["param_groups"][0]["params"].append(999)


def _no_tensor(state: Any) -> None:
    state["optimizer"]["state"][0]["exp_avg"] = 3.0


def _missing(state: Any) -> None:
    del state["optimizer"]["state"][1]["exp_avg_sq"]


def _weights(state: Any) -> None:
    state["model"].popitem()


def _step(state: Any) -> None:
    state["step"] = -1


def _metrics(state: Any) -> None:
    state["metrics"] = [1]


def _no_spec(state: Any) -> None:
    del state["spec"]


def _tensor_in_metrics(state: Any) -> None:
    state["metrics"]["more"] = torch.zeros(1)


def _no_primary_metric(state: Any) -> None:
    state["metrics"] = {"loss": 1.0}


def _history(state: Any) -> None:
    state["history"] = ["50"]


def _listing(state: Any) -> None:
    state["listing"] = torch.zeros(2)


def _labels(state: Any) -> None:
    state["labels"] = [torch.zeros(2), torch.zeros(2)]


def _classes(state: Any) -> None:
    del state["spec"]["classes"]


@pytest.mark.parametrize(
    "change",
    [
        _shape, _expanded, _steps, _group, _no_tensor, _missing, _weights, _step, _metrics, _no_spec,
        _tensor_in_metrics, _no_primary_metric, _history, _listing, _labels, _classes,
    ],
)  # fmt: skip
def test_checkpoint_of_other_content_is_refused(colored: Path, started: Path, tmp_path: Path, change: Any) -> None:
    recipe, folder = tiny(colored, engine=dict(keep_last=1)), tmp_path / "run"
    shutil.copytree(started, folder)
    content = dict(state(folder))
    change(content)
    checkpoints.save(content, folder / "last.pt")
    with pytest.raises(ValueError, match=r"last\.pt"):
        train(recipe, folder, display=False)


@pytest.mark.report
def test_metrics_that_cannot_be_drawn_are_those_of_the_checkpoint(colored: Path, tmp_path: Path) -> None:
    recipe, folder = tiny(colored, epochs=1), tmp_path / "run"
    train(recipe, folder, display=False)
    content = dict(state(folder))
    for name in ("curves", "worst", "per_class"):
        (folder / "summary.md").unlink(missing_ok=True)
        checkpoints.save({**content, "metrics": {**content["metrics"], name: [3]}}, folder / "last.pt")
        with pytest.raises(ValueError, match=r"last\.pt: its metrics .*smt eval"):
            train(recipe, folder, display=False)
    assert load(folder).classes


def test_full_disk_is_named_with_the_space_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoints.save({"model": {"w": torch.ones(3)}, "step": 1}, path)
    # A limit on the size of files stands in for a full disk: both make a write fail.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        for name in ("last.pt", "last.safetensors"):
            with pytest.raises(OSError, match=rf"full: 1\.9 MiB needed, [\d,.]+ MiB free.*{name}'"):
                checkpoints.save({"model": {"w": torch.zeros(500_000)}}, tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert state(tmp_path)["step"] == 1
    assert [each.name for each in tmp_path.iterdir()] == ["last.pt"]


def test_an_error_of_the_storage_is_not_hidden_by_that_of_a_library(tmp_path: Path) -> None:
    class Broken:
        def write(self, data: bytes) -> int:
            raise OSError(errno.EIO, "Input/output error")

    def safetensors(part: Path) -> None:
        raise RuntimeError("I/O error: Input/output error (os error 5)")

    broken: Any = Broken()
    for write in (lambda part: torch.save(torch.zeros(9), broken), safetensors):
        with pytest.raises(OSError, match="Input/output error") as caught:
            write_atomic(tmp_path / "last.pt", write)
        assert caught.value.errno == errno.EIO
    assert not list(tmp_path.iterdir())


def full_disk(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_in_an_epoch_does_not_end_the_run(
    colored: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on with the last checkpoint that could be written, and the next one is complete again."""
    folder, write = tmp_path / "run", checkpoints.save

    def save(content: dict[str, Any], path: Path) -> None:
        (full_disk if content.get("step") in (3, 6) else write)(content, path)

    monkeypatch.setattr(checkpoints, "save", save)
    train(tiny(colored, engine=dict(checkpoint_minutes=0, keep_last=20)), folder, display=False)
    notes = [line["message"] for line in read_log(folder) if line["kind"] == "note"]
    assert [re.findall(r"no checkpoint of step (\d+): .*No space left on device", note) for note in notes] == [
        ["3"], ["6"], ["6"]  # before and after the evaluation
    ]  # fmt: skip
    assert {checkpoints.load(path).state["step"] for path in training_checkpoints(folder)} == {
        1,
        2,
        4,
        5,
        7,
        8,
        9,
        10,
        11,
        12,
    }
    assert_same_weights(folder, whole)


def test_a_full_disk_at_the_end_of_a_run_is_an_error(
    colored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny(colored), tmp_path / "run", display=False, max_steps=1)
    monkeypatch.setattr(checkpoints, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        train(tiny(colored), tmp_path / "run", display=False, max_steps=2)
    assert state(tmp_path / "run")["step"] == 1


# --- two processes in one folder


def test_second_run_in_a_folder_is_refused(colored: Path, tmp_path: Path) -> None:
    with FolderLock(tmp_path / "run"), pytest.raises(ValueError, match=rf"process {os.getpid()} on .*--run"):
        train(tiny(colored), tmp_path / "run", display=False)
    assert not (tmp_path / "run").exists()  # nothing was written
    assert train(tiny(colored), tmp_path / "run", display=False, max_steps=1).step == 1


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:

    def killed_with_the_lock() -> None:
        FolderLock(tmp_path).__enter__()

    assert exit_code(in_fork(killed_with_the_lock)) == 0
    assert json.loads((tmp_path / LOCK).read_text())["pid"]
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert (tmp_path / LOCK).read_text() == ""


class LockClock:
    """The time for a lock that waits for a sign of life; it may be given one after some seconds.

    Args:
        path: The lock's file, whose time is the present.
        ahead: Seconds by which the clock of its machine is ahead of this one's.
        beat: When its time changes.
    """

    def __init__(self, path: Path, ahead: float = 0.0, beat: float = float("inf")) -> None:
        self.path, self.beat, self.now = path, beat, 0.0
        self.there = time.time() + ahead
        os.utime(path, (self.there, self.there))

    def time(self) -> float:
        return time.time() + self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= self.beat:
            os.utime(self.path, (self.there + self.now, self.there + self.now))


def test_lock_of_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a network file system whose locks do not reach other machines.
    path = tmp_path / LOCK
    for ahead in (-1e6, 0.0, 1e6):  # its clock, in seconds
        path.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
        monkeypatch.setattr(lock, "time", clock := LockClock(path, ahead))
        with FolderLock(tmp_path):  # no sign of life: it has died
            assert clock.now == lock.STALE_SECONDS
        path.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
        monkeypatch.setattr(lock, "time", clock := LockClock(path, ahead, beat=lock.STALE_SECONDS - 1))
        with pytest.raises(ValueError, match="process 7 on elsewhere"), FolderLock(tmp_path):
            pass
        assert clock.now == lock.STALE_SECONDS - 1


def test_a_lock_that_was_taken_over_is_noticed(colored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stood still for longer than others wait does not write beside the one that continues its run."""
    save, folder = Run.save_last, tmp_path / "run"

    def take_over(run: Run) -> None:
        save(run)
        (folder / LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 7}))

    monkeypatch.setattr(Run, "save_last", take_over)
    with pytest.raises(ValueError, match="process 7 on elsewhere has taken over"):
        train(tiny(colored, engine=dict(checkpoint_minutes=0)), folder, display=False)
    assert state(folder)["step"] == 1
    assert "elsewhere" in (folder / LOCK).read_text()  # its lock stays


def test_a_lock_that_was_removed_is_no_error(tmp_path: Path) -> None:
    with FolderLock(tmp_path) as held:
        (tmp_path / LOCK).unlink()
        held.check()


def test_a_lock_is_read_again_after_an_error_that_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PAUSES", (0.0,))
    read, errors = Path.read_text, iter([OSError(errno.ESTALE, "Stale file handle")])

    def read_text(path: Path, **kwargs: Any) -> str:
        if (error := next(errors, None)) is not None:
            raise error
        return read(path, **kwargs)

    with FolderLock(tmp_path) as held, monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", read_text)
        held.check()
    assert next(errors, None) is None


def test_a_lock_shows_signs_of_life_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the start of a run on, which may hash images for minutes before its first step, and in any thread."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    with FolderLock(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        wait_until(lambda: (tmp_path / LOCK).stat().st_mtime > 0)
        assert "lock-beats" in [thread.name for thread in threading.enumerate()]
    wait_until(lambda: "lock-beats" not in [thread.name for thread in threading.enumerate()])


def test_a_fork_of_a_fork_closes_no_other_file(tmp_path: Path) -> None:
    def fork_again() -> int:
        other = os.open("/dev/null", os.O_RDONLY)  # it gets the number of the lock's file, which is closed here
        return exit_code(in_fork(lambda: os.fstat(other).st_size))

    with FolderLock(tmp_path):
        assert exit_code(in_fork(fork_again)) == 0


def test_lock_where_the_file_system_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of a process that has died may be that of another one by now, in a container even of this one."""

    def unsupported(*args: Any) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    path = tmp_path / LOCK
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
    monkeypatch.setattr(lock, "time", clock := LockClock(path))
    with FolderLock(tmp_path):
        assert clock.now == lock.STALE_SECONDS
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
    monkeypatch.setattr(lock, "time", LockClock(path, beat=1.0))
    with pytest.raises(ValueError, match="is training in this folder"), FolderLock(tmp_path):
        pass


# --- data that has changed


def add_image(data: Path) -> None:
    shutil.copy(data / "train/red/0.png", data / "train/red/00.png")


def replace_validation(data: Path) -> None:
    for path in (data / "val/red").iterdir():
        Image.open(path).rotate(90).save(path)


def replace_training(data: Path) -> None:
    Image.open(data / "train/red/0.png").rotate(90).save(data / "train/red/0.png")


def rename_class(data: Path) -> None:
    for split in ("train", "val"):
        (data / split / "blue").rename(data / split / "sky")


def swap_classes(data: Path) -> None:
    for split in ("train", "val"):
        for old, new in (("blue", "x"), ("red", "blue"), ("x", "red")):
            (data / split / old).rename(data / split / new)


CHANGES = {
    add_image: "names or order",
    replace_validation: "4 validation images are new, 4 validation images are gone",
    replace_training: "1 training images are new",
    rename_class: "other classes",
    swap_classes: "validation images are new",
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_data_is_refused_unless_accepted(tmp_path: Path, change: Any) -> None:
    data = write_split(tmp_path / "data")
    train(tiny(data), tmp_path / "run", display=False, max_steps=2)
    change(data)
    with pytest.raises(ValueError, match=CHANGES[change]):
        train(tiny(data), tmp_path / "run", display=False, max_steps=3)
    assert state(tmp_path / "run")["step"] == 2
    if change is not rename_class:
        accepted = tiny(data, engine=dict(allow_changed_data=True))
        assert train(accepted, tmp_path / "run", display=False, max_steps=3).step == 3


@pytest.mark.report
@pytest.mark.parametrize("stopped_at", [8, 12])  # in an epoch, and at the end of the run
def test_metrics_of_other_validation_images_are_not_compared(
    tmp_path: Path, stopped_at: int, caplog: pytest.LogCaptureFixture
) -> None:
    data, folder = write_split(tmp_path / "data"), tmp_path / "run"
    before = train(tiny(data), folder, display=False, max_steps=stopped_at)
    assert before.metrics["count"] == 12
    best = (folder / "best.pt").read_bytes()
    for i in range(2):
        (data / f"val/red/{i}.png").unlink()
    with caplog.at_level(logging.WARNING):
        run = train(tiny(data, engine=dict(allow_changed_data=True)), folder, display=False)
    kept = folder / f"best-{before.best_epoch:03}.pt"
    assert kept.read_bytes() == best
    assert f"the best weights so far are kept as {kept.name}" in caplog.text
    assert run.metrics["count"] == 10
    assert (run.step, run.best_epoch, len(run.history)) == (12, 2, 1)
    assert checkpoints.load(folder / "best.pt").state["metrics"]["count"] == 10
    assert "on 10 images" in (folder / "summary.md").read_text()
    again = train(tiny(data, engine=dict(allow_changed_data=True)), folder, display=False)  # nothing is left to do
    assert (again.best_epoch, len(again.history)) == (2, 1)


@pytest.mark.report
def test_the_report_leaves_out_an_image_that_has_become_unreadable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, folder = write_split(tmp_path / "data"), tmp_path / "run"
    run = train(tiny(data, optim=dict(lr=1e-9)), folder, display=False, max_steps=6)
    (data / "val" / run.task.val_set.id(run.metrics["worst"][0]["index"])).write_bytes(b"")
    write_report(run, "smt train")
    assert (folder / "mistakes.png").is_file()
    assert f"left out of {folder / 'mistakes.png'}: {data}" in caplog.text
    assert not list(folder.glob(".*"))  # written under their own names


def test_training_images_that_are_added_leave_the_best_weights(tmp_path: Path) -> None:
    data = write_split(tmp_path / "data")
    before = train(tiny(data), tmp_path / "run", display=False, max_steps=8)
    add_image(data)
    run = train(tiny(data, engine=dict(allow_changed_data=True)), tmp_path / "run", display=False, max_steps=9)
    assert (run.metrics, run.history) == (before.metrics, before.history)


def test_a_large_dataset_with_identical_images_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a large dataset, not all fingerprints are known; identical images make them even fewer."""
    data = write_split(tmp_path / "data")
    for i in range(1, 4):
        shutil.copy(data / "train/red/0.png", data / f"train/red/{i}.png")
    shutil.copy(data / "train/red/0.png", data / "val/red/0.png")
    monkeypatch.setattr("smt_vision.engine.run_images.MAX_TRAIN", 20)  # of 24 images
    train(tiny(data), tmp_path / "run", display=False, max_steps=2)
    assert re.search(r"at least 1 of the \d+ validation images are identical", caplog.text)
    assert len(state(tmp_path / "run")["images"]["train"]) < 20
    assert train(tiny(data), tmp_path / "run", display=False, max_steps=3).step == 3
    for path in (data / "train").glob("*/*.png"):
        path.write_bytes(path.read_bytes() + b"changed")
    with pytest.raises(ValueError, match="training images are new"):
        train(tiny(data), tmp_path / "run", display=False, max_steps=4)


def test_another_number_of_steps_per_epoch_is_refused(tmp_path: Path) -> None:
    data = write_split(tmp_path / "data")
    train(tiny(data), tmp_path / "run", display=False, max_steps=2)
    for i in range(4):
        (data / f"train/red/{i}.png").unlink()
    with pytest.raises(ValueError, match="started with 6 steps per epoch and would continue with 5"):
        train(tiny(data, engine=dict(allow_changed_data=True)), tmp_path / "run", display=False)


def test_resumed_run_may_have_other_devices_and_less_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_split(tmp_path / "data")
    train(tiny(data, engine=dict(devices=-1)), tmp_path / "run", display=False, max_steps=2)
    engine = dict(devices=1, accelerator="cpu", grad_checkpointing=True)
    assert train(tiny(data, engine=engine), tmp_path / "run", display=False, max_steps=3).step == 3
    with pytest.raises(ValueError, match=r"epochs is 2 there and 3 here.* To train longer, .*--checkpoint"):
        train(tiny(data, epochs=3), tmp_path / "run", display=False)


def test_run_with_too_many_unreadable_images_saves_itself(tmp_path: Path) -> None:
    data = write_split(tmp_path / "data")
    recipe = tiny(data, batch_size=1, epochs=1)
    task = get_task(recipe.task).training(recipe)
    order = [int(batch["index"]) for batch in task.train_loader(0, 1).epoch(0)]
    for row in (order[2], order[5]):
        (data / "train" / task.train_set.name(row)).write_bytes(b"")
    with pytest.raises(UnreadableImage, match="2 unreadable images, more than max_unreadable=1"):
        train(replace(recipe, input=replace(recipe.input, max_unreadable=1)), tmp_path / "run", display=False)
    assert state(tmp_path / "run")["step"] == 5


def test_run_that_leaves_out_images_says_so(tmp_path: Path) -> None:
    data = write_split(tmp_path / "data")

    def notes(**fields: Any) -> list[str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        train(tiny(data, **fields), folder, display=False, max_steps=1)
        return [line["message"] for line in read_log(folder) if line["kind"] == "note"]

    assert notes() == []
    left = "each skips 8 of the 24 images, different ones each time; a smaller batch_size skips fewer"
    assert notes(batch_size=16) == [f"epochs of 1 steps x 16 images: {left}"]
    assert notes(batch_size=50) == ["batches of 24 images, not 50: the dataset has no more"]
    assert notes(engine=dict(accumulate=50)) == ["6 batches per step, not 50: an epoch has no more"]


def test_emulated_bfloat16_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "has_bf16", lambda device: False)
    data = write_split(tmp_path / "data")
    train(tiny(data, engine=dict(precision="bf16-mixed")), tmp_path / "run", display=False, max_steps=1)
    (note,) = [line["message"] for line in read_log(tmp_path / "run") if line["kind"] == "note"]
    assert note == "this cpu emulates bfloat16, which is slow: --engine.precision 32-true is faster"


def test_run_follows_its_data_to_another_path(whole: Path, tmp_path: Path) -> None:
    data = write_split(tmp_path / "data")
    train(tiny(data), tmp_path / "run", display=False, max_steps=4)
    moved = data.rename(tmp_path / "elsewhere")
    train(tiny(moved), tmp_path / "run", display=False)
    assert_same_weights(tmp_path / "run", whole)


# --- signals and waits


def test_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    child = "import os, time; from smt_vision.signals import end_with_parent; end_with_parent(os.getppid()); "
    child += f"print('started', flush=True); time.sleep({2 * DEADLINE})"
    parent = (
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
    )
    parent += "p.stdout.read(7)"  # then the parent ends
    # The standard error, which the child has too, is at its end when the child has ended.
    words = [sys.executable, "-c", parent]
    subprocess.run(words, env=environment(), stderr=subprocess.PIPE, timeout=DEADLINE, check=True)


def start(config: str, folder: Path, output: Path) -> int:
    """Start ``smt train`` in a process group of its own; returns its id, when it has a checkpoint."""

    def run() -> int:
        os.setsid()
        with output.open("w") as sys.stdout:
            sys.stderr = sys.stdout
            return main(["train", "quickstart", "--config", config, "--run", str(folder)])

    pid = in_fork(run)
    wait_until(lambda: (folder / "last.pt").exists() or os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))
    return pid


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_signal_to_all_processes_at_once(colored: Path, tmp_path: Path, number: signal.Signals) -> None:
    # As SLURM and systemd send it: worker processes receive it as well.
    recipe = tiny(colored, epochs=500, input=dict(workers=2), engine=dict(eval_every=500, checkpoint_minutes=0.0))
    folder, output = tmp_path / "run", tmp_path / "output.txt"
    pid = start(write_config(recipe, tmp_path / "tiny.yaml"), folder, output)
    os.killpg(pid, number)
    assert exit_code(pid) == 128 + number
    assert re.search(rf"stopped after step {state(folder)['step']} of 3000 and saved", output.read_text())
    assert "Traceback" not in output.read_text()


def test_signal_while_a_worker_stands_still(tmp_path: Path) -> None:
    # The images of one class are behind a pipe that nobody writes to: as on a file system that does not answer.
    data = write_split(tmp_path / "data")
    recipe = tiny(data, epochs=500, input=dict(workers=2), engine=dict(eval_every=500, checkpoint_minutes=0.0))
    folder, output = tmp_path / "run", tmp_path / "output.txt"
    pid = start(write_config(recipe, tmp_path / "tiny.yaml"), folder, output)
    for path in (data / "train").rglob("*.png"):
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "pipe").rename(path)  # there is an image at any time
    time.sleep(1)  # for the steps of batches that were read before: without it, the test would test less
    step = state(folder)["step"]
    os.killpg(pid, signal.SIGTERM)
    assert exit_code(pid) == 128 + signal.SIGTERM
    written = output.read_text()
    assert re.search(rf"stopped after step {state(folder)['step']} of 3000 and saved", written)  # not by the watchdog
    assert state(folder)["step"] >= step
    assert "Traceback" not in written


def test_wait_for_images_has_a_time_limit(
    colored: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dogs: list[Watchdog] = []

    class Known(Watchdog):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            dogs.append(self)

    def standing_still(*args: Any, **kwargs: Any) -> Iterator[Any]:
        dogs[-1]._since -= 60  # the limit
        yield time.sleep(DEADLINE)

    impatient = tiny(colored, engine=dict(timeout_minutes=1.0, loggers=()))
    folder = tmp_path / "run"
    train(tiny(colored), folder, display=False, max_steps=4)
    with monkeypatch.context() as patch:
        patch.setattr(TrainLoader, "epoch", standing_still)
        patch.setattr(watchdog, "POLL_SECONDS", 0.1)
        patch.setattr(loop, "Watchdog", Known)
        with pytest.raises(TimeoutError, match=r"waiting for training images for \d+ s.*saved after step 4\b"):
            train(impatient, folder, display=False)
    train(tiny(colored), folder, display=False)
    assert_same_weights(folder, whole)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TimeoutError("waiting for training images for 1800 s"), os.EX_TEMPFAIL),
        (torch.distributed.DistNetworkError("connection reset by peer"), os.EX_TEMPFAIL),
        (OSError("no space"), 1),
        (RuntimeError("out of memory"), 1),
    ],
)
def test_what_may_pass_has_an_exit_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(loop, "train", fail)
    assert main(["train", "quickstart", "--run", str(tmp_path / "run")]) == code


def hurry(grace: float = 0.2) -> None:
    """Let the watchdog of a fork look often and wait little."""
    watchdog.POLL_SECONDS, watchdog.GRACE_SECONDS, watchdog.LAST_WORDS_SECONDS = 0.1, grace, 0.2
    watchdog.ONE_EVENT_SECONDS = signals.ONE_EVENT_SECONDS = 0.2


@pytest.mark.parametrize("number", [None, signal.SIGTERM])
def test_process_that_does_not_react_is_ended(tmp_path: Path, number: signal.Signals | None) -> None:
    errors = tmp_path / "errors.txt"

    def stand_still() -> None:
        sys.stderr = errors.open("w")
        hurry()
        minutes = 9.0 if number else 0.005
        with stop_signals() as signals, Watchdog(minutes, signals, "runs/a") as dog:
            dog.at("training step 7")
            if number:
                signal.raise_signal(number)
            while True:
                time.sleep(1)  # signals do not end it, as a system call that does not return

    code = exit_code(in_fork(stand_still))
    message = "without a response to SIGTERM" if number else r"longer than engine\.timeout_minutes"
    assert re.match(rf"smt train: error: runs/a: training step 7 for \d+ s, {message}", errors.read_text())
    assert code == (128 + number if number else os.EX_TEMPFAIL)


def test_process_whose_standard_error_nobody_reads_is_ended() -> None:
    def stand_still() -> None:
        reading_end, writing_end = os.pipe()
        os.close(reading_end)
        sys.stderr = os.fdopen(writing_end, "w")
        hurry()
        with stop_signals() as signals, Watchdog(9.0, signals, "runs/a"):
            signal.raise_signal(signal.SIGTERM)
            time.sleep(DEADLINE)

    assert exit_code(in_fork(stand_still)) == 128 + signal.SIGTERM


@pytest.mark.parametrize("grace", [0.2, DEADLINE], ids=["time limit", "second signal"])
def test_process_whose_handlers_are_not_called_is_ended(tmp_path: Path, grace: float) -> None:
    """As in a collective that waits for another machine: Python calls handlers when the call returns."""
    errors = tmp_path / "errors.txt"
    number = signal.SIGINT if grace == DEADLINE else signal.SIGTERM

    def stand_still() -> None:
        sys.stderr = errors.open("w")
        hurry(grace)
        mutex = ctypes.create_string_buffer(64)
        lock_mutex = ctypes.CDLL(None).pthread_mutex_lock
        lock_mutex(mutex)
        with stop_signals() as signals, Watchdog(9.0, signals, "runs/a") as dog:
            dog.at("training step 7")
            (tmp_path / "ready").touch()
            lock_mutex(mutex)  # which it has: it waits for itself

    pid = in_fork(stand_still)
    wait_until((tmp_path / "ready").exists)
    time.sleep(0.3)  # until it waits, in its next line
    os.kill(pid, signal.SIGTERM)

    def signal_again() -> str:
        time.sleep(0.5)  # signals that are noticed within 0.2 seconds are one event
        os.kill(pid, signal.SIGINT)
        return errors.read_text()

    if grace == DEADLINE:
        wait_until(signal_again)
    assert exit_code(pid) == 128 + number
    assert re.search(rf"training step 7 for \d+ s, without a response to {number.name}", errors.read_text())


def test_waits_for_images_say_nothing_about_the_time_of_a_step() -> None:
    """After a signal, a process that does not react is not given twice its longest wait."""

    def stand_still() -> int:
        hurry()
        with stop_signals() as signals, Watchdog(9.0, signals, "runs/a") as dog:
            for phase in (watchdog.WAITING, *watchdog.PATIENT):
                dog.at(phase)
                dog._since -= DEADLINE
            dog.at("training step 7")
            signal.raise_signal(signal.SIGTERM)
            time.sleep(DEADLINE)
        return 7

    assert exit_code(in_fork(stand_still)) == 128 + signal.SIGTERM


def test_a_run_saves_itself_after_a_stall_however_long_it_takes() -> None:
    """And where the signal is ignored that would otherwise end the wait."""

    def stall() -> int:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        hurry(grace=0.5)
        with stop_signals() as signals, Watchdog(1.0, signals, "runs/a") as dog:
            dog.at(watchdog.WAITING)
            with suppress(Interrupted), signals.interruptible():
                dog._since -= 60
                time.sleep(DEADLINE)
            dog.at(watchdog.SAVING)
            time.sleep(1.5)
            return 5 if dog.stalled else 6

    assert exit_code(in_fork(stall)) == 5


def test_a_full_pipe_does_not_keep_a_process_from_being_ended() -> None:
    """Whoever reads the standard error may stand still as well."""
    read_end, write_end = os.pipe()

    def stand_still() -> int:
        sys.stderr = os.fdopen(write_end, "w")
        os.set_blocking(write_end, False)
        with suppress(BlockingIOError):
            while True:
                os.write(write_end, bytes(4096))
        os.set_blocking(write_end, True)
        hurry()
        with stop_signals() as signals, Watchdog(0.005, signals, "runs/a") as dog:
            dog.at("training step 7")
            while True:
                time.sleep(1)

    pid = in_fork(stand_still)
    os.close(write_end)
    assert exit_code(pid) == os.EX_TEMPFAIL
    os.close(read_end)


@pytest.mark.parametrize("phase", [*watchdog.PATIENT, "training step 7"])
def test_what_a_signal_asked_for_is_not_cut_short(phase: str) -> None:
    """A checkpoint may take long, and a step that had taken long before the signal is given the whole time."""

    def go_on() -> int:
        hurry(0.2 if phase in watchdog.PATIENT else 20.0)
        with stop_signals() as signals, Watchdog(9.0, signals, "runs/a") as dog:
            dog.at(phase)
            dog._since -= 100  # the step has taken longer than the 20 seconds that it is given after a signal
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.8)
        return 7

    assert exit_code(in_fork(go_on)) == 7


def test_time_in_which_the_process_is_suspended_does_not_count(tmp_path: Path) -> None:
    # By Ctrl-Z, or by a scheduler that gives its place to another job.
    errors, ready = tmp_path / "errors.txt", tmp_path / "ready"

    def work() -> bool:
        sys.stderr = errors.open("w")
        hurry()
        watchdog.SUSPENDED_SECONDS = 0.5
        with stop_signals() as signals, Watchdog(1.5 / 60, signals, "runs/a") as dog:
            dog.at("training step 1")
            since = dog._since
            ready.touch()
            wait_until(lambda: dog._since > since or dog.stalled)
        return bool(dog.stalled)

    pid = in_fork(work)
    wait_until(ready.exists)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(2.5)  # longer than the limit
    os.kill(pid, signal.SIGCONT)
    assert exit_code(pid) == 0
    assert errors.read_text() == ""


class Unreliable(ExperimentLogger):
    """Its server is gone after five steps, or only at the end."""

    name = "unreliable"
    fails_at = "log_metrics"
    written: list[int] = []  # noqa: RUF012

    def __init__(self, *args: Any) -> None:
        self.written.clear()

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if self.fails_at == "log_metrics" and (step or 0) > 5:
            raise ConnectionError("no answer")
        self.written.append(step or 0)

    def log_image(self, name: str, image: Any, step: int) -> None:
        pass

    def finalize(self, status: str) -> None:
        if self.fails_at == "finalize":
            raise ConnectionError("no answer")


@pytest.mark.report
@pytest.mark.parametrize("fails_at", ["log_metrics", "finalize"])
def test_training_goes_on_without_a_logger_that_fails(
    colored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails_at: str
) -> None:
    monkeypatch.setitem(loggers.LOGGERS, "tensorboard", Unreliable)
    monkeypatch.setattr(Unreliable, "fails_at", fails_at)
    run = train(tiny(colored, engine=dict(loggers=("tensorboard",))), tmp_path / "run", display=False)
    assert run.step == 2 * STEPS
    assert (tmp_path / "run" / "summary.md").is_file()
    assert (max(Unreliable.written) > 5) == (fails_at == "finalize")
    message = "Unreliable records nothing any more: ConnectionError: no answer"
    assert [line["message"] for line in read_log(tmp_path / "run") if line["kind"] == "note"] == [message]
    assert message in caplog.text


def test_a_worker_that_is_killed_is_explained(colored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by the kernel where memory runs out; PyTorch tells of it wherever the main thread is."""
    step = loop.train_step

    def kill_a_worker(run: Any, *args: Any) -> Any:
        if run.step == 3:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
            time.sleep(DEADLINE)  # which the error of the worker's death ends
        return step(run, *args)

    monkeypatch.setattr(loop, "train_step", kill_a_worker)
    recipe = tiny(colored, input=dict(workers=1), engine=dict(checkpoint_minutes=0.0))
    with pytest.raises(RuntimeError, match=r"a data loader worker died.*lower input\.workers \(now 1\) or batch_size"):
        train(recipe, tmp_path / "run", display=False)
    assert state(tmp_path / "run")["step"] == 3


def test_a_run_saves_itself_when_it_waits_for_a_worker_that_died(
    colored: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch = TrainLoader.epoch

    def killed_after_four(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        for i, batch in enumerate(epoch(self, *args, **kwargs)):
            if i == 4:
                raise DeadWorker("a data loader worker died")
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(TrainLoader, "epoch", killed_after_four)
        with pytest.raises(DeadWorker):
            train(tiny(colored), tmp_path / "run", display=False)
    assert state(tmp_path / "run")["step"] == 4
    train(tiny(colored), tmp_path / "run", display=False)
    assert_same_weights(tmp_path / "run", whole)


def test_another_number_of_processes_is_refused_even_with_as_many_steps(colored: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(tiny(colored), folder, display=False, max_steps=2)
    before = state(folder)
    assert before["processes"] == 1
    checkpoints.save({**before, "processes": 2}, folder / "last.pt")
    with pytest.raises(ValueError, match=r"started with 2 processes and would continue with 1"):
        train(tiny(colored), folder, display=False)
    without = {name: value for name, value in before.items() if name != "processes"}
    checkpoints.save(without, folder / "last.pt")  # of an earlier version
    assert train(tiny(colored), folder, display=False, max_steps=3).step == 3


def test_what_a_resumed_run_may_change_holds_for_the_next_time(colored: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(tiny(colored), folder, display=False, max_steps=2)
    changed = tiny(colored, engine=dict(on_nonfinite="skip", patience=7))
    train(changed, folder, display=False, max_steps=3)
    kept = read_recipe_file(folder / "recipe.yaml")
    assert (kept.engine.on_nonfinite, kept.engine.patience) == ("skip", 7)
    assert kept.to_dict() == changed.to_dict()


@pytest.mark.report
@pytest.mark.parametrize("when", ["evaluation", "report"])
def test_signal_outside_of_training(
    colored: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the signal ends nothing")

    recipe, folder = tiny(colored), tmp_path / "run"
    with monkeypatch.context() as patch:
        if when == "evaluation":
            patch.setattr(loop, "run_evaluation", interrupted)
        else:
            patch.setattr(loop, "write_report", interrupted)
        with pytest.raises(loop.RunStopped, match=f"after step {STEPS if when == 'evaluation' else 2 * STEPS} of 12"):
            train(recipe, folder, display=False)
    train(recipe, folder, display=False)
    assert_same_weights(folder, whole)
    assert (folder / "summary.md").is_file()


@pytest.mark.parametrize("library", ["smt_vision._interrupt", "torch.", "timm."])
def test_interrupt_while_libraries_are_imported(colored: Path, tmp_path: Path, library: str) -> None:
    image, imports = next(colored.rglob("*.png")), tmp_path / "imports.txt"
    words = [sys.executable, "-X", "importtime", "-m", "smt_vision", "predict", "smt_femto.cifar10", str(image)]
    with imports.open("w") as errors, subprocess.Popen(words, env=environment(), stderr=errors) as process:
        wait_until(lambda: f" {library}" in imports.read_text() or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        process.wait(DEADLINE)
    assert "Traceback" not in imports.read_text()
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT)


def test_interrupt_within_an_import_or_at_exit_ends_the_process(tmp_path: Path) -> None:
    """An exception in the initialization of an extension module, e.g. PyTorch's, may abort the process instead."""
    (tmp_path / "slow.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    print('on')\n"
        "except BaseException as error:\n    print(repr(error))\n"
    )
    (tmp_path / "script.py").write_text(
        "import os, signal, sys\nfrom smt_vision._interrupt import end_on_interrupt, raise_on_interrupt\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\nraise_on_interrupt()\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept KeyboardInterrupt:\n    print('raised', flush=True)\n"
        "if sys.argv[1] == 'import':\n    import slow\n"
        "end_on_interrupt()\nos.kill(os.getpid(), signal.SIGINT)\n"
    )
    for where in ("import", "exit"):
        words = [sys.executable, str(tmp_path / "script.py"), where]
        done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=DEADLINE)
        assert (done.stdout, done.stderr, done.returncode) == ("raised\n", "", -signal.SIGINT)


@pytest.mark.report
def test_torn_log_does_not_keep_a_run_from_being_resumed(
    colored: Path, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    train(tiny(colored), folder, display=False, max_steps=4)
    log = folder / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([lines[0], lines[1][:20] + "\n", *lines[2:]]))
    train(tiny(colored), folder, display=False)
    assert_same_weights(folder, whole)
    assert re.search(r"log\.jsonl: left out 1 lines.*: 2\b", caplog.text)


def test_fields_of_the_engine_that_a_resumed_run_may_change(colored: Path, tmp_path: Path) -> None:
    train(tiny(colored), tmp_path / "run", display=False, max_steps=1)
    engine = dict(
        keep_last=5, keep_every_hours=1.0, on_nonfinite="skip", max_grad_norm=1e9, timeout_minutes=5.0,
        allow_changed_data=True,
    )  # fmt: skip
    assert train(tiny(colored, engine=engine), tmp_path / "run", display=False, max_steps=2).step == 2
    assert main(["train", "--resume", str(tmp_path / "run"), "--max_steps", "3", "--json"]) == 0
