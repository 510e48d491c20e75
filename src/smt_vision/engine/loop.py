"""The training loop, the only one of the project."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from lightning_fabric import Fabric, seed_everything

from .. import checkpoints
from ..bounds import CountOrZero, checked
from ..checkpoints import training_checkpoints
from ..data.decode import UnreadableImage
from ..data.loaders import explained_dead_workers
from ..precision import has_bf16
from ..recipe import GivenRecipe, Recipe
from ..signals import Interrupted, RunStopped, StopSignals, stop_signals
from ..tasks import get_task
from ..tasks.build import without_unaccepted_drop_path
from ..tasks.task import Batch, EvalLoader, Training, TrainLoader
from .evaluation_loop import run_evaluation
from .fields import flat_fields
from .launch import ends_after_an_error, launch
from .lock import FolderLock
from .loggers import check_loggers
from .optim import learning_rate
from .processes import any_process, gathered_objects, on_first, raise_together, together
from .report import draw_samples, write_report
from .run import Run
from .step import named, step_batches, train_step
from .tracker import RunTracker
from .watchdog import MEASURING, RECORDING, SAVING, WAITING, Watchdog

T = TypeVar("T")
MAX_LEFT_OUT = 0.05  # share of the images of an epoch that may be left out without a note
MAX_FAILED = 10  # steps in a row whose loss or gradient is not finite


@dataclass(frozen=True)
class Plan:
    """A run's length in optimizer steps.

    Args:
        accumulate: Batches per optimizer step, on each process.
        steps_per_epoch: Optimizer steps per epoch.
        stop_at: The step to stop at: the end of the run or earlier.
        images_per_step: Images per optimizer step, over all processes.
    """

    accumulate: int
    steps_per_epoch: int
    stop_at: int
    images_per_step: int


@checked
@ends_after_an_error()
def train(
    recipe: GivenRecipe,
    folder: str | Path,
    display: bool = True,
    max_steps: CountOrZero | None = None,
    command: str = "",
) -> Run:
    """Train a recipe to its end, continuing from the last checkpoint in the folder if there is one.

    Everything random is a pure function of the seed and the step, so a run that was stopped and resumed equals one that
    was not. SIGINT, SIGTERM, SIGHUP and SIGUSR1 end the run after the current step, with a checkpoint.

    Args:
        recipe: The run.
        folder: Where everything is written: recipe, log, checkpoints, pictures, summary.
        display: Show progress; live on a terminal, as plain lines elsewhere.
        max_steps: Stop, with a checkpoint, after this many optimizer steps of the whole run.
        command: The command line, for the summary.

    Returns:
        The run, with ``run.metrics`` of the weights in ``best.pt``.

    Raises:
        ValueError: The recipe is invalid, the folder holds a run of another recipe or on other data, or another process
            trains in it.
        FloatingPointError: A loss, a gradient or a weight is no longer finite; see ``engine.on_nonfinite``.
        TimeoutError: The data loaders did not provide a batch for ``engine.timeout_minutes``; a checkpoint was saved.
        RunStopped: The run received a signal; a checkpoint was saved.
    """
    folder = Path(folder)
    check_loggers(recipe.engine.loggers)
    fabric = start(recipe)
    recipe = without_unaccepted_drop_path(recipe)
    with _locked(fabric, folder) as lock:
        task = open_task(fabric, _without_initial_weights(recipe, folder))
        train_loader = task.train_loader(fabric.global_rank, fabric.world_size)
        eval_loader = task.eval_loader(fabric.global_rank, fabric.world_size)
        run = Run(fabric, task, recipe, folder)
        plan = _plan(run, train_loader, max_steps)
        finished_before = run.is_finished and not _evaluation_due(run, plan)
        with (
            closing(train_loader),
            closing(eval_loader),
            stop_signals() as signals,
            Watchdog(recipe.engine.timeout_minutes, signals, str(folder)) as watchdog,
        ):
            with _tracker(run, display) as tracker:
                if finished_before:
                    done = _early(run) if run.stopped_early else f"all {run.total_steps} steps are done"
                    tracker.note(f"the run in {folder} is finished: {done}")
                else:
                    for note in _notes(run, plan, train_loader):
                        tracker.note(note)
                loop = _Loop(run, plan, lock, tracker, signals, watchdog)
                with explained_dead_workers(recipe.input.workers):
                    loop.run_to_end(train_loader, eval_loader)
            if run.is_finished and not (finished_before and (folder / "summary.md").exists()):
                loop.report(command)
    return run


@contextmanager
def _locked(fabric: Fabric, folder: Path) -> Iterator[FolderLock]:
    """Hold the lock of the folder on the first process; if that fails, it fails on all of them."""
    lock = FolderLock(folder)
    with ExitStack() as stack:
        on_first(fabric, lambda: stack.enter_context(lock))
        yield lock


def start(recipe: Recipe) -> Fabric:
    """Start the processes of a recipe, and seed their random numbers."""
    fabric = launch(recipe.engine)
    seed_everything(recipe.seed, verbose=False)
    torch.use_deterministic_algorithms(recipe.engine.deterministic)
    return fabric


def _without_initial_weights(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe of a run that is resumed: all weights are those of its last checkpoint, and the initial ones may be
    out of reach. What the recipe has taken from those is taken from the last checkpoint, too."""
    if not (paths := training_checkpoints(folder)):
        return recipe
    input = recipe.input
    if recipe.checkpoint is not None and None in (input.mean, input.std):
        for path in paths:
            # A damaged one is passed over, as the run itself does, which says so.
            with suppress(ValueError, OSError, LookupError, TypeError):
                stored = (checkpoints.load(path).spec or {})["input"]
                input = replace(input, mean=tuple(stored["mean"]), std=tuple(stored["std"]))
                break
    return replace(recipe, pretrained=False, checkpoint=None, input=input)


