"""All GPU measurements in one run of less than nine minutes: SMT-T, 224 pixels, bfloat16, batches of 128.

    python benchmarks/gpu.py --out gpu.json

In this order: correctness of the Triton kernels against the PyTorch modules; the speed of each kernel, and its memory
bandwidth relative to that of a copy; graph breaks and recompilations of ``torch.compile`` over batch sizes; inference
and then training of the reference (``tests/literal.py``, eager), of ours with and without kernels, eager and compiled,
of ours fused, and of timm baselines, timed in turn, with peak memory; and the kernels whose time differs most between
training steps of ours. Measurements for which no time is left are reported as skipped. If one fails, it is reported,
the others continue, and the exit code is 1.

``--parts`` chooses some of the measurements. ``--smoke`` runs the same code on a CPU at sizes whose times mean nothing.
"""

import copy
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast

import timm
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import DeviceType

from common import base_parser, write_results
from gpu_kernels import Grid, check_kernels, copy_bandwidth, time_kernels, use_kernels, with_kernels
from reference import reference_and_ours
from smt_vision.benchmark.report import markdown_table
from smt_vision.benchmark.timing import Call, Timing, inference_step, interleave, training_step
from smt_vision.forms.inference import AutocastModel, fuse
from smt_vision.kernels import availability

PRECISION = "bf16"
PARTS = ("kernels", "graphs", "inference", "training", "profile")
PROFILED_STEPS, PROFILED_OPERATORS = 20, 15
TRAINING_SHARE = 0.35  # of the time budget: not available to inference


@dataclass(frozen=True)
class Plan:
    """What to measure: at full size, or small enough to check that the code runs."""

    device: str
    model: str
    size: int
    batch_size: int
    baselines: tuple[str, ...]
    backend: str  # of torch.compile
    compile_s: float  # time to allow for compiling one model
    rounds: int
    turn_s: float


FULL = Plan("cuda", "smt_tiny", 224, 128, ("swin_tiny_patch4_window7_224", "convnext_tiny"), "inductor", 40.0, 5, 0.2)
SMOKE = Plan("cpu", "smt_atto", 32, 2, ("convnext_atto",), "eager", 0.0, 1, 0.0)


