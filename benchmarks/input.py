"""Input pipeline: JPEG files to tensors, ours against timm's on one core; and whether training waits for it.

    python benchmarks/input.py --out input.json
    python benchmarks/input.py --image_size 4000 3000 --seconds 240
    python benchmarks/input.py --model smt_tiny --data MY_IMAGES --workers 8

The settings are those of the paper's ImageNet recipe: random resized crop, flip, rand-m9-mstd0.5-inc1, random erasing;
224 pixels, bicubic. Both pipelines process the same images with the same random numbers, in turn, in one process, on
one thread. Prints images per second of one core (medians over the rounds) and their ratio, and the speed of the
training loader. Without ``--data`` the images are synthetic JPEG files of 500 x 375 pixels. Large ones are decoded at a
lower resolution; the speed of ours at full resolution is measured, too.

``--model`` also times training steps of a model, at its own image size and normalization, and reports whether the input
or the model is the bottleneck. On a CPU both share the cores, and an image takes the sum of both times.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from common import add_measurement_options, base_parser, measurement_settings, write_results
from input_pipeline import IMAGE_SIZE, InputSpeed, measure_input
from smt_vision.benchmark.candidates import load_candidate
from smt_vision.benchmark.compare import Candidate, Result, compare
from smt_vision.cli.bench import configure_process
from smt_vision.cli.progress import progress_callback
from smt_vision.tasks.build import resolve_input
from smt_vision.tasks.classification.config import ClassificationInput
from smt_vision.tasks.classification.recipes import RECIPES

RECIPE = RECIPES[0]  # the paper's SMT-T on ImageNet-1K
MODEL_BATCH_SIZE = 16


def find_bottleneck(input_speed: float, model_speed: float, shared_cores: bool) -> dict[str, Any]:
    """Speed of training given the speeds of its input and of only its training steps, in images per second.

    On shared cores the times of both add up. Otherwise they overlap, and the slower one decides.

    Returns:
        ``together``, images per second; ``bottleneck``, ``input`` or ``model``; ``share``, its share of the time.
    """
    slower = min(input_speed, model_speed)
    together = 1 / (1 / input_speed + 1 / model_speed) if shared_cores else slower
    bottleneck = "input" if input_speed < model_speed else "model"
    return {"together": together, "bottleneck": bottleneck, "share": together / slower}


def measure_model(args: argparse.Namespace, candidate: Candidate) -> Result:
    """Speed of training steps; takes about as long as one of the five parts of the input."""
    with progress_callback("rounds") as on_progress:
        [result] = compare(
            [candidate],
            [args.batch_size],
            train=True,
            precision=args.precision,
            device=args.device,
            rounds=args.rounds,
            seconds=args.seconds / (5 * args.rounds),
            peak=1.0,  # the share of the peak is not reported
            on_progress=on_progress,
        )
    return result


def print_report(speed: InputSpeed) -> None:
    print(f"{'images/s of one core':<22}{'ours':>8}{'timm':>8}{'ratio':>8}{'full resolution':>17}{'ratio':>8}")
    for name, pipeline in (("training", speed.train), ("evaluation", speed.evaluation)):
        line = f"{name:<22}{pipeline.ours:>8.4g}"
        for baseline, width in ((pipeline.timm, 8), (pipeline.full, 17)):
            line += f"{baseline:>{width}.4g}{pipeline.ours / baseline:>8.2f}" if baseline else " " * (width + 8)
        print(line.rstrip())
    print(f"training loader, {speed.workers} workers, {speed.batch_size} per batch: {speed.images_per_s:.0f} images/s")


def main(argv: Sequence[str] | None = None) -> None:
    parser = base_parser(__doc__)
    parser.add_argument("--model", help="model spec string, as for smt bench; default: measure the input only")
    parser.add_argument("--size", type=int, help="image side in pixels; default: the model's or the recipe's")
    parser.add_argument("--data", help="data set, as for smt train; default: synthetic JPEG files")
    parser.add_argument(
        "--image_size",
        type=int,
        nargs=2,
        metavar=("WIDTH", "HEIGHT"),
        default=IMAGE_SIZE,
        help="of the synthetic JPEG files in pixels",
    )
    parser.add_argument("--workers", type=int, default=RECIPE.input.workers, help="maximum number of worker processes")
    parser.add_argument("--batch_size", type=int, help=f"default: {RECIPE.batch_size}, with --model {MODEL_BATCH_SIZE}")
    parser.add_argument("--exact", action="store_true", help="use the pipelines that are bit-identical to timm's")
    parser.add_argument("--seconds", type=float, default=60.0, help="approximate time to measure the input")
    add_measurement_options(parser, rounds=5)
    args = parser.parse_args(argv)
    args.batch_size = args.batch_size or (MODEL_BATCH_SIZE if args.model else RECIPE.batch_size)
    configure_process(args.device, args.threads, args.allocator)
    input = replace(RECIPE.input, exact=args.exact, size=args.size or RECIPE.input.size)
    results: dict[str, Any] = {}
    if args.model:
        sides = None if args.size is None else (args.size, args.size)
        candidate = load_candidate(args.model, args.device, sides, train=True)
        channels, size, _ = candidate.input_size
        input = resolve_input(ClassificationInput(size=size, channels=channels, exact=args.exact), candidate.model)
        model = measure_model(args, candidate)
        results["model"] = model.to_dict()
    speed = measure_input(
        args.data, input, RECIPE.augment, args.workers, args.batch_size, args.seconds, tuple(args.image_size)
    )
    print_report(speed)
    results |= {"input": speed.to_dict()}
    if args.model:
        shared_cores = args.device == "cpu" or speed.workers == 0
        result = find_bottleneck(speed.images_per_s, model.images_per_s, shared_cores)
        print(f"training steps of {args.model}: {model.images_per_s:.1f} images/s")
        print(f"expected in training: {result['together']:.1f} images/s{', sharing the cores' if shared_cores else ''}")
        print(f"the bottleneck is the {result['bottleneck']}: {100 * result['share']:.0f} % of the time")
        results |= result
    write_results(args.out, results, **measurement_settings(args, train=True))


if __name__ == "__main__":
    main()
