"""Correctness and speed of the Triton kernels on one device, each against the PyTorch modules that it replaces."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from smt_vision.benchmark.timing import Call
from smt_vision.kernels import availability, mhmc, saa
from smt_vision.model.modulation import MHMC, SAA

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # relative error in norm, against float64
NEGLIGIBLE = 1e-6  # relative to the output's norm: a gradient of smaller norm is rounding error only
INPUT_BYTES = 512e6  # of the inputs that a kernel cycles through: far larger than the L2 cache
SLEEP_CYCLES = 100_000_000  # about 50 ms, in which Python launches the work to be timed
TURNS = 4  # per round

Function = Callable[[Any, Tensor], Tensor]  # called with a module and its input
Grid = tuple[int, int]  # height and width in tokens, and channels


@contextmanager
def use_kernels(enabled: bool) -> Iterator[None]:
    """Enable the Triton kernels where supported, or disable them."""
    before = availability.HAS_TRITON
    availability.HAS_TRITON = before and enabled
    try:
        yield
    finally:
        availability.HAS_TRITON = before


def with_kernels(enabled: bool, call: Call) -> Call:
    """The call inside :func:`use_kernels`."""

    def wrapped() -> None:
        with use_kernels(enabled):
            call()

    return wrapped


@dataclass(frozen=True)
class Case:
    """A kernel and the module that it replaces.

    Attributes:
        name: Name of the module and its mode.
        module: Module whose parameters both implementations use.
        plain: PyTorch implementation.
        kernel: Triton implementation.
        shape: Input shape ``(B, H, W, ...)``.
        forward: Minimum memory traffic of the forward pass in inputs: each tensor is read or written once.
        backward: The same for the backward pass; ``None`` if there is none.
    """

    name: str
    module: nn.Module
    plain: Function
    kernel: Function
    shape: tuple[int, ...]
    forward: float
    backward: float | None

    @property
    def implementations(self) -> tuple[tuple[str, Function, bool], ...]:
        """Name, function, and whether kernels are enabled."""
        return ("plain", self.plain, False), ("kernel", self.kernel, True)


def cases(batch_size: int, grid: Grid, device: str) -> list[Case]:
    """MHMC, and SAA's expansion in training and in evaluation, at the size of one stage."""

    def convolve(m: MHMC, s: Tensor) -> Tensor:
        weights, biases = ([conv.get_parameter(name) for conv in m.convs] for name in ("weight", "bias"))
        return mhmc.convolve(s, weights, biases)

    def expand(m: SAA, x: Tensor) -> Tensor:
        return m.act(m.norm(m.expand(x.flatten(-2).permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)

    def expand_kernel(m: SAA, x: Tensor) -> Tensor:
        return saa.expand_norm_gelu(x, m.expand, m.norm)

    (side, dim), heads, ratio = grid, 4, 2
    shape = (batch_size, side, side)
    grouped = (*shape, dim // heads, heads)
    train, evaluate = SAA(dim, heads, ratio).to(device), SAA(dim, heads, ratio).to(device).eval().requires_grad_(False)
    # No running statistics: they would change between a forward pass and its backward pass, which are timed apart.
    train.norm = nn.BatchNorm2d(dim * ratio, track_running_stats=False, device=device)
    return [
        Case("MHMC", MHMC(dim, heads).to(device), MHMC.forward, convolve, (*shape, dim), 2, 3),
        Case("SAA, training", train, expand, expand_kernel, grouped, 1 + ratio, 2 + ratio),
        Case("SAA, evaluation", evaluate, expand, expand_kernel, grouped, 1 + ratio, None),
    ]


# --- correctness ---


def output_and_gradients(function: Function, module: nn.Module, x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The output and, for a module in training mode, the gradients of input and parameters.

    The gradient of the output is random in ``dtype``, and the same for every implementation.
    """
    x = x.clone().requires_grad_(module.training)
    out = function(module, x)
    if not module.training:
        return [out]
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(x.device, dtype).to(out.dtype)
    found = torch.autograd.grad(out, [x, *module.parameters()], grad, allow_unused=True)
    return [out, *(g for g in found if g is not None)]


def relative_error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Largest relative error in norm of tensors that are more than rounding error."""
    scale = exact[0].norm()
    pairs = [(f.double(), e) for f, e in zip(found, exact, strict=True) if e.norm() > NEGLIGIBLE * scale]
    return max(((f - e).norm() / e.norm()).item() for f, e in pairs)


def check_kernels(grids: Sequence[Grid], device: str) -> list[dict[str, Any]]:
    """Errors of both implementations in float32 and bfloat16 against PyTorch in float64.

    Raises:
        AssertionError: The error of a kernel exceeds the tolerance.
    """
    rows = []
    for case in (case for grid in grids for case in cases(2, grid, device)):
        for dtype, tolerance in TOLERANCE.items():
            x = torch.randn(case.shape, device=device).to(dtype)
            exact = output_and_gradients(case.plain, copy.deepcopy(case.module).double(), x.double(), dtype)
            errors: dict[str, float] = {}
            for name, function, enabled in case.implementations:
                with use_kernels(enabled), torch.autocast(device, dtype, enabled=dtype != torch.float32):
                    found = output_and_gradients(function, copy.deepcopy(case.module), x, dtype)
                errors[name] = relative_error(found, exact)
            if not errors["kernel"] <= tolerance:
                raise AssertionError(
                    f"{case.name} at {case.shape} in {dtype}: relative error {errors['kernel']:.1e} of the kernel "
                    f"exceeds {tolerance:.0e} (plain: {errors['plain']:.1e})"
                )
            rows.append({"case": case.name, "shape": case.shape, "dtype": str(dtype), **errors})
    return rows


# --- speed ---


def device_times(calls: dict[Any, Call], device: str, rounds: int) -> dict[Any, float]:
    """Median seconds of each call's work on the device, without launch overhead; the calls take turns."""

    def timed(call: Call) -> float:
        if device == "cpu":
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(SLEEP_CYCLES)  # work queues up behind it, so that the device never waits for Python
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3

    for call in calls.values():
        call()
    times = [{key: timed(call) for key, call in calls.items()} for _ in range(TURNS * rounds)]
    return {key: median(turn[key] for turn in times) for key in calls}


def copy_bandwidth(device: str, rounds: int) -> float:
    """Bytes per second, read plus written, of a copy on the device."""
    count = int(1e9) if device == "cuda" else 1000
    source, target = (torch.empty(count, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * count / device_times({"copy": lambda: target.copy_(source)}, device, rounds)["copy"]


def time_kernels(
    grids: Sequence[Grid], batch_size: int, device: str, rounds: int, bandwidth: float
) -> list[dict[str, Any]]:
    """Times of forward and backward passes in bfloat16, and the kernels' memory bandwidth relative to a copy's."""
    return [
        row
        for grid in grids
        for case in cases(batch_size, grid, device)
        for row in _time_case(case, device, rounds, bandwidth)
    ]


def _time_case(case: Case, device: str, rounds: int, bandwidth: float) -> list[dict[str, Any]]:
    x = torch.randn(case.shape, device=device).bfloat16()
    input_bytes = 2 * x.numel()
    copies = 1 if device == "cpu" else max(1, min(16, round(INPUT_BYTES / input_bytes)))
    inputs = [x.clone().requires_grad_(case.module.training) for _ in range(copies)]
    calls: dict[tuple[str, str], Call] = {}
    for name, function, enabled in case.implementations:
        with use_kernels(enabled), torch.autocast(device, torch.bfloat16):
            forward, backward = _passes(function, case.module, inputs)
        calls["forward", name] = with_kernels(enabled, forward)
        if case.backward is not None:
            calls["backward", name] = backward
    times = {key: seconds / copies for key, seconds in device_times(calls, device, rounds).items()}
    rows = []
    for direction, traffic in (("forward", case.forward), ("backward", case.backward)):
        if traffic is not None:
            plain, kernel = times[direction, "plain"], times[direction, "kernel"]
            rows.append(
                {
                    "case": case.name,
                    "direction": direction,
                    "shape": case.shape,
                    "us": 1e6 * kernel,
                    "plain_us": 1e6 * plain,
                    "ratio": plain / kernel,
                    "min_bytes": traffic * input_bytes,
                    "bytes_per_s": traffic * input_bytes / kernel,
                    "share_of_copy": traffic * input_bytes / kernel / bandwidth,
                }
            )
    return rows


def _passes(function: Function, module: nn.Module, inputs: list[Tensor]) -> tuple[Call, Call]:
    """Calls of forward passes over all inputs, and of backward passes through graphs that are built here."""

    def forward() -> None:
        with torch.no_grad(), torch.autocast(inputs[0].device.type, torch.bfloat16):
            for x in inputs:
                function(module, x)

    outs = [function(module, x) for x in inputs] if module.training else []

    def backward() -> None:
        for x, out in zip(inputs, outs, strict=True):
            torch.autograd.grad(out, [x, *module.parameters()], out.detach(), retain_graph=True, allow_unused=True)

    return forward, backward