class Budget:
    """Time budget of the run, and what was skipped or failed."""

    def __init__(self, seconds: float) -> None:
        self.start, self.seconds = time.monotonic(), seconds
        self.skipped: list[str] = []
        self.failed: list[str] = []

    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def allows(self, name: str, seconds: float) -> bool:
        """Whether this many seconds are left; otherwise the measurement is reported as skipped."""
        left = self.seconds - self.spent()
        if left < seconds:
            self.skipped.append(f"{name}: needs {seconds:.0f} s, {left:.0f} s are left")
            print(f"skipped: {self.skipped[-1]}", flush=True)
        return left >= seconds

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Report a measurement when it is done. A failure is reported too, and does not end the run."""
        try:
            yield
        except Exception as error:
            self.failed.append(f"{name}: {type(error).__name__}: {error}")
            print(f"FAILED: {self.failed[-1][:500]}", flush=True)
        else:
            print(f"{self.spent():4.0f} s  {name}", flush=True)


def modulation_grids(plan: Plan) -> list[Grid]:
    """Side of the token grid and channels of each stage that has modulation blocks."""
    model: Any = timm.create_model(plan.model)
    infos = zip(model.feature_info, model.patterns, strict=True)
    return [(plan.size // info["reduction"], info["num_chs"]) for info, pattern in infos if "S" in pattern]


def count_graphs(plan: Plan) -> dict[str, int]:
    """Number of graphs that ``torch.compile`` makes over three batch sizes; 1: no graph break and no recompilation.

    Of the smallest variant, which is the fastest to compile: the code of all variants is the same.
    """
    model, graphs = timm.create_model("smt_atto").to(plan.device), {}
    for mode, train in (("inference", False), ("training", True)):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(model.train(train), fullgraph=True, backend=counter)
        for batch_size in (plan.batch_size, plan.batch_size + 1, 2 * plan.batch_size + 1):
            x = torch.randn(batch_size, 3, plan.size, plan.size, device=plan.device)
            torch._dynamo.mark_dynamic(x, 0)
            with use_kernels(True), torch.set_grad_enabled(train), torch.autocast(plan.device, torch.bfloat16):
                out = compiled(x)
            if train:
                out.sum().backward()
        graphs[mode] = counter.frame_count
    return graphs


@dataclass(frozen=True)
class Entry:
    """A model to time, and whether to enable the kernels and to compile it."""

    name: str
    model: nn.Module
    kernels: bool
    compiled: bool = False


def entries(plan: Plan, reference: nn.Module, ours: nn.Module, train: bool) -> list[Entry]:
    """Models in order of importance; no two share parameters."""
    without_kernels = Entry("ours, no kernels", copy.deepcopy(ours), False)
    with_them = Entry("ours", copy.deepcopy(ours), True)
    fused = [] if train else [Entry("fused", fuse(ours), True)]
    baselines = [Entry(name, _baseline(name, plan), False) for name in plan.baselines]
    eager = [Entry("reference", reference, False), without_kernels, with_them, *fused, *baselines]
    to_compile = [with_them, *fused, without_kernels, *baselines]
    compiled = [Entry(f"{e.name}, compiled", copy.deepcopy(e.model), e.kernels, True) for e in to_compile]
    return eager + compiled


def _baseline(name: str, plan: Plan) -> nn.Module:
    arguments: dict[str, Any] = {"img_size": plan.size} if name.startswith("swin") else {}
    return timm.create_model(name, **arguments).to(plan.device)


def time_models(
    plan: Plan, budget: Budget, reference: nn.Module, ours: nn.Module, train: bool, reserve_s: float
) -> list[dict[str, Any]]:
    """Images per second, ratio to the reference and peak memory of each model that the budget allows.

    ``reserve_s`` seconds of the budget are left to later measurements.
    """
    mode = "training" if train else "inference"
    x = torch.randn(plan.batch_size, 3, plan.size, plan.size, device=plan.device)
    calls: dict[str, Call] = {}
    memory: dict[str, int | None] = {}
    models = entries(plan, reference, ours, train)
    timing_s = 2 * plan.rounds * plan.turn_s * len(models)
    torch._dynamo.reset()
    for entry in models:
        name = f"{mode}, {entry.name}"
        if not budget.allows(name, reserve_s + timing_s + (plan.compile_s if entry.compiled else 0)):
            continue
        with budget.step(name):
            model = entry.model
            if entry.compiled:
                model = cast(nn.Module, torch.compile(model, fullgraph=True, backend=plan.backend))
            autocast = AutocastModel(model, torch.bfloat16)
            step = training_step(model, x, PRECISION) if train else inference_step(autocast, x)
            call = with_kernels(entry.kernels, step)
            call()
            calls[entry.name], memory[entry.name] = call, peak_memory(call, plan.device)
    timings = interleave(calls, rounds=plan.rounds, seconds=plan.turn_s, device=plan.device)
    return [
        {
            "mode": mode,
            "model": name,
            "ms": 1e3 * timing.median,
            "iqr_ms": 1e3 * timing.iqr,
            "images_per_s": plan.batch_size / timing.median,
            "ratio": timings["reference"].median / timing.median,
            "peak_memory": memory[name],
        }
        for name, timing in timings.items()
    ]


def profile_training(plan: Plan, ours: nn.Module) -> list[dict[str, Any]]:
    """Kernels, or operators on a CPU, in order of the interquartile range of their time per training step."""
    x = torch.randn(plan.batch_size, 3, plan.size, plan.size, device=plan.device)
    step = with_kernels(True, training_step(ours, x, PRECISION))
    cuda = plan.device == "cuda"
    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    # With the CPU's operators beside the GPU's kernels, 20 steps on an H100 were not done after a minute.
    activities = [torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU]
    times: dict[str, list[float]] = {}
    step()
    steps = PROFILED_STEPS if plan is FULL else 2
    for i in range(steps):
        with torch.profiler.profile(activities=activities) as profiler:
            step()
            torch.get_device_module(plan.device).synchronize()
        for row in profiler.key_averages():
            if row.device_type == kind:
                spent = row.self_device_time_total if cuda else row.self_cpu_time_total
                times.setdefault(row.key, [0.0] * steps)[i] += spent / 1e6
    timings = {name: Timing(tuple(seconds)) for name, seconds in times.items()}
    first = sorted(timings, key=lambda name: -timings[name].iqr)[:PROFILED_OPERATORS]
    return [
        {"operator": name, "median_ms": 1e3 * timings[name].median, "iqr_ms": 1e3 * timings[name].iqr} for name in first
    ]


def peak_memory(call: Call, device: str) -> int | None:
    """Peak memory of a call in bytes, in addition to what is allocated before it; ``None`` on a CPU."""
    if device != "cuda":
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def report(results: dict[str, Any]) -> str:
    """Tables of models and kernels."""
    models = [
        [
            f"{row['mode']}, {row['model']}",
            f"{row['images_per_s']:.0f}",
            f"{row['ms']:.2f}",
            f"{row['iqr_ms']:.2f}",
            f"{row['ratio']:.2f}",
            "" if row["peak_memory"] is None else f"{row['peak_memory'] / 2**30:.2f}",
        ]
        for row in results["models"]
    ]
    kernels = [
        [
            f"{row['case']}, {row['direction']}",
            " x ".join(map(str, row["shape"])),
            f"{row['us']:.0f}",
            f"{row['plain_us']:.0f}",
            f"{row['ratio']:.1f}",
            f"{row['min_bytes'] / 1e6:.0f}",
            f"{100 * row['share_of_copy']:.0f}",
        ]
        for row in results["kernels"]
    ]
    operators = [[row["operator"], f"{row['median_ms']:.3f}", f"{row['iqr_ms']:.3f}"] for row in results["profile"]]
    return "\n".join(
        (
            markdown_table(("model", "images/s", "ms", "IQR ms", "x reference", "peak GiB"), models),
            f"Bandwidth of a copy, read plus written: {results['copy_bytes_per_s'] / 1e9:.0f} GB/s\n",
            markdown_table(("kernel", "input", "us", "plain us", "x plain", "min MB", "% of a copy"), kernels),
            f"Graphs over three batch sizes (1: no break, no recompilation): {results['graphs']}\n",
            markdown_table(("operator of a training step", "median ms", "IQR ms"), operators),
        )
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = base_parser(__doc__)
    parser.add_argument("--smoke", action="store_true", help="check the code on a CPU, at tiny sizes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--seconds", type=float, default=510.0, help="time budget")
    args = parser.parse_args(argv)
    if not args.smoke and not torch.cuda.is_available():
        print("there is no CUDA device here; --smoke runs the code on a CPU", file=sys.stderr)
        raise SystemExit(2)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    plan, budget = SMOKE if args.smoke else FULL, Budget(args.seconds)
    reference, ours = (model.to(plan.device) for model in reference_and_ours(plan.model))
    bandwidth = copy_bandwidth(plan.device, plan.rounds)
    results: dict[str, Any] = {"plan": asdict(plan), "copy_bytes_per_s": bandwidth}
    results |= {"correctness": [], "kernels": [], "graphs": {}, "models": [], "profile": []}
    if "kernels" not in args.parts:
        budget.skipped.append("kernels: not among --parts")
    elif availability.triton_is_supported(torch.zeros(1, device=plan.device)):
        grids = modulation_grids(plan)
        with budget.step("correctness of the kernels"):
            results["correctness"] = check_kernels(grids, plan.device)
        with budget.step("speed of the kernels"):
            results["kernels"] = time_kernels(grids, plan.batch_size, plan.device, plan.rounds, bandwidth)
    else:
        budget.skipped.append("kernels: not supported on this device")
    if "graphs" in args.parts:
        with budget.step("graphs of torch.compile"):
            results["graphs"] = count_graphs(plan)
    if "inference" in args.parts:
        reserve_s = TRAINING_SHARE * budget.seconds if "training" in args.parts and not args.smoke else 0.0
        results["models"] += time_models(plan, budget, reference, ours, False, reserve_s)
    if "training" in args.parts:
        results["models"] += time_models(plan, budget, reference, ours, True, 0.0)
    if "profile" in args.parts:
        with budget.step("profile of training"):
            results["profile"] = profile_training(plan, ours)
    results |= {"skipped": budget.skipped, "failed": budget.failed, "seconds": budget.spent()}
    print(report(results))
    write_results(args.out, results)
    raise SystemExit(1 if budget.failed else 0)


if __name__ == "__main__":
    main()
