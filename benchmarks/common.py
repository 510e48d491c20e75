"""Command-line options and output shared by the benchmark scripts."""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from smt_vision.benchmark.report import measurement_conditions, write_json
from smt_vision.precision import PRECISIONS
from smt_vision.registry import VARIANTS


def base_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with ``--threads`` and ``--out``; the description is a script's docstring."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="PyTorch threads on a CPU")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser


def reference_parser(description: str | None) -> argparse.ArgumentParser:
    """Options of the scripts that compare a model with the reference implementation."""
    parser = base_parser(description)
    parser.add_argument("--model", default="smt_tiny", choices=VARIANTS)
    parser.add_argument("--size", type=int, default=224, help="image side in pixels")
    parser.add_argument("--rounds", type=int, default=8, help="turns of each candidate")
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of a turn")
    return parser


def add_measurement_options(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Options of the scripts that time any model, as in ``smt bench``."""
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--allocator",
        choices=("large", "default"),
        default="large",
        help="glibc's, on a CPU: keep large allocations for reuse, as smt train does, or its default",
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each call")


def measurement_settings(args: argparse.Namespace, train: bool) -> dict[str, Any]:
    """The options of :func:`add_measurement_options` as they are written to a result."""
    return {
        "mode": "training" if train else "inference",
        "precision": args.precision,
        "device": args.device,
        "allocator": args.allocator if args.device == "cpu" else None,
        "rounds": args.rounds,
        "seconds": args.seconds,
    }


def write_results(out: Path | None, results: dict[str, Any], **settings: Any) -> None:
    """Write results and the conditions of the measurement to a JSON file, if one is given."""
    if out is not None:
        command = " ".join(["python", *sys.argv])
        write_json({**measurement_conditions(command=command, **settings), **results}, out)
