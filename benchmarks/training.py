"""Training on the CPU: speed and memory of a training step, ours against the reference, and their gradients.

    python benchmarks/training.py --out training.json

A training step is forward, cross entropy, backward and AdamW, in float32 or, with ``--precision bf16``, under autocast;
gradients are compared in float32. Prints images/s and the ratio of medians to the
reference; the activations saved for the backward pass, with and without ``set_grad_checkpointing``; and the difference
between the gradients of one batch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import reference_parser, write_results
from reference import reference_and_ours
from smt_vision.allocator import keep_large_allocations
from smt_vision.benchmark.compare import Candidate, compare
from smt_vision.benchmark.memory import saved_activations
from smt_vision.benchmark.timing import autocast, training_step
from smt_vision.model.official import to_official
from smt_vision.precision import PRECISIONS

# Relative to the norm of the whole gradient. Below it a tensor's gradient is rounding error only, e.g. that of a bias
# before BatchNorm, so that a relative difference means nothing.
ROUNDING = 1e-5
PROFILED_STEPS = 3
PROFILED_OPERATORS = 15


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Gradients by parameter name of the cross entropy with targets 0, 1, 2, ..."""
    model.train().zero_grad()
    F.cross_entropy(model(x), torch.arange(len(x))).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def gradient_difference(reference: nn.Module, ours: nn.Module, x: Tensor) -> dict[str, Any]:
    """Relative difference in norm between both models' gradients: of all tensors as one vector, and of the worst."""
    expected, found = gradients(reference, x), to_official(gradients(ours, x))
    norms = {name: grad.norm().item() for name, grad in expected.items()}
    differences = {name: (found[name] - grad).norm().item() for name, grad in expected.items()}
    total = math.hypot(*norms.values())
    relative = {name: differences[name] / norms[name] for name in norms if norms[name] > ROUNDING * total}
    worst = max(relative, key=lambda name: relative[name])
    return {
        "all": math.hypot(*differences.values()) / total,
        "worst": relative[worst],
        "worst_name": worst,
        "tensors": len(relative),
        "rounding_only": len(norms) - len(relative),
    }


def saved_with_checkpointing(model: str, x: Tensor, precision: str) -> float:
    """Saved activations in bytes per image with activation checkpointing."""
    checkpointed: Any = timm.create_model(model)
    checkpointed.set_grad_checkpointing(True)
    with autocast(x.device, precision):
        return saved_activations(checkpointed.train(), x) / len(x)


def profile(model: nn.Module, x: Tensor, precision: str) -> list[dict[str, Any]]:
    """The operators that take most of the time of a training step, as measured by PyTorch's profiler."""
    step = training_step(model, x, precision)
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(PROFILED_STEPS):
            step()
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    return [
        {
            "operator": row.key,
            "calls": row.count / PROFILED_STEPS,
            "ms": row.self_cpu_time_total / 1e3 / PROFILED_STEPS,
            "share": row.self_cpu_time_total / total,
        }
        for row in rows[:PROFILED_OPERATORS]
    ]


def print_report(results: Mapping[str, Any]) -> None:
    for step in results["steps"]:
        print(
            f"{step['model']:<10}{step['images_per_s']:>7.2f} images/s, {step['ratio']:.2f} x the reference, "
            f"{step['p50_ms']:.0f} ms per step (IQR {step['iqr_ms']:.0f}), "
            f"{step['saved_activations'] / 1e6:.1f} MB saved per image"
        )
    print(f"ours with set_grad_checkpointing: {results['saved_activations_checkpointed'] / 1e6:.1f} MB saved per image")
    grads = results["gradients"]
    print(
        f"relative difference of gradients: {grads['all']:.1e} over all tensors, {grads['worst']:.1e} for the worst of "
        f"{grads['tensors']} tensors ({grads['worst_name']}); {grads['rounding_only']} tensors with rounding error "
        "only are left out"
    )
    for name, rows in results.get("profile", {}).items():
        print(f"profile of a training step, {name}:")
        for row in rows:
            print(f"{100 * row['share']:>7.1f} %{row['ms']:>8.0f} ms  {row['calls']:>6.0f} x {row['operator']}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = reference_parser(__doc__)
    parser.add_argument("--profile", action="store_true", help="also profile a training step by operator")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    keep_large_allocations()  # as smt train does
    reference, ours = reference_and_ours(args.model)
    size = (3, args.size, args.size)
    x = torch.randn(args.batch_size, *size)
    difference = gradient_difference(reference, ours, x)
    candidates = [Candidate("reference", reference, size, ours), Candidate("ours", ours, size, ours)]
    steps = compare(
        candidates,
        [args.batch_size],
        train=True,
        precision=args.precision,
        rounds=args.rounds,
        seconds=args.seconds,
    )
    results: dict[str, Any] = {
        "gradients": difference,
        "steps": [step.to_dict() for step in steps],
        "saved_activations_checkpointed": saved_with_checkpointing(args.model, x, args.precision),
    }
    if args.profile:
        results["profile"] = {
            name: profile(model, x, args.precision) for name, model in (("reference", reference), ("ours", ours))
        }
    print_report(results)
    write_results(args.out, results, precision=args.precision)


if __name__ == "__main__":
    main()
