"""Everything about speed on one GPU, in one run of less than nine minutes: SMT-T at 224, bfloat16, batches of 128.

python benchmarks/gpu.py --out gpu.json

In this order: the Triton kernels against the plain modules; each kernel alone, beside the plain form, the bytes that it
cannot avoid to move over its time against the measured bandwidth of a copy; graph breaks and recompilations over batch
sizes; inference, then updates, of the reference (``tests/literal.py``, eager), of ours with and without the kernels,
eager and compiled, of ours fused, and of timm's peers, taking turns, with peak memory. What there is no time for is
named as skipped. What fails is named, the rest goes on, and the exit code is 1.

It needs nothing beside this repository. ``--smoke`` runs the same code on a CPU at sizes of no meaning.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from reference import finish, reference_and_ours
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from smt_vision.benchmark.speed import Call, inference, interleave, training_step
from smt_vision.forms.inference import fuse
from smt_vision.kernels import availability, mhmc, saa
from smt_vision.model import MHMC, SAA

PRECISION = "bf16-mixed"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # of a tensor's norm, against float64
FOOTPRINT = 512e6  # bytes that a kernel's inputs take turns in: far more than a second-level cache holds
LAUNCHING = 100_000_000  # cycles, some 50 ms, that the device is kept busy while Python launches what is timed
RESERVE_S = 180.0  # of the run, kept from inference for training

Form = Callable[[Any, Tensor], Tensor]  # of a module and its input


@dataclass(frozen=True)
class Plan:
    """What is measured: at full size, or so small that it only shows that the code runs."""

    device: str
    model: str
    size: int
    batch_size: int
    peers: tuple[str, ...]
    backend: str  # of torch.compile
    compile_s: float  # to allow for one model
    rounds: int
    turn_s: float


FULL = Plan("cuda", "smt_tiny", 224, 128, ("swin_tiny_patch4_window7_224", "convnext_tiny"), "inductor", 60.0, 5, 0.3)
SMOKE = Plan("cpu", "smt_atto", 32, 2, ("convnext_atto",), "eager", 0.0, 1, 0.0)


class Run:
    """The time that is left, and what came to nothing: skipped for want of it, or failed."""

    def __init__(self, seconds: float) -> None:
        self.start, self.seconds = time.monotonic(), seconds
        self.skipped: list[str] = []
        self.failed: list[str] = []

    def spent(self) -> float:
        return time.monotonic() - self.start

    def allows(self, what: str, seconds: float) -> bool:
        """Whether so many seconds are left; if not, ``what`` is noted as skipped."""
        left = self.seconds - self.spent()
        if left < seconds:
            self.skipped.append(f"{what}: needs {seconds:.0f} s, {left:.0f} s are left")
            print(f"skipped, {self.skipped[-1]}", flush=True)
        return left >= seconds

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """Report ``what``; should it fail, note that and go on: a GPU may be lent for this one run."""
        try:
            yield
        except Exception as error:
            self.failed.append(f"{what}: {type(error).__name__}: {error}")
            print(f"FAILED, {self.failed[-1][:500]}", flush=True)
        else:
            print(f"{self.spent():4.0f} s  {what}", flush=True)


@contextmanager
def kernels(on: bool) -> Iterator[None]:
    """The Triton kernels on, where they can run, or off."""
    before = availability.HAS_TRITON
    availability.HAS_TRITON = before and on
    try:
        yield
    finally:
        availability.HAS_TRITON = before


def off(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


def grids(plan: Plan) -> list[tuple[int, int]]:
    """Side of the grid and channels of each stage that modulates."""
    model = timm.create_model(plan.model)
    infos = zip(model.feature_info, model.patterns, strict=True)
    return [(plan.size // info["reduction"], info["num_chs"]) for info, pattern in infos if "S" in pattern]


# --- the kernels alone ---


@dataclass(frozen=True)
class Part:
    """One of the fused parts in both its forms.

    Attributes:
        module: the modules that it fuses.
        plain, fused: of the module and an input.
        shape: of the input, ``(B, H, W, ...)``.
        forward, backward: bytes that have to be moved, in elements of the input: read once, written once.
    """

    name: str
    module: nn.Module
    plain: Form
    fused: Form
    shape: tuple[int, ...]
    forward: float
    backward: float | None


def parts(batch_size: int, side: int, dim: int, device: str) -> list[Part]:
    """MHMC and SAA's expansion, in training and in evaluation, at one stage's size."""

    def convolve(m: MHMC, s: Tensor) -> Tensor:
        return mhmc.convolve(s, [conv.weight for conv in m.convs], [conv.bias for conv in m.convs])

    def expand(m: SAA, x: Tensor) -> Tensor:
        return m.act(m.norm(m.expand(x.flatten(-2).permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)

    def fused_expand(m: SAA, x: Tensor) -> Tensor:
        return saa.expand_norm_gelu(x, m.expand, m.norm)

    grid, heads, ratio = (batch_size, side, side), 4, 2
    train, evaluate = SAA(dim, heads, ratio).to(device), SAA(dim, heads, ratio).to(device).eval().requires_grad_(False)
    # Running statistics must not change between a forward pass and its backward pass, which here comes much later.
    train.norm = nn.BatchNorm2d(dim * ratio, track_running_stats=False, device=device)
    grouped = (*grid, dim // heads, heads)
    return [
        Part("MHMC", MHMC(dim, heads).to(device), MHMC.forward, convolve, (*grid, dim), 2, 3),
        Part("SAA, training", train, expand, fused_expand, grouped, 1 + ratio, 2 + ratio),
        Part("SAA, evaluation", evaluate, expand, fused_expand, grouped, 1 + ratio, None),
    ]


def gradients(form: Form, module: nn.Module, x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The output; of a module in training also the gradients to the input and the parameters, from one of ``dtype``."""
    x = x.clone().requires_grad_(module.training)
    out = form(module, x)
    if not module.training:
        return [out]
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(x.device, dtype).to(out.dtype)
    found = torch.autograd.grad(out, [x, *module.parameters()], grad, allow_unused=True)
    return [out, *(g for g in found if g is not None)]


