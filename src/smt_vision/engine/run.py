"""The state of a run (model, averaged model, optimizer, step) and its folder, saved and restored."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning_fabric import Fabric
from timm.utils import ModelEmaV3
from torch import nn

from .. import checkpoints
from ..checkpoints import BEST, LAST, Checkpoint
from ..cost import describe
from ..data.fingerprint import MAX_TRAIN, UsedImages, hash_bytes
from ..hardware import describe_hardware
from ..pictures.training import curves
from ..recipe import Recipe
from ..tasks import get_task, read_recipe
from ..tasks.classes import some_names
from ..tasks.task import Training
from ..text import get_logger, shell_word
from .log import read_log
from .optim import build_optimizer
from .summary import write_summary

log = get_logger(__name__)
# A resumed run may differ in these fields: they change how it is carried out or described, not what it computes.
FREE_FIELDS = {
    "name", "about", "hardware", "citation", "expected", "expected_source", "engine.log_every",
    "engine.checkpoint_minutes", "engine.eval_every", "engine.loggers", "input.workers", "input.max_unreadable",
    "input.allow_damaged",
}  # fmt: skip


class Run:
    """A run's state, restored from ``last.pt`` in its folder if there is one.

    Attributes:
        raw: The model itself; ``model`` is the same, wrapped for the devices.
        ema: The averaged model, or ``None``.
        weights: The model to evaluate and to save as best: the averaged one if there is one.
        step: Optimizer steps done.
        evaluated_step: The step of the last evaluation.
        total_steps: Optimizer steps of the whole run; 0 before :meth:`plan`.
        metrics: Metrics of the best weights so far; empty before the first evaluation.

    Raises:
        ValueError: The folder holds a run of another recipe.
    """

    def __init__(self, fabric: Fabric, task: Training, recipe: Recipe, folder: Path) -> None:
        self.fabric, self.task, self.recipe, self.folder = fabric, task, recipe, folder
        self.raw = task.model
        model: Any = torch.compile(self.raw) if recipe.engine.compile else self.raw
        optimizer = build_optimizer(self.raw, recipe.optim, scaled=recipe.engine.precision == "16-mixed")
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.ema = (
            ModelEmaV3(self.raw, decay=recipe.engine.ema, use_warmup=True) if recipe.engine.ema is not None else None
        )
        self.weights: nn.Module = self.raw if self.ema is None else self.ema.module
        self.step = self.evaluated_step = self.total_steps = self._steps_per_epoch = 0
        self.best_epoch = 0
        self.metrics: dict[str, Any] = {}
        self._used_images: UsedImages | None = None  # on the first process only
        self._listing = hash_bytes(task.train_set.listing(), b"\0", task.val_set.listing())
        self._seconds_before = 0.0
        self._started = self._saved = time.monotonic()
        if (folder / LAST).is_file():
            self._restore(checkpoints.load(folder / LAST))
        elif fabric.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False))
        if fabric.is_global_zero and self._used_images is None:
            self._used_images = _with_initial(_used_images(task, recipe.data), task, recipe.data)
        fabric.barrier()

    def plan(self, steps_per_epoch: int) -> int:
        """Set the number of optimizer steps per epoch; returns that of the whole run.

        Raises:
            ValueError: The run was started with another number, so that it cannot continue where it stopped.
        """
        if self._steps_per_epoch not in (0, steps_per_epoch):
            raise ValueError(
                f"{self.folder} was started with {self._steps_per_epoch} steps per epoch and would continue with "
                f"{steps_per_epoch}: use the same number of processes and the same images"
            )
        self._steps_per_epoch = steps_per_epoch
        self.total_steps = steps_per_epoch * self.recipe.epochs
        return self.total_steps

    @property
    def seconds(self) -> float:
        """Time spent on the run, including before it was resumed."""
        return self._seconds_before + time.monotonic() - self._started

    def checkpoint_due(self) -> bool:
        """Whether the last checkpoint is older than the recipe allows."""
        return time.monotonic() - self._saved > 60 * self.recipe.engine.checkpoint_minutes

    def save_last(self) -> None:
        """Write ``last.pt``: everything needed to continue as if never stopped."""
        self._save(
            LAST,
            model=self.raw.state_dict(),
            ema=self.ema.module.state_dict() if self.ema is not None else None,
            optimizer=self.optimizer.state_dict(),
            precision=self.fabric.strategy.precision.state_dict(),
            step=self.step,
            evaluated_step=self.evaluated_step,
            steps_per_epoch=self._steps_per_epoch,
            seconds=self.seconds,
            best_epoch=self.best_epoch,
            metrics=self.metrics,
        )
        self._saved = time.monotonic()

    def keep_if_best(self, metrics: dict[str, Any], epoch: int) -> None:
        """Write ``best.pt`` if the primary metric is above that of every earlier evaluation."""
        primary = self.task.primary_metric
        if not self.metrics or metrics[primary] > self.metrics[primary]:
            self.metrics, self.best_epoch = metrics, epoch
            self._save(BEST, model=self.weights.state_dict(), metrics=metrics, epoch=epoch)

    def _save(self, name: str, **state: Any) -> None:
        if self.fabric.is_global_zero:
            assert self._used_images is not None
            common = {
                "spec": self.task.spec.to_dict(),
                "recipe": self.recipe.to_dict(),
                "images": self._used_images.to_tensors(),
                "listing": self._listing,
            }
            checkpoints.save({**state, **common}, self.folder / name)
        self.fabric.barrier()

    def _restore(self, checkpoint: Checkpoint) -> None:
        state, self._used_images = checkpoint.state, UsedImages.from_checkpoint(checkpoint)
        # Through a Recipe, a field that is newer than the checkpoint has its default, which is how the run behaved.
        theirs, ours = (flat_fields(recipe) for recipe in (read_recipe(state["recipe"]), self.recipe))
        different = [k for k in sorted({*theirs, *ours} - FREE_FIELDS) if theirs.get(k) != ours.get(k)]
        moved = "data" in different and self._used_images is not None
        if moved:
            different.remove("data")  # the images decide whether it is the same dataset
        if different:
            listed = "; ".join(f"{k} is {theirs.get(k)!r} there and {ours.get(k)!r} here" for k in different)
            raise ValueError(
                f"{self.folder} holds a run of another recipe: {listed}. Resume that run (smt train --resume "
                f"{shell_word(self.folder)}) or choose another folder with --run."
            )
        classes = tuple(state["spec"]["classes"])
        if classes != self.task.spec.classes:
            raise ValueError(
                f"{self.folder} holds a run of other classes: {some_names(classes)} there and "
                f"{some_names(self.task.spec.classes)} in {self.recipe.data}; restore them, or choose another folder "
                "with --run"
            )
        if self._used_images is not None and (moved or state.get("listing", self._listing) != self._listing):
            self._used_images = self._compare_images(self._used_images, moved)
        self.raw.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.step, self.metrics, self.best_epoch = state["step"], state["metrics"], state["best_epoch"]
        # Checkpoints used to be written after the evaluation only.
        self.evaluated_step = state.get("evaluated_step", self.step)
        self._seconds_before, self._steps_per_epoch = state["seconds"], state["steps_per_epoch"]

    def _compare_images(self, before: UsedImages, moved: bool) -> UsedImages:
        """The images that the run has used, with those of now.

        Raises:
            ValueError: The dataset has another path than before, and it has other images.
        """
        now = _used_images(self.task, self.recipe.data)
        new = (~np.isin(now.train, before.train)).sum(), (~np.isin(now.val, before.val)).sum()
        gone = len(before.val) - len(now.val) + new[1]
        changes = f"{new[0]} training images and {new[1]} validation images are new, {gone} validation images are gone"
        if moved and (any(new) or gone):
            raise ValueError(
                f"{self.folder} holds a run on other images than those in {self.recipe.data}: {changes}. Resume it "
                "with its own images, or choose another folder with --run"
            )
        if any(new) or gone:
            log.warning("%s: the images have changed since the run began: %s", self.recipe.data, changes)
        return replace(now, train=np.union1d(before.train, now.train))

    def draw_samples(self, epoch: int) -> Path | None:
        """Draw the task's sample images with their predictions; returns the path of the picture, if there is one."""
        if not self.fabric.is_global_zero:
            return None
        training = self.weights.training
        with torch.inference_mode(), self.fabric.autocast():
            picture = self.task.samples(self.weights.eval(), self.fabric.device)
        self.weights.train(training)
        if picture is None:
            return None
        path = self._samples(epoch)
        path.parent.mkdir(exist_ok=True)
        picture.save(path)
        return path

    def _samples(self, epoch: int) -> Path:
        return self.folder / "samples" / f"epoch_{epoch:03}.png"

    def report(self, command: str) -> None:
        """Write the results of a finished run: ``metrics.json``, pictures and the one-page summary."""
        if not self.fabric.is_global_zero:
            return
        task, formats = self.task, self.task.metric_formats
        (self.folder / "metrics.json").write_text(json.dumps(self.metrics, indent=1))
        curves(
            read_log(self.folder),
            self.folder / "curves.png",
            self.recipe.name,
            metric=task.primary_metric,
            label=formats[task.primary_metric].title,
            loss_label=formats["loss"].title if "loss" in formats else "loss",
        )
        drawn = task.pictures(self.folder, self.metrics)
        samples = self._samples(self.best_epoch)
        module, input_size = get_task(task.spec.task).flops_model(task.model, task.spec)
        write_summary(
            self.folder,
            recipe=self.recipe.to_dict(),
            metrics=self.metrics,
            primary_metric=task.primary_metric,
            formats=formats,
            best_epoch=self.best_epoch,
            seconds=self.seconds,
            hardware=describe_hardware(),
            command=command,
            classes=len(task.spec.classes),
            input_description=task.input_description,
            cost=describe(module, input_size),
            tables=task.tables(self.metrics),
            pictures=[*drawn, samples] if samples.is_file() else drawn,
        )


