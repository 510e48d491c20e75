"""The state of a run (model, averaged model, optimizer, step) and its folder, saved and restored."""

import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from .. import checkpoints
from ..checkpoints import BEST, EARLIER, KEPT, LAST, Checkpoint, training_checkpoints
from ..cost import describe
from ..data.fingerprint import MAX_TRAIN, UsedImages, hash_bytes
from ..files import remove_temporary, write_atomic, write_text_atomic
from ..hardware import describe_hardware
from ..modes import evaluation_mode
from ..pictures.training import curves
from ..recipe import Recipe
from ..recipe_files import write_recipe
from ..tasks import get_task, read_recipe
from ..tasks.classes import some_names
from ..tasks.task import Training
from ..text import get_logger, shell_word
from .fields import FREE_FIELDS, changed_fields, flat_fields
from .log import read_log
from .processes import check_same_images, gathered_objects
from .state import TrainingState
from .stored_state import check_optimizer, checked_state
from .summary import write_summary

log = get_logger(__name__)
RECIPE = "recipe.yaml"
SAMPLED = 10_000  # training images whose content is compared when a run is resumed


class Run(TrainingState):
    """A run's state, restored from the newest checkpoint in its folder that can be read, if there is one.

    Attributes:
        evaluated_step: The step of the last evaluation.
        total_steps: Optimizer steps of the whole run; 0 before :meth:`plan`.
        left_out: The steps that changed nothing, because of a loss or gradient that was not finite.
        metrics: Metrics of the best weights so far; empty before the first evaluation.
        history: The primary metric at each evaluation.

    Raises:
        ValueError: The folder holds a run of another recipe or on other data, or none of its checkpoints can be read.
    """

    def __init__(self, fabric: Fabric, task: Training, recipe: Recipe, folder: Path) -> None:
        super().__init__(fabric, task, recipe)
        self.folder = folder
        self.evaluated_step = self.total_steps = self._steps_per_epoch = 0
        self.best_epoch = self._processes_before = 0
        self.metrics: dict[str, Any] = {}
        self._metrics_from: Path | None = None  # the checkpoint that they were read from
        self.history: list[float] = []
        self._used_images: UsedImages | None = None  # on the first process only
        self._listing = hash_bytes(task.train_set.listing(), b"\0", task.val_set.listing())
        self._val_listing = hash_bytes(task.val_set.listing())
        self._labels = task.train_set.hash_labels(), task.val_set.hash_labels()
        check_same_images(
            fabric,
            recipe.data,
            training=(len(task.train_set), hash_bytes(task.train_set.listing(), str(self._labels[0]).encode())),
            validation=(len(task.val_set), hash_bytes(task.val_set.listing(), str(self._labels[1]).encode())),
        )
        self._teacher = task.distillation.identity if task.distillation is not None else None
        self._seconds_before = self._kept_at = 0.0
        self._started = self._saved = time.monotonic()
        self._saved_step: int | None = None  # of last.pt; None if there is none, or none that can be read
        self.left_out: list[int] = []
        self._never_finite = self._not_finite()  # e.g. a mask of minus infinities
        if fabric.is_global_zero:
            remove_temporary(folder)
        if training_checkpoints(folder):
            self._restore(self._newest_readable())
        self._check_same_state()
        if fabric.is_global_zero:  # of a resumed run with the fields that may be others now
            write_recipe(recipe, folder / RECIPE)
        with fabric.rank_zero_first():  # without the time limit of a barrier: reading all images may take long
            if fabric.is_global_zero and self._used_images is None:
                self._used_images = _with_initial(_used_images(task, recipe.data), task, recipe.data)

    def _check_same_state(self) -> None:
        """Raise a ValueError on every process if they restored different states: each reads the folder by itself."""
        if self.fabric.world_size == 1:
            return
        values = [value.cpu().reshape(-1) for value in self.raw.state_dict().values()]
        weights = hash_bytes(*(value.view(torch.uint8).numpy().tobytes() for value in values))
        states = gathered_objects(self.fabric, (self.step, weights))
        if len(set(states)) > 1:
            steps = ", ".join(f"process {rank}: step {step}" for rank, (step, _) in enumerate(states))
            raise ValueError(
                f"{self.folder}: the processes read different checkpoints ({steps}): the folder must be on storage "
                "that all machines share; copy it there, and resume the run with it"
            )

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
        if self._processes_before not in (0, self.fabric.world_size):
            raise ValueError(
                f"{self.folder} was started with {self._processes_before} processes and would continue with "
                f"{self.fabric.world_size}, which changes the images of a step: use the same number of processes"
            )
        self._steps_per_epoch = steps_per_epoch
        self.total_steps = steps_per_epoch * self.recipe.epochs
        return self.total_steps

    @property
    def epochs(self) -> float:
        """Epochs done."""
        return self.step / self._steps_per_epoch

    @property
    def stopped_early(self) -> bool:
        """Whether the evaluation just done is one too many without an improvement: the run ends before its last step.

        A function of the evaluations so far, so that a resumed run stops where an uninterrupted one does.
        """
        engine = self.recipe.engine
        if engine.patience is None or self.step == self.total_steps or self.step != self.evaluated_step:
            return False
        return evaluations_without_improvement(self.history, engine.min_delta) >= engine.patience

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to train: all steps are done, or the run was stopped early."""
        return self.step == self.total_steps or self.stopped_early

    @property
    def seconds(self) -> float:
        """Time spent on the run, including before it was resumed."""
        return self._seconds_before + time.monotonic() - self._started

    def checkpoint_due(self) -> bool:
        """Whether the last checkpoint is older than the recipe allows."""
        return time.monotonic() - self._saved > 60 * self.recipe.engine.checkpoint_minutes

    def save_last(self) -> None:
        """Write ``last.pt``: everything needed to continue as if never stopped.

        Earlier ones are kept as the recipe says.

        Raises:
            FloatingPointError: A weight or the optimizer's state is not finite; nothing is written.
        """
        if broken := self._not_finite() - self._never_finite:
            raise FloatingPointError(
                f"{', '.join(sorted(broken)[:3])}: not finite after step {self.step}; not saved. {self.advice()}"
            )
        hours = self.recipe.engine.keep_every_hours
        keep = hours is not None and self.seconds - self._kept_at >= 3600 * hours
        if keep:
            self._kept_at = self.seconds
        if self.fabric.is_global_zero:
            self._set_aside()
        self._save(
            LAST,
            **self._state(),
            precision=self.fabric.strategy.precision.state_dict(),
            step=self.step,
            evaluated_step=self.evaluated_step,
            steps_per_epoch=self._steps_per_epoch,
            processes=self.fabric.world_size,
            seconds=self.seconds,
            kept_at=self._kept_at,
            best_epoch=self.best_epoch,
            metrics=self.metrics,
            history=self.history,
            left_out=self.left_out,
        )
        if keep and self.fabric.is_global_zero:
            _link(self.folder / LAST, self.folder / KEPT.format(self.step))
        self._saved, self._saved_step = time.monotonic(), self.step

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.raw.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
        }

    def _not_finite(self) -> set[str]:
        """Names of the weights and of the parts of the optimizer's state that are not finite."""
        tensors = {f"{part}.{name}": value for part, state in self._state().items() for name, value in _tensors(state)}
        if not tensors:
            return set()
        # On one device: the step of an optimizer that is not fused is on the CPU, beside a GPU's parameters.
        device = self.fabric.device
        finite = torch.stack([value.isfinite().all().to(device) for value in tensors.values()]).tolist()
        return {name for name, is_finite in zip(tensors, finite, strict=True) if not is_finite}

    def _set_aside(self) -> None:
        """Keep ``last.pt`` under the name of its step before it is replaced, and remove those that are too many."""
        others = self.recipe.engine.keep_last - 1
        if others > 0 and self._saved_step is not None:
            _link(self.folder / LAST, self.folder / EARLIER.format(self._saved_step))
        for path in sorted(self.folder.glob(f"{EARLIER.partition('{')[0]}[0-9]*.pt"), reverse=True)[max(others, 0) :]:
            path.unlink()

    def advice(self) -> str:
        """What to do about numbers that are not finite, for messages."""
        saved = (
            f"{self.folder / LAST} is of step {self._saved_step}"
            if self._saved_step is not None
            else "There is no checkpoint"
        )
        return (
            f"{saved}. Resume with --engine.on_nonfinite skip or rollback, or start again with a lower optim.lr, a "
            "smaller optim.clip_grad, a longer warm-up, or engine.precision=32-true"
        )

    def roll_back(self) -> None:
        """Return to the weights of the last checkpoint, and continue with the images after the present step."""
        checkpoint = self._newest_readable()
        self.left_out += range(checkpoint.state["step"] + 1, self.step + 1)
        self._load_state(checkpoint)
        self._check_same_state()

    def keep_if_best(self, metrics: dict[str, Any], epoch: int) -> None:
        """Add an evaluation; write ``best.pt`` if its primary metric is above that of every earlier one."""
        primary = self.task.primary_metric
        self.history.append(metrics[primary])
        if not self.metrics or metrics[primary] > self.metrics[primary]:
            self.metrics, self.best_epoch, self._metrics_from = metrics, epoch, None
            weights = self.weights.state_dict()
            kept = {name: value for name, value in weights.items() if not name.startswith(self.task.training_modules)}
            self._save(BEST, model=kept, metrics=metrics, epoch=epoch)

    def _save(self, name: str, **state: Any) -> None:
        if self.fabric.is_global_zero:
            assert self._used_images is not None
            common = {
                "spec": self.task.spec.to_dict(),
                "recipe": self.recipe.to_dict(),
                "images": self._used_images.to_tensors(),
                "listing": self._listing,
                "val_listing": self._val_listing,
                "labels": list(self._labels),
                **({"teacher": self._teacher} if self._teacher else {}),
            }
            checkpoints.save({**state, **common}, self.folder / name)
        self.fabric.barrier()

    def _newest_readable(self) -> Checkpoint:
        """The newest checkpoint that can be read; the damaged ones are named.

        Raises:
            ValueError: None can be read.
        """
        damaged = []
        for path in training_checkpoints(self.folder):
            try:
                checkpoint = checkpoints.load(path)
                self._saved_step = checked_state(checkpoint)["step"] if path.name == LAST else None
            except (ValueError, OSError) as error:
                damaged.append(str(error))
                continue
            if damaged and self.fabric.is_global_zero:
                log.warning("%s. Continuing from %s, of step %d", "; ".join(damaged), path, checkpoint.state["step"])
            return checkpoint
        raise ValueError(
            f"{'; '.join(damaged)}. No checkpoint of the run can be read: restore one, or choose another folder with "
            "--run"
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        state, self._used_images = checkpoint.state, UsedImages.from_checkpoint(checkpoint)
        # Through a Recipe, a field that is newer than the checkpoint has its default, which is how the run behaved.
        try:
            theirs = flat_fields(read_recipe(state["recipe"]))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{checkpoint.path}: its recipe is invalid: {error}") from error
        ours = flat_fields(self.recipe)
        different = [k for k in sorted({*theirs, *ours} - FREE_FIELDS) if theirs.get(k) != ours.get(k)]
        moved = "data" in different and self._used_images is not None
        if moved:
            different.remove("data")  # the images decide whether it is the same dataset
        if self._teacher is not None and state.get("teacher") == self._teacher:
            different = [name for name in different if name != "distill.teacher"]  # the weights decide
        if different:
            listed = "; ".join(f"{k} is {theirs.get(k)!r} there and {ours.get(k)!r} here" for k in different)
            longer = (
                f" To train longer, start another run from its weights: --checkpoint {shell_word(self.folder)}."
                if different == ["epochs"]
                else ""
            )
            raise ValueError(
                f"{self.folder} holds a run of another recipe: {listed}. Resume that run (smt train --resume "
                f"{shell_word(self.folder)}) or choose another folder with --run.{longer}"
            )
        if state.get("teacher") != self._teacher:
            raise ValueError(
                f"{self.folder}: distill.teacher={self.recipe.distill.teacher} has other weights than the teacher that "
                "this run was started with; restore them, or choose another folder with --run"
            )
        classes = tuple(state["spec"]["classes"])
        if classes != self.task.spec.classes:
            raise ValueError(
                f"{self.folder} holds a run of other classes: {some_names(classes)} there and "
                f"{some_names(self.task.spec.classes)} in {self.recipe.data}; restore them, or choose another folder "
                "with --run"
            )
        before = self._used_images
        if before is not None:
            self._used_images = self._compare_images(before, state)
        self._load_state(checkpoint)
        self.step, self.metrics, self.best_epoch = state["step"], state["metrics"], state["best_epoch"]
        self._metrics_from = checkpoint.path
        if self.metrics and not isinstance(self.metrics.get(self.task.primary_metric), int | float):
            raise ValueError(
                f"{checkpoint.path}: its metrics lack {self.task.primary_metric}, the primary metric of this run; use "
                "an earlier checkpoint, or choose another folder with --run"
            )
        # Checkpoints used to be written after the evaluation only.
        self.evaluated_step = state.get("evaluated_step", self.step)
        self.left_out, self.history = list(state.get("left_out", [])), list(state.get("history", []))
        self._seconds_before, self._steps_per_epoch = state["seconds"], state["steps_per_epoch"]
        self._kept_at = state.get("kept_at", 0.0)
        self._processes_before = state.get("processes", 0)
        if before is not None and before is not self._used_images and self._evaluates_other_images(before, state):
            self._forget_evaluations()

    def _evaluates_other_images(self, before: UsedImages, state: Mapping[str, Any]) -> bool:
        """Whether the validation images, their order or their labels are not those of a checkpoint."""
        # Earlier checkpoints have one listing of the training and validation images.
        listings = (
            (state["val_listing"], self._val_listing)
            if "val_listing" in state
            else (state.get("listing", self._listing), self._listing)
        )
        labels = state.get("labels", self._labels)[1], self._labels[1]
        val = np.unique(self.task.val_set.identities())
        return listings[0] != listings[1] or labels[0] != labels[1] or not np.array_equal(val, before.val)

    def _forget_evaluations(self) -> None:
        """Start the search for the best weights anew: metrics on other images cannot be compared.

        The best weights so far are kept, under the name of their epoch. At the end of an epoch, the evaluation is
        repeated before training goes on.
        """
        if self.metrics and self.fabric.is_global_zero:
            kept = self.folder / f"{Path(BEST).stem}-{self.best_epoch:03}.pt"
            if (self.folder / BEST).is_file():
                _link(self.folder / BEST, kept)
            log.warning(
                "%s: the validation images are others than before: metrics are not compared with earlier ones, and the "
                "patience starts anew; the best weights so far are kept as %s",
                self.folder, kept.name,
            )  # fmt: skip
        self.metrics, self.history, self.best_epoch, self.evaluated_step = {}, [], 0, 0

    def _load_state(self, checkpoint: Checkpoint) -> None:
        """Load weights, averages and the states of the optimizer and of mixed precision.

        Raises:
            ValueError: They are not those of this run.
        """
        state = checkpoint.state
        try:
            check_optimizer(state["optimizer"], self.optimizer)
            self.raw.load_state_dict(state["model"])
            if self.ema is not None:
                self.ema.module.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.fabric.strategy.precision.load_state_dict(state["precision"])
        except (ValueError, RuntimeError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{checkpoint.path}: not the state of this run's model and optimizer ({type(error).__name__}: "
                f"{error}); use an earlier checkpoint, or choose another folder with --run"
            ) from error
        if broken := self._not_finite() - self._never_finite:
            raise ValueError(
                f"{checkpoint.path}: {', '.join(sorted(broken)[:3])} not finite; use an earlier checkpoint, or choose "
                "another folder with --run"
            )

    def _compare_images(self, before: UsedImages, state: Mapping[str, Any]) -> UsedImages:
        """The images that the run has used, with those of now.

        All validation images and a sample of the training images are compared by content, the rest by name and label.

        Raises:
            ValueError: There are others now, and the recipe does not allow it.
        """
        val = np.unique(self.task.val_set.identities())
        sample = np.unique(self.task.train_set.fingerprints(SAMPLED))
        new_val = int((~np.isin(val, before.val)).sum())
        gone = len(before.val) - len(val) + new_val
        complete = len(before.train) < MAX_TRAIN  # else not all fingerprints are known
        new = int((~np.isin(sample, before.train)).sum()) if complete else 0
        changes = [
            text
            for number, text in (
                (new, f"{new} training images are new"),
                (new_val, f"{new_val} validation images are new"),
                (gone, f"{gone} validation images are gone"),
                (state.get("listing", self._listing) != self._listing, "names or order of the images differ"),
                (tuple(state.get("labels", self._labels)) != self._labels, "labels differ"),
            )
            if number
        ]
        if not changes:
            return before
        if not self.recipe.engine.allow_changed_data:
            raise ValueError(
                f"{self.folder}: {self.recipe.data} is not the data that this run was started with: "
                f"{', '.join(changes)}. Restore it, choose another folder with --run, or accept it with "
                "--engine.allow_changed_data true"
            )
        if self.fabric.is_global_zero:
            log.warning("%s: the data have changed since the run began: %s", self.recipe.data, ", ".join(changes))
        now = _used_images(self.task, self.recipe.data)
        return replace(now, train=np.union1d(before.train, now.train), unlabeled=before.unlabeled)

    def draw_samples(self, epoch: int) -> Path | None:
        """Draw the task's sample images with their predictions; returns the path of the picture, if there is one."""
        if not self.fabric.is_global_zero:
            return None
        with torch.inference_mode(), self.fabric.autocast(), evaluation_mode(self.weights):
            picture = self.task.samples(self.weights, self.fabric.device)
        if picture is None:
            return None
        path = self._samples(epoch)
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, lambda part: picture.save(part, "PNG"))
        return path

    def _samples(self, epoch: int) -> Path:
        return self.folder / "samples" / f"epoch_{epoch:03}.png"

    def report(self, command: str) -> None:
        """Write the results of a finished run: ``metrics.json``, pictures and the one-page summary.

        Raises:
            ValueError: The metrics are from a checkpoint, and are not those of an evaluation.
        """
        if not self.fabric.is_global_zero:
            return
        task, formats = self.task, self.task.metric_formats
        write_text_atomic(self.folder / "metrics.json", json.dumps(self.metrics, indent=1))
        curves(
            read_log(self.folder),
            self.folder / "curves.png",
            self.recipe.name,
            metric=task.primary_metric,
            label=formats[task.primary_metric].title,
            loss_label=formats["loss"].title if "loss" in formats else "loss",
            best_epoch=self.best_epoch,
        )
        try:
            drawn, tables = task.pictures(self.folder, self.metrics), task.tables(self.metrics)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            if self._metrics_from is None:
                raise
            raise ValueError(
                f"{self._metrics_from}: its metrics are not those of an evaluation ({type(error).__name__}: {error}); "
                f"the weights are complete: smt eval {shell_word(self.folder)} evaluates them again"
            ) from error
        samples = self._samples(self.best_epoch)
        with self.merged():
            module, input_size = get_task(task.spec.task).flops_model(self.weights, task.spec)
            cost = describe(module, input_size)
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
            cost=cost,
            trained=self.trained_description,
            stopped_after=round(self.epochs) if self.stopped_early else None,
            changed=changed_fields(self.recipe),
            tables=tables,
            pictures=[*drawn, samples] if samples.is_file() else drawn,
        )


def evaluations_without_improvement(values: Sequence[float], min_delta: float) -> int:
    """Evaluations since the last one that improved a metric.

    Args:
        values: The metric at each evaluation; higher is better.
        min_delta: An evaluation improves the metric if it is above the last such value by more than this.
    """
    best, since = -math.inf, 0
    for value in values:
        best, since = (value, 0) if value > best + min_delta else (best, since + 1)
    return since


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, under which it stays when the first is replaced."""
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:  # a file system without hard links
        write_atomic(target, lambda part: shutil.copyfile(source, part), source.stat().st_size)


def _tensors(content: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The floating-point tensors in nested dictionaries and lists, with dotted names."""
    if isinstance(content, Tensor) and content.is_floating_point():
        yield name, content
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from _tensors(value, f"{name}.{key}" if name else str(key))


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
            "%s: the %s trained on %d of the %d validation images; the metrics will be too high", data,
            "initial weights were" if task.distillation is None else "initial weights, or the teacher, were",
            common, len(val),
        )  # fmt: skip
    unlabeled = np.union1d(used.unlabeled, initial.unlabeled)
    return replace(used, train=np.union1d(used.train, initial.train), unlabeled=unlabeled)