def open_task(fabric: Fabric, recipe: Recipe) -> Training:
    """Open the data of a recipe and build its model.

    Raises:
        ValueError: The recipe is invalid, or there are no images to train or evaluate on.
    """
    with fabric.rank_zero_first():  # one process downloads weights and data, the others find them there
        task = get_task(recipe.task).training(recipe)
    if not len(task.train_set):
        raise ValueError(f"{recipe.data}: no training images; add some")
    if not len(task.val_set):
        raise ValueError(
            f"{recipe.data}: {len(task.train_set)} training images and none to validate on; add a validation split, or "
            "enough images (two or more per class) for some to be held out"
        )
    return task


def _plan(run: Run, loader: TrainLoader, max_steps: int | None) -> Plan:
    accumulate = min(run.recipe.engine.accumulate, loader.batches_per_epoch)
    steps_per_epoch = loader.batches_per_epoch // accumulate
    total_steps = run.plan(steps_per_epoch)
    return Plan(
        accumulate=accumulate,
        steps_per_epoch=steps_per_epoch,
        stop_at=total_steps if max_steps is None else min(max_steps, total_steps),
        images_per_step=loader.images_per_batch * run.fabric.world_size * accumulate,
    )


def _notes(run: Run, plan: Plan, loader: TrainLoader) -> Iterator[str]:
    """Notes for the start of a run, on what may differ from what its recipe suggests."""
    recipe, device = run.recipe, run.fabric.device
    if run.is_partial:
        yield f"training {run.trained_description}"
    if recipe.engine.precision == "bf16-mixed" and device.type in ("cpu", "cuda") and not has_bf16(device):
        faster = "16-mixed or 32-true" if device.type == "cuda" else "32-true"
        yield f"this {device.type} emulates bfloat16, which is slow: --engine.precision {faster} is faster"
    if loader.images_per_batch < recipe.batch_size:
        yield f"batches of {loader.images_per_batch} images, not {recipe.batch_size}: the dataset has no more"
    if plan.accumulate < recipe.engine.accumulate:
        yield f"{plan.accumulate} batches per step, not {recipe.engine.accumulate}: an epoch has no more"
    left = loader.images_per_epoch - plan.steps_per_epoch * plan.images_per_step
    if left > MAX_LEFT_OUT * loader.images_per_epoch:
        yield (
            f"epochs of {plan.steps_per_epoch} steps x {plan.images_per_step} images: each skips {left} of the "
            f"{loader.images_per_epoch} images, different ones each time; a smaller batch_size skips fewer"
        )


