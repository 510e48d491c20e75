"""The only training loop and the only evaluation loop of the project."""

import time
import warnings
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning_fabric import Fabric, seed_everything
from torch import Tensor, nn

from ..recipe import Recipe
from ..tasks import build_task
from ..tasks.task import Batch, EvalLoader, Evaluable
from .journal import Journal
from .launch import launch
from .optim import learning_rate, set_learning_rate
from .run import Run
from .signals import Stopped, stop_signals

AGREE_EVERY = 10  # updates between two questions to the other processes whether any was asked to stop


def fit(recipe: Recipe, folder: Path, display: bool = True, max_steps: int | None = None, command: str = "") -> Run:
    """Train a recipe to its end, from wherever its folder's last checkpoint left it.

    Everything random is a pure function of the seed and the step, so a run that was stopped and resumed equals one that
    was not. SIGINT and SIGTERM end the run after the update in hand, with a checkpoint.

    Args:
        recipe: the run.
        folder: where everything is written: recipe, log, checkpoints, pictures, summary.
        display: show progress; live on a terminal, as lines elsewhere.
        max_steps: stop, with a checkpoint, after so many updates of the whole run.
        command: what the user typed, for the summary.

    Returns:
        The run, with ``run.metrics`` of its best weights.

    Raises:
        ValueError: the recipe cannot work, or the folder holds a run of another recipe.
        FloatingPointError: the loss is no longer finite.
        Stopped: the run was asked to stop; it has saved itself.
    """
    fabric = launch(recipe.engine)
    seed_everything(recipe.seed, verbose=False)
    torch.use_deterministic_algorithms(recipe.engine.deterministic)

    with fabric.rank_zero_first():  # one process fetches and unpacks data; the others find it done
        task = build_task(recipe)
    run = Run(fabric, task, recipe, folder)
    train = task.train_loader(fabric.global_rank, fabric.world_size)
    val = task.eval_loader(fabric.global_rank, fabric.world_size)

    accumulate = min(recipe.engine.accumulate, train.batches_per_epoch)
    steps_per_epoch = train.batches_per_epoch // accumulate
    total_steps = run.plan(steps_per_epoch)
    images_per_step = recipe.batch_size * fabric.world_size * accumulate
    stop_at = total_steps if max_steps is None else min(max_steps, total_steps)

    journal = Journal(
        folder,
        total_steps=total_steps,
        total_epochs=recipe.epochs,
        headline=task.headline,
        label=task.measures[task.headline].label,
        display=display,
        start_step=run.step,
        active=fabric.is_global_zero,
    )
    trained = run.step < stop_at
    with journal, closing(train), stop_signals() as asked:
        if run.step == total_steps:
            journal.note(f"the run in {folder} is finished: all its {total_steps} updates are done")
        while run.step < stop_at:
            epoch, update = divmod(run.step, steps_per_epoch)
            run.model.train()
            batches = train.epoch(epoch, start_batch=update * accumulate)
            clock = _Clock(images_per_step)
            losses: dict[str, Tensor] = {}
            for group in _groups(batches, accumulate):
                lr = learning_rate(run.step, recipe.optim, total_steps, steps_per_epoch, images_per_step)
                losses, grad_norm = _update(run, group, lr)
                clock.tick()
                journal.progress(run.step, lr=lr, **clock.rates())

                if run.step % recipe.engine.log_every == 0 or run.step == stop_at:
                    _check_finite(losses, run.step, folder)
                    values = _named(losses)
                    if grad_norm is not None:
                        values["grad_norm"] = float(grad_norm)
                    journal.step(run.step, run.step / steps_per_epoch, lr=lr, **clock.rates(), **values)

                if run.step == stop_at:
                    break
                # After an epoch's last update its evaluation comes first, or a resumed run would lack it.
                if run.step % steps_per_epoch and (fabric.world_size == 1 or run.step % AGREE_EVERY == 0):
                    stop, due = _any_rank(fabric, bool(asked), run.checkpoint_due())
                    if stop:
                        break
                    if due:
                        _check_finite(losses, run.step, folder)
                        run.save_last()

            if not losses:
                raise ValueError(f"{recipe.data}: not one update's training images can be read; they are named above")
            _check_finite(losses, run.step, folder)
            done, rest = divmod(run.step, steps_per_epoch)
            if rest == 0 and (done % recipe.engine.eval_every == 0 or run.step == total_steps):
                with journal.evaluating(len(val)) as advance:
                    metrics = evaluate(fabric, task, run.weights, val, advance)
                run.keep_if_best(metrics, done)
                journal.evaluation(run.step, done, {k: v for k, v in metrics.items() if isinstance(v, float)})
                if (picture := run.draw_samples(done)) is not None:
                    journal.image("samples", run.step, picture)
            run.save_last()
            if run.step < stop_at and _any_rank(fabric, bool(asked))[0]:
                journal.note(f"stopped after update {run.step} of {total_steps}; saved")
                raise Stopped(folder, run.step, total_steps, asked)
    if run.step == total_steps and (trained or not (folder / "summary.md").exists()):
        run.report(command)
    return run


