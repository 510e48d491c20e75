"""Eager inference on the CPU: the reference, ours, and ours fused, with both settings of the allocator.

In float32, and fused also in bfloat16 where the CPU has instructions for it.

    python benchmarks/inference.py --out inference.json

Each setting of the allocator needs a process of its own, since it cannot be reverted; processes with either setting
alternate. Prints medians over the processes: images/s, the ratio to the reference with the same setting, and the ratio
to the default setting.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from common import reference_parser, write_results
from reference import reference_and_ours
from smt_vision.allocator import keep_large_allocations
from smt_vision.benchmark.compare import Candidate, compare
from smt_vision.benchmark.memory import in_fresh_process
from smt_vision.forms.inference import fuse
from smt_vision.precision import has_bf16

ALLOCATORS = ("default", "large")
HALF = "fused, bfloat16"
TOLERANCE = 1e-4  # relative to the largest logit
HALF_TOLERANCE = 5e-2  # the same, in bfloat16


def measure(args: argparse.Namespace, allocator: str) -> list[dict[str, Any]]:
    """Results with one setting of the allocator; to be called in a process in which nothing has run yet."""
    torch.set_num_threads(args.threads)
    if allocator == "large" and not keep_large_allocations():
        raise SystemExit("the allocator is not glibc's and has no such setting, so there is nothing to compare")
    reference, ours = reference_and_ours(args.model)
    models = {"reference": reference.eval(), "ours": ours.eval(), "fused": fuse(ours)}
    if has_bf16():
        models[HALF] = fuse(ours, torch.bfloat16)
    size = (3, args.size, args.size)
    x = torch.randn(2, *size)
    with torch.inference_mode():
        expected = reference(x)
        for name, model in models.items():
            error = ((model(x) - expected).abs().max() / expected.abs().max()).item()
            if error > (tolerance := HALF_TOLERANCE if name == HALF else TOLERANCE):
                raise SystemExit(f"{name}: relative error {error:.1e} of the logits exceeds {tolerance:.0e}")
    candidates = [Candidate(name, model, size, ours) for name, model in models.items()]
    results = compare(candidates, args.batch_size, rounds=args.rounds, seconds=args.seconds)
    rows = [{"allocator": allocator, **result.to_dict()} for result in results]
    return [row | {"share_of_peak": None} if row["model"] == HALF else row for row in rows]  # the peak is of float32


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over the processes, with the gain in speed over the default allocator."""
    speeds, ratios = defaultdict(list), defaultdict(list)
    for row in rows:
        key = (row["batch_size"], row["model"], row["allocator"])
        speeds[key].append(row["images_per_s"])
        ratios[key].append(row["ratio"])
    return [
        {
            "batch_size": batch_size,
            "model": model,
            "allocator": allocator,
            "images_per_s": median(values),
            "ratio": median(ratios[batch_size, model, allocator]),
            "gain": median(values) / median(speeds[batch_size, model, "default"]),
        }
        for (batch_size, model, allocator), values in speeds.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = reference_parser(__doc__)
    parser.add_argument("--batch_size", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--visits", type=int, default=3, help="processes per setting of the allocator")
    args = parser.parse_args(argv)
    rows = [
        {"visit": visit, **row}
        for visit in range(args.visits)
        for allocator in ALLOCATORS
        for row in in_fresh_process(measure, args, allocator)
    ]
    summary = summarize(rows)
    print(f"{'batch':>5}  {'model':<16}{'allocator':<10}{'images/s':>9}{'to reference':>14}{'to default':>12}")
    for row in summary:
        print(
            f"{row['batch_size']:>5}  {row['model']:<16}{row['allocator']:<10}{row['images_per_s']:>9.1f}"
            f"{row['ratio']:>14.2f}{row['gain']:>12.2f}"
        )
    write_results(args.out, {"summary": summary, "visits": rows})


if __name__ == "__main__":
    main()
