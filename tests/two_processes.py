"""What two processes do, of which one fails: the program of ``test_two_processes.py``.

``python two_processes.py DATA FOLDER``: every case is called by both processes, and what it returned or raised is
written to ``FOLDER/results0.json`` and ``results1.json``.
"""

import atexit
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning_fabric.utilities import distributed
from torch import nn

from smt_vision import checkpoints
from smt_vision.data.dataset import RawDataset
from smt_vision.data.decode import UnreadableImage
from smt_vision.data.loaders import TrainLoader
from smt_vision.engine import loop
from smt_vision.engine.loop import start, train
from smt_vision.engine.processes import average, on_first, reduced
from smt_vision.engine.run import Run
from smt_vision.recipe import Recipe
from smt_vision.tasks.classification.evaluation import ClassificationMetric
from smt_vision.tasks.classification.task import ClassificationTraining
from tiny_run import tiny

loop.write_report = lambda run, command: None  # pictures, which take long
RANK = int(os.environ.get("LOCAL_RANK", "0"))
DATA, FOLDER = Path(sys.argv[1]), Path(sys.argv[2])
RECIPE: Recipe = tiny(DATA, engine=dict(devices=2, loggers=()))  # 24 images: 2 epochs of 3 steps
CASES: dict[str, Callable[[Path], Any]] = {}


def case(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    CASES[function.__name__] = function
    return function


def trained(folder: Path, recipe: Recipe = RECIPE, max_steps: int | None = None) -> Run:
    return train(recipe, folder, display=False, max_steps=max_steps)


def fails_on(rank: int, error: Exception, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which raises the error on one process."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if rank == RANK:
            raise error
        return function(*args, **kwargs)

    return call


@case
def average_of_statistics(folder: Path) -> Any:
    fabric = start(RECIPE)
    norm = nn.BatchNorm1d(2)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean += 3 * RANK
    average(fabric, [norm.running_mean, norm.running_var])
    total = reduced(fabric, "sum", torch.tensor([1 + RANK]))
    return norm.running_mean.tolist(), norm.running_var.tolist(), total.tolist()


class Unsendable(ValueError):
    """Cannot be made again from its arguments."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


@case
def error_that_cannot_be_sent(folder: Path) -> Any:
    def fail() -> None:
        raise Unsendable("one", "two")

    on_first(start(RECIPE), fail)


@case
def metrics_that_differ(folder: Path) -> Any:
    """Each process finds another metric; by that of the second one, no evaluation after the first is the best."""
    values = iter((10.0, 20.0) if RANK == 0 else (30.0, 5.0))
    compute = ClassificationMetric.compute
    with patch.object(ClassificationMetric, "compute", lambda self: {**compute(self), "top1": next(values)}):
        run = trained(folder)
    return run.history, run.best_epoch, checkpoints.load(folder / "best.pt").state["metrics"]["top1"]


@case
def metrics_that_fail(folder: Path) -> Any:
    with patch.object(
        ClassificationMetric, "compute", fails_on(0, ValueError("no metrics"), ClassificationMetric.compute)
    ):
        trained(folder)


@case
def prediction_that_fails(folder: Path) -> Any:
    error = RuntimeError("out of memory")
    with patch.object(ClassificationTraining, "predict", fails_on(1, error, ClassificationTraining.predict)):
        trained(folder)


@case
def images_that_fail_at_the_start(folder: Path) -> Any:
    def epoch(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        if RANK == 1:
            raise UnreadableImage("3 unreadable images")
        yield from original(self, *args, **kwargs)

    original = TrainLoader.epoch
    with patch.object(TrainLoader, "epoch", epoch):
        trained(folder)


@case
def leftover_batches_that_fail(folder: Path) -> Any:
    """3 batches per epoch and 2 per step: the third one is not loaded."""
    original = TrainLoader.epoch

    def epoch(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        for i, batch in enumerate(original(self, *args, **kwargs)):
            if i == 2:
                raise UnreadableImage("3 unreadable images")
            yield batch

    with patch.object(TrainLoader, "epoch", epoch):
        return trained(folder, replace(RECIPE, engine=replace(RECIPE.engine, accumulate=2))).step


@case
def storage_that_fails(folder: Path) -> Any:
    """The first ``best.pt`` cannot be written, and with it the checkpoint after the evaluation."""
    failed = []

    class Broken:
        def write(self, data: bytes) -> int:
            failed.append(True)
            raise OSError(errno.EIO, "Input/output error")

    save = torch.save

    def broken(content: Any, file: Any) -> None:
        save(content, Broken() if "epoch" in content and not failed else file)

    with patch.object(torch, "save", broken):
        run = trained(folder)
    best = checkpoints.load(folder / "best.pt").state
    return run.step, len(failed) > 0, best["epoch"] == run.best_epoch, best["metrics"]["top1"] == run.metrics["top1"]


@case
def log_that_cannot_be_opened(folder: Path) -> Any:
    (folder / "log.jsonl").mkdir(parents=True, exist_ok=True)
    trained(folder)


@case
def recipe_that_cannot_be_written(folder: Path) -> Any:
    (folder / "recipe.yaml").mkdir(parents=True, exist_ok=True)
    trained(folder)


@case
def sample_images_that_cannot_be_drawn(folder: Path) -> Any:
    with patch.object(loop, "draw_samples", fails_on(0, RuntimeError("out of memory"), loop.draw_samples)):
        return trained(folder).step


@case
def resumed_run(folder: Path) -> Any:
    """Only the first process reads the images to compare them."""
    trained(folder, max_steps=1)
    read: list[int | None] = []
    fingerprints = RawDataset.fingerprints

    def count(self: Any, *args: Any) -> Any:
        read.append(None)
        return fingerprints(self, *args)

    with patch.object(RawDataset, "fingerprints", count):
        step = trained(folder, max_steps=2).step
    return step, len(read) > 0


@case
def resumed_run_with_other_images(folder: Path) -> Any:
    trained(folder, max_steps=1)
    fingerprints = RawDataset.fingerprints
    with patch.object(RawDataset, "fingerprints", lambda self, *args: fingerprints(self, *args) + (RANK == 0)):
        trained(folder, max_steps=2)


@case
def the_end_after_an_error(folder: Path) -> Any:
    """What Fabric registers with NCCL is not called after it: it would wait for processes that wait for this one."""
    atexit.register(distributed._destroy_dist_connection)
    destroy = torch.distributed.destroy_process_group

    def closed(*group: Any) -> None:
        if group:  # not all processes
            destroy(*group)
        else:
            (FOLDER / f"closed{RANK}").touch()

    torch.distributed.destroy_process_group = closed
    log_that_cannot_be_opened(folder)


if __name__ == "__main__":
    results: dict[str, Any] = {}
    for name, function in CASES.items():
        try:
            results[name] = function(FOLDER / name)
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
        (FOLDER / f"results{RANK}.json").write_text(json.dumps(results))
