"""Time, peak memory and multiply-accumulates of the backbone and of detectors on large images.

    python benchmarks/resolution.py --out resolution.json

Every part, image size and mode runs in a process of its own, with random weights and one image of random pixels, in
bfloat16: inference of the fused model, and a training step (forward, backward, AdamW) under autocast. Memory is the
growth of the process's resident set, with weights and, in training, the optimizer's state. A training step counts as
three forward passes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from common import base_parser, write_results
from smt_vision.allocator import keep_large_allocations
from smt_vision.benchmark.candidates import create_backbone
from smt_vision.benchmark.memory import forget_peak, in_fresh_process, peak_resident_set
from smt_vision.benchmark.report import markdown_table
from smt_vision.cost import describe
from smt_vision.forms.inference import at_dtype
from smt_vision.spec import ModelSpec
from smt_vision.tasks import get_task
from smt_vision.tasks.detection.config import DetectConfig, DetectionInput
from smt_vision.tasks.detection.heads.detectors import FlopsView

PARTS = ("features", "retinanet", "mask_rcnn")  # the four feature maps, and complete detectors
SIZES = ("800x1280", "1024x2048", "2048x2048")
CLASSES = tuple(map(str, range(80)))
OBJECTS = 20  # per training image
CALLS = 3  # timed, after one that is not


def build(part: str, model: str, size: tuple[int, int]) -> nn.Module:
    """The feature maps or a detector, with random weights."""
    if part == "features":
        return create_backbone(model, size)
    config = DetectConfig(head=part, score_threshold=0.05)  # type: ignore[arg-type]  # checked by the config
    return get_task("detect").build_model(ModelSpec("detect", model, CLASSES, DetectionInput(), head=config))


def targets(size: tuple[int, int], masks: bool) -> dict[str, Tensor]:
    """Objects of 1/8 of the image's side at random places."""
    height, width = size
    corner = torch.rand(OBJECTS, 2) * torch.tensor([width, height]) * 0.8
    boxes = torch.cat([corner, corner + torch.tensor([width, height]) / 8], dim=1)
    found = {"boxes": boxes, "labels": torch.arange(OBJECTS) % len(CLASSES)}
    if masks:
        mask = torch.zeros(OBJECTS, height, width, dtype=torch.uint8)
        for one, (left, top, right, bottom) in zip(mask, boxes.int().tolist(), strict=True):
            one[top:bottom, left:right] = 1
        found["masks"] = mask
    return found


def step_of(part: str, net: nn.Module, size: tuple[int, int], train: bool) -> Callable[[], object]:
    """A forward pass or a training step on one image."""
    image, sizes = torch.randn(1, 3, *size), torch.tensor([size])
    if not train:
        net = at_dtype(net.eval(), torch.bfloat16)

        def infer() -> None:
            with torch.inference_mode():
                net(image) if part == "features" else net(image, sizes)

        return infer
    optimizer = torch.optim.AdamW(net.train().parameters(), fused=True)
    objects = [targets(size, part == "mask_rcnn")] if part != "features" else []

    def train_step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = net(image) if part == "features" else net(image, sizes, objects)
            values = outputs if part == "features" else outputs.values()
            loss = sum((value.float().mean() for value in values), torch.zeros(()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return train_step


def measure(part: str, model: str, size: tuple[int, int], train: bool, threads: int) -> dict[str, Any]:
    """Median seconds of a call, growth of memory in bytes, and GMAC of a forward pass."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    keep_large_allocations()
    before = peak_resident_set()
    call = step_of(part, build(part, model, size), size, train)
    forget_peak(torch.device("cpu"))  # of building, where the float32 model is beside its copy in bfloat16
    call()
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    after = peak_resident_set()
    with torch.device("meta"):
        counted = build(part, model, size)
    cost = describe(counted if part == "features" else FlopsView(counted), (3, *size))
    return {
        "seconds": median(times),
        "peak_memory": None if before is None or after is None else after - before,
        "gmac": cost.gmac,
    }


def row(result: Mapping[str, Any]) -> list[str]:
    """A result as a table row."""
    passes = 3 if result["train"] else 1
    memory = result["peak_memory"]
    return [
        f"{result['part']}, {'training' if result['train'] else 'inference'}",
        result["size"],
        f"{result['gmac']:.0f}",
        f"{result['seconds']:.2f}",
        "" if memory is None else f"{memory / 1e6:,.0f}",
        f"{2 * passes * result['gmac'] / result['seconds']:.0f}",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = base_parser(__doc__)
    parser.add_argument("--model", default="smt_tiny", help="timm model name of the backbone")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="height x width in pixels, e.g. 800x1280")
    args = parser.parse_args(argv)
    results = []
    for train in (False, True):
        for part in args.parts:
            for size in args.sizes:
                height, width = map(int, size.split("x"))
                found = in_fresh_process(measure, part, args.model, (height, width), train, args.threads)
                results.append({"part": part, "size": size, "train": train, **found})
                print("  ".join(row(results[-1])), flush=True)
    columns = ["model", "pixels", "GMAC", "s", "MB", "GFLOP/s"]
    print(markdown_table(columns, [row(result) for result in results]), end="")
    write_results(args.out, {"resolution": results}, model=args.model, threads=args.threads)


if __name__ == "__main__":
    main()
