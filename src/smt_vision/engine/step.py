"""One optimizer step: forward, backward, clipping, and what is done if the loss or the gradient is not finite."""

import math
from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor

from ..seeding import stable_hash
from ..tasks.finetune import check_adapters
from ..tasks.task import Batch
from .optim import set_learning_rate
from .processes import average
from .state import TrainingState

MAX_RESCALED = 30  # steps in a row with a gradient that is infinite in float16, at half the loss scale each time


def step_batches(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of ``size`` batches, those of one optimizer step; an incomplete one at the end is left out."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []


def train_step(
    run: TrainingState, batches: list[Batch], lr: float, flags: list[bool] | None = None
) -> tuple[dict[str, Tensor], Tensor | None, str]:
    """One optimizer step, or none if the loss or the gradient is not finite.

    Args:
        run: What is trained.
        batches: The batches of the step on this process.
        lr: Learning rate.
        flags: Of any number; each is replaced by whether any process has it set. If the last one is, the step is given
            up: no process makes it, and it does not count.

    Returns:
        The mean losses over its batches and all processes; the gradient norm before clipping, if it was computed; and
        why there was no optimizer step, empty if there was one. All are the same on every process.
    """
    fabric, recipe = run.fabric, run.recipe
    torch.manual_seed(stable_hash("step", recipe.seed, run.step, fabric.global_rank))  # drop path, mixup, proposals
    buffers = run.statistics()
    may_continue = recipe.engine.on_nonfinite != "stop" or flags is not None
    before = [buffer.clone() for buffer in buffers] if may_continue else []
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
    if run.step == 0:
        check_adapters(run.raw)
    statistics = [buffer for buffer in buffers if buffer.is_floating_point()]
    shares = [] if flags is None else [torch.tensor(flags, dtype=torch.float32, device=fabric.device)]
    average(fabric, [*statistics, *means.values(), *shares])
    if flags is not None:
        flags[:] = [share > 0 for share in shares[0].tolist()]
    if flags and flags[-1]:
        _restore(buffers, before)
        run.optimizer.zero_grad()
        return means, None, ""
    grad_norm = _clip_gradients(run)
    run.step += 1
    run.rescaled = run.rescaled + 1 if grad_norm is None else 0
    if reason := _failure(means, grad_norm, recipe.engine.max_grad_norm, run.rescaled):
        _restore(buffers, before)
        scaler = getattr(fabric.strategy.precision, "scaler", None)
        if scaler is not None:
            scaler.update()  # clipping has divided the gradients by the scale, which it does once per update
    else:
        set_learning_rate(run.optimizer, lr)
        run.optimizer.step()
        if run.ema is not None:
            run.ema.update(run.raw, step=run.step)
    run.optimizer.zero_grad()
    return means, grad_norm, reason


def _restore(buffers: list[Tensor], before: list[Tensor]) -> None:
    for buffer, value in zip(buffers, before, strict=False):
        buffer.copy_(value)


def _clip_gradients(run: TrainingState) -> Tensor | None:
    """Clip the gradients as the recipe says; returns their norm before.

    ``None`` where float16 makes it infinite now and then: the loss scale is then lowered, and the step left out, by the
    optimizer's wrapper.
    """
    clip, scaled = run.recipe.optim.clip_grad, run.recipe.engine.precision == "16-mixed"
    if clip is not None or scaled:  # without a limit, the gradients are only divided by the scale of the loss
        limit = math.inf if clip is None else clip
        norm = run.fabric.clip_gradients(run.model, run.optimizer, max_norm=limit, error_if_nonfinite=False)
        return None if scaled and not cast(Tensor, norm).isfinite() else norm
    return torch.nn.utils.get_total_norm([p.grad for p in run.raw.parameters() if p.grad is not None])


def _failure(losses: dict[str, Tensor], grad_norm: Tensor | None, limit: float | None, rescaled: int) -> str:
    """Why a step must not be made; empty if it may."""
    if rescaled > MAX_RESCALED:
        return f"gradient norm is not finite in float16, at any loss scale, for {rescaled} steps"
    numbers = dict(losses) if grad_norm is None else {**losses, "gradient norm": grad_norm}
    values = dict(zip(numbers, torch.stack([value.float() for value in numbers.values()]).tolist(), strict=True))
    bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if not bad and limit is not None and values.get("gradient norm", 0) > limit:
        bad = [f"gradient norm is {values['gradient norm']:.4g}, above engine.max_grad_norm={limit:g}"]
    return ", ".join(bad)


def named(losses: dict[str, Tensor]) -> dict[str, float]:
    """The losses as they are logged: their sum, and each one as ``loss/NAME`` if there are several."""
    values = {name: loss.item() for name, loss in losses.items()}
    parts = {f"loss/{name}": value for name, value in values.items()} if len(values) > 1 else {}
    return {"loss": sum(values.values()), **parts}
