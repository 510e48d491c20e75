"""Training on the CPU in float32: an update of the reference and of ours, what each keeps, and that they agree.

python benchmarks/training.py --out training.json

An update is forward, cross entropy, backward and AdamW. Printed are images/s and the ratio of medians to the reference;
the activations saved for the backward pass, without and with ``set_grad_checkpointing``; and how far the gradients of
one batch are from the reference's.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from reference import finish, parser, reference_and_ours
from torch import Tensor, nn

from smt_vision.benchmark.compare import Contender
from smt_vision.benchmark.compare import compare
from smt_vision.benchmark.memory import saved_activations
from smt_vision.benchmark.speed import training_step
from smt_vision.engine.allocator import keep_big_blocks
from smt_vision.model.official import to_official

# Of the norm of the whole gradient: below it a tensor's gradient is rounding alone, as that of a bias in front of a
# BatchNorm, and there is nothing to be relative to.
ROUNDING = 1e-5
PROFILED = 3  # updates


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Of the cross entropy towards classes 0, 1, 2, ..., by name."""
    model.train().zero_grad()
    F.cross_entropy(model(x), torch.arange(len(x))).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def disagreement(reference: nn.Module, ours: nn.Module, x: Tensor) -> dict[str, Any]:
    """How far our gradients are from the reference's, by norm: of all as one vector, and of the worst tensor."""
    expected, found = gradients(reference, x), to_official(gradients(ours, x))
    norms = {name: grad.norm().item() for name, grad in expected.items()}
    off = {name: (found[name] - grad).norm().item() for name, grad in expected.items()}
    total = math.hypot(*norms.values())
    relative = {name: off[name] / norms[name] for name in norms if norms[name] > ROUNDING * total}
    worst = max(relative, key=lambda name: relative[name])
    return {
        "whole": math.hypot(*off.values()) / total,
        "worst": relative[worst],
        "worst_name": worst,
        "tensors": len(relative),
        "rounding_alone": len(norms) - len(relative),
    }


def profile(model: nn.Module, x: Tensor) -> list[dict[str, Any]]:
    """The operators that an update spends most of its time in, by torch's profiler."""
    update = training_step(model, x)
    update()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        for _ in range(PROFILED):
            update()
    rows = sorted(seen.key_averages(), key=lambda row: -row.self_cpu_time_total)
    whole = sum(row.self_cpu_time_total for row in rows)
    return [
        {
            "operator": row.key,
            "calls": row.count / PROFILED,
            "ms": row.self_cpu_time_total / 1e3 / PROFILED,
            "share": row.self_cpu_time_total / whole,
        }
        for row in rows[:15]
    ]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--profile", action="store_true", help="tell where the time of an update goes, too")
    options.add_argument("--batch_size", type=int, default=8)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    keep_big_blocks()  # as smt train does
    reference, ours = reference_and_ours(args.model)
    size = (3, args.size, args.size)
    x = torch.randn(args.batch_size, *size)
    results: dict[str, Any] = {"gradients": disagreement(reference, ours, x)}

    ours.set_grad_checkpointing(True)
    checkpointed = saved_activations(ours.train(), x) / len(x)
    ours.set_grad_checkpointing(False)

    contenders = [Contender("reference", reference, size, ours), Contender("ours", ours, size, ours)]
    steps = compare(contenders, [args.batch_size], train=True, rounds=args.rounds, seconds=args.seconds)
    results |= {"steps": [step.to_dict() for step in steps], "saved_activations_checkpointed": checkpointed}
    for step in steps:
        saved = f"saves {step.saved_activations / 1e6:.1f} MB an image" if step.saved_activations else ""
        print(
            f"{step.model:<10}{step.images_per_s:>7.2f} images/s, {step.ratio:.2f} x the reference, "
            f"{step.p50_ms:.0f} ms an update (IQR {step.iqr_ms:.0f}), {saved}"
        )
    print(f"ours with set_grad_checkpointing saves {checkpointed / 1e6:.1f} MB an image")
    off = results["gradients"]
    print(f"gradients: off by {off['whole']:.1e} of their norm; of {off['tensors']} tensors the worst by", end=" ")
    print(f"{off['worst']:.1e} ({off['worst_name']}); of {off['rounding_alone']} more the gradient is rounding alone")
    if args.profile:
        results["profile"] = {"reference": profile(reference, x), "ours": profile(ours, x)}
        for name, rows in results["profile"].items():
            print(f"where an update of {name} goes, by the profiler:")
            for row in rows:
                print(f"{100 * row['share']:>7.1f} %{row['ms']:>8.0f} ms  {row['calls']:>6.0f} x {row['operator']}")
    finish(args, results)


if __name__ == "__main__":
    main()
