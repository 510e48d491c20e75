"""``smt bench``: what it metric_formats, prints and writes."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from command import answer, refusal, run
from smt_vision.benchmark.candidates import load_candidate
from smt_vision.benchmark.compare import Result
from smt_vision.benchmark.published import BASELINES
from smt_vision.benchmark.report import markdown_table
from smt_vision.cost import describe

pytestmark = pytest.mark.pictures

Capture = pytest.CaptureFixture[str]
EXPORT = Path(__file__).parent / "golden" / "classify-onnx"
TINY = ("--size", "32", "--rounds", "1", "--seconds", "0", "--memory", "false")


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    """The command sets the number of threads of the process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_peak_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smt_vision.benchmark.timing.matmul_peak", lambda *args: 1e9)


def test_models_side_by_side(capsys: Capture, tmp_path: Path) -> None:
    models = ("smt_atto", "smt_atto:fused", "resnet10t")
    options = ("--batch_size", "2", "1", "--threads", "1", "--out", tmp_path, *TINY, "--json")
    assert run("bench", *models, *options) == 0
    out, error = capsys.readouterr()
    assert error == ""
    data = json.loads(out)
    assert json.loads((tmp_path / "bench.json").read_text()) == data
    assert (data["mode"], data["precision"], data["peak_gflops"]) == ("inference", "fp32", 1.0)
    assert data["allocator"] == "large"
    assert "1 torch threads" in data["hardware"]
    rows = data["results"]
    assert {(r["model"], r["batch_size"]) for r in rows} == {(model, batch) for model in models for batch in (1, 2)}
    assert rows[0]["ratio"] == 1
    for row in rows:
        assert row["share_of_peak"] == pytest.approx(2 * row["gmac"] * row["images_per_s"])
        original = load_candidate(row["model"]).original
        assert original is not None
        assert row["parameters"] == describe(original).parameters
    table = (tmp_path / "table.md").read_text().splitlines()
    assert sum(line.startswith("| smt_atto:fused |     32 | ") for line in table) == 2
    assert len({line.count("|") for line in table if line.startswith("|")}) == 1
    assert not (tmp_path / "bench.png").exists()  # none of these models has a published accuracy


def test_models_in_pairs(capsys: Capture) -> None:
    """Each model in a process of its own beside the first one, whose speed is its median over all of them."""
    models = ("smt_atto", "resnet10t")
    options = ("--pairs", "--batch_size", "2", "1", "--threads", "1", *TINY, "--json")
    assert run("bench", *models, "no_such_model", "--skip_failures", *options) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["pairs"] is True
    assert [(row["model"], row["batch_size"]) for row in data["results"]] == [
        (model, batch) for batch in (1, 2) for model in models
    ]
    first = {row["batch_size"]: row["images_per_s"] for row in data["results"] if row["model"] == "smt_atto"}
    for row in data["results"]:
        assert row["images_per_s"] == pytest.approx(row["ratio"] * first[row["batch_size"]])
        assert row["p50_ms"] == pytest.approx(1e3 * row["batch_size"] / row["images_per_s"])
        assert row["share_of_peak"] > 0
    assert list(data["failures"]) == ["no_such_model"]