def _evaluation_due(run: Run, plan: Plan) -> bool:
    """Whether the run is at the end of an epoch that the recipe evaluates, and has not evaluated it yet."""
    epoch, rest = divmod(run.step, plan.steps_per_epoch)
    wanted = epoch % run.recipe.engine.eval_every == 0 or run.step == run.total_steps
    return run.step > run.evaluated_step and rest == 0 and wanted


def _early(run: Run) -> str:
    """That a run was stopped early, for messages."""
    primary, engine = run.task.metric_formats[run.task.primary_metric].label, run.recipe.engine
    by = f" by more than {engine.min_delta:g}" if engine.min_delta else ""
    return (
        f"stopped early after epoch {run.epochs:g} of {run.recipe.epochs}: {primary} has not improved{by} in "
        f"{engine.patience} evaluation{'s' * (engine.patience != 1)}"
    )


def _tracker(run: Run, display: bool) -> RunTracker:
    primary = run.task.primary_metric
    with together(run.fabric):
        tracker = RunTracker(
            run.folder,
            loggers=run.recipe.engine.loggers,
            config=flat_fields(run.recipe),
            total_steps=run.total_steps,
            total_epochs=run.recipe.epochs,
            primary_metric=primary,
            label=run.task.metric_formats[primary].label,
            start_step=run.step,
            best=max(run.metrics.get(primary, -math.inf), *run.history, -math.inf),
            display=display,
            active=run.fabric.is_global_zero,
        )
    return tracker