def _used_images(task: Training, data: str) -> UsedImages:
    val = task.val_set.fingerprints()
    used = UsedImages(np.unique(task.train_set.fingerprints(MAX_TRAIN)), np.unique(task.val_set.identities()))
    if common := int(np.isin(val, used.train).sum()):
        log.warning(
            "%s: %d of the %d validation images are identical to a training image; the metrics will be too high",
            data, common, len(val),
        )  # fmt: skip
    return used


def _with_initial(used: UsedImages, task: Training, data: str) -> UsedImages:
    """The images that a new run uses, and the training images of its initial weights where these are of a run."""
    initial = task.initial_images
    if initial is None:
        return used
    val = task.val_set.fingerprints()
    if common := int((np.isin(val, initial.train) & ~np.isin(val, used.train)).sum()):
        log.warning(
            "%s: the initial weights were trained on %d of the %d validation images; the metrics will be too high",
            data, common, len(val),
        )  # fmt: skip
    return replace(used, train=np.union1d(used.train, initial.train))


def flat_fields(recipe: Recipe) -> dict[str, Any]:
    """A recipe as one flat dictionary, with keys like ``optim.lr``; a model's own arguments stay together."""
    fields: dict[str, Any] = {}
    groups = recipe.groups()
    for key, value in recipe.to_dict().items():
        if key in groups:
            fields.update({f"{key}.{name}": item for name, item in value.items()})
        else:
            fields[key] = value
    return fields
