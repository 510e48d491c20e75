"""Throughput of the models of a study, measured side by side."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..benchmark.compare import Candidate, compare
from ..benchmark.report import measurement_conditions, write_json
from ..benchmark.timing import ProgressCallback, one_thread
from ..tasks import get_task
from .results import RESULTS, read_results
from .runner import open_training, unique_cells
from .study import Cell, inference_key

THROUGHPUT = "throughput.json"
BATCH_SIZE = 16


def measure_throughput(
    cells: Sequence[Cell],
    folder: Path,
    *,
    data: Mapping[str, str] | None = None,
    rounds: int = 5,
    on_progress: ProgressCallback | None = None,
) -> Path:
    """Measure images per second in inference, of the models of all cells with a result, in turn in one process.

    On one thread of a CPU or on one GPU, in batches of 16 images of the recipe's size, in float32. The models have
    initial weights, on which the time does not depend: the cells may have been trained elsewhere. The file
    ``throughput.json`` in the folder is written anew.

    Args:
        cells: The cells; each model is measured once.
        folder: Folder of the studies.
        data: Path of the dataset, by the name that recipes have for it; it decides the number of classes.
        rounds: Turns of each model.
        on_progress: Called after each round with the number of rounds done and the total.

    Raises:
        ValueError: No cell is finished.
    """
    results = read_results([folder / RESULTS])
    first: dict[str, Cell] = {}
    for cell in unique_cells(cells):
        if cell.key in results:
            first.setdefault(inference_key(cell.recipe), cell)
    if not first:
        raise ValueError(f"{folder}: no cell of these studies is finished; train them first")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with one_thread():
        candidates = []
        for key, cell in first.items():
            training = open_training(cell, data or {})
            model = training.model.to(device).eval()
            module, input_size = get_task(training.spec.task).flops_model(model, training.spec)
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
        raise ValueError(
            f"{path}: not measured throughputs ({error!r}); measure again with smt study NAME --throughput"
        ) from error
    return content