def _groups(batches: Any, size: int) -> Any:
    """Lists of ``size`` batches, the batches of one update; an incomplete one at the end is left out."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []


def _update(run: Run, group: list[Batch], lr: float) -> tuple[dict[str, Tensor], Tensor | None]:
    """One update from the batches of one group; returns the losses' means and the gradient's norm before clipping."""
    fabric, recipe = run.fabric, run.recipe
    torch.manual_seed(hash((recipe.seed, run.step, fabric.global_rank)) % 2**63)  # of drop path, mixup, proposals
    sums: dict[str, Tensor] = {}
    for i, batch in enumerate(group):
        batch = fabric.to_device(batch)
        if recipe.engine.channels_last:
            batch["image"] = batch["image"].contiguous(memory_format=torch.channels_last)
        with fabric.no_backward_sync(run.model, enabled=i + 1 < len(group)):
            losses = run.task.loss(run.model, batch)
            fabric.backward(torch.stack(list(losses.values())).sum() / len(group))
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0) + loss.detach() / len(group)
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
    return sums, grad_norm


@torch.inference_mode()
def evaluate(
    fabric: Fabric,
    task: Evaluable,
    weights: nn.Module,
    loader: EvalLoader,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a model over a loader, exactly, on any number of processes.

    Args:
        fabric: the processes; each has its own, unpadded shard of the data.
        task: gives predictions and the metric.
        weights: the model to evaluate, in no wrapper, so that processes may have unlike numbers of batches.
        loader: this process's batches.
        advance: called with 1 after each batch.

    Returns:
        The metric's numbers, the same on every process.
    """
    training = weights.training
    weights.eval()
    metric = task.metric(fabric.device)
    for batch in loader:
        batch = fabric.to_device(batch)
        with fabric.autocast():
            output = task.predict(weights, batch)
        metric.update(output, batch)
        if advance is not None:
            advance(1)
    metric.reduce(partial(_reduced, fabric, "sum"), partial(_gathered, fabric))
    weights.train(training)
    return metric.compute()


def average_buffers(fabric: Fabric, model: nn.Module) -> None:
    """Give every process the mean of all processes' BatchNorm statistics, in one message.

    Done after each update, every process holds, averages, evaluates and saves the same network.
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
        # Fabric's concern, not a user's: it calls a form that torch calls old.
        warnings.filterwarnings("ignore", "torch.distributed.nn.functional.all_gather is deprecated")
        return cast(Tensor, fabric.all_gather(value))


def _any_rank(fabric: Fabric, *flags: bool) -> list[bool]:
    """Whether a flag is set on any process."""
    if fabric.world_size == 1:
        return list(flags)
    summed = _reduced(fabric, "sum", torch.tensor(flags, dtype=torch.float32, device=fabric.device))
    return [bool(flag) for flag in summed]


def _named(losses: dict[str, Tensor]) -> dict[str, float]:
    """What the log says of an update's losses: their sum, and, where there are several, each as ``loss/NAME``."""
    values = {name: loss.item() for name, loss in losses.items()}
    parts = {f"loss/{name}": value for name, value in values.items()} if len(values) > 1 else {}
    return {"loss": sum(values.values()), **parts}


def _check_finite(losses: dict[str, Tensor], step: int, folder: Path) -> None:
    bad = {name: value.item() for name, value in losses.items() if not value.isfinite()}
    if bad:
        raise FloatingPointError(
            f"{', '.join(f'{name} is {value}' for name, value in bad.items())} at update {step}. The last checkpoint "
            f"in {folder} is from before; start again with a lower optim.lr, a smaller optim.clip_grad, a longer "
            "warm-up, or engine.precision=32-true."
        )


class _Clock:
    """Images a second since the epoch (or its rest) began, without evaluation."""

    def __init__(self, images_per_step: int) -> None:
        self.images_per_step = images_per_step
        self.start = time.perf_counter()
        self.steps = 0

    def tick(self) -> None:
        self.steps += 1

    def rates(self) -> dict[str, float]:
        return {"images_per_s": self.steps * self.images_per_step / (time.perf_counter() - self.start)}
