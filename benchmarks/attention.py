"""Time of self-attention over thousands of tokens on the CPU, by precision and form, and its share of a forward pass.

    python benchmarks/attention.py --out attention.json

For each image size: the attention of stage 3, one image, as PyTorch's ``scaled_dot_product_attention`` and as explicit
products and a softmax over blocks of rows, and the feature maps of the fused model. All of a size is timed in turn, in
float32 and in bfloat16.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common import base_parser, write_results
from smt_vision.allocator import keep_large_allocations
from smt_vision.benchmark.candidates import create_backbone
from smt_vision.benchmark.report import markdown_table
from smt_vision.benchmark.timing import Call, inference_step, interleave
from smt_vision.forms.inference import fuse
from smt_vision.model.attention import MSA, split_heads
from smt_vision.precision import resolve_dtype

SIZES = ("800x1280", "1024x2048", "2048x2048")
PRECISIONS = ("fp32", "bf16")
ROWS = 512  # of a block
STRIDE = 16  # of stage 3


def in_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of ``(B, A, N, D)`` tensors by explicit products, ``ROWS`` queries at a time."""
    out, keys = torch.empty_like(q), k.transpose(-2, -1)
    for start in range(0, q.shape[-2], ROWS):
        rows = slice(start, start + ROWS)
        out[:, :, rows] = ((q[:, :, rows] * q.shape[-1] ** -0.5) @ keys).softmax(dim=-1) @ v
    return out


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "fused": F.scaled_dot_product_attention,
    "blocks": in_blocks,
}


def calls_of(model: str, size: tuple[int, int]) -> tuple[dict[tuple[str, str], Call], dict[str, Any]]:
    """The calls by form and precision, and what they compute."""
    calls: dict[tuple[str, str], Call] = {}
    modules = [module for module in create_backbone(model, size).modules() if isinstance(module, MSA)]
    heads, dim = modules[0].num_heads, modules[0].proj.in_features
    layers = sum(module.proj.in_features == dim for module in modules)
    grid = (1, size[0] // STRIDE, size[1] // STRIDE, dim)
    for precision in PRECISIONS:
        dtype = resolve_dtype(precision)
        q, k, v = (split_heads(torch.randn(grid), heads).to(dtype) for _ in range(3))
        for form, function in FORMS.items():
            calls[form, precision] = partial(_attend, function, q, k, v)
        net = fuse(create_backbone(model, size).eval(), dtype)
        calls["forward pass", precision] = inference_step(net, torch.randn(1, 3, *size))
    tokens = grid[1] * grid[2]
    return calls, {"tokens": tokens, "heads": heads, "dim": dim, "layers": layers, "flop": 4 * tokens**2 * dim}


def _attend(function: Callable[[Tensor, Tensor, Tensor], Tensor], *args: Tensor) -> None:
    with torch.inference_mode():
        function(*args)


def measure(model: str, size: str, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Median seconds of each call."""
    height, width = map(int, size.split("x"))
    calls, work = calls_of(model, (height, width))
    timings = interleave(calls, rounds=rounds, seconds=seconds)
    return [
        {"size": size, "precision": precision, **work}
        | {form.replace(" ", "_"): timings[form, precision].median for form in (*FORMS, "forward pass")}
        for precision in PRECISIONS
    ]


def row(result: dict[str, Any]) -> list[str]:
    """A result as a table row."""
    share = result["layers"] * result["fused"] / result["forward_pass"]
    return [
        result["size"],
        f"{result['tokens']:,}",
        result["precision"],
        f"{1e3 * result['fused']:.0f}",
        f"{result['flop'] / result['fused'] / 1e9:.0f}",
        f"{1e3 * result['blocks']:.0f}",
        f"{result['forward_pass']:.2f}",
        f"{100 * share:.0f} %",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = base_parser(__doc__)
    parser.add_argument("--model", default="smt_tiny", help="timm model name of an SMT")
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="height x width in pixels, e.g. 800x1280")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each call")
    parser.add_argument("--seconds", type=float, default=0.0, help="duration of a turn")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    keep_large_allocations()
    results = []
    for size in args.sizes:
        results += measure(args.model, size, args.rounds, args.seconds)
        print("  ".join(row(results[-1])), flush=True)
    columns = ["pixels", "tokens", "precision", "fused, ms", "GFLOP/s", "blocks, ms", "forward pass, s", "share"]
    print(markdown_table(columns, [row(result) for result in results]), end="")
    write_results(args.out, {"attention": results}, model=args.model, threads=args.threads)


if __name__ == "__main__":
    main()
