"""Put a run's best weights into the package, in half precision, and its small results into a folder of docs/results/.

    python tools/ship_weights.py runs/cifar10 smt_femto.cifar10 docs/results/cifar10

Evaluates the weights as they would be stored, and only then writes ``src/smt_vision/weights/NAME.safetensors``, which
``smt predict`` and the timm name load, and the metrics, curves, confusion matrix, recipe and log, but no images.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smt_vision import checkpoints, evaluate
from smt_vision.engine.log import read_log
from smt_vision.pictures.confusion import confusion
from smt_vision.pictures.training import curves

WEIGHTS = Path(__file__).resolve().parents[1] / "src" / "smt_vision" / "weights"
LARGEST_CHANGE = 0.1  # points of top-1 that half precision may cost


def main(run: Path, name: str, results: Path, weights: Path = WEIGHTS) -> None:
    checkpoint = checkpoints.load(run)
    state, spec = checkpoint.state, checkpoint.spec
    assert spec is not None, f"{checkpoint.path} is not a checkpoint of a run"
    half = {k: v.half() if v.is_floating_point() else v for k, v in checkpoint.weights.items()}
    trained = {k: v for k, v in state["metrics"].items() if isinstance(v, int | float)}
    content = {"model": half, "spec": spec, "recipe": state["recipe"], "metrics": trained, "epoch": state["epoch"]}
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder) / f"{name}.safetensors"
        checkpoints.save(content, candidate)
        stored = evaluate(candidate)
        _report(candidate, half, state["epoch"], {"as trained": trained, "as stored": stored})
        if abs(stored["top1"] - trained["top1"]) > LARGEST_CHANGE:
            raise SystemExit(f"half precision changes top-1 by more than {LARGEST_CHANGE} points; nothing was written")
        shutil.copy(candidate, weights / candidate.name)

    results.mkdir(parents=True, exist_ok=True)
    for file in ("recipe.yaml", "log.jsonl"):
        shutil.copy(run / file, results / file)
    curves(read_log(run), results / "curves.png", run.name, metric="top1", label="top-1 (%)", loss_label="loss (nats)")
    confusion(np.asarray(stored["confusion"]), spec["classes"], results / "confusion.png")
    kept = {k: v for k, v in stored.items() if k not in ("worst", "model", "data")}
    both = {"as trained": trained, "as stored": kept}
    (results / "metrics.json").write_text(json.dumps(both, indent=1) + "\n")


def _report(file: Path, weights: Mapping[str, torch.Tensor], epoch: int, metrics: Mapping[str, Any]) -> None:
    parameters = sum(v.numel() for k, v in weights.items() if v.is_floating_point() and "running" not in k)
    print(f"{file.name}: {parameters:,} parameters, {file.stat().st_size / 1e6:.2f} MB, epoch {epoch}")
    for label, numbers in metrics.items():
        print(label, {k: round(numbers[k], 4) for k in ("top1", "top5", "loss", "ece")})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
