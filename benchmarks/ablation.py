"""What single optimizations of a training step on the CPU are worth, in float32.

    python benchmarks/ablation.py --rounds 24 --out ablation.json

One model is trained with all optimizations and without each in turn, in one process. A round is one training step of
every form; the ratios are those of steps of the same round, so that the drift of the machine cancels.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median, quantiles
from unittest.mock import patch

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from common import base_parser, write_results
from smt_vision.allocator import keep_large_allocations
from smt_vision.benchmark.timing import training_step
from smt_vision.forms import training
from smt_vision.kernels import linear
from smt_vision.registry import VARIANTS

WARMUP_STEPS = 2


def residual_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x`` plus its depthwise convolution, in two operations."""
    padding = weight.shape[2] // 2, weight.shape[3] // 2
    return x + F.conv2d(x, weight, bias, padding=padding, groups=weight.shape[0])


@contextmanager
def without_kernel_sum() -> Iterator[None]:
    with patch.object(training, "residual_depthwise_conv2d", residual_conv2d):
        yield


@contextmanager
def without_onednn_products() -> Iterator[None]:
    with patch.object(training, "linear", F.linear), patch.object(linear, "product", F.linear):
        yield


ABLATIONS = {
    "oneDNN products of linear layers": without_onednn_products,
    "FFN's sum as part of its convolution": without_kernel_sum,
}


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> None:
    parser = base_parser(__doc__)
    parser.add_argument("--model", default="smt_tiny", choices=VARIANTS)
    parser.add_argument("--size", type=int, default=224, help="image side in pixels")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=24, help="training steps of each form; at least 2")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    keep_large_allocations()  # as smt train does
    torch.manual_seed(0)
    step = training_step(timm.create_model(args.model), torch.randn(args.batch_size, 3, args.size, args.size))
    for _ in range(WARMUP_STEPS):
        step()
    full: list[float] = []
    ratios: dict[str, list[float]] = {name: [] for name in ABLATIONS}
    for _ in range(args.rounds):
        full.append(_seconds(step))
        for name, without in ABLATIONS.items():
            with without():
                ratios[name].append(_seconds(step) / full[-1])
    rows = []
    for name, values in ratios.items():
        low, middle, high = quantiles(values, n=4)
        rows.append({"without": name, "ratio": middle, "quartiles": [low, high]})
        print(f"without {name}: {middle:.3f} x the time of a step (quartiles {low:.3f} to {high:.3f})")
    print(f"training step: {1e3 * median(full):.0f} ms")
    write_results(args.out, {"ms": 1e3 * median(full), "ablations": rows})


if __name__ == "__main__":
    main()
