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

from smt_vision.benchmark.compare import Contender, compare
from smt_vision.benchmark.memory import saved_activations
from smt_vision.engine.allocator import keep_big_blocks
from smt_vision.model.official import to_official

# Of the norm of the whole gradient: below it a tensor's gradient is rounding alone, as that of a bias in front of a
# BatchNorm, and there is nothing to be relative to.
ROUNDING = 1e-5


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


def main() -> None:
    options = parser(__doc__)
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
    finish(args, results)


if __name__ == "__main__":
    main()