def correctness(plan: Plan) -> list[dict[str, Any]]:
    """Both forms of each part, in float32 and bfloat16, against the plain one in float64."""
    rows = []
    for side, dim in grids(plan):
        for part in parts(2, side, dim, plan.device):
            for dtype in TOLERANCE:
                x = torch.randn(part.shape, device=plan.device).to(dtype)
                exact = gradients(part.plain, copy.deepcopy(part.module).double(), x.double(), dtype)
                errors: dict[str, float] = {}
                for name, form, on in (("plain", part.plain, False), ("kernels", part.fused, True)):
                    with kernels(on), torch.autocast(plan.device, dtype, enabled=dtype != torch.float32):
                        found = gradients(form, copy.deepcopy(part.module), x, dtype)
                    size = exact[0].norm()  # a tensor of gradients that is nothing but rounding has no norm to speak of
                    errors[name] = max(off(f, e) for f, e in zip(found, exact, strict=True) if e.norm() > 1e-6 * size)
                if not errors["kernels"] <= TOLERANCE[dtype]:
                    raise AssertionError(
                        f"{part.name} at {part.shape} in {dtype}: the kernels are off by {errors['kernels']:.1e} of "
                        f"the norm, {TOLERANCE[dtype]:.0e} is allowed (the plain form: {errors['plain']:.1e})"
                    )
                rows.append({"part": part.name, "shape": part.shape, "dtype": str(dtype), **errors})
    return rows


def device_times(calls: dict[Any, Call], plan: Plan) -> dict[Any, float]:
    """Median seconds of each call's work on the device, without what Python takes to launch it; in turns."""

    def timed(call: Call) -> float:
        if plan.device == "cpu":
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(LAUNCHING)  # the work queues up behind it, so that the device never waits for Python
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3

    for call in calls.values():
        call()
    times = [{key: timed(call) for key, call in calls.items()} for _ in range(4 * plan.rounds)]
    return {key: median(turn[key] for turn in times) for key in calls}


def copy_bandwidth(plan: Plan) -> float:
    """Bytes a second of a device-to-device copy, read and written."""
    count = int(1e9) if plan.device == "cuda" else 1000
    source, target = (torch.empty(count, dtype=torch.uint8, device=plan.device) for _ in range(2))
    return 2 * count / device_times({"copy": lambda: target.copy_(source)}, plan)["copy"]


