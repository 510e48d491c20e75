"""``smt bench`` as a user meets it, and the benchmarks in benchmarks/ at a size for tests."""

import json
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from smt_vision.benchmark.cost import describe
from smt_vision.cli.forms import load, parse
from smt_vision.data.throughput import InputSpeed, PipelineSpeed

import smt_vision
from smt_vision.benchmark.compare import Contender, Result, compare
from smt_vision.cli import main
from smt_vision.cli.bench import _draw, balance
from smt_vision.deploy.exported import ExportedModel, Manifest
from smt_vision.inference import Classifier
from smt_vision.recipes import Augment, Input

Capture = pytest.CaptureFixture[str]
SMALL = ("--size", "32", "--rounds", "1", "--seconds", "0", "--memory", "false")
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """The number of threads is the process's: put back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _quick_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smt_vision.benchmark.speed.matmul_peak", lambda *args: 1e9)


def run(capsys: Capture, *words: str | Path) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``smt bench``."""
    capsys.readouterr()
    try:
        code = main(["bench", *map(str, words)])
    except SystemExit as end:
        code = int(end.code or 0)
    return (code, *capsys.readouterr())


# --- spellings


@pytest.mark.parametrize(
    ("spelled", "source", "forms"),
    [
        ("smt_tiny", "smt_tiny", ()),
        ("smt_tiny:fused", "smt_tiny", ("fused",)),
        ("smt_femto.cifar10:fused+compiled", "smt_femto.cifar10", ("fused", "compiled")),
        ("hf-hub:someone/model", "hf-hub:someone/model", ()),
        ("runs/a:channels_last", "runs/a", ("channels_last",)),
    ],
)
def test_spellings(spelled: str, source: str, forms: tuple[str, ...]) -> None:
    assert parse(spelled) == (source, forms)


def test_a_path_with_a_colon_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "run:fused"
    path.mkdir()
    assert parse(str(path)) == (str(path), ())


@pytest.mark.parametrize(
    ("spelled", "told"),
    [
        ("smt_tiny:fusd", "'fusd' is no form; did you mean fused?; expected one or more of fused, compiled"),
        ("smt_tiny:fused+fused", "'fused' is no form"),
    ],
)
def test_wrong_forms(spelled: str, told: str) -> None:
    with pytest.raises(ValueError, match=f"^{spelled.replace('+', '.')}: ") as error:
        parse(spelled)
    assert told in str(error.value)


def logits(contender: Contender) -> torch.Tensor:
    x = torch.randn(2, *contender.input_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return contender.model(x)


@pytest.mark.parametrize("name", ["smt_atto", "fastvit_t8"])
def test_the_fused_form_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    fused = load(f"{name}:fused+channels_last", size=64)
    plain = Contender(name, fused.plain.eval(), fused.input_size, fused.plain)
    torch.testing.assert_close(logits(fused), logits(plain), atol=1e-4, rtol=1e-4)
    norms = [sum(isinstance(m, torch.nn.BatchNorm2d) for m in c.model.modules()) for c in (fused, plain)]
    assert norms[0] < norms[1]
    assert describe(fused.plain, fused.input_size).parameters == sum(p.numel() for p in plain.model.parameters())


def test_what_cannot_be_fused() -> None:
    with pytest.raises(ValueError, match="nothing to fuse in this VisionTransformer"):
        load("vit_tiny_patch16_224:fused")


def test_the_compiled_form_is_one_graph_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda model, **kwargs: seen.append(kwargs) or model)
    contender = load("smt_atto:compiled", size=48)
    assert seen == [{"fullgraph": True, "dynamic": False}]
    assert contender.input_size == (3, 48, 48)


def test_sizes_are_those_of_the_accuracy_or_the_weights() -> None:
    assert load("edgenext_base").input_size == (3, 256, 256)
    shipped = Path(smt_vision.__file__).parent / "weights" / "smt_femto.cifar10.safetensors"
    trained = load(f"{shipped}:fused")
    assert trained.input_size == (3, 32, 32)
    again = load(str(shipped))
    torch.testing.assert_close(logits(trained), logits(again), atol=1e-4, rtol=1e-4)  # no random weights