def test_training_and_memory(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def here(prepare: Callable[[], Iterable[Callable[[], object]]], device: str) -> list[int]:
        made = [call() for call in prepare()]
        counts.append(len(made))
        return [(n + 1) * 10**7 for n in range(len(made))]

    monkeypatch.setattr("smt_vision.benchmark.candidates.peak_memory", here)
    assert run("bench", "smt_atto", "--train", "--batch_size", "4", "2", *TINY, "--memory", "true") == 0
    out = capsys.readouterr().out
    assert counts == [2]
    heads, first, second = [line.split() for line in out.splitlines()[-3:]]
    assert heads[:3] == ["model", "pixels", "batch"]
    assert "training, eager, fp32, cpu, large allocations kept" in out
    assert (first[2], first[-4], second[2], second[-4]) == ("2", "10", "4", "20")  # the smaller batch first


def test_baselines_are_added_and_plotted(capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names: list[str] = []

    def fake_compare(candidates: list[SimpleNamespace], batch_sizes: list[int], **kwargs: object) -> list[Result]:
        names.extend(candidate.name for candidate in candidates)
        return [
            Result(candidate.name, batch_size, (3, 224, 224), 1, 1.0, 10.0 + i, 1.0, 1.0, 1.0, 1.0, 0.0, 1, 0.5)
            for batch_size in batch_sizes
            for i, candidate in enumerate(candidates)
        ]

    def run_once(candidate: SimpleNamespace, batch_sizes: list[int], device: str, **options: Any) -> None:
        if candidate.name == "caformer_s18":
            raise RuntimeError("no such operator")

    module = "smt_vision.benchmark.candidates"
    monkeypatch.setattr(f"{module}.load_candidate", lambda spec, **options: SimpleNamespace(name=spec))
    monkeypatch.setattr(f"{module}.run_once", run_once)
    monkeypatch.setattr("smt_vision.benchmark.compare.compare", fake_compare)
    options = ("--baselines", "--memory", "false", "--out", tmp_path)
    assert run("bench", "resnet18", "smt_tiny", *options) == 0
    assert names == ["resnet18", "smt_tiny", *(name for name in BASELINES if name != "caformer_s18")]
    out = capsys.readouterr().out
    assert "not measured: caformer_s18: RuntimeError: no such operator" in out
    assert str(tmp_path / "bench.png") in out
    assert json.loads((tmp_path / "bench.json").read_text())["failures"].keys() == {"caformer_s18"}
    with Image.open(tmp_path / "bench.png") as image:
        assert image.size[0] == 2 * 780  # one panel per batch size
    (tmp_path / "bench.png").unlink()
    assert run("bench", "smt_tiny", "--train", *options[1:]) == 0
    assert not (tmp_path / "bench.png").exists()  # published accuracies are plotted against inference speed only


def test_failures_in_training_and_in_the_measurement_of_memory(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(*args: Any, **options: Any) -> dict[int, int]:
        if args[0] == "smt_pico":
            raise RuntimeError("the measuring process died")
        return {2: 10**7}

    monkeypatch.setattr("smt_vision.benchmark.candidates.candidate_peak_memory", died)
    command = ("bench", "smt_atto:fused", "smt_atto", "smt_pico", "--train", "--size", "32", "--skip_failures", *TINY)
    found = answer(capsys, *command, "--memory", "true", "--batch_size", "2")
    assert [result["model"] for result in found["results"]] == ["smt_atto"]
    assert "no trainable parameters" in found["failures"]["smt_atto:fused"]
    assert "the measuring process died" in found["failures"]["smt_pico"]


def test_baselines_for_training_are_not_fused(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def load(spec: str, *args: Any, **options: Any) -> Any:
        names.append(spec)
        raise ValueError("not here")

    monkeypatch.setattr("smt_vision.benchmark.candidates.load_candidate", load)
    assert "not here" in refusal(capsys, 1, "bench", "--baselines", "--train", *TINY)
    assert names
    assert not [name for name in names if "fused" in name]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "expected MODEL or --baselines"),
        (["smt_tinny"], 1, "smt_tiny"),
        (["smt_atto:quick"], 1, "invalid variant 'quick'"),
        (["smt_atto:fused", "--train", *TINY], 1, "no trainable parameters"),
        (["smt_atto", "smt_atto", *TINY], 1, "['smt_atto', 'smt_atto']"),
        (["smt_atto", "--precision", "8"], 2, "precision"),
        (["smt_atto", "--engine", "onnxruntime", "--precision", "bf16"], 1, "engine 'onnxruntime' has fp32"),
        (
            ["smt_atto", "--engine", "onnxruntime", "--device", "cuda"],
            1,
            "device=cuda: engine 'onnxruntime' runs on the CPU",
        ),
        (["smt_atto", "--engine", "openvino", "--train"], 1, "models are trained by eager or compiled"),
        (["smt_atto", "--pairs", *TINY], 1, "two models or more"),
        (["no_such_model", "smt_atto", "--pairs", "--skip_failures", *TINY], 1, "no_such_model"),
        (["smt_atto", "--size", "32", "32", "32"], 1, "invalid --size 32 32 32"),
        (["smt_atto", "--engine", "tensorrt"], 2, "engine"),
        (["smt_atto", "--allocator", "small"], 2, "allocator"),
        (["smt_atto", "--outliers"], 2, "outliers"),
    ],
)
def test_refusals(arguments: list[str], code: int, message: str, capsys: Capture) -> None:
    assert message in refusal(capsys, code, "bench", *arguments)


def test_auto_is_a_precision_that_the_engine_has(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the report has the version of the runtime."""
    runtime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr("smt_vision.precision.has_bf16", lambda device: True)
    command = ("bench", "test_resnet", "--precision", "auto", "--batch_size", "1", *TINY)
    found = answer(capsys, *command, "--engine", "onnxruntime")
    assert (found["precision"], found["versions"]["onnxruntime"]) == ("fp32", runtime.__version__)
    found = answer(capsys, *command)
    assert (found["precision"], found["versions"].keys()) == ("bf16", {"smt_vision", "torch", "timm"})
    found = answer(capsys, "bench", EXPORT, *command[2:])
    assert (found["exports"], found["versions"]["onnxruntime"]) == (
        {str(EXPORT): ["onnx", "fp32"]},
        runtime.__version__,
    )


def test_execution_providers(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an ONNX export and of the engine, not of models that PyTorch runs."""
    runtime = pytest.importorskip("onnxruntime")
    session, given = runtime.InferenceSession, []

    def recorded(path: Any, options: Any, providers: Any) -> Any:
        given.append(providers)
        return session(path, options, providers=providers)

    monkeypatch.setattr(runtime, "InferenceSession", recorded)
    command = ("--batch_size", "1", *TINY, "--providers", "CPUExecutionProvider")
    for words in ((EXPORT,), ("test_resnet", "--engine", "onnxruntime")):
        assert answer(capsys, "bench", *words, *command)["providers"] == ["CPUExecutionProvider"]
        assert "NoSuchProvider" in refusal(capsys, 1, "bench", *words, *command[:-1], "NoSuchProvider")
    assert given == [["CPUExecutionProvider"]] * 2
    assert "omit it" in refusal(capsys, 1, "bench", "test_resnet", *command)


@pytest.mark.parametrize("pairs", [[], ["--pairs"]])
def test_runtimes_are_timed_in_processes_of_their_own(
    pairs: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    groups: list[list[str]] = []

    def here(function: Callable[..., Any], args: Any, specs: list[str], batch_sizes: list[int]) -> Any:
        groups.append(specs)
        return function(args, specs, batch_sizes)

    monkeypatch.setattr("smt_vision.benchmark.memory.in_fresh_process", here)
    models = ["smt_atto", str(EXPORT), "resnet10t"]
    found = answer(capsys, "bench", *models, "--batch_size", "2", "1", "--threads", "1", *TINY, *pairs)
    expected = [["smt_atto"], [str(EXPORT)], ["smt_atto", "resnet10t"]]
    assert groups == (expected if pairs else [["smt_atto", "resnet10t"], [str(EXPORT)]])
    rows = found["results"]
    assert [(row["model"], row["batch_size"]) for row in rows] == [(model, b) for b in (1, 2) for model in models]
    for first, *others in (rows[:3], rows[3:]):
        assert first["ratio"] == 1
        for row in others:
            assert row["ratio"] == pytest.approx(row["images_per_s"] / first["images_per_s"])


def test_markdown_table_is_padded() -> None:
    assert markdown_table(["model", "ms"], [["a", "1.50"], ["longer", "12.25"]]) == (
        "| model  |    ms |\n| ------ | ----: |\n| a      |  1.50 |\n| longer | 12.25 |\n"
    )
    assert markdown_table(["a", "b"], []) == "| a   |   b |\n| --- | --: |\n"
