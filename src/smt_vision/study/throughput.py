"""Throughput of the models of a study, measured side by side."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..benchmark.compare import Candidate, compare
from ..benchmark.report import measurement_conditions, write_json
from ..benchmark.timing import ProgressCallback, one_thread
from ..tasks.load import load
from .runner import cell_folder, unique_cells
from .study import Cell, model_key

THROUGHPUT = "throughput.json"
BATCH_SIZE = 16


def measure_throughput(
    cells: Sequence[Cell], folder: Path, *, rounds: int = 5, on_progress: ProgressCallback | None = None
) -> Path:
    """Measure images per second in inference, of the models of all finished cells, in turn in one process.

    On one thread of a CPU or on one GPU, in batches of 16 images of the recipe's size, in float32. The file
    ``throughput.json`` in the folder is written anew.

    Args:
        cells: The cells; each model is measured once.
        folder: Folder of the studies.
        rounds: Turns of each model.
        on_progress: Called after each round with the number of rounds done and the total.

    Raises:
        ValueError: No cell is finished.
    """
    first: dict[str, Path] = {}
    for cell in unique_cells(cells):
        own = cell_folder(folder, cell)
        if (own / "metrics.json").is_file():
            first.setdefault(model_key(cell.recipe), own)
    if not first:
        raise ValueError(f"{folder}: no cell of these studies is finished; train them first")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with one_thread():
        candidates = []
        for key, own in first.items():
            module, input_size = load(own, device).flops_model()
            candidates.append(Candidate(key, module, input_size, module))
        measured = compare(candidates, [BATCH_SIZE], device=device, rounds=rounds, on_progress=on_progress)
        conditions = measurement_conditions(batch_size=BATCH_SIZE, device=device, precision="fp32", rounds=rounds)
    speeds = {row.model: round(row.images_per_s, 2) for row in measured}
    return write_json({"conditions": conditions, "images_per_s": speeds}, folder / THROUGHPUT)


def read_throughput(folder: Path) -> dict[str, Any]:
    """The content of ``throughput.json``, or an empty measurement where there is none."""
    path = folder / THROUGHPUT
    if not path.is_file():
        return {"images_per_s": {}}
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        if not all(isinstance(speed, int | float) for speed in content["images_per_s"].values()):
            raise TypeError("a throughput is not a number")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not measured throughputs ({error!r}); measure again with smt study bench") from error
    return content
