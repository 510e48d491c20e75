"""Timing of calls side by side.

The speed of a machine drifts with temperature, other processes and what ran before. Calls to be compared are therefore
timed in turn, in rounds, and compared by their medians.
"""

import random
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bounds import Count, Seconds, checked
from ..precision import resolve_dtype

Key = TypeVar("Key", bound=Hashable)
Call = Callable[[], object]
ProgressCallback = Callable[[int, int], None]  # number done, total
WARM_UP_CALLS = 2  # before the first round: torch.compile compiles, kernels pack their weights


@contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch on one thread of the CPU, as in a worker process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Timing:
    """Measured times of a call in seconds, in the order of measurement."""

    seconds: tuple[float, ...]

    def percentile(self, percent: float) -> float:
        """Percentile of the times in seconds."""
        return float(np.percentile(self.seconds, percent))

    @property
    def median(self) -> float:
        """Median time in seconds."""
        return self.percentile(50)

    @property
    def iqr(self) -> float:
        """Interquartile range in seconds, an estimate of the noise of the median."""
        return self.percentile(75) - self.percentile(25)


@checked
def interleave(
    calls: Mapping[Key, Call],
    *,
    rounds: Count = 5,
    seconds: Seconds = 1.0,
    device: torch.device | str = "cpu",
    on_progress: ProgressCallback | None = None,
) -> dict[Key, Timing]:
    """Time calls in turn.

    Each call is warmed up. Then, in each round, every call has one turn, in a new random order: one untimed call, since
    it finds the caches as another call left them, and timed calls for about ``seconds``. On an accelerator the device
    is synchronized after each call, so a time is a latency and calls do not overlap.

    Args:
        calls: Functions to time.
        rounds: Number of turns of each call.
        seconds: Duration of a turn; at least one call is timed.
        device: Device on which the calls work.
        on_progress: Called after each round with the number of rounds done and the total.

    Raises:
        ValueError: ``rounds`` is below 1 or ``seconds`` is below 0.
    """
    device = torch.device(device)

    def timed(call: Call) -> float:
        start = time.perf_counter()
        call()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - start

    for call in calls.values():
        for _ in range(WARM_UP_CALLS):
            timed(call)
    times: dict[Key, list[float]] = {key: [] for key in calls}
    order, generator = list(calls), random.Random(0)
    for done in range(1, rounds + 1):
        generator.shuffle(order)
        for key in order:
            timed(calls[key])
            turn = [timed(calls[key])]
            while sum(turn) < seconds:
                turn.append(timed(calls[key]))
            times[key] += turn
        if on_progress is not None:
            on_progress(done, rounds)
    return {key: Timing(tuple(values)) for key, values in times.items()}


def autocast(device: torch.device | str, precision: str) -> AbstractContextManager[object]:
    """Autocast for ``bf16``; a null context for ``fp32``."""
    dtype = resolve_dtype(precision)
    return torch.autocast(torch.device(device).type, dtype) if dtype != torch.float32 else nullcontext()


def inference_step(model: nn.Module, x: Tensor) -> Call:
    """A call that runs one forward pass in inference mode.

    Args:
        model: Model on the device of ``x``; set to evaluation mode.
        x: Images ``(B, C, H, W)``; cast to the type of the model's first parameter.
    """
    first = next(model.eval().parameters(), x)
    x = x.to(first.dtype)

    def call() -> None:
        with torch.inference_mode():
            model(x)

    return call


def training_step(model: nn.Module, x: Tensor, precision: str = "fp32") -> Call:
    """A call that runs one training step: forward, cross entropy with class 0 as the target, backward, AdamW.

    Args:
        model: Classifier on the device of ``x``; set to training mode. Each call updates its weights.
        x: Images ``(B, C, H, W)``.
        precision: ``fp32``, or ``bf16`` (autocast; weights stay float32).

    Raises:
        ValueError: The precision is unknown, or the model has no trainable parameters.
    """
    resolve_dtype(precision)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            f"{type(model).__name__} has no trainable parameters (fused and exported models are for inference only); "
            "use the original model"
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
    precision: str = "fp32",
    device: torch.device | str = "cpu",
    sizes: tuple[int, ...] | None = None,
    seconds: float = 0.3,
) -> float:
    """The machine's peak rate in square matrix products, in floating-point operations per second.

    This is what ``torch.matmul`` reaches with the current number of threads, not a data-sheet value. It uses the
    fastest call rather than the median, i.e. the speed of an undisturbed machine.

    Args:
        precision: ``fp32`` or ``bf16``.
        device: Device to measure.
        sizes: Matrix sizes to try; default: 1024 and 2048 on a CPU, 4096 and 8192 elsewhere.
        seconds: Duration of each of three rounds per size.

    Raises:
        ValueError: The precision is unknown.
    """
    dtype = resolve_dtype(precision)
    if sizes is None:
        sizes = (1024, 2048) if torch.device(device).type == "cpu" else (4096, 8192)

    def product(n: int) -> Call:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        return lambda: a @ b

    timings = interleave({n: product(n) for n in sizes}, rounds=3, seconds=seconds, device=device)
    return max(2 * n**3 / min(timing.seconds) for n, timing in timings.items())
