"""Start-up: processor time of short commands, beside that of only importing PyTorch and timm.

    python benchmarks/startup.py --out startup.json

Each command runs in a process of its own, all of them in turn. Prints the processor time (user and system) of the
process in seconds: the median and the range of the rounds. Unlike the wall-clock time, it hardly depends on how fast
files are read, and on what else the machine is doing; the first round, which may write compiled files, is not counted.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from tempfile import TemporaryDirectory

from PIL import Image

from common import base_parser, write_results
from smt_vision.benchmark.report import markdown_table

MODEL = "smt_femto.cifar10"  # its weights are in the package
SMT = ("-m", "smt_vision")


def commands(image: Path) -> dict[str, Sequence[str]]:
    """Arguments of Python by the name of what is measured."""
    return {
        "import torch": ("-c", "import torch"),
        "import timm": ("-c", "import timm"),
        "import timm, smt_vision": ("-c", "import timm, smt_vision"),
        "smt --help": (*SMT, "--help"),
        "smt recipes": (*SMT, "recipes"),
        f"smt predict {MODEL} IMAGE": (*SMT, "predict", MODEL, str(image)),
    }


def processor_seconds(arguments: Sequence[str], threads: int) -> float:
    """User and system time of Python with some arguments, and of its child processes.

    Raises:
        RuntimeError: It failed; the message has its arguments and standard error.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    before = getrusage(RUSAGE_CHILDREN)
    done = subprocess.run(  # noqa: S603  fixed arguments
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )
    after = getrusage(RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} failed with exit code {done.returncode}: {done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(selected: Mapping[str, Sequence[str]], rounds: int, threads: int) -> list[dict[str, str | float]]:
    """Median, minimum and maximum of the processor time of each command, in seconds."""
    times: dict[str, list[float]] = {name: [] for name in selected}
    for round in range(rounds + 1):
        for name, arguments in selected.items():
            seconds = processor_seconds(arguments, threads)
            if round:
                times[name].append(seconds)
    return [{"command": name, "median": median(t), "min": min(t), "max": max(t)} for name, t in times.items()]


def main(argv: Sequence[str] | None = None) -> None:
    parser = base_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each command, after one that is not counted")
    parser.add_argument("--only", nargs="+", default=[""], help="measure only commands that contain one of these words")
    args = parser.parse_args(argv)
    with TemporaryDirectory() as folder:
        image = Path(folder) / "image.png"
        Image.new("RGB", (32, 32), (60, 120, 216)).save(image)
        selected = {name: command for name, command in commands(image).items() if any(w in name for w in args.only)}
        results = measure(selected, args.rounds, args.threads)
    rows = [[str(r["command"]), *(f"{r[key]:.2f}" for key in ("median", "min", "max"))] for r in results]
    print(markdown_table(["processor time, s", "median", "min", "max"], rows), end="")
    write_results(args.out, {"startup": results}, threads=args.threads, rounds=args.rounds)


if __name__ == "__main__":
    main()
