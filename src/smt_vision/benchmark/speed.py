"""How fast: calls timed side by side, taking turns.

A machine's speed drifts, by heat, by neighbours and by what ran before. Calls that are compared are therefore timed in
turn, in rounds, and compared by their medians.
"""

import random
import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Key = TypeVar("Key", bound=Hashable)
Call = Callable[[], object]
PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
WARM_UP = 2  # calls before the first round: compilers compile, packers pack


@dataclass(frozen=True)
class Timing:
    """The times of a call, each in seconds, in the order measured."""

    seconds: tuple[float, ...]

    def percentile(self, percent: float) -> float:
        """The time that so many percent of the calls took at most, in seconds."""
        return float(np.percentile(self.seconds, percent))

    @property
    def median(self) -> float:
        """In seconds."""
        return self.percentile(50)

    @property
    def iqr(self) -> float:
        """The width of the middle half of the times, in seconds: how much the median may be believed."""
        return self.percentile(75) - self.percentile(25)


def interleave(
    calls: Mapping[Key, Call],
    *,
    rounds: int = 5,
    seconds: float = 1.0,
    device: torch.device | str = "cpu",
    advance: Callable[[int, int], None] | None = None,
) -> dict[Key, Timing]:
    """Time calls side by side.

    Each call is warmed up. Then, in each round, every call has a turn, in an order that is drawn anew: one call that is
    not timed, since it finds the caches as another left them, and timed ones for about ``seconds``. On an accelerator
    a call is timed until its work is done, so a time is a latency, with nothing of the next call overlapping it.

    Args:
        calls: what to time.
        rounds: turns of each call.
        seconds: of timed calls, a turn; one call at least is timed.
        device: where the work is done.
        advance: called after each round with the number done and the number of all.

    Raises:
        ValueError: ``rounds`` is below 1, or ``seconds`` below 0.
    """
    if rounds < 1 or seconds < 0:
        raise ValueError(f"rounds={rounds}, seconds={seconds}: at least 1 round, of 0 seconds or more a call")
    device = torch.device(device)

    def timed(call: Call) -> float:
        start = time.perf_counter()
        call()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - start

    for call in calls.values():
        for _ in range(WARM_UP):
            timed(call)
    times: dict[Key, list[float]] = {key: [] for key in calls}
    order, draw = list(calls), random.Random(0)
    for done in range(1, rounds + 1):
        draw.shuffle(order)
        for key in order:
            timed(calls[key])
            turn = [timed(calls[key])]
            while sum(turn) < seconds:
                turn.append(timed(calls[key]))
            times[key] += turn
        if advance is not None:
            advance(done, rounds)
    return {key: Timing(tuple(values)) for key, values in times.items()}


def dtype_of(precision: str) -> torch.dtype:
    """The type that products are computed in; raises a ValueError for a precision that is not measured."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} cannot be measured: one of {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def autocast(device: torch.device | str, precision: str) -> AbstractContextManager[object]:
    """Autocast for a mixed precision; for ``32-true`` nothing."""
    dtype = dtype_of(precision)
    return torch.autocast(torch.device(device).type, dtype) if dtype != torch.float32 else nullcontext()


def inference(model: nn.Module, x: Tensor, precision: str = "32-true") -> Call:
    """One forward pass, without gradients.

    Args:
        model: put into evaluation mode.
        x: images ``(B, C, H, W)``, on the model's device.
        precision: ``32-true``, or ``bf16-mixed``, which is autocast.

    Raises:
        ValueError: there is no such precision.
    """
    dtype_of(precision)
    model.eval()

    def call() -> None:
        with torch.inference_mode(), autocast(x.device, precision):
            model(x)

    return call


def training_step(model: nn.Module, x: Tensor, precision: str = "32-true") -> Call:
    """One update: forward, cross entropy, backward, AdamW. The model is trained by it, towards class 0.

    Args:
        model: a classifier; put into training mode.
        x: images ``(B, C, H, W)``, on the model's device.
        precision: ``32-true``, or ``bf16-mixed``, which is autocast.

    Raises:
        ValueError: there is no such precision, or the model has nothing to train.
    """
    dtype_of(precision)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            f"this {type(model).__name__} has nothing to train, being for inference alone, as fused and exported "
            "models are; give the model it was made of"
        )
    model.train()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.05, fused=True)
    targets = torch.zeros(len(x), dtype=torch.long, device=x.device)

    def call() -> None:
        with autocast(x.device, precision):
            loss = F.cross_entropy(model(x), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


def matmul_peak(
    precision: str = "32-true",
    device: torch.device | str = "cpu",
    sizes: tuple[int, ...] | None = None,
    seconds: float = 0.3,
) -> float:
    """The machine's best rate at square matrix products, in floating-point operations a second.

    It is what torch's own product reaches with the threads it has, not what a data sheet says. Best, not median: a peak
    is what the machine can do where nothing disturbs it.

    Args:
        precision: ``32-true`` for float32, ``bf16-mixed`` for bfloat16.
        device: where.
        sizes: rows of the matrices to try; by default 1024 and 2048 on a CPU, 4096 and 8192 elsewhere.
        seconds: of each size in each of three rounds.

    Raises:
        ValueError: there is no such precision.
    """
    dtype = dtype_of(precision)
    if sizes is None:
        sizes = (1024, 2048) if torch.device(device).type == "cpu" else (4096, 8192)

    def product(n: int) -> Call:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        return lambda: a @ b

    timings = interleave({n: product(n) for n in sizes}, rounds=3, seconds=seconds, device=device)
    return max(2 * n**3 / min(timing.seconds) for n, timing in timings.items())
