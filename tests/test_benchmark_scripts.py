"""The scripts in benchmarks/, in this process, at tiny size. test_outliers.py and test_input_pipeline.py have more."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from smt_vision.forms import training
from smt_vision.kernels import linear
from smt_vision.precision import has_bf16
from smt_vision.study.studies import STUDIES

TINY = "--model smt_atto --size 32 --threads 1 --rounds 1 --seconds 0"


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    """The scripts set the number of threads of the process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_peak_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smt_vision.benchmark.compare.matmul_peak", lambda *args: 1e9)


def run(name: str, options: str, out: Path) -> dict[str, Any]:
    """The results that a script writes."""
    importlib.import_module(name).main([*options.split(), "--out", str(out)])
    results = json.loads(out.read_text())
    assert "1 torch threads" in results["hardware"]
    assert results["command"].startswith("python ")
    return results


def test_inference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # In this process; test_speed.py tests the fresh one.
    monkeypatch.setattr("inference.in_fresh_process", lambda function, *args: function(*args))
    results = run("inference", f"{TINY} --batch_size 1 --visits 1", tmp_path / "inference.json")
    models = ["reference", "ours", "fused", *(["fused, bfloat16"] if has_bf16() else [])]
    assert [(s["model"], s["allocator"]) for s in results["summary"]] == [
        (model, allocator) for allocator in ("default", "large") for model in models
    ]
    assert results["summary"][0]["ratio"] == results["summary"][0]["gain"] == 1
    assert capsys.readouterr().out.count("fused ") == 2


def test_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # 64 pixels: at 32, the last stage's BatchNorm would see one token per image.
    options = f"{TINY} --size 64 --batch_size 2 --profile"
    results = run("training", options, tmp_path / "training.json")
    assert [step["model"] for step in results["steps"]] == ["reference", "ours"]
    assert results["saved_activations_checkpointed"] < results["steps"][1]["saved_activations"]
    assert results["gradients"]["all"] < 1e-5
    assert results["gradients"]["worst"] < 1e-4
    assert results["gradients"]["rounding_only"] >= 1
    assert set(results["profile"]) == {"reference", "ours"}
    assert sum(row["share"] for row in results["profile"]["ours"]) <= 1
    assert "profile of a training step, ours" in capsys.readouterr().out
    half = run("training", f"{TINY} --size 64 --batch_size 2 --precision bf16", tmp_path / "bf16.json")
    assert half["precision"] == "bf16"
    assert half["steps"][1]["saved_activations"] < results["steps"][1]["saved_activations"]


def test_ablation(tmp_path: Path) -> None:
    options = "--model smt_atto --size 64 --batch_size 2 --threads 1 --rounds 2"
    results = run("ablation", options, tmp_path / "ablation.json")
    assert len(results["ablations"]) == 2
    assert all(row["ratio"] > 0 for row in results["ablations"])


@pytest.mark.parametrize("without", ["without_kernel_sum", "without_onednn_products"])
def test_ablation_replaces_the_computation_only_while_it_lasts(without: str) -> None:
    module = importlib.import_module("ablation")
    before = training.residual_depthwise_conv2d, training.linear, linear.product
    with getattr(module, without)():
        assert (training.residual_depthwise_conv2d, training.linear, linear.product) != before
    assert (training.residual_depthwise_conv2d, training.linear, linear.product) == before


def test_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--size 32 --workers 0 --batch_size 2 --threads 1 --seconds 0.05"
    results = run("input", options, tmp_path / "input.json")
    assert results["input"]["source"] == "synthetic"
    assert results["input"]["train"]["ratio"] > 0
    assert "model" not in results
    assert "training loader, 0 workers, 2 per batch" in capsys.readouterr().out


def test_input_and_model(colored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = f"{TINY} --workers 0 --batch_size 4 --data {colored}"
    results = run("input", options, tmp_path / "input.json")
    assert results["input"]["source"] == str(colored)
    assert (results["model"]["model"], results["model"]["batch_size"]) == ("smt_atto", 4)
    assert results["mode"] == "training"
    assert results["together"] < min(results["input"]["images_per_s"], results["model"]["images_per_s"])
    assert f"the bottleneck is the {results['bottleneck']}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("input_speed", "model_speed", "shared_cores", "together", "bottleneck", "share"),
    [
        (60.0, 20.0, True, 15.0, "model", 0.75),
        (20.0, 60.0, True, 15.0, "input", 0.75),
        (60.0, 20.0, False, 20.0, "model", 1.0),
        (20.0, 60.0, False, 20.0, "input", 1.0),
    ],
)
def test_the_slower_one_is_the_bottleneck(
    input_speed: float, model_speed: float, shared_cores: bool, together: float, bottleneck: str, share: float
) -> None:
    result = importlib.import_module("input").find_bottleneck(input_speed, model_speed, shared_cores)
    assert result == pytest.approx({"together": together, "bottleneck": bottleneck, "share": share})


def test_startup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run("startup", "--threads 1 --rounds 2 --only help recipes", tmp_path / "startup.json")
    assert [row["command"] for row in results["startup"]] == ["smt --help", "smt recipes"]
    assert all(0 < row["min"] <= row["median"] <= row["max"] for row in results["startup"])
    assert (results["threads"], results["rounds"]) == (1, 2)
    assert "smt recipes" in capsys.readouterr().out


