"""Published accuracy against measured throughput in every engine and precision, SMT and baselines.

    python benchmarks/frontier.py --out docs/results/speed/frontier

Each engine is measured by ``smt bench --pairs``: every model in a process of its own beside SMT-T. An engine that has
been measured into the folder is not measured again; delete its folder to do so. Writes one folder per engine and
precision, with table and picture, and ``frontier.md``, the table of all. With ``--features``, of the four feature maps
at 800 x 1280 pixels, the size of images in object detection.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smt_vision.benchmark.model_spec import ENGINES, parse_spec
from smt_vision.benchmark.picture import SpeedPoint, pareto_front
from smt_vision.benchmark.published import BASELINES, PUBLISHED
from smt_vision.benchmark.report import markdown_table

RUNS = tuple(f"{engine}_{precision}" for engine, precisions in ENGINES.items() for precision in precisions)
DETECTION_SIZE = (800, 1280)


def arguments_of(run: str, features: bool) -> list[str]:
    """Arguments of ``smt bench`` for an engine and precision."""
    engine, precision = run.split("_")
    options = ["--pairs", "--engine", engine, "--precision", precision, "--batch_size", "1", "--memory", "false"]
    if not features:
        return ["--baselines", *options]
    return [*map(with_features, BASELINES), *options, "--size", *map(str, DETECTION_SIZE), "--skip_failures"]


def with_features(spec: str) -> str:
    """The spec string of a model's feature maps."""
    source, variants = parse_spec(spec)
    return f"{source}:{'+'.join(('features', *variants))}"


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table with one row per model and one column per engine; models on the Pareto front are bold."""
    speeds = {
        run: {parse_spec(row["model"])[0]: row["images_per_s"] for row in data["results"]}
        for run, data in results.items()
    }
    fronts = {run: _front(speed) for run, speed in speeds.items()}
    columns = ["model", "top-1, %", "pixels", "params, M", *(run.replace("_", " ") for run in results)]
    details = {parse_spec(row["model"])[0]: row for data in results.values() for row in data["results"]}
    rows = []
    for name in sorted(details, key=lambda name: -PUBLISHED[name].top1):
        row, published = details[name], PUBLISHED[name]
        pixels = " x ".join(dict.fromkeys(map(str, row["input_size"][1:])))
        cells = [published.label, f"{published.top1:.1f}", pixels, f"{row['parameters'] / 1e6:.1f}"]
        for run, speed in speeds.items():
            value = speed.get(name)
            text = "" if value is None else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
            cells.append(f"{text} †" if name in fronts[run] else text)
        rows.append(cells)
    return markdown_table(columns, rows)


def _front(speeds: Mapping[str, float]) -> set[str]:
    points = [SpeedPoint(name, speed, PUBLISHED[name].top1, False) for name, speed in speeds.items()]
    return {point.label for point in pareto_front(points)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=RUNS, help="engines and precisions")
    parser.add_argument("--features", action="store_true", help="time feature maps at the size of detection")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each model")
    parser.add_argument("--seconds", type=float, default=0.7, help="duration of a turn")
    args = parser.parse_args(argv)
    results = {}
    for run in args.only:
        file = args.out / run / "bench.json"
        if not file.is_file():
            options = ["--rounds", str(args.rounds), "--seconds", str(args.seconds), "--out", str(file.parent)]
            command = [sys.executable, "-m", "smt_vision", "bench", *arguments_of(run, args.features), *options]
            subprocess.run(command, check=True)  # noqa: S603  fixed arguments
        results[run] = json.loads(file.read_text())
    text = table(results)
    (args.out / "frontier.md").write_text(f"Images per second, batch size 1; † on the Pareto front.\n\n{text}")
    print(text, end="")


if __name__ == "__main__":
    main()