def test_an_export_runs_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No runtime is needed for this: the manifest says what is known, and the program is a stand-in."""
    card = {"task": "classify"}
    manifest = Manifest(
        "m", "smt_atto", "onnx", "float32", 12345, ("a", "b"), card, Input(size=64), True, {}, {}, {}, "now"
    )
    exported = ExportedModel(lambda x: x.mean((2, 3))[:, :2], manifest)
    classifier = Classifier(exported, manifest.classes, manifest.input, "m")
    monkeypatch.setattr(Classifier, "load", lambda source, device: classifier)
    contender = load(str(tmp_path))
    assert contender.model is exported
    assert (contender.input_size, contender.plain, contender.parameters) == ((3, 64, 64), None, 12345)
    [result] = compare([contender], [2], rounds=1, seconds=0, peak=1e9)
    assert (result.parameters, result.gmac, result.share_of_peak) == (12345, None, None)
    with pytest.raises(ValueError, match="an export is what it is; leave :fused out"):
        load(f"{tmp_path}:fused")


# --- the command


def test_models_side_by_side(capsys: Capture, tmp_path: Path) -> None:
    words = ("smt_atto", "smt_atto:fused", "resnet10t", "--batch_size", "2", "1", "--threads", "1", "--out", tmp_path)
    code, out, error = run(capsys, *words, *SMALL, "--json")
    assert (code, error) == (0, "")
    data = json.loads(out)
    assert json.loads((tmp_path / "bench.json").read_text()) == data
    assert (data["mode"], data["precision"], data["peak_gflops"]) == ("inference", "32-true", 1.0)
    assert "1 torch threads" in data["hardware"]
    rows = data["results"]
    assert {(r["model"], r["batch_size"]) for r in rows} == {(model, batch) for model in words[:3] for batch in (1, 2)}
    assert rows[0]["ratio"] == 1
    for row in rows:
        assert row["share_of_peak"] == pytest.approx(2 * row["gmac"] * row["images_per_s"])
        assert row["parameters"] == describe(load(row["model"]).plain).parameters
    table = (tmp_path / "table.md").read_text().splitlines()
    assert sum(line.startswith("| smt_atto:fused | 32 | ") for line in table) == 2
    assert len({line.count("|") for line in table if line.startswith("|")}) == 1
    assert not (tmp_path / "bench.png").exists()  # no accuracy of these is published


def test_training_and_memory(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def here(prepare: Callable[[], list[Callable[[], object]]], device: str) -> list[int]:
        calls = prepare()
        for call in calls:
            call()
        asked.append(len(calls))
        return [(n + 1) * 10**7 for n in range(len(calls))]

    monkeypatch.setattr("smt_vision.benchmark.memory.peak_memory", here)
    words = ("smt_atto", "--train", "--batch_size", "4", "2", *SMALL, "--memory", "true")
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert asked == [2]
    heads, first, second = [line.split() for line in out.splitlines()[-3:]]
    assert heads[:3] == ["model", "pixels", "batch"]
    assert "training, 32-true, cpu" in out
    assert (first[2], first[-4], second[2], second[-4]) == ("2", "10", "4", "20")  # the smaller batch first


def test_cliffs(capsys: Capture, tmp_path: Path) -> None:
    words = ("smt_atto", "--cliffs", "--batch_size", "1", "2", *SMALL, "--size", "32", "64", "--out", tmp_path)
    code, out, _ = run(capsys, *words)
    assert code == 0
    cells = json.loads((tmp_path / "bench.json").read_text())["cells"]
    assert {(c["size"], c["batch_size"]) for c in cells} == {(32, 1), (32, 2), (64, 1), (64, 2)}
    assert min(c["relative"] for c in cells) == 1
    steep = sum(c["steep"] for c in cells)
    assert f"{steep} of 4 cells take over 3 times the best one's time per operation" in out
    assert (tmp_path / "table.md").read_text().count("| smt_atto |") == 4


@pytest.mark.parametrize(
    ("input", "model", "shared", "together", "bottleneck", "share"),
    [
        (60.0, 20.0, True, 15.0, "model", 0.75),
        (20.0, 60.0, True, 15.0, "input", 0.75),
        (60.0, 20.0, False, 20.0, "model", 1.0),
        (20.0, 60.0, False, 20.0, "input", 1.0),
    ],
)
def test_the_slower_one_is_the_bottleneck(
    input: float, model: float, shared: bool, together: float, bottleneck: str, share: float
) -> None:
    told = balance(input, model, shared)
    assert told == pytest.approx({"together": together, "bottleneck": bottleneck, "share": share})


def test_input_beside_training(capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def measured(*args: Any) -> InputSpeed:
        asked.extend(args)
        return InputSpeed("MY_IMAGES", None, PipelineSpeed(0.04, 0.02), PipelineSpeed(0.05, None), 0.08, 2, 4)

    monkeypatch.setattr("smt_vision.data.throughput.measure_input", measured)
    words = ("--input", "smt_atto", "--data", "MY_IMAGES", "--workers", "2", "--batch_size", "4", "--out", tmp_path)
    code, out, _ = run(capsys, *words, *SMALL)
    assert code == 0
    data, input, augment, workers, batch_size, seconds = asked
    assert (data, input.size, workers, batch_size, seconds) == ("MY_IMAGES", 32, 2, 4, 0)
    assert input.mean == pytest.approx((0.485, 0.456, 0.406))
    assert augment == Augment()
    assert re.search(r"one core, training +0\.0 +2\.00", out)
    assert "the bottleneck is the input: it takes" in out
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["together"] < written["input"]["images_per_s"] == 0.08
    assert written["model"]["batch_size"] == 4
    assert written["mode"] == "training"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([], 2, "name models, or one of --peers and --cliffs"),
        (["smt_tinny"], 1, "timm knows none of that name; near it are: smt_tiny"),
        (["smt_atto:quick"], 1, "'quick' is no form"),
        (["smt_atto", "--size", "32", "64"], 1, "--size 32 64: one size, but with --cliffs"),
        (["smt_atto", "smt_pico", "--input"], 1, "--input measures one model"),
        (["smt_atto:fused", "--train", *SMALL], 1, "has nothing to train"),
        (["smt_atto", "smt_atto", *SMALL], 1, "name each once"),
        (["smt_atto", "--precision", "8"], 2, "precision"),
    ],
)
def test_refusals(words: list[str], code: int, told: str, capsys: Capture) -> None:
    found, out, error = run(capsys, *words)
    assert (found, out) == (code, "")
    assert told in error
    assert "Traceback" not in error


def test_the_picture_has_the_models_run_at_their_published_size(tmp_path: Path) -> None:
    def result(model: str, speed: float, size: int = 224, batch: int = 1) -> Result:
        return Result(model, batch, (3, size, size), 1, 1.0, speed, 1.0, 1.0, 1.0, 1.0, 0.0, 1, 0.5)

    about = dict(
        mode="inference", precision="32-true", device="cpu", allocator="default", hardware="a machine",
        versions=dict(torch="2"), date="2026-11-22",
    )  # fmt: skip
    rows = [result("smt_tiny:fused", 40), result("convnext_tiny", 30), result("fastvit_sa12:fused", 50, 256)]
    rows += [result("smt_small", 20, 256), result("resnet18", 90), result("smt_tiny", 60, batch=16)]
    assert _draw(rows, about, tmp_path / "bench.png") == str(tmp_path / "bench.png")
    with Image.open(tmp_path / "bench.png") as image:
        assert image.size[0] == 2 * 780  # a panel for each batch size
    assert _draw(rows, {**about, "mode": "training"}, tmp_path / "none.png") is None
    assert _draw(rows[4:5], about, tmp_path / "none.png") is None
    assert not (tmp_path / "none.png").exists()


# --- the programs in benchmarks/


def program(name: str, monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> dict[str, Any]:
    """What a program's main() writes with --out."""
    out = Path(words[-1])
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [name, "--model", "smt_atto", "--size", "64", "--rounds", "1", "--seconds", "0",
                                      "--threads", "1", *map(str, words)])  # fmt: skip
    runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
    return json.loads(out.read_text())


def test_the_inference_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture) -> None:
    # In this process: what a fresh one adds is tested with the memory.
    monkeypatch.setattr("smt_vision.benchmark.memory.in_fresh_process", lambda function, *args: function(*args))
    words = ("--batch_size", "1", "--visits", "1", "--out", tmp_path / "inference.json")
    data = program("inference.py", monkeypatch, *words)
    assert [(s["model"], s["allocator"]) for s in data["summary"]] == [
        (model, allocator) for allocator in ("default", "big_blocks") for model in ("reference", "ours", "fused")
    ]
    assert data["summary"][0]["ratio"] == data["summary"][0]["gain"] == 1
    assert capsys.readouterr().out.count("fused") == 2


def test_the_training_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = program("training.py", monkeypatch, "--batch_size", "2", "--out", tmp_path / "training.json")
    assert [step["model"] for step in data["steps"]] == ["reference", "ours"]
    assert data["saved_activations_checkpointed"] < data["steps"][1]["saved_activations"]
    assert data["gradients"]["whole"] < 1e-5
    assert data["gradients"]["worst"] < 1e-4
    assert data["gradients"]["rounding_alone"] >= 1