def test_startup_of_commands_that_fail() -> None:
    seconds = importlib.import_module("startup").processor_seconds
    with pytest.raises(RuntimeError, match="exit code 1: no such thing"):
        seconds(("-c", "raise SystemExit('no such thing')"), 1)


def test_startup_measures_the_child_and_not_the_wait() -> None:
    seconds = importlib.import_module("startup").processor_seconds
    idle = seconds(("-c", "import time; time.sleep(1)"), 1)
    busy = seconds(("-c", "import time\nwhile time.process_time() < 0.5: pass"), 1)
    assert idle < 1
    assert busy >= 0.5


@pytest.mark.slow
def test_export(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    results = run("export", f"{TINY} --size 64 --batch_size 1", tmp_path / "export.json")
    assert [row["model"] for row in results["speed"]] == [
        "reference", "openvino float32", "openvino bfloat16", "openvino int8",
    ]  # fmt: skip
    assert results["speed"][1]["ratio_to_float32"] == 1
    assert results["top1"] == {}


def test_large_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run("large_image", "smt_femto.cifar10 --image_size 6000 4000 --threads 1", tmp_path / "large.json")
    [row] = results["large_image"]
    decoded = 3 * 6000 * 4000
    assert min(row["peak_memory"], row["small_image"]) > 100e6  # PyTorch by itself
    # Measured: 3.9. An image of float32 values would be 4 more.
    assert decoded < row["peak_memory"] - row["small_image"] < 5 * decoded
    assert row["seconds"] > 0
    assert "smt_femto.cifar10" in capsys.readouterr().out


def test_memory_of_a_process_is_not_that_of_the_one_that_starts_it() -> None:
    measured = importlib.import_module("large_image").measured
    peak, _ = measured([sys.executable, "-c", "pass"], 1)
    assert peak < 60e6  # this process has imported PyTorch
    with pytest.raises(RuntimeError, match="exit code 3"):
        measured([sys.executable, "-c", "raise SystemExit(3)"], 1)


def test_resolution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("resolution.in_fresh_process", lambda function, *args: function(*args))
    monkeypatch.setattr("resolution.CALLS", 1)
    results = run("resolution", "--model smt_atto --sizes 64x96 --threads 1", tmp_path / "resolution.json")
    rows = results["resolution"]
    assert [(row["part"], row["train"]) for row in rows] == [
        (part, train) for train in (False, True) for part in ("features", "retinanet", "mask_rcnn")
    ]
    assert all(row["seconds"] > 0 for row in rows)
    assert rows[0]["gmac"] < rows[1]["gmac"] < rows[2]["gmac"]
    assert "| mask_rcnn, training " in capsys.readouterr().out


def test_attention(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--model smt_atto --sizes 64x96 --threads 1 --rounds 1 --seconds 0"
    results = run("attention", options, tmp_path / "attention.json")
    rows = results["attention"]
    assert [(row["tokens"], row["precision"]) for row in rows] == [(24, "fp32"), (24, "bf16")]
    assert all(0 < row[name] < 60 for row in rows for name in ("fused", "blocks", "forward_pass"))
    assert "| 64x96 " in capsys.readouterr().out
    q, k, v = torch.randn(3, 1, 2, 1100, 8).unbind()  # three blocks, the last of which is smaller
    in_blocks = importlib.import_module("attention").in_blocks
    torch.testing.assert_close(in_blocks(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_frontier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table of all engines, from what was measured into the folder."""
    frontier = importlib.import_module("frontier")
    assert frontier.arguments_of("openvino_int8", False)[:6] == [
        "--baselines", "--pairs", "--engine", "openvino", "--precision", "int8",
    ]  # fmt: skip
    features = frontier.arguments_of("eager_fp32", True)
    assert "smt_tiny:features+fused" in features
    assert "convnext_tiny:features" in features
    assert features[features.index("--size") + 1 :][:2] == ["800", "1280"]

    def row(model: str, images_per_s: float) -> dict[str, object]:
        return {"model": model, "images_per_s": images_per_s, "input_size": [3, 224, 224], "parameters": 12_300_000}

    speeds = {
        "openvino_fp32": [row("smt_tiny:fused", 20.0), row("convnext_tiny", 30.0), row("caformer_s18", 10.0)],
        "openvino_bf16": [row("smt_tiny:fused", 50.0), row("convnext_tiny", 40.0)],
    }
    for run_name, rows in speeds.items():
        (tmp_path / run_name).mkdir()
        (tmp_path / run_name / "bench.json").write_text(json.dumps({"results": rows}))
    frontier.main(["--out", str(tmp_path), "--only", *speeds])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert lines[2:] == [  # the most accurate first; on the front where no model is both faster and more accurate
        ["CAFormer-S18", "83.6", "224", "12.3", "10.0 †", ""],
        ["SMT-T", "82.2", "224", "12.3", "20.0 †", "50.0 †"],
        ["ConvNeXt-T", "82.1", "224", "12.3", "30.0 †", "40.0"],
    ]
    assert (tmp_path / "frontier.md").read_text().count("|") > 20


def test_precision_study() -> None:
    """Its cells in bfloat16 are those of the shipped studies, so that they are trained once."""
    study = importlib.import_module("precision_study").STUDY
    bf16, fp32 = (study.cell("5 epochs", name, 0) for name in ("bf16", "fp32"))
    assert bf16.key == STUDIES["aggregation"].cell("5 epochs", "saa", 0).key != fp32.key
    assert (bf16.recipe.engine.precision, fp32.recipe.engine.precision) == ("bf16-mixed", "32-true")
