"""The training loop and the evaluation loop, the only ones of the project."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning_fabric import Fabric, seed_everything
from torch import Tensor, nn

from ..bounds import CountOrZero, checked
from ..checkpoints import LAST
from ..recipe import Recipe
from ..seeding import stable_hash
from ..tasks import get_task
from ..tasks.task import Batch, EvalLoader, Evaluation, Training, TrainLoader
from .launch import launch
from .loggers import check_loggers
from .optim import learning_rate, set_learning_rate
from .run import Run, flat_fields
from .signals import RunStopped, stop_signals
from .tracker import RunTracker

SYNC_EVERY = 10  # optimizer steps between two checks whether any process received a signal


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
def train(
    recipe: Recipe, folder: str | Path, display: bool = True, max_steps: CountOrZero | None = None, command: str = ""
) -> Run:
    """Train a recipe to its end, continuing from the last checkpoint in the folder if there is one.

    Everything random is a pure function of the seed and the step, so a run that was stopped and resumed equals one that
    was not. SIGINT and SIGTERM end the run after the current step, with a checkpoint.

    Args:
        recipe: The run.
        folder: Where everything is written: recipe, log, checkpoints, pictures, summary.
        display: Show progress; live on a terminal, as plain lines elsewhere.
        max_steps: Stop, with a checkpoint, after this many optimizer steps of the whole run.
        command: The command line, for the summary.

    Returns:
        The run, with ``run.metrics`` of its best weights.

    Raises:
        ValueError: The recipe is invalid, or the folder holds a run of another recipe.
        FloatingPointError: The loss is no longer finite.
        RunStopped: The run received a signal; it has saved itself.
    """
    folder = Path(folder)
    check_loggers(recipe.engine.loggers)
    fabric = launch(recipe.engine)
    seed_everything(recipe.seed, verbose=False)
    torch.use_deterministic_algorithms(recipe.engine.deterministic)

    # A run that is resumed takes all weights from its last checkpoint, so that its initial weights may be out of reach.
    resumed = (folder / LAST).is_file()
    built = replace(recipe, pretrained=False, checkpoint=None) if resumed else recipe
    with fabric.rank_zero_first():  # one process downloads weights and data, the others find them there
        task = get_task(recipe.task).training(built)
    _check_images(task, recipe.data)
    train_loader = task.train_loader(fabric.global_rank, fabric.world_size)
    eval_loader = task.eval_loader(fabric.global_rank, fabric.world_size)
    run = Run(fabric, task, recipe, folder)
    plan = _plan(run, train_loader.batches_per_epoch, max_steps)
    finished_before = run.step == run.total_steps and not _evaluation_due(run, plan)

    with _tracker(run, display) as tracker, closing(train_loader), stop_signals() as signals:
        if finished_before:
            tracker.note(f"the run in {folder} is finished: all {run.total_steps} steps are done")
        while run.step < plan.stop_at or _evaluation_due(run, plan):
            if not _evaluation_due(run, plan):
                _train_epoch(run, train_loader, plan, tracker, signals)
                run.save_last()  # before an evaluation, so that one that fails or is killed costs no training
            if _evaluation_due(run, plan):
                _evaluate_epoch(run, eval_loader, run.step // plan.steps_per_epoch, tracker)
                run.save_last()
            if run.step < plan.stop_at and _any_rank(fabric, bool(signals))[0]:
                tracker.note(f"stopped after step {run.step} of {run.total_steps}; saved")
                raise RunStopped(folder, run.step, run.total_steps, signals)
    if run.step == run.total_steps and not (finished_before and (folder / "summary.md").exists()):
        run.report(command)
    return run


def _check_images(task: Training, data: str) -> None:
    """Raise a ValueError if there are no images to train or evaluate on."""
    if not len(task.train_set):
        raise ValueError(f"{data}: no training images; add some")
    if not len(task.val_set):
        raise ValueError(
            f"{data}: {len(task.train_set)} training images and none to validate on; add a validation split, or enough "
            "images (two or more per class) for some to be held out"
        )


def _plan(run: Run, batches_per_epoch: int, max_steps: int | None) -> Plan:
    recipe = run.recipe
    accumulate = min(recipe.engine.accumulate, batches_per_epoch)
    steps_per_epoch = batches_per_epoch // accumulate
    total_steps = run.plan(steps_per_epoch)
    return Plan(
        accumulate=accumulate,
        steps_per_epoch=steps_per_epoch,
        stop_at=total_steps if max_steps is None else min(max_steps, total_steps),
        images_per_step=recipe.batch_size * run.fabric.world_size * accumulate,
    )


def _evaluation_due(run: Run, plan: Plan) -> bool:
    """Whether the run is at the end of an epoch that the recipe evaluates, and has not evaluated it yet."""
    epoch, rest = divmod(run.step, plan.steps_per_epoch)
    wanted = epoch % run.recipe.engine.eval_every == 0 or run.step == run.total_steps
    return run.step > run.evaluated_step and rest == 0 and wanted


def _tracker(run: Run, display: bool) -> RunTracker:
    primary = run.task.primary_metric
    return RunTracker(
        run.folder,
        loggers=run.recipe.engine.loggers,
        config=flat_fields(run.recipe),
        total_steps=run.total_steps,
        total_epochs=run.recipe.epochs,
        primary_metric=primary,
        label=run.task.metric_formats[primary].label,
        start_step=run.step,
        display=display,
        active=run.fabric.is_global_zero,
    )


def _train_epoch(run: Run, loader: TrainLoader, plan: Plan, tracker: RunTracker, signals: Sequence[int]) -> None:
    """The rest of the current epoch, or as much of it as ``stop_at`` and the signals allow."""
    fabric, recipe = run.fabric, run.recipe
    epoch, steps_done = divmod(run.step, plan.steps_per_epoch)
    batches = loader.epoch(epoch, start_batch=steps_done * plan.accumulate)
    speed = _Speed(plan.images_per_step)
    losses: dict[str, Tensor] = {}
    run.model.train()
    for group in _groups(batches, plan.accumulate):
        lr = learning_rate(run.step, recipe.optim, run.total_steps, plan.steps_per_epoch, plan.images_per_step)
        losses, grad_norm = _train_step(run, group, lr)
        images_per_s = speed.after_step()
        tracker.progress(run.step, lr=lr, images_per_s=images_per_s)

        if run.step % recipe.engine.log_every == 0 or run.step == plan.stop_at:
            _check_finite(losses, run.step, run.folder)
            values = _named(losses)
            if grad_norm is not None:
                values["grad_norm"] = float(grad_norm)
            tracker.step(run.step, run.step / plan.steps_per_epoch, lr=lr, images_per_s=images_per_s, **values)

        if run.step == plan.stop_at:
            break
        # Not after the last step of an epoch: the caller saves there.
        if run.step % plan.steps_per_epoch and (fabric.world_size == 1 or run.step % SYNC_EVERY == 0):
            stop, checkpoint_due = _any_rank(fabric, bool(signals), run.checkpoint_due())
            if stop:
                break
            if checkpoint_due:
                _check_finite(losses, run.step, run.folder)
                run.save_last()
    if not losses:
        raise ValueError(f"{recipe.data}: no training batch could be read; the unreadable images are named above")
    _check_finite(losses, run.step, run.folder)


def _evaluate_epoch(run: Run, loader: EvalLoader, epoch: int, tracker: RunTracker) -> None:
    """Evaluate the weights, keep them if they are the best so far, and record metrics and sample images."""
    with tracker.evaluating(len(loader)) as on_progress:
        metrics = run_evaluation(run.fabric, run.task, run.weights, loader, on_progress)
    run.keep_if_best(metrics, epoch)
    run.evaluated_step = run.step
    tracker.evaluation(run.step, epoch, {name: value for name, value in metrics.items() if isinstance(value, float)})
    if (samples := run.draw_samples(epoch)) is not None:
        tracker.image("samples", run.step, samples)


def _groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of ``size`` batches, those of one optimizer step; an incomplete one at the end is left out."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []


def _train_step(run: Run, batches: list[Batch], lr: float) -> tuple[dict[str, Tensor], Tensor | None]:
    """One optimizer step; returns the mean losses over its batches, and the gradient norm before clipping."""
    fabric, recipe = run.fabric, run.recipe
    torch.manual_seed(stable_hash("step", recipe.seed, run.step, fabric.global_rank))  # drop path, mixup, proposals
    means: dict[str, Tensor] = {}
    for i, batch in enumerate(batches):
        batch = fabric.to_device(batch)
        if recipe.engine.channels_last:
            batch["image"] = batch["image"].contiguous(memory_format=torch.channels_last)
        with fabric.no_backward_sync(run.model, enabled=i + 1 < len(batches)):
            losses = run.task.loss(run.model, batch)
            fabric.backward(torch.stack(list(losses.values())).sum() / len(batches))
        for name, loss in losses.items():
            means[name] = means.get(name, 0) + loss.detach() / len(batches)
    grad_norm = None
    if recipe.optim.clip_grad is not None:
        grad_norm = fabric.clip_gradients(
            run.model, run.optimizer, max_norm=recipe.optim.clip_grad, error_if_nonfinite=False
        )
    set_learning_rate(run.optimizer, lr)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.step += 1
    average_buffers(fabric, run.raw)
    if run.ema is not None:
        run.ema.update(run.raw, step=run.step)
    return means, grad_norm


@torch.inference_mode()
def run_evaluation(
    fabric: Fabric,
    task: Evaluation,
    weights: nn.Module,
    loader: EvalLoader,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a model over a loader, exactly, on any number of processes.

    Args:
        fabric: The processes; each has its own, unpadded shard of the data.
        task: Provides predictions and the metric.
        weights: The model to evaluate, without a wrapper, so that processes may have different numbers of batches.
        loader: The batches of this process.
        on_progress: Called with 1 after each batch.

    Returns:
        The metrics, the same on every process.

    Raises:
        ValueError: No image could be read.
    """
    training = weights.training
    weights.eval()
    metric = task.metric(fabric.device)
    any_image = False
    for batch in loader:
        any_image = True
        batch = fabric.to_device(batch)
        with fabric.autocast():
            output = task.predict(weights, batch)
        metric.update(output, batch)
        if on_progress is not None:
            on_progress(1)
    if not _any_rank(fabric, any_image)[0]:
        raise ValueError(
            f"{task.val_set.where}: none of the {len(task.val_set)} images to evaluate on could be read; the warnings "
            "above say why"
        )
    metric.reduce(partial(_reduced, fabric, "sum"), partial(_gathered, fabric))
    weights.train(training)
    return metric.compute()


