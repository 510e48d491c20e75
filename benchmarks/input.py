"""JPEG files to tensors: our pipelines beside timm's own, on one core; and the training loader with its workers.

python benchmarks/input.py --out input.json

The settings are those of the paper's recipe for ImageNet: random-area crop, flip, rand-m9-mstd0.5-inc1, random erasing;
224 pixels, bicubic. Both sides take the same images with the same draws in turn, in one process, on one thread. Printed
are images a second of one core, medians over the rounds, and their ratio; without ``--data``, of JPEGs of 500 x 375
pixels that are made here.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from reference import finish

from smt_vision.data.throughput import measure_input
from smt_vision.engine.allocator import keep_big_blocks
from smt_vision.tasks import RECIPES


def main() -> None:
    recipe = RECIPES["imagenet1k_tiny"]
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", help="images, as for smt train")
    options.add_argument("--workers", type=int, default=recipe.input.workers, help="loader processes, at most")
    options.add_argument("--batch_size", type=int, default=recipe.batch_size)
    options.add_argument("--seconds", type=float, default=60.0, help="to spend, about")
    options.add_argument("--exact", action="store_true", help="measure the pipelines that equal timm's to the bit")
    options.add_argument("--out", type=Path, help="a JSON file to write")
    args = options.parse_args()
    keep_big_blocks()  # as smt train does; both sides gain
    input = replace(recipe.input, exact=args.exact)
    speed = measure_input(args.data, input, recipe.augment, args.workers, args.batch_size, args.seconds)
    print(f"{'images/s of one core':<22}{'ours':>8}{'timm':>8}{'ratio':>8}")
    for name, side in (("training", speed.train), ("evaluation", speed.evaluation)):
        print(f"{name:<22}{side.ours:>8.0f}{side.timm:>8.0f}{side.ratio:>8.2f}")
    where = f"{speed.workers} workers" if speed.workers else "no workers"
    print(f"training loader, {where}, batches of {speed.batch_size}: {speed.images_per_s:.0f} images/s")
    finish(args, speed.to_dict())


if __name__ == "__main__":
    main()