def kernel_times(plan: Plan, bandwidth: float) -> list[dict[str, Any]]:
    """Each part's forward and backward pass in bfloat16: both forms, and the fused one against the floor."""
    rows = []
    for side, dim in grids(plan):
        for part in parts(plan.batch_size, side, dim, plan.device):
            x = torch.randn(part.shape, device=plan.device).bfloat16()
            copies = 1 if plan.device == "cpu" else max(1, min(16, round(FOOTPRINT / (2 * x.numel()))))
            inputs = [x.clone().requires_grad_(part.module.training) for _ in range(copies)]
            calls: dict[tuple[str, str], Call] = {}
            for name, form, on in (("plain", part.plain, False), ("kernels", part.fused, True)):
                with kernels(on), torch.autocast(plan.device, torch.bfloat16):
                    forward, backward = both_ways(form, part.module, inputs)
                calls["forward", name] = with_kernels(on, forward)
                if part.backward is not None:
                    calls["backward", name] = backward
            times = {key: seconds / copies for key, seconds in device_times(calls, plan).items()}
            for way, factor in (("forward", part.forward), ("backward", part.backward)):
                if factor is None:
                    continue
                plain, fused, floor = times[way, "plain"], times[way, "kernels"], factor * 2 * x.numel()
                rows.append(
                    {
                        "part": part.name,
                        "way": way,
                        "shape": part.shape,
                        "us": 1e6 * fused,
                        "plain_us": 1e6 * plain,
                        "ratio": plain / fused,
                        "floor_bytes": floor,
                        "bytes_per_s": floor / fused,
                        "share_of_copy": floor / fused / bandwidth,
                    }
                )
    return rows


def both_ways(form: Form, module: nn.Module, inputs: list[Tensor]) -> tuple[Call, Call]:
    """A forward pass over all inputs, and a backward pass through one made before."""

    def forward() -> None:
        with torch.no_grad(), torch.autocast(inputs[0].device.type, torch.bfloat16):
            for x in inputs:
                form(module, x)

    outs = [form(module, x) for x in inputs] if module.training else []

    def backward() -> None:
        for x, out in zip(inputs, outs, strict=True):
            torch.autograd.grad(out, [x, *module.parameters()], out.detach(), retain_graph=True, allow_unused=True)

    return forward, backward


# --- the compiler ---


def compiler(plan: Plan) -> dict[str, int]:
    """Graphs that a model becomes over three batch sizes, each whole: 1 means no break and no recompilation.

    Of the smallest variant, which is quick to trace: its code is that of all.
    """
    model, graphs = timm.create_model("smt_atto").to(plan.device), {}
    for way, train in (("inference", False), ("training", True)):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(model.train(train), fullgraph=True, backend=counter)
        for batch_size in (plan.batch_size, plan.batch_size + 1, 2 * plan.batch_size + 1):
            x = torch.randn(batch_size, 3, plan.size, plan.size, device=plan.device)
            torch._dynamo.mark_dynamic(x, 0)
            with kernels(True), torch.set_grad_enabled(train), torch.autocast(plan.device, torch.bfloat16):
                out = compiled(x)
            if train:
                out.sum().backward()
        graphs[way] = counter.frame_count
    return graphs


# --- whole models ---


@dataclass(frozen=True)
class Entry:
    """A model that takes part: its name, what runs, and whether with the kernels and compiled."""

    name: str
    model: nn.Module
    kernels: bool
    compiled: bool


def entries(plan: Plan, reference: nn.Module, ours: nn.Module, train: bool) -> list[Entry]:
    """Those that take part, the most wanted first. Every one has parameters of its own."""
    fused = [] if train else [("fused", fuse(ours), True)]
    peers = [(name, timm.create_model(name, **peer_args(name, plan)).to(plan.device), False) for name in plan.peers]
    plain = [("ours, no kernels", copy.deepcopy(ours), False), ("ours", copy.deepcopy(ours), True)]
    eager = [
        Entry(name, model, on, False) for name, model, on in [("reference", reference, False), *plain, *fused, *peers]
    ]
    order = [plain[1], *fused, plain[0], *peers]
    return eager + [Entry(f"{name}, compiled", copy.deepcopy(model), on, True) for name, model, on in order]


def peer_args(name: str, plan: Plan) -> dict[str, Any]:
    return {"img_size": plan.size} if name.startswith("swin") else {}


