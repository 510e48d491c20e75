"""Eager inference on the CPU in float32: the reference, ours and ours fused, with either setting of the allocator.

python benchmarks/inference.py --out inference.json

Each setting of the allocator has a process of its own, since it cannot be taken back; the two are visited in turn.
Printed are medians over the visits: images/s, the ratio to the reference under the same setting, and what keeping big
blocks adds.
"""

import argparse
from collections import defaultdict
from statistics import median
from typing import Any

import torch
from reference import finish, parser, reference_and_ours

from smt_vision.benchmark.compare import Contender, compare
from smt_vision.benchmark.memory import in_fresh_process
from smt_vision.engine.allocator import keep_big_blocks
from smt_vision.forms.inference import fuse

ALLOCATORS = ("default", "big_blocks")
TOLERANCE = 1e-4  # of the largest logit


def measure(args: argparse.Namespace, allocator: str) -> list[dict[str, Any]]:
    """The results of one visit, in a process that has not run anything yet."""
    torch.set_num_threads(args.threads)
    if allocator == "big_blocks" and not keep_big_blocks():
        raise SystemExit("the allocator is not glibc's and takes no settings: there is nothing to compare")
    reference, ours = reference_and_ours(args.model)
    forms = {"reference": reference.eval(), "ours": ours.eval(), "fused": fuse(ours)}
    size = (3, args.size, args.size)
    x = torch.randn(2, *size)
    with torch.inference_mode():
        expected = reference(x)
        for name, model in forms.items():
            error = ((model(x) - expected).abs().max() / expected.abs().max()).item()
            if error > TOLERANCE:
                raise SystemExit(f"{name} is off by {error:.1e} of the largest logit; {TOLERANCE:.0e} is allowed")
    contenders = [Contender(name, model, size, ours) for name, model in forms.items()]
    results = compare(contenders, args.batch_size, rounds=args.rounds, seconds=args.seconds)
    return [{"allocator": allocator, **result.to_dict()} for result in results]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--batch_size", type=int, nargs="+", default=[1, 16])
    options.add_argument("--visits", type=int, default=2, help="processes for each setting of the allocator")
    args = options.parse_args()
    rows = [
        {"visit": visit, **row}
        for visit in range(args.visits)
        for allocator in ALLOCATORS
        for row in in_fresh_process(measure, args, allocator)
    ]
    speeds, ratios = defaultdict(list), defaultdict(list)
    for row in rows:
        key = (row["batch_size"], row["model"], row["allocator"])
        speeds[key].append(row["images_per_s"])
        ratios[key].append(row["ratio"])
    summary = []
    print(f"{'batch':>5}  {'model':<10}{'allocator':<11}{'images/s':>9}{'to reference':>14}{'to default':>12}")
    for (batch_size, model, allocator), values in speeds.items():
        speed, ratio = median(values), median(ratios[batch_size, model, allocator])
        gain = speed / median(speeds[batch_size, model, "default"])
        print(f"{batch_size:>5}  {model:<10}{allocator:<11}{speed:>9.1f}{ratio:>14.2f}{gain:>12.2f}")
        summary.append(
            dict(batch_size=batch_size, model=model, allocator=allocator, images_per_s=speed, ratio=ratio, gain=gain)
        )
    finish(args, {"summary": summary, "visits": rows})


if __name__ == "__main__":
    main()
