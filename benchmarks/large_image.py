"""Peak memory and processor time of ``smt predict`` on one large image, by model.

    python benchmarks/large_image.py smt_femto.cifar10 RUN_OF_A_DETECTOR RUN_OF_A_SEGMENTER --out large_image.json

The image is a synthetic JPEG file. Each model predicts it in a process of its own, and one of 224 x 224 pixels before,
whose memory is that of the libraries and of the model. Memory is the largest resident set size of the process.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from common import base_parser, write_results
from smt_vision.benchmark.report import markdown_table

SMALL = (224, 224)
# The largest resident set size of a process starts from that of the process that starts it, which is this one with
# PyTorch and a large image. Between them is a small one, which reports peak memory in KiB and processor time.
LAUNCHER = """\
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(code, usage.ru_maxrss, usage.ru_utime + usage.ru_stime)
"""


def synthetic_image(path: Path, width: int, height: int) -> Path:
    """Write a JPEG file of smooth random colors."""
    values = np.random.default_rng(0).integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
    return path


def measured(command: Sequence[str], threads: int) -> tuple[int, float]:
    """Peak memory in bytes and processor time in seconds of a command.

    Raises:
        RuntimeError: It failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    launcher = [sys.executable, "-c", LAUNCHER, *command]
    done = subprocess.run(launcher, env=environment, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603  fixed
    code, peak, seconds = done.stdout.split()
    if code != "0":
        raise RuntimeError(f"{' '.join(command)} failed with exit code {code}")
    return int(peak) * 1024, float(seconds)


def main(argv: Sequence[str] | None = None) -> None:
    parser = base_parser(__doc__)
    parser.add_argument("models", nargs="+", help="as for smt predict")
    parser.add_argument("--image_size", type=int, nargs=2, default=[10_000, 10_000], help="width and height in pixels")
    args = parser.parse_args(argv)
    results = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        images = [
            synthetic_image(folder / f"{width}.jpg", width, height) for width, height in (SMALL, tuple(args.image_size))
        ]
        predict = [sys.executable, "-m", "smt_vision", "predict", "--out", str(folder / "out")]
        for model in args.models:
            (small, _), (peak, seconds) = (measured([*predict, model, str(image)], args.threads) for image in images)
            results.append({"model": model, "small_image": small, "peak_memory": peak, "seconds": seconds})
    rows = [
        [r["model"], f"{r['small_image'] / 1e6:,.0f}", f"{r['peak_memory'] / 1e6:,.0f}", f"{r['seconds']:.1f}"]
        for r in results
    ]
    print(markdown_table(["model", "MB, 224 x 224", "MB", "processor time, s"], rows), end="")
    write_results(args.out, {"large_image": results}, image_size=args.image_size, threads=args.threads)


if __name__ == "__main__":
    main()