def average_buffers(fabric: Fabric, model: nn.Module) -> None:
    """Set the BatchNorm statistics of every process to their mean over all processes, in one all-reduce.

    Called after each step, so that every process averages, evaluates and saves the same model.
    """
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if fabric.world_size > 1 and buffers:
        means = _reduced(fabric, "mean", torch.cat([buffer.flatten() for buffer in buffers]))
        for buffer, mean in zip(buffers, means.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))


def _reduced(fabric: Fabric, how: Literal["sum", "mean"], value: Tensor) -> Tensor:
    return cast(Tensor, fabric.all_reduce(value, reduce_op=how))


def _gathered(fabric: Fabric, value: Tensor) -> Tensor:
    with warnings.catch_warnings():
        # Fabric calls a function that torch has deprecated; not the user's concern.
        warnings.filterwarnings("ignore", "torch.distributed.nn.functional.all_gather is deprecated")
        return cast(Tensor, fabric.all_gather(value))


def _any_rank(fabric: Fabric, *flags: bool) -> list[bool]:
    """For each flag, whether it is set on any process."""
    if fabric.world_size == 1:
        return list(flags)
    summed = _reduced(fabric, "sum", torch.tensor(flags, dtype=torch.float32, device=fabric.device))
    return [bool(flag) for flag in summed]


def _named(losses: dict[str, Tensor]) -> dict[str, float]:
    """The losses as they are logged: their sum, and each one as ``loss/NAME`` if there are several."""
    values = {name: loss.item() for name, loss in losses.items()}
    parts = {f"loss/{name}": value for name, value in values.items()} if len(values) > 1 else {}
    return {"loss": sum(values.values()), **parts}


def _check_finite(losses: dict[str, Tensor], step: int, folder: Path) -> None:
    bad = {name: value.item() for name, value in losses.items() if not value.isfinite()}
    if bad:
        raise FloatingPointError(
            f"{', '.join(f'{name} is {value}' for name, value in bad.items())} at step {step}. The last checkpoint in "
            f"{folder} is from before; start again with a lower optim.lr, a smaller optim.clip_grad, a longer "
            "warm-up, or engine.precision=32-true."
        )


class _Speed:
    """Images per second since the epoch (or the rest of it) began."""

    def __init__(self, images_per_step: int) -> None:
        self._images_per_step = images_per_step
        self._start = time.perf_counter()
        self._steps = 0

    def after_step(self) -> float:
        self._steps += 1
        return self._steps * self._images_per_step / (time.perf_counter() - self._start)
