"""Efficiency outliers: models, image sizes and batch sizes whose time per multiply-accumulate is far from the best.

    python benchmarks/outliers.py --out outliers.json                     all SMT variants, inference
    python benchmarks/outliers.py --train --out outliers_train.json       training steps
    python benchmarks/outliers.py smt_tiny:fused smt_small:fused          model spec strings, as for smt bench

Prints a table with the worst cells first, and with ``--out`` writes it to a Markdown file beside the JSON file. Cells
above three times the best are marked with "!". Small calls are always expensive: most of their time is the constant
cost of each operator.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from common import add_measurement_options, base_parser, measurement_settings, write_results
from smt_vision.benchmark.candidates import load_candidate
from smt_vision.benchmark.compare import Candidate, forward_equivalents
from smt_vision.benchmark.report import conditions_line, markdown_table, measurement_conditions
from smt_vision.benchmark.timing import Call, ProgressCallback, inference_step, interleave, training_step
from smt_vision.cli.bench import configure_process
from smt_vision.cli.progress import progress_callback
from smt_vision.cost import describe
from smt_vision.registry import VARIANTS

OUTLIER_RATIO = 3.0  # time per multiply-accumulate relative to the best cell, above which a cell is an outlier


@dataclass(frozen=True)
class Cell:
    """Measurement of a model at one image size and batch size.

    Attributes:
        model: Name of the candidate.
        size: Image side in pixels.
        batch_size: Images per call.
        gmac: Multiply-accumulates per call divided by 1e9; a training step counts as three forward passes.
        seconds: Median time of a call.
        relative: Time per multiply-accumulate relative to the best cell.
    """

    model: str
    size: int
    batch_size: int
    gmac: float
    seconds: float = 0.0
    relative: float = 1.0

    @property
    def outlier(self) -> bool:
        """Whether the cell is an efficiency outlier."""
        return self.relative > OUTLIER_RATIO

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "outlier": self.outlier}


def measure_cells(
    candidates: Sequence[Candidate],
    sizes: Sequence[int],
    batch_sizes: Sequence[int],
    *,
    train: bool = False,
    precision: str = "fp32",
    device: torch.device | str = "cpu",
    rounds: int = 3,
    seconds: float = 0.1,
    max_gmac: float = 60.0,
    on_progress: ProgressCallback | None = None,
) -> list[Cell]:
    """Time every candidate at every image size and batch size, relative to the cell with the best time per operation.

    Args:
        candidates: Models with unique names, on ``device``.
        sizes: Image sides in pixels.
        batch_sizes: Images per call.
        train: Time training steps instead of forward passes.
        precision: Precision of training, ``fp32`` or ``bf16`` (autocast); models for inference have theirs already.
        device: Device of the models.
        rounds: Number of turns of each cell.
        seconds: Duration of a turn.
        max_gmac: Skip cells with more GMAC per call.
        on_progress: Called after each round with the number of rounds done and the total.

    Returns:
        The cells, the least efficient first.

    Raises:
        ValueError: The GMAC of a candidate are unknown, or every cell exceeds ``max_gmac``.
    """
    calls: dict[int, Call] = {}
    cells: list[Cell] = []
    for candidate in candidates:
        if candidate.original is None:
            raise ValueError(f"{candidate.name}: GMAC are unknown, e.g. because it is an exported model; remove it")
        for size in sizes:
            image = (candidate.input_size[0], size, size)
            gmac = forward_equivalents(train) * describe(candidate.original, image).gmac
            for batch_size in batch_sizes:
                if batch_size * gmac <= max_gmac:
                    x = torch.randn(batch_size, *image, device=device)
                    step = partial(training_step, precision=precision) if train else inference_step
                    calls[len(cells)] = step(candidate.model, x)
                    cells.append(Cell(candidate.name, size, batch_size, batch_size * gmac))
    if not cells:
        raise ValueError(f"every call exceeds max_gmac={max_gmac}: use smaller sizes or batches, or increase it")
    timings = interleave(calls, rounds=rounds, seconds=seconds, device=device, on_progress=on_progress)
    timed = [replace(cell, seconds=timings[i].median) for i, cell in enumerate(cells)]
    best = min(cell.seconds / cell.gmac for cell in timed)
    return sorted((replace(c, relative=c.seconds / c.gmac / best) for c in timed), key=lambda c: -c.relative)


def table(cells: Sequence[Cell]) -> str:
    """Markdown table of the cells."""
    columns = ["model", "pixels", "batch", "GMAC per call", "ms", "ps per MAC", "relative to best"]
    rows = [
        [
            cell.model,
            str(cell.size),
            str(cell.batch_size),
            f"{cell.gmac:.3g}",
            f"{1e3 * cell.seconds:.2f}",
            f"{1e3 * cell.seconds / cell.gmac:.1f}",
            f"{cell.relative:.2f}" + (" !" if cell.outlier else ""),
        ]
        for cell in cells
    ]
    return markdown_table(columns, rows)


def summary(cells: Sequence[Cell]) -> str:
    """Number of outliers, and the size of the largest."""
    outliers = [cell.gmac for cell in cells if cell.outlier]
    largest = f", the largest with {max(outliers):.3g} GMAC per call" if outliers else ""
    return f"{len(outliers)} of {len(cells)} cells take over {OUTLIER_RATIO:g} times the best time per MAC{largest}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = base_parser(__doc__)
    parser.add_argument("models", nargs="*", default=list(VARIANTS), metavar="MODEL", help="default: all SMT variants")
    parser.add_argument("--train", action="store_true", help="time training steps: forward, backward, AdamW")
    parser.add_argument("--size", type=int, nargs="+", default=[32, 64, 128, 224, 384, 512], help="sides in pixels")
    parser.add_argument("--batch_size", type=int, nargs="+", default=[1, 4, 16, 64], help="images per call")
    parser.add_argument("--max_gmac", type=float, default=60.0, help="skip calls with more GMAC")
    add_measurement_options(parser, rounds=3)
    parser.add_argument("--seconds", type=float, default=0.1, help="duration of a turn")
    args = parser.parse_args(argv)
    configure_process(args.device, args.threads, args.allocator)
    candidates = [load_candidate(spec, args.device, precision=args.precision, train=args.train) for spec in args.models]
    with progress_callback("rounds") as on_progress:
        cells = measure_cells(
            candidates,
            args.size,
            args.batch_size,
            train=args.train,
            precision=args.precision,
            device=args.device,
            rounds=args.rounds,
            seconds=args.seconds,
            max_gmac=args.max_gmac,
            on_progress=on_progress,
        )
    settings = measurement_settings(args, train=args.train)
    text = f"{conditions_line(measurement_conditions(**settings))}\n\n{table(cells)}\n{summary(cells)}\n"
    print(text, end="")
    results = {"outliers": sum(cell.outlier for cell in cells), "cells": [cell.to_dict() for cell in cells]}
    write_results(args.out, results, **settings)
    if args.out:
        args.out.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
