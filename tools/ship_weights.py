"""Put a run's best weights into the package, in half precision, and its small results into a folder of docs/results/.

    python tools/ship_weights.py runs/cifar10 smt_femto.cifar10 docs/results/cifar10

Writes ``src/smt_vision/weights/NAME.safetensors`` (a checkpoint as ``smt predict`` reads it, and as the name loads it),
measures it as stored, and writes that, the curves, the confusion, the recipe and the log; no image of the data set.
"""

import json
import shutil
import sys
from pathlib import Path

import torch

from smt_vision import pictures
from smt_vision.engine import checkpoint
from smt_vision.engine.journal import read_log
from smt_vision.evaluation import evaluate_model
from smt_vision.recipes import Engine

LARGEST_CHANGE = 0.1  # points of top-1 that half precision may cost


def main(run: Path, name: str, results: Path) -> None:
    state = checkpoint.load(run / "best.pt")
    half = {k: v.half() if v.is_floating_point() else v for k, v in state["model"].items()}
    trained = {k: v for k, v in state["metrics"].items() if isinstance(v, int | float)}
    target = Path(__file__).parents[1] / "src/smt_vision/weights" / f"{name}.safetensors"
    kept = {"card": state["card"], "recipe": state["recipe"], "metrics": trained, "epoch": state["epoch"]}
    checkpoint.save({"model": half, **kept}, target)

    stored, _ = evaluate_model(str(target), engine=Engine(precision="32-true"))
    parameters = sum(v.numel() for k, v in half.items() if v.is_floating_point() and "running" not in k)
    print(f"{target.name}: {parameters:,} parameters, {target.stat().st_size / 1e6:.2f} MB, epoch {state['epoch']}")
    for label, numbers in (("as trained", trained), ("as stored", stored)):
        print(label, {k: round(numbers[k], 4) for k in ("top1", "top5", "loss", "ece")})
    if abs(stored["top1"] - trained["top1"]) > LARGEST_CHANGE:
        raise SystemExit(f"half precision changes top-1 by more than {LARGEST_CHANGE} points; not fit to ship")

    results.mkdir(parents=True, exist_ok=True)
    for file in ("recipe.yaml", "log.jsonl"):
        shutil.copy(run / file, results / file)
    pictures.curves(read_log(run), results / "curves.png", run.name, metric="top1", label="top-1 (%)")
    pictures.confusion(torch.tensor(stored["confusion"]), state["card"]["classes"], results / "confusion.png")
    both = {
        "as trained": trained,
        "as stored": {k: v for k, v in stored.items() if k not in ("worst", "model", "data")},
    }
    (results / "metrics.json").write_text(json.dumps(both, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