def model_times(plan: Plan, run: Run, reference: nn.Module, ours: nn.Module, train: bool) -> list[dict[str, Any]]:
    """Images a second, the ratio to the reference, and peak memory, of each model that there is time for."""
    way = "training" if train else "inference"
    form = training_step if train else inference
    x = torch.randn(plan.batch_size, 3, plan.size, plan.size, device=plan.device)
    calls: dict[str, Call] = {}
    memory: dict[str, int | None] = {}
    wanted = entries(plan, reference, ours, train)
    after = 2 * plan.rounds * plan.turn_s * len(wanted) + (0 if train or plan.device == "cpu" else RESERVE_S)
    torch._dynamo.reset()
    for entry in wanted:
        name = f"{way}, {entry.name}"
        if not run.allows(name, after + (plan.compile_s if entry.compiled else 0)):
            continue
        with run.part(name):
            model = torch.compile(entry.model, fullgraph=True, backend=plan.backend) if entry.compiled else entry.model
            call = with_kernels(entry.kernels, form(model, x, PRECISION))
            call()
            calls[entry.name], memory[entry.name] = call, peak_memory(call, plan.device)
    timings = interleave(calls, rounds=plan.rounds, seconds=plan.turn_s, device=plan.device)
    return [
        {
            "way": way,
            "model": name,
            "ms": 1e3 * timing.median,
            "iqr_ms": 1e3 * timing.iqr,
            "images_per_s": plan.batch_size / timing.median,
            "ratio": timings["reference"].median / timing.median,
            "peak_memory": memory[name],
        }
        for name, timing in timings.items()
    ]


def with_kernels(on: bool, call: Call) -> Call:
    def switched() -> None:
        with kernels(on):
            call()

    return switched


def peak_memory(call: Call, device: str) -> int | None:
    """Bytes that a call takes at most, beside what is allocated before it."""
    if device != "cuda":
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


# --- what is printed ---


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Markdown, aligned so that it reads as it is."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [head, tuple("-" * width for width in widths), *rows]
    return "\n".join(
        "| " + " | ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )


def report(results: dict[str, Any]) -> str:
    """The models' and the kernels' tables."""
    models = [
        (
            row["way"],
            row["model"],
            f"{row['images_per_s']:.0f}",
            f"{row['ms']:.2f}",
            f"{row['iqr_ms']:.2f}",
            f"{row['ratio']:.2f}",
            "" if row["peak_memory"] is None else f"{row['peak_memory'] / 2**30:.2f}",
        )
        for row in results["models"]
    ]
    alone = [
        (
            row["part"],
            row["way"],
            " x ".join(map(str, row["shape"])),
            f"{row['us']:.0f}",
            f"{row['plain_us']:.0f}",
            f"{row['ratio']:.1f}",
            f"{row['floor_bytes'] / 1e6:.0f}",
            f"{100 * row['share_of_copy']:.0f}",
        )
        for row in results["kernels"]
    ]
    return "\n\n".join(
        (
            table(("", "model", "images/s", "ms", "IQR", "x reference", "peak GiB"), models),
            f"A copy moves {results['copy_bytes_per_s'] / 1e9:.0f} GB/s, read and written.",
            table(("kernel", "", "input", "us", "plain us", "x plain", "floor MB", "% of a copy"), alone),
            f"Graphs over three batch sizes (1: no break, no recompilation): {results['graphs']}",
        )
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--smoke", action="store_true", help="on a CPU, at tiny sizes: does it run?")
    options.add_argument("--seconds", type=float, default=510.0, help="to spend, at most")
    options.add_argument("--out", type=Path, help="a JSON file to write")
    args = options.parse_args()
    if not args.smoke and not torch.cuda.is_available():
        print("there is no CUDA device here; --smoke runs the code on a CPU", file=sys.stderr)
        raise SystemExit(2)
    plan, run = SMOKE if args.smoke else FULL, Run(args.seconds)
    torch.manual_seed(0)
    reference, ours = (model.to(plan.device) for model in reference_and_ours(plan.model))
    results: dict[str, Any] = {"plan": plan.__dict__, "correctness": [], "kernels": [], "graphs": {}, "models": []}
    results["copy_bytes_per_s"] = copy_bandwidth(plan)
    if availability.triton_is_supported(torch.zeros(1, device=plan.device)):
        with run.part("the kernels agree with the plain form"):
            results["correctness"] = correctness(plan)
        with run.part("the kernels alone"):
            results["kernels"] = kernel_times(plan, results["copy_bytes_per_s"])
    else:
        run.skipped.append("the kernels alone: they cannot run here")
    with run.part("the compiler's graphs"):
        results["graphs"] = compiler(plan)
    for train in (False, True):
        results["models"] += model_times(plan, run, reference, ours, train)
    results |= {"skipped": run.skipped, "failed": run.failed, "seconds": run.spent()}
    print(report(results))
    finish(args, results)
    raise SystemExit(1 if run.failed else 0)


if __name__ == "__main__":
    main()