class _Loop:
    """Training and evaluation in turn, until the end or a signal."""

    def __init__(
        self,
        run: Run,
        plan: Plan,
        lock: FolderLock,
        tracker: RunTracker,
        signals: StopSignals,
        watchdog: Watchdog,
    ) -> None:
        self.run, self.plan, self.lock, self.tracker, self.signals, self.watchdog = (
            run, plan, lock, tracker, signals, watchdog
        )  # fmt: skip
        self.fabric = run.fabric
        self._saved = True  # whether the last checkpoint that was due could be written
        self._failed_in_a_row = 0
        self._last: list[Batch] | None = None  # the last step's batches, of one of several processes
        self._failure: Exception | None = None  # why this one of several processes has no batches

    def run_to_end(self, train_loader: TrainLoader, eval_loader: EvalLoader) -> None:
        """Train up to ``plan.stop_at``, and evaluate whenever it is due."""
        run, plan = self.run, self.plan
        if run.recipe.engine.on_nonfinite == "rollback" and run.step == 0:
            self._save()
        while (run.step < plan.stop_at and not run.stopped_early) or _evaluation_due(run, plan):
            if not _evaluation_due(run, plan):
                self._train_epoch(train_loader)
                self._try_to_save()  # before an evaluation, so that one that fails or is killed costs no training
            if _evaluation_due(run, plan):
                self._evaluate(eval_loader, run.step // plan.steps_per_epoch)
                self._try_to_save()
                if run.stopped_early:
                    self.tracker.note(_early(run))
                    break
            if run.step < plan.stop_at and any_process(self.fabric, bool(self.signals))[0]:
                raise self._stopped()
        if not self._saved:
            self._save()

    def report(self, command: str) -> None:
        """Write the results of the finished run."""
        self.watchdog.at("writing the results")
        try:
            with self.signals.interruptible():
                write_report(self.run, command)
        except Interrupted:
            raise self._stopped() from None

    def _stopped(self) -> Exception:
        """The error to raise after a signal, or after the watchdog has ended a wait; the run has saved itself."""
        run = self.run
        if not self._saved:
            self._save()
        self.tracker.note(f"stopped after step {run.step} of {run.total_steps}; saved")
        if self.watchdog.stalled:
            return TimeoutError(
                f"{self.watchdog.stalled}; saved after step {run.step}. Look after the storage of {run.recipe.data}, "
                f"then: smt train --resume {run.folder}"
            )
        return RunStopped(run.folder, run.step, run.total_steps, self.signals.received)

    def _save(self) -> None:
        """Write ``last.pt``.

        Raises:
            ValueError: Another process has taken over the run's folder.
            OSError: It could not be written.
        """
        self.watchdog.at(SAVING)
        on_first(self.fabric, self.lock.check)
        self.run.save_last()
        self._saved = True

    def _try_to_save(self) -> None:
        """Write ``last.pt`` where the run can go on without it: its next checkpoint may find room on the disk."""
        try:
            self._save()
        except OSError as error:
            self._saved = False
            self.run.postpone_checkpoint()
            minutes = self.run.recipe.engine.checkpoint_minutes
            self.tracker.note(
                f"no checkpoint of step {self.run.step}: {error}. Training goes on; the next one is due at the end of "
                f"the epoch, or in {minutes:g} minutes"
            )

    def _train_epoch(self, loader: TrainLoader) -> None:
        """The rest of the current epoch, or as much of it as ``stop_at`` and the signals allow."""
        run, plan, recipe = self.run, self.plan, self.run.recipe
        epoch, steps_done = divmod(run.step, plan.steps_per_epoch)
        batches = loader.epoch(epoch, start_batch=steps_done * plan.accumulate)
        groups, start = step_batches(batches, plan.accumulate), run.step
        speed = _Speed(plan.images_per_step)
        run.train_mode()
        while (group := self._next(groups)) is not None:
            self.watchdog.at(f"training step {run.step + 1}")
            lr = learning_rate(run.step, recipe.optim, run.total_steps, plan.steps_per_epoch, plan.images_per_step)
            flags = self._flags()
            losses, grad_norm, reason = train_step(run, group, lr, flags)
            if flags and flags[-1]:
                raise self._without_batches()
            images_per_s = speed.after_step()
            self.tracker.progress(run.step, lr=lr, images_per_s=images_per_s)
            if reason:
                self._leave_out(reason, group)
            else:
                self._failed_in_a_row = 0
                if run.step % recipe.engine.log_every == 0 or run.step == plan.stop_at:
                    values = named(losses)
                    if grad_norm is not None:
                        values["grad_norm"] = float(grad_norm)
                    done = run.step / plan.steps_per_epoch
                    self.tracker.step(run.step, done, lr=lr, images_per_s=images_per_s, **values)

            # After the last step of an epoch, the caller saves; batches that are too few for a step are not loaded.
            if run.step == plan.stop_at or run.step % plan.steps_per_epoch == 0:
                break
            # Several processes act on a signal one step later: on what all knew before this one.
            if flags is None:
                stop, checkpoint_due = bool(self.signals), run.checkpoint_due()
            else:
                stop, checkpoint_due, _ = flags
            if stop:
                break
            if checkpoint_due:
                self._try_to_save()
        if run.step == start and not self.signals:
            raise no_batch(recipe)

    def _flags(self) -> list[bool] | None:
        """What the other processes must know: whether there is a signal, whether a checkpoint is due, and whether this
        process has no more batches. ``None`` without others."""
        if self.fabric.world_size == 1:
            return None
        return [bool(self.signals), self.run.checkpoint_due(), self._failure is not None]

    def _next(self, groups: Iterator[list[Batch]]) -> list[Batch] | None:
        """The batches of the next step; ``None`` if there are none, or if a signal ends the wait for them.

        One of several processes that fails has the last step's batches once more: it takes part in a step, which the
        others give up when it tells them. Before the first step, they only agree that there are batches.

        Raises:
            DeadWorker: A worker process died; the run has saved itself.
            UnreadableImage: There were too many unreadable images; the run has saved itself.
        """
        self.watchdog.at(WAITING)
        several = self.fabric.world_size > 1
        group, error = None, None
        try:
            # Of several processes, all must stop at the same step.
            with self.signals.interruptible(not several):
                group = next(groups, None)
        except Interrupted:
            return None
        except Exception as caught:
            error = caught
        if not several:
            if error is None:
                return group
            if self.run.step:
                self._save()
            raise error
        if group is None:
            error = error or no_batch(self.run.recipe)
        if self._last is None:
            raise_together(self.fabric, error)
        self._failure = error
        self._last = group or self._last
        return self._last

    def _without_batches(self) -> Exception:
        """The error to raise after a step that a process had no batches for; the run has saved itself."""
        own = None if self._failure is None else str(self._failure) or repr(self._failure)
        reasons = gathered_objects(self.fabric, own)
        self._save()
        rank, reason = next((rank, reason) for rank, reason in enumerate(reasons) if reason is not None)
        return self._failure or UnreadableImage(f"process {rank} has no more training images: {reason}")

    def _leave_out(self, reason: str, group: list[Batch]) -> None:
        """Note a step that changed nothing with its images, and do what the recipe says.

        Raises:
            FloatingPointError: The recipe says to stop, or there were too many such steps in a row.
        """
        run, policy = self.run, self.run.recipe.engine.on_nonfinite
        indices = gathered_objects(self.fabric, [int(i) for batch in group for i in batch["index"]])
        names = [run.task.train_set.name(i) for each in indices for i in each]
        self._failed_in_a_row += 1
        stop = policy == "stop" or self._failed_in_a_row == MAX_FAILED
        done = "the run ends" if stop else "the batch is skipped" if policy == "skip" else "back to the last checkpoint"
        self.tracker.note(f"{reason} at step {run.step}: {done}", step=run.step, images=names)
        if stop:
            many = f", the {MAX_FAILED}th time in a row" if self._failed_in_a_row == MAX_FAILED else ""
            raise FloatingPointError(f"{reason} at step {run.step}{many}. {run.advice()}")
        if policy == "rollback":
            run.roll_back()
        else:
            run.left_out.append(run.step)

    def _evaluate(self, loader: EvalLoader, epoch: int) -> None:
        """Evaluate the weights, and record metrics and sample images; the next checkpoint writes ``best.pt``."""
        run, done = self.run, 0

        def count(n: int) -> None:
            nonlocal done
            done += n
            self.watchdog.at(f"evaluating, {done} of {len(loader)} batches done")
            on_progress(n)

        self.watchdog.at("evaluating, no batch done")
        with run.merged():
            try:
                # Several processes stop together, after the evaluation.
                alone = self.fabric.world_size == 1
                with self.signals.interruptible(alone), self.tracker.evaluating(len(loader)) as on_progress:
                    metrics = run_evaluation(
                        self.fabric, run.task, run.weights, loader, count, on_end=lambda: self.watchdog.at(MEASURING)
                    )
            except Interrupted:
                raise self._stopped() from None
            self.watchdog.at(RECORDING)
            run.keep_if_best(metrics, epoch)
            run.evaluated_step = run.step
            numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
            self.tracker.evaluation(run.step, epoch, numbers)
            try:
                if (samples := draw_samples(run, epoch)) is not None:
                    self.tracker.image("samples", run.step, samples)
            except Exception as error:  # e.g. a full disk, or too little memory of the GPU
                self.tracker.note(f"no sample images of epoch {epoch}: {type(error).__name__}: {error}")


def no_batch(recipe: Recipe) -> ValueError:
    """The error of an epoch without a batch."""
    return ValueError(f"{recipe.data}: no training batch could be read; the unreadable images are named above")


class _Speed:
    """Images per second since the epoch (or the rest of it) began."""

    def __init__(self, images_per_step: int) -> None:
        self._images_per_step = images_per_step
        self._start = time.perf_counter()
        self._steps = 0

    def after_step(self) -> float:
        self._steps += 1
        return self._steps * self._images_per_step / (time.perf_counter() - self._start)
