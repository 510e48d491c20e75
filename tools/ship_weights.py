"""Put a run's best weights into the package, in half precision, and its small results into docs/results/.

    python tools/ship_weights.py runs/cifar10 smt_femto.cifar10 docs/results/cifar10

Writes ``src/smt_vision/weights/NAME.safetensors`` (a checkpoint as ``smt predict`` reads it, and as the name loads it),
checks that it predicts as the run does, and copies recipe, log, curves and confusion; no image of the data set.
"""

import json
import shutil
import sys
from pathlib import Path

import torch

from smt_vision.engine import checkpoint
from smt_vision.evaluation import evaluate_classifier
from smt_vision.recipes import Engine

RESULTS = ("recipe.yaml", "log.jsonl", "curves.png", "confusion.png", "summary.md")


def main(run: Path, name: str, results: Path) -> None:
    state = checkpoint.load(run / "best.pt")
    half = {k: v.half() if v.is_floating_point() else v for k, v in state["model"].items()}
    numbers = {k: v for k, v in state["metrics"].items() if isinstance(v, int | float)}
    target = Path(__file__).parents[1] / "src/smt_vision/weights" / f"{name}.safetensors"
    kept = {"card": state["card"], "recipe": state["recipe"], "metrics": numbers, "epoch": state["epoch"]}
    checkpoint.save({"model": half, **kept}, target)

    measured, _ = evaluate_classifier(str(target), engine=Engine(precision="32-true"))
    print(f"{target.name}: {target.stat().st_size / 1e6:.2f} MB; run {numbers['top1']:.2f} %, "
          f"in half precision {measured['top1']:.2f} %")  # fmt: skip
    if abs(measured["top1"] - numbers["top1"]) > 0.1:
        raise SystemExit("half precision changes the result by more than 0.1 points; not fit to ship")

    results.mkdir(parents=True, exist_ok=True)
    for file in RESULTS:
        shutil.copy(run / file, results / file)
    table = {k: measured[k] for k in ("top1", "top5", "loss", "ece", "count", "per_class", "confusion")}
    (results / "metrics.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
