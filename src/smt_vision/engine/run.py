"""The state of a run (model, averaged model, optimizer, step) and its folder, saved and restored."""

import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from .. import checkpoints
from ..checkpoints import BEST, EARLIER, KEPT, LAST, Checkpoint, training_checkpoints
from ..data.fingerprint import UsedImages, hash_bytes
from ..files import remove_temporary, write_atomic
from ..recipe import Recipe
from ..recipe_files import write_recipe
from ..tasks import read_recipe
from ..tasks.classes import some_names
from ..tasks.task import Training
from ..text import get_logger, shell_word
from .fields import FREE_FIELDS, flat_fields
from .processes import gathered_objects, on_first, together
from .run_images import RunImages
from .state import TrainingState
from .stored_state import check_optimizer, checked_state, not_finite

log = get_logger(__name__)
RECIPE = "recipe.yaml"
SAMPLES = "samples"  # folder of the sample images


class Run(TrainingState):
    """A run's state, restored from the newest checkpoint in its folder that can be read, if there is one.

    Attributes:
        evaluated_step: The step of the last evaluation.
        total_steps: Optimizer steps of the whole run; 0 before :meth:`plan`.
        left_out: The steps that changed nothing, because of a loss or gradient that was not finite.
        metrics: Metrics of the weights in ``best.pt``; empty before the first evaluation.
        metrics_from: The checkpoint that they were read from; ``None`` if they are of this process.
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
        self.metrics_from: Path | None = None
        self.history: list[float] = []
        self._images = RunImages(fabric, task, recipe.data)
        self._teacher = task.distillation.identity if task.distillation is not None else None
        self._seconds_before = self._kept_at = 0.0
        self._started = self._saved = time.monotonic()
        self._best: dict[str, Any] | None = None  # content of best.pt, to be written with the next last.pt
        self._saved_step: int | None = None  # of last.pt; None if there is none, or none that can be read
        self.left_out: list[int] = []
        self._never_finite = self._not_finite()  # e.g. a mask of minus infinities
        checkpoint = None
        with together(fabric):
            if fabric.is_global_zero:
                remove_temporary(folder)
                remove_temporary(folder / SAMPLES)
            if training_checkpoints(folder):
                checkpoint = self._newest_readable()
                self._restore(checkpoint)
        self._check_same_state()
        if self._images.compare(checkpoint, folder, recipe.engine.allow_changed_data):
            self._forget_evaluations()
        # Of a resumed run with the fields that may be others now.
        on_first(fabric, lambda: write_recipe(recipe, folder / RECIPE))
        self._images.read()

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

        Earlier ones are kept as the recipe says. ``best.pt`` is written before it if it changes, so that
        a checkpoint never tells of an evaluation whose weights were lost.

        Raises:
            FloatingPointError: A weight or the optimizer's state is not finite; nothing is written.
            OSError: It could not be written, e.g. because the disk is full; the one before stays.
        """
        if broken := self._not_finite() - self._never_finite:
            raise FloatingPointError(
                f"{', '.join(sorted(broken)[:3])}: not finite after step {self.step}; not saved. {self.advice()}"
            )
        hours = self.recipe.engine.keep_every_hours
        keep = hours is not None and self.seconds - self._kept_at >= 3600 * hours
        kept_at = self.seconds if keep else self._kept_at
        state = {
            **self._state(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "step": self.step,
            "evaluated_step": self.evaluated_step,
            "steps_per_epoch": self._steps_per_epoch,
            "processes": self.fabric.world_size,
            "seconds": self.seconds,
            "kept_at": kept_at,
            "best_epoch": self.best_epoch,
            "metrics": self.metrics,
            "history": self.history,
            "left_out": self.left_out,
        }

        def write() -> None:
            if self._best is not None:
                self._write(BEST, self._best)
                self._best = None
            self._set_aside()
            self._write(LAST, state)
            if keep:
                _link(self.folder / LAST, self.folder / KEPT.format(self.step))

        on_first(self.fabric, write)
        self._saved, self._saved_step, self._kept_at = time.monotonic(), self.step, kept_at

    def postpone_checkpoint(self) -> None:
        """Let a checkpoint that could not be written be due again only after the recipe's time."""
        self._saved = time.monotonic()

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.raw.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
        }

    def _not_finite(self) -> set[str]:
        """Names of the weights and of the parts of the optimizer's state that are not finite."""
        return not_finite(self._state(), self.fabric.device)

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
        with together(self.fabric):
            checkpoint = self._newest_readable()
            self.left_out += range(checkpoint.state["step"] + 1, self.step + 1)
            self._load_state(checkpoint)
        self._check_same_state()

    def keep_if_best(self, metrics: dict[str, Any], epoch: int) -> None:
        """Add an evaluation; if its primary metric is above that of every earlier one, or the task keeps the latest
        weights, :meth:`save_last` writes ``best.pt``."""
        primary = self.task.primary_metric
        self.history.append(metrics[primary])
        latest = self.task.keeps_latest and math.isfinite(metrics[primary])
        if latest or not self.metrics or metrics[primary] > self.metrics[primary]:
            self.metrics, self.best_epoch, self.metrics_from = metrics, epoch, None
            if self.fabric.is_global_zero:
                kept = {
                    name: value.to("cpu", copy=True)  # training goes on if they cannot be written now
                    for name, value in self.weights.state_dict().items()
                    if not name.startswith(self.task.training_modules)
                }
                self._best = {"model": kept, "metrics": metrics, "epoch": epoch}

    def _write(self, name: str, state: dict[str, Any]) -> None:
        """Write a checkpoint, with what all of a run's checkpoints say."""
        common = {
            "spec": self.task.spec.to_dict(),
            "recipe": self.recipe.to_dict(),
            **self._images.state(),
            **({"teacher": self._teacher} if self._teacher else {}),
        }
        checkpoints.save({**state, **common}, self.folder / name)

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
        state, before = checkpoint.state, UsedImages.from_checkpoint(checkpoint)
        # Through a Recipe, a field that is newer than the checkpoint has its default, which is how the run behaved.
        try:
            theirs = flat_fields(read_recipe(state["recipe"]))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{checkpoint.path}: its recipe is invalid: {error}") from error
        ours = flat_fields(self.recipe)
        different = [k for k in sorted({*theirs, *ours} - FREE_FIELDS) if theirs.get(k) != ours.get(k)]
        if "data" in different and before is not None:
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
        self._load_state(checkpoint)
        self.step, self.metrics, self.best_epoch = state["step"], state["metrics"], state["best_epoch"]
        self.metrics_from = checkpoint.path
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

    def _forget_evaluations(self) -> None:
        """Start the search for the best weights anew: metrics on other images cannot be compared.

        The best weights so far are kept, under the name of their epoch. At the end of an epoch, the evaluation is
        repeated before training goes on.
        """
        if self.metrics:
            kept = self.folder / f"{Path(BEST).stem}-{self.best_epoch:03}.pt"
            with together(self.fabric):
                if self.fabric.is_global_zero and (self.folder / BEST).is_file():
                    _link(self.folder / BEST, kept)
            if self.fabric.is_global_zero:
                log.warning(
                    "%s: the validation images have changed: metrics are not compared with earlier ones, and the "
                    "patience restarts; the best weights so far are kept as %s",
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
