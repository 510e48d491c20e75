"""Exported models: parity with the source model, manifests, and complete folders or none."""

import ctypes
import gc
import json
import logging
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import smt_vision
from command import answer, refusal, run
from debug_model import create, images
from smt_vision.deploy import export, logits
from smt_vision.deploy.errors import ProgramError, ProgramMemoryError
from smt_vision.deploy.exported import (
    CACHED_SHAPES,
    FILES,
    MANIFEST,
    ExportedModel,
    Manifest,
    OpenVINOProgram,
    load_exported,
    sha256,
)
from smt_vision.deploy.openvino_core import openvino_core, signal_stack_restored
from smt_vision.deploy.openvino_form import FlatNorm, for_openvino
from smt_vision.deploy.parity import detection_parity, logits_parity
from smt_vision.deploy.programs import program_metadata
from smt_vision.deploy.quantize import AccuracyControl
from smt_vision.deploy.samples import evenly_spaced, image_to_tensor, sample_names, sample_photo_crops, source_name
from smt_vision.engine import evaluation
from smt_vision.engine.loop import train
from smt_vision.extras import version_of
from smt_vision.forms.inference import FusedSAM, fuse
from smt_vision.precision import Precision, has_bf16
from smt_vision.recipe import Engine
from smt_vision.spec import ModelSpec
from smt_vision.tasks import read_spec
from smt_vision.tasks.classification.config import ClassificationInput, ClassifyConfig
from smt_vision.tasks.classification.data.transforms import eval_transform
from smt_vision.tasks.classification.export import ClassifierExport
from smt_vision.tasks.classification.predictor import Classifier
from smt_vision.tasks.detection.export import split_batch
from tiny_run import QUICK_TO_EXPORT, tiny

INPUT = ClassificationInput(size=32, crop_pct=1.0)
preprocess = partial(image_to_tensor, input=INPUT, transform=eval_transform(INPUT))
ANY_SHAPE = ("onnx", "openvino", "torch")  # the formats of one shape are in test_export_mobile.py
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch", "int8": "nncf"}
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small SMT of four stages: at 32 pixels its last map is 1 x 1, the hard case of tracing."""
    torch.manual_seed(0)
    small = timm.create_model(
        "smt_atto", num_classes=3, embed_dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), attn_heads=2, mlp_ratios=2
    ).eval()
    for module in small.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
    return small


def classifier_spec(classes: Iterable[str]) -> ModelSpec:
    return ModelSpec("classify", "smt_atto", tuple(classes), INPUT, head=ClassifyConfig())


def export_classifier(
    model: nn.Module, classes: Iterable[str], folder: Path, format: str = "torch", name: str = "m", **options: Any
) -> Manifest:
    return export.export_model(
        ClassifierExport(model, classifier_spec(classes), name), folder, format=format, **options
    )


@pytest.fixture(scope="module")
def exported(
    model: nn.Module, colored: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Path]]:
    """The folder of an export of ``model`` in a format or as ``int8``, made on first use; the model is traced twice."""
    root = tmp_path_factory.mktemp("exports")
    trace = logits.trace
    traced = cache(lambda openvino: trace(model, INPUT.channels, INPUT.size, "openvino" if openvino else ""))
    calibration_images = sorted((colored / "val").rglob("*.png"))[::2]

    def folder(format: str) -> Path:
        pytest.importorskip(RUNTIMES[format])
        path = root / format
        if not path.exists():
            int8 = format == "int8"
            export_classifier(
                model,
                "abc",
                path,
                "openvino" if int8 else format,
                name="small",
                calibrate=calibration_images if int8 else (),
            )
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            logits, "trace", lambda net, *args: traced(args[-1] == "openvino") if net is model else trace(net, *args)
        )
        yield folder


# Parity


@pytest.mark.parametrize("format", ANY_SHAPE)
def test_logits_equal_model(format: str, model: nn.Module, exported: Callable[[str], Path]) -> None:
    program = load_exported(exported(format))
    for shape in ((1, 3, 32, 32), (3, 3, 33, 34), (1, 3, 35, 70), (5, 3, 97, 61)):
        x = images(*shape)
        with torch.inference_mode():
            expected = model(x)
        for _ in range(3):  # the first call of a shape may run another program than later calls
            output = program(x)
            assert output.shape == (shape[0], 3)
            assert (output - expected).abs().max() <= 1e-4 * max(1, expected.abs().max())
    channels_last = program(x.contiguous(memory_format=torch.channels_last).requires_grad_())
    assert torch.allclose(channels_last, expected, atol=1e-4)


@pytest.mark.parametrize("format", ANY_SHAPE)
def test_program_contains_no_source_paths(format: str, exported: Callable[[str], Path]) -> None:
    """Exporters record stack traces, with paths of the exporting machine."""
    root = str(Path(smt_vision.__file__).parent).encode()
    assert not [path.name for path in exported(format).iterdir() if root in path.read_bytes()]


@pytest.mark.parametrize("format", ANY_SHAPE)
def test_manifest(format: str, model: nn.Module, exported: Callable[[str], Path]) -> None:
    folder = exported(format)
    manifest = Manifest.read(folder)
    assert (manifest.name, manifest.format, manifest.precision) == ("small", format, "float32")
    assert read_spec(manifest.spec) == classifier_spec("abc")
    assert manifest.parameters == sum(p.numel() for p in model.parameters())
    assert manifest.dynamic_image_size
    assert manifest.versions["torch"] == torch.__version__.partition("+")[0]
    assert {path.name for path in folder.iterdir()} == {MANIFEST, *FILES[format]}
    assert manifest.files == {name: sha256(folder / name) for name in FILES[format]}
    parity = manifest.parity
    assert parity["max_difference"] <= parity["tolerance"] == 1e-4
    assert parity["agreement"] == 1
    shapes = [tuple(case["shape"]) for case in parity["cases"]]
    assert shapes == [(8, 3, 32, 32), (1, 3, 32, 32), (3, 3, 41, 33), (1, 3, 33, 41), (2, 3, 32, 32)]
    assert len(parity["images"]) == 1
    assert "grace_hopper.jpg" in parity["images"][0]


def test_bf16(model: nn.Module, exported: Callable[[str], Path], tmp_path: Path) -> None:
    predictor = Classifier(model, classifier_spec("abc"), "small")
    manifest = predictor.export(tmp_path / "half", "openvino", precision="bf16")
    assert (manifest.precision, manifest.parity["tolerance"]) == ("bfloat16", None)
    x = images(2, 3, 32, 32)
    with torch.inference_mode():
        expected = model(x)

    def difference(folder: Path, precision: Precision | None) -> float:
        return float((load_exported(folder, precision=precision)(x) - expected).abs().max())

    rounded = difference(tmp_path / "half", None)
    assert difference(tmp_path / "half", "fp32") < 1e-5
    assert difference(exported("openvino"), "bf16") == rounded
    assert rounded < 0.05
    assert (rounded > 1e-5) == has_bf16() == (manifest.parity["max_difference"] > 1e-5)
    assert smt_vision.load(tmp_path / "half").precision == "bf16"
    with pytest.raises(ValueError, match="format 'onnx' runs in float32 only"):
        load_exported(exported("onnx"), precision="bf16")
    with pytest.raises(ValueError, match="bf16 needs format 'openvino', not 'onnx'"):
        predictor.export(tmp_path / "no", "onnx", precision="bf16")


def test_openvino_compiles_for_repeated_shapes(exported: Callable[[str], Path]) -> None:
    program = load_exported(exported("openvino"))
    compiled = program.program.programs  # type: ignore[union-attr]

    def compilations(*batches: int) -> int:
        before = len(compiled)
        for batch in batches:
            program(images(batch, 3, 32, 32))
        return len(compiled) - before

    assert compilations(4) == 1  # for any shape
    assert compilations(1) == 0  # the same program
    assert compilations(4, 4, 4) == 1
    assert compilations(1, 4) == 1
    assert compilations(*range(5, 9), *range(5, 9)) == 4
    assert compilations(*2 * (2, 3, 9, 10)) == 2  # at most eight, and none is replaced
    assert next(iter(compiled)) is None


def test_int8(model: nn.Module, exported: Callable[[str], Path], colored: Path, capfd: Any) -> None:
    folder = exported("int8")
    assert capfd.readouterr().out == ""  # progress goes to standard error
    manifest = Manifest.read(folder)
    assert (manifest.precision, manifest.format) == ("int8", "openvino")
    assert manifest.parity["tolerance"] is None
    assert len(manifest.parity["images"]) == 6
    assert {"openvino", "nncf"} <= manifest.versions.keys()
    assert smt_vision.load(folder).precision == "int8"
    assert 'element_type="i8"' in (folder / "model.xml").read_text()
    program = load_exported(folder)
    batch = torch.stack([preprocess(path) for path in sorted((colored / "val").rglob("*.png"))])
    with torch.inference_mode():
        expected, output = model(batch), program(batch)
    assert 0.9 < torch.corrcoef(torch.stack([expected.flatten(), output.flatten()]))[0, 1] < 1 - 1e-9
    for _ in range(2):  # activation ranges per image row would fail at another height
        assert program(F.interpolate(batch, (45, 70))).isfinite().all()


def test_evaluation_on_calibration_images_is_told(
    exported: Callable[[str], Path], colored: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for new, old in zip("abc", sorted((colored / "val").iterdir()), strict=True):
        shutil.copytree(old, tmp_path / "data" / new)
    with caplog.at_level(logging.WARNING):
        metrics = smt_vision.evaluate(exported("int8"), tmp_path / "data", workers=0)
    assert (metrics["count"], metrics["trained_on"], metrics["calibrated_on"]) == (12, 0, 6)
    assert "calibrated on 6 of these 12" in caplog.text


def test_exports_are_evaluated_on_the_cpu_of_a_computer_with_a_gpu(
    exported: Callable[[str], Path], colored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for new, old in zip("abc", sorted((colored / "val").iterdir()), strict=True):
        shutil.copytree(old, tmp_path / "data" / new)
    launch = evaluation.launch
    accelerators = []

    def recorded(engine: Engine) -> Any:
        accelerators.append(engine.accelerator)
        return launch(engine)

    monkeypatch.setattr(evaluation, "launch", recorded)
    assert smt_vision.evaluate(exported("torch"), tmp_path / "data", workers=0)["count"] == 12
    model = smt_vision.load(exported("torch"))  # in place of the one that is quantized
    with evaluation.accuracy_control(model, 1.0, tmp_path / "data", workers=0) as control:
        assert 0 <= control.measure(model.model) <= 100
    assert accelerators == ["cpu", "cpu"]
    for source, given, expected in (("smt_tiny", "auto", "auto"), (exported("torch"), "cuda", "cuda")):
        assert evaluation.engine_for(source, Engine(accelerator=given)).accelerator == expected


def test_layers_return_to_floating_point_until_the_accuracy_suffices(colored: Path, tmp_path: Path, capfd: Any) -> None:
    pytest.importorskip("nncf")
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(8, 3))
    calibrate = sorted((colored / "val").rglob("*.png"))[:2]
    values = iter((90.0, 80.0, 88.0, 89.9, 89.7))  # of the model, all in 8 bits, less and less of it, and the result
    shapes: set[tuple[int, ...]] = set()

    def measure(module: nn.Module) -> float:
        shapes.add(tuple(module(images(2, 3, 32, 32)).shape))
        return next(values)

    openvino_core()
    stack = signal_stack()
    control = AccuracyControl(0.5, "top-1", measure)
    export_classifier(model, "abc", tmp_path / "all", "openvino", calibrate=calibrate)
    manifest = export_classifier(model, "abc", tmp_path / "some", "openvino", calibrate=calibrate, control=control)
    assert capfd.readouterr().out == ""
    assert manifest.parity["accuracy"] == {"metric": "top-1", "before": 90.0, "after": 89.7, "max_drop": 0.5}
    assert shapes == {(2, 3)}
    assert next(values, None) is None
    assert signal_stack() == stack
    quantized = [(tmp_path / name / "model.xml").read_text().count('type="FakeQuantize"') for name in ("all", "some")]
    assert 0 < quantized[1] < quantized[0]


def signal_stack() -> bytes:
    """The stack that this thread handles signals on, as ``sigaltstack`` describes it."""
    found = ctypes.create_string_buffer(24)
    assert ctypes.CDLL(None).sigaltstack(None, found) == 0
    return found.raw


@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO changes the signal stack on Linux only")
def test_signals_are_handled_on_a_stack_that_exists(exported: Callable[[str], Path]) -> None:
    # A signal that is handled on an unmapped stack ends the process.
    openvino = pytest.importorskip("openvino")
    openvino_core().available_devices  # noqa: B018  it starts the plugins
    before = signal_stack()
    programs = [load_exported(exported("openvino")) for _ in range(2)]
    for program in programs:
        program(images(1, 3, 32, 32))
    del program, programs
    gc.collect()
    assert signal_stack() == before
    with signal_stack_restored():  # as NNCF makes them
        cores = [openvino.Core() for _ in range(2)]
        for core in cores:
            assert "CPU" in core.available_devices
        assert signal_stack() != before
        del core
        while cores:
            del cores[0]
            gc.collect()
    assert signal_stack() == before


@pytest.mark.parametrize("format", ANY_SHAPE)
def test_threads_get_their_own_results(format: str, model: nn.Module, exported: Callable[[str], Path]) -> None:
    program = load_exported(exported(format))
    given = [images(1, 3, 32 + i % 2, 32, seed=i) for i in range(4)]
    with torch.inference_mode():
        expected = [model(x) for x in given]

    def largest_difference(i: int) -> float:
        return max(float((program(given[i]) - expected[i]).abs().max()) for _ in range(25))

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(largest_difference, range(4))) < 1e-3


def test_onnx_runtime_keeps_no_memory_by_shape(
    exported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    folder = exported("onnx")
    kept: list[bool] = []
    session = runtime.InferenceSession
    monkeypatch.setattr(
        runtime, "InferenceSession",
        lambda path, options, **others: kept.append(options.enable_mem_pattern) or session(path, options, **others),
    )  # fmt: skip
    load_exported(folder)
    assert kept == [False]


def test_what_a_program_for_any_shape_keeps_is_limited(exported: Callable[[str], Path]) -> None:
    """By a setting that OpenVINO knows, though it cannot be read back."""
    program = OpenVINOProgram(exported("openvino") / "model.xml")
    name = "CPU_RUNTIME_CACHE_CAPACITY"
    assert program.settings[name] == CACHED_SHAPES
    program(images(1, 3, 32, 32))
    with pytest.raises(RuntimeError, match="CAPACITIES"):
        openvino_core().compile_model(program.model, "CPU", {"CPU_RUNTIME_CACHE_CAPACITIES": CACHED_SHAPES})


def test_a_program_is_in_float32_where_the_cpu_has_no_bfloat16(
    exported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported("openvino")
    monkeypatch.setattr("smt_vision.deploy.exported.has_bf16", lambda: False)
    assert load_exported(folder, precision="bf16").precision == "fp32"
    monkeypatch.setattr("smt_vision.deploy.exported.has_bf16", lambda: True)
    assert load_exported(folder, precision="bf16").precision == "bf16"


def test_models_that_need_more_than_32_pixels_are_compared_at_larger_sizes(tmp_path: Path) -> None:
    """E.g. Inception, whose last pooling is of 3 x 3 cells."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=8), nn.MaxPool2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    spec = replace(classifier_spec("abcd"), input=replace(INPUT, size=64))
    manifest = export.export_model(ClassifierExport(model, spec, "m"), tmp_path / "x", format="torch")
    assert {tuple(case["shape"][2:]) for case in manifest.parity["cases"]} == {(64, 64), (81, 47), (47, 81)}


def test_images_that_cannot_be_read_end_an_export_before_the_model_is_traced(
    model: nn.Module, colored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nncf")
    monkeypatch.setattr(logits, "trace", lambda *args: pytest.fail("traced"))
    good = sorted((colored / "val").rglob("*.png"))
    (tmp_path / "bad.png").write_bytes(good[0].read_bytes()[:100])
    calibrate = [*good, tmp_path / "bad.png"]
    with pytest.raises(ValueError, match=r"bad\.png"):
        export_classifier(model, "abc", tmp_path / "x", "openvino", images=good, calibrate=calibrate)
    assert not (tmp_path / "x").exists()


def test_the_accuracy_that_8_bits_may_cost(model: nn.Module, tmp_path: Path) -> None:
    control = AccuracyControl(0.5, "top-1", lambda module: pytest.fail("measured"), baseline=90.0)
    control.check(89.5)
    with pytest.raises(RuntimeError, match=r"0\.60 points of top-1.*max_drop=0\.5"):
        control.check(89.4)
    with pytest.raises(ValueError, match="max_drop=-1"):
        AccuracyControl(-1, "top-1", lambda module: 0.0)
    with pytest.raises(ValueError, match="max_drop"):
        export_classifier(model, "abc", tmp_path / "x", "openvino", control=control)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_int8_leaves_logging_unchanged(
    model: nn.Module, exported: Callable[[str], Path], colored: Path, tmp_path: Path
) -> None:
    """pytest and applications may attach a handler that other loggers use too."""
    exported("int8")  # imports NNCF, which sets up its logger
    logger, handler = logging.getLogger("nncf"), logging.NullHandler()
    logger.addHandler(handler)
    level = logger.level
    try:
        images_of_one_class = sorted((colored / "val" / "red").glob("*.png"))
        export_classifier(model, "abc", tmp_path / "int8", "openvino", calibrate=images_of_one_class)
        assert (logger.level, handler.level) == (level, logging.NOTSET)
    finally:
        logger.removeHandler(handler)


def test_exports_in_predict_and_eval(
    colored: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: Capture
) -> None:
    trained, folder = tmp_path_factory.mktemp("runs") / "resnet", tmp_path / "deployed"
    train(tiny(colored, **QUICK_TO_EXPORT), trained, display=False)
    assert run("export", trained, "--format", "torch", "--images", colored / "val", "--out", folder) == 0
    out = capsys.readouterr().out
    assert "8 of 8" in out
    assert f"smt predict {folder}" in out
    manifest = Manifest.read(folder)
    assert read_spec(manifest.spec) == smt_vision.load(trained).spec == smt_vision.load(folder).spec
    assert manifest.dynamic_image_size
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # everyone may read what others may
    names = [("blue", (0, 1, 3)), ("green", (0, 2, 3)), ("red", (1, 2))]
    assert manifest.parity["images"] == [f"{name}/{i}.png" for name, numbers in names for i in numbers]
    photos = colored / "val" / "red"
    eager, deployed = (answer(capsys, "predict", source, photos) for source in (trained, folder))
    for one, other in zip(eager, deployed, strict=True):
        assert (one["id"], one["label"]) == (other["id"], other["label"])
        assert one["score"] == pytest.approx(other["score"], rel=1e-4)
    options = ("--data", colored, "--workers", "0", "--engine.accelerator", "cpu", "--batch_size", "5")
    eager, deployed = (answer(capsys, "eval", source, *options) for source in (trained, folder))
    assert deployed["model"] == str(folder)
    assert deployed["count"] == eager["count"] == 12
    assert deployed["top1"] == eager["top1"]
    assert deployed["loss"] == pytest.approx(eager["loss"], rel=1e-4)
    assert run("export", trained, "--format", "torch", "--out", folder) == 1
    assert "--force" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["deployed"]


class OneSize(nn.Module):
    """A classifier other than SMT that takes images of 32 x 32 pixels only."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 32 * 32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


def test_model_with_fixed_image_size(tmp_path: Path) -> None:
    model = OneSize()
    manifest = export_classifier(model, "ab", tmp_path / "x")
    assert not manifest.dynamic_image_size
    assert [case["shape"] for case in manifest.parity["cases"]] == [[8, 3, 32, 32], [1, 3, 32, 32]]
    program = load_exported(tmp_path / "x")
    x = images(3, 3, 32, 32)
    assert torch.allclose(program(x), model(x), atol=1e-5)
    for wrong in (images(1, 3, 32, 40), images(1, 1, 32, 32), images(3, 32, 32)):
        with pytest.raises(ValueError, match=rf"\(B, 3, 32, 32\).*{re.escape(str(tuple(wrong.shape)))}"):
            program(wrong)
    for wrong, value in ((x.double(), "float64"), (x.to("meta"), "meta")):
        with pytest.raises(ValueError, match=value):
            program(wrong)


# Failed exports leave nothing


@pytest.fixture
def fake_exporter(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Tensor], Tensor]], None]:
    """A function that replaces tracing and writing: the exported program is then the one given to it."""

    def touch(folder: Path, format: str) -> dict[str, str]:
        for name in FILES[format]:
            (folder / name).touch()
        return {}

    def use(program: Callable[[Tensor], Tensor]) -> None:
        monkeypatch.setattr(logits, "trace", lambda *args: (None, True))
        monkeypatch.setattr(logits, "write", lambda program, folder, format, *rest: touch(folder, format))
        monkeypatch.setattr(export, "open_program", lambda folder, format, **options: program)

    return use


@pytest.mark.parametrize("error", [1e-2, float("nan")])
def test_export_that_differs_from_model_raises(
    error: float, model: nn.Module, tmp_path: Path, fake_exporter: Callable[..., None]
) -> None:
    fake_exporter(model)
    folder = tmp_path / "x"
    export_classifier(model, "abc", folder)
    before = (folder / MANIFEST).read_text()
    fake_exporter(lambda x: model(x) + error)
    for target, replace_existing in ((folder, True), (tmp_path / "y", False)):
        with pytest.raises(RuntimeError, match=r" m .*0\.0001"):
            export_classifier(model, "abc", target, replace=replace_existing)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (folder / MANIFEST).read_text() == before


def test_export_from_python(trained: Path, tmp_path: Path, fake_exporter: Callable[..., None]) -> None:
    predictor = smt_vision.load(trained)
    fake_exporter(predictor.model)
    steps: list[str] = []
    manifest = predictor.export(tmp_path / "x", "torch", on_status=steps.append)
    assert Manifest.read(tmp_path / "x") == manifest
    assert read_spec(manifest.spec) == predictor.spec
    assert manifest.name == trained.name
    assert len(steps) == 3
    with pytest.raises(FileExistsError, match=str(tmp_path / "x")):
        smt_vision.export(trained, tmp_path / "x", "torch")


def test_images_of_an_export_are_files_and_folders(
    trained: Path, colored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_exporter: Callable[..., None]
) -> None:
    predictor = smt_vision.load(trained)
    fake_exporter(predictor.model)
    for name in ("images", "calibrate"):
        with pytest.raises(TypeError, match=f"invalid {name}='a.png': expected a list"):
            predictor.export(tmp_path / "x", "torch", **{name: "a.png"})
    with pytest.raises(FileNotFoundError, match="no such file"):
        predictor.export(tmp_path / "x", "torch", images=["none.png"])
    predictor.export(tmp_path / "x", "torch", images=[colored / "val" / "red"])
    monkeypatch.chdir(tmp_path / "x")
    again = predictor.export(".", "torch", images=[colored / "val" / "red" / "0.png"], replace=True)
    assert again.parity["images"] == ["0.png"]


def test_logits_parity(model: nn.Module) -> None:
    x = images(4, 3, 64, 64)
    with torch.no_grad():
        scale = max(1, float(model(x).abs().max()))
        same = logits_parity(model, model, x, dynamic_image_size=False)
        assert (same["max_difference"], same["agreement"]) == (0, 1)
        assert [case["shape"] for case in same["cases"]] == [[4, 3, 64, 64], [1, 3, 64, 64]]
        errors = iter([0.0, 0.5, 0.0, 0.0])  # an error in the second call of the first shape
        different = logits_parity(model, lambda x: model(x) + next(errors), x, dynamic_image_size=False)
        assert different["cases"][0]["max_difference"] == pytest.approx(0.5 / scale, rel=1e-4)
        assert different["cases"][1]["max_difference"] == 0
        assert different["max_difference"] == different["cases"][0]["max_difference"]
        errors = iter([0.0, 0.0, 0.0, float("nan")])
        different = logits_parity(model, lambda x: model(x) + next(errors), x, dynamic_image_size=False)
        assert np.isnan(different["max_difference"])
        negated = logits_parity(model, lambda x: -model(x), x, dynamic_image_size=True)
        assert negated["agreement"] < 1
        assert [tuple(case["shape"][2:]) for case in negated["cases"]] == [
            (64, 64), (64, 64), (81, 47), (47, 81), (32, 32)
        ]  # fmt: skip


def test_detection_parity() -> None:
    """The order of detections does not matter; another class, a moved box and a missing box do."""
    boxes = torch.tensor([[0.0, 0, 20, 10], [30, 5, 40, 25], [31, 5, 41, 25]])
    detections = (boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 0, 0]), torch.rand(3, 28, 28))

    def compared(*other: Tensor) -> dict[str, Any]:
        images = [torch.zeros(3, 40, 50)]
        return detection_parity(lambda image: detections, lambda image: other, images, 1, split_batch)  # type: ignore[arg-type]

    reversed_order = compared(*(values.flip(0) for values in detections))
    assert (reversed_order["max_difference"], reversed_order["agreement"]) == (0, 1)
    assert [(case["shape"], case["agree"], case["of"]) for case in reversed_order["cases"]] == [
        ([1, 3, 40, 50], 3, 3), ([1, 3, 51, 50], 3, 3), ([1, 3, 32, 32], 3, 3)
    ]  # fmt: skip
    _, scores, labels, masks = detections
    other_scores = compared(boxes, scores - 0.25, labels, masks)
    assert (other_scores["max_difference"], other_scores["agreement"]) == (pytest.approx(0.25), 1)
    assert compared(boxes, scores, torch.tensor([1, 1, 0]), masks)["agreement"] == pytest.approx(2 / 3)
    moved_box = boxes + torch.tensor([[0.0], [0], [0.06]])
    assert compared(moved_box, scores, labels, masks)["agreement"] == pytest.approx(2 / 3)
    shifted = compared(boxes + 0.01, scores, labels, masks)
    assert (shifted["max_difference"], shifted["agreement"]) == (pytest.approx(0.01 / 32, rel=1e-3), 1)
    assert compared(*(values[:1] for values in detections))["agreement"] == pytest.approx(1 / 3)
    assert compared(*(values[:0] for values in detections))["agreement"] == 0
    assert np.isnan(compared(boxes, scores, labels, masks * torch.nan)["max_difference"])


def test_existing_folders(model: nn.Module, tmp_path: Path, fake_exporter: Callable[..., None]) -> None:
    fake_exporter(model)
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("content")
    for replace_existing in (False, True):
        with pytest.raises(FileExistsError, match=str(other)):
            export_classifier(model, "abc", other, replace=replace_existing)
    assert [path.read_text() for path in other.iterdir()] == ["content"]
    for name in ("first", "second"):
        export_classifier(model, "abc", tmp_path / "x", name=name, replace=True)
    assert Manifest.read(tmp_path / "x").name == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "x"]


def test_only_an_export_is_replaced(model: nn.Module, tmp_path: Path, fake_exporter: Callable[..., None]) -> None:
    fake_exporter(model)
    app = tmp_path / "app"  # web applications have a file of this name
    app.mkdir()
    (app / MANIFEST).write_text('{"name": "app"}')
    with pytest.raises(FileExistsError, match="app is not an export"):
        export_classifier(model, "abc", app, replace=True)
    assert (app / MANIFEST).is_file()
    folder = tmp_path / "x"
    export_classifier(model, "abc", folder)
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("content")
    with pytest.raises(FileExistsError, match=r"beside the export, e\.g\. notes/mine\.txt"):
        export_classifier(model, "abc", folder, replace=True)
    assert (folder / "notes" / "mine.txt").read_text() == "content"


def test_link_to_an_export_stays(model: nn.Module, tmp_path: Path, fake_exporter: Callable[..., None]) -> None:
    fake_exporter(model)
    export_classifier(model, "abc", tmp_path / "v1", name="first")
    link, other = tmp_path / "current", tmp_path / ".v1.old"
    link.symlink_to("v1")
    other.mkdir()
    (other / "file").write_text("content")
    for name in ("second", "third"):
        export_classifier(model, "abc", link, name=name, replace=True)
    assert link.is_symlink()
    assert Manifest.read(tmp_path / "v1").name == "third"
    assert (other / "file").read_text() == "content"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".v1.old", "current", "v1"]


def test_export_stays_if_it_cannot_be_replaced(
    model: nn.Module, tmp_path: Path, fake_exporter: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_exporter(model)
    export_classifier(model, "abc", tmp_path / "x", name="first")
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if Path(target).name == "x" and not path.name.endswith(".old"):
            raise PermissionError("refused")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(PermissionError, match="refused"):
        export_classifier(model, "abc", tmp_path / "x", name="second", replace=True)
    assert Manifest.read(tmp_path / "x").name == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_name_of_the_source_has_no_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: nn.Module, fake_exporter: Callable[..., None]
) -> None:
    run = tmp_path / "client" / "run"
    run.mkdir(parents=True)
    for name in ("best.pt", "last.pt", "weights.pt"):
        (run / name).touch()
    assert [source_name(str(run / name)) for name in ("best.pt", "last.pt", "weights.pt")] == [
        "run",
        "run",
        "weights.pt",
    ]
    monkeypatch.chdir(run)
    assert source_name(".") == "run"
    assert source_name("hf-hub:owner/model") == "hf-hub:owner/model"
    fake_exporter(model)
    assert export_classifier(model, "abc", tmp_path / "x", name=str(run / "best.pt")).name == "run"


def test_program_that_loses_more_than_max_drop_is_refused(
    model: nn.Module, tmp_path: Path, fake_exporter: Callable[..., None]
) -> None:
    """The program may lose more than NNCF's validation says, which runs it for other shapes."""
    fake_exporter(model)
    (tmp_path / "model.pt2").touch()
    form = ClassifierExport(model, classifier_spec("abc"), "m")
    form.batch, form._dynamic = images(2, 3, 32, 32), False
    control = AccuracyControl(1.0, "top1", measure=lambda module: 89.5, baseline=90.0)
    with torch.no_grad():
        assert export._compared(form, tmp_path, "torch", False, control, print)["accuracy"]["after"] == 89.5
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"cost 2\.00 points of top1"):
        export._compared(form, tmp_path, "torch", False, replace(control, measure=lambda module: 88.0), print)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_programs_say_what_they_are(exported: Callable[[str], Path], format: str) -> None:
    folder = exported(format)
    if format == "onnx":
        program = pytest.importorskip("onnx").load(folder / "model.onnx")
        found = {each.key: each.value for each in program.metadata_props}
        assert not [p for part in (*program.graph.node, *program.graph.value_info) for p in part.metadata_props]
    else:
        program = openvino_core().read_model(folder / "model.xml")
        found = {name: value.astype(str) for name, value in program.get_rt_info()["smt_vision"].items()}
    spec = Manifest.read(folder).spec
    assert found.keys() == {"task", "smt_vision", "classes", "input", "head"}
    assert found["smt_vision"] == smt_vision.__version__
    assert found["task"] == "classify"
    for name in ("classes", "input", "head"):
        assert json.loads(found[name]) == spec[name]


def test_what_programs_say_is_what_evaluation_does() -> None:
    spec = replace(classifier_spec("ab"), category_ids=(1, 90))
    random = replace(spec, input=replace(spec.input, interpolation="random"))
    for each, expected in ((spec, spec.input.interpolation), (random, "bicubic")):
        about = program_metadata(each)
        assert json.loads(about["input"])["interpolation"] == expected
        assert json.loads(about["category_ids"]) == [1, 90]


# Invalid arguments


def test_invalid_exports_raise(tmp_path: Path) -> None:
    feature_maps = timm.create_model("smt_atto", features_only=True)
    for model, value in ((feature_maps, "list"), (OneSize(), r"\(1, 2\)")):
        with pytest.raises(ValueError, match=value):
            export_classifier(model, "abc", tmp_path / "x")
    with pytest.raises(ValueError, match="format 'tflite'"):
        export_classifier(OneSize(), "ab", tmp_path / "x", "tflite")
    with pytest.raises(ValueError, match="'onnx'"):
        export_classifier(OneSize(), "ab", tmp_path / "x", "onnx", calibrate=[tmp_path / "x.png"])
    with pytest.raises(ValueError, match="runs/x"):
        export_classifier(ExportedModel(lambda x: x, example_manifest(name="runs/x")), "ab", tmp_path / "x")
    (tmp_path / "unreadable.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"unreadable\.png"):
        export_classifier(OneSize(), "ab", tmp_path / "x", images=[tmp_path / "unreadable.png"])
    assert [path.name for path in tmp_path.iterdir()] == ["unreadable.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        ("--format openvino --int8", 1, "--calibrate"),
        ("--format openvino --calibrate .", 1, "--int8"),
        ("--format openvino --max_drop 0.5", 1, "--int8"),
        ("--format openvino --int8 --calibrate . --data .", 1, "--max_drop"),
        ("--format openvino --int8 --calibrate . --max_drop 101", 1, "max_drop"),
        ("--format openvino --int8 --calibrate nowhere", 1, "nowhere"),
        ("--format onnx --images nowhere", 1, "nowhere"),
        ("--format tflite", 2, "openvino"),
        ("", 2, "format"),
    ],
)
def test_command_errors(arguments: str, code: int, expected: str, capsys: Capture) -> None:
    assert expected in refusal(capsys, code, "export", "no_such_model", *arguments.split())


def test_missing_package_raises_before_tracing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(export.PACKAGES, "onnx", ("export", ("no_such_package",)))
    monkeypatch.setattr(ClassifierExport, "trace", lambda self, *args: pytest.fail("traced"))
    with pytest.raises(ImportError, match=r"no_such_package.*smt-vision\[export\]"):
        export_classifier(OneSize(), "ab", tmp_path / "x", "onnx")


def test_version_of_a_module_of_a_package_with_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """E.g. of onnxruntime, which onnxruntime-gpu has."""
    assert version_of("torch") == torch.__version__.partition("+")[0]
    monkeypatch.setitem(sys.modules, "no_such_package", SimpleNamespace(__version__="1.2"))
    assert version_of("no_such_package") == "1.2"


# Manifests


def example_manifest(**changes: Any) -> Manifest:
    manifest = Manifest(
        name="m", format="torch", precision="float32", parameters=1, spec=classifier_spec("ab").to_dict(),
        dynamic_image_size=True, batch_size=None, parity={}, versions={}, files={"model.pt2": "0" * 64}, created="now",
    )  # fmt: skip
    return replace(manifest, **changes)


def test_invalid_folders_raise(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=MANIFEST):
        load_exported(tmp_path)
    for text, value in (
        ("{", "JSON"),
        ("[]", "version"),
        ('{"version": 99}', "99"),
        ('{"version": 1}', "parity, precision"),
        ('{"version": 3}', "parity, precision"),
        ('{"version": 2, "free_sides": true}', "architecture"),
        ('{"version": 2, "free_sides": true, "card": 1}', MANIFEST),
    ):
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(ValueError, match=value):
            load_exported(tmp_path)
    example_manifest(format="tflite").write(tmp_path)
    with pytest.raises(ValueError, match="'tflite'"):
        load_exported(tmp_path)
    example_manifest().write(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.pt2"):
        load_exported(tmp_path)
    (tmp_path / "model.pt2").write_bytes(b"changed")
    with pytest.raises(ValueError, match=r"model\.pt2"):
        load_exported(tmp_path)


def test_manifest_round_trip(tmp_path: Path) -> None:
    spec = replace(classifier_spec("ab"), input=replace(INPUT, mean=(0.5, 0.5, 0.5), std=(0.1, 0.2, 0.3)))
    manifest = example_manifest(spec=spec.to_dict(), parity={"agreement": 1.0})
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert read_spec(Manifest.read(tmp_path).spec) == spec


@pytest.mark.parametrize("version", [1, 2])
def test_manifest_of_earlier_version(version: int, tmp_path: Path) -> None:
    values = asdict(example_manifest(version=version))
    del values["spec"], values["batch_size"]
    input = asdict(INPUT)
    input["max_broken"] = input.pop("max_unreadable")
    values |= {"architecture": "smt_atto", "classes": ["a", "b"], "input": input}
    values["free_sides"] = values.pop("dynamic_image_size")
    if version == 2:
        values["card"] = {"task": "classify"}
    (tmp_path / MANIFEST).write_text(json.dumps(values))
    manifest = Manifest.read(tmp_path)
    assert read_spec(manifest.spec) == classifier_spec("ab")
    assert replace(manifest, spec=example_manifest().spec) == example_manifest()


def test_export_on_another_device_than_cpu_raises(tmp_path: Path) -> None:
    example_manifest().write(tmp_path)
    with pytest.raises(ValueError, match="cuda"):
        smt_vision.load(tmp_path, device="cuda")


# Sample images


def test_sample_images() -> None:
    assert evenly_spaced(range(10), 3) == [0, 3, 6]
    assert evenly_spaced("ab", 5) == ["a", "b"]
    crops = sample_photo_crops()
    tensors = [preprocess(crop) for crop in crops]
    assert [tuple(t.shape) for t in tensors] == [(3, 32, 32)] * 8
    assert len({np.asarray(crop).tobytes() for crop in crops}) == 8
    assert min(float(t.std()) for t in tensors) > 0.1  # no crop is of a uniform area


def test_sample_names_are_unique_and_independent_of_the_place() -> None:
    paths = [Path("/data/set/cam1/1.png"), Path("/data/set/cam2/1.png")]
    assert sample_names(paths) == ["cam1/1.png", "cam2/1.png"]
    assert sample_names(paths[:1]) == ["1.png"]
    assert sample_names([Image.new("L", (1, 1))] * 2) == ["2 crops of matplotlib's grace_hopper.jpg"]


def test_detection_parity_of_a_batch() -> None:
    """A detection that differs in any image of a batch is found; scores of 0 are no detections."""
    boxes = torch.rand(2, 3, 4)
    scores, labels = torch.tensor([[0.9, 0.8, 0.7], [0.6, 0.5, 0.0]]), torch.ones(2, 3, dtype=torch.int64)

    def compared(*other: Tensor) -> dict[str, Any]:
        images = [torch.zeros(3, 40, 50), torch.zeros(3, 30, 50), torch.zeros(3, 40, 50)]
        model, program = (lambda x, out=out: out for out in ((boxes, scores, labels), other))
        return detection_parity(model, program, images, 2, split_batch)  # type: ignore[arg-type]

    equal = compared(boxes, scores, labels)
    assert (equal["max_difference"], equal["agreement"]) == (0, 1)
    assert [(case["shape"], case["agree"], case["of"]) for case in equal["cases"]] == [
        ([2, 3, 40, 50], 5, 5), ([2, 3, 40, 50], 5, 5), ([2, 3, 51, 50], 5, 5), ([2, 3, 32, 32], 5, 5)
    ]  # fmt: skip
    moved = boxes.clone()
    moved[1, 0] += 1
    assert compared(moved, scores, labels)["agreement"] == pytest.approx(0.8)
    moved = boxes.clone()
    moved[1, 2] += 1  # where there is no detection
    assert compared(moved, scores, labels)["agreement"] == 1
    assert compared(boxes, scores.clamp(min=0.1), labels)["agreement"] == pytest.approx(5 / 6)


def test_detection_parity_at_other_sizes_is_of_images_with_detections() -> None:
    """Of an image with the most detections; the program is wrong at one size only, for two detections of many."""
    boxes = torch.rand(60, 4)

    def detect(image: Tensor, wrong: bool = False) -> tuple[Tensor, ...]:
        n = int(image.mean()) if image.shape[2] > 32 else min(int(image.mean()), 4)
        labels = torch.full((n,), int(wrong and image.shape[2] == 51))
        return boxes[:n], torch.ones(n), labels

    def compared(numbers: list[int], program: Callable[..., Any]) -> dict[str, Any]:
        images = [torch.full((3, 40, 50), float(n)) for n in numbers]
        return detection_parity(detect, program, images, 1, split_batch)  # type: ignore[arg-type]

    found = compared([0, 2, 60], detect)
    assert [(case["images"], case["agree"], case["of"]) for case in found["cases"]] == [
        ([0], 0, 0), ([1], 2, 2), ([2], 60, 60), ([2], 60, 60), ([2], 4, 4)
    ]  # fmt: skip
    wrong = compared([60] * 2 + [2], lambda image: detect(image, wrong=True))
    assert (wrong["cases"][3]["of"], wrong["cases"][3]["agree"]) == (60, 0)


def test_detections_that_differ_at_one_size_are_refused() -> None:
    form: Any = SimpleNamespace(
        name="m", outputs="detections", tolerance=1e-4, min_agreement=0.99, min_case_agreement=0.9
    )
    case: dict[str, Any] = {"shape": [1, 3, 64, 64], "agree": 100, "of": 100}
    empty = {"shape": [1, 3, 96, 64], "agree": 0, "of": 0}

    def parity(agree: int) -> dict[str, Any]:
        other = {"shape": [1, 3, 81, 64], "agree": agree, "of": 10}
        cases = [case] * 9 + [other, empty]
        return {"max_difference": 0.0, "agreement": (900 + agree) / 910, "cases": cases}

    export._check_parity(form, parity(9), exact=True)
    with pytest.raises(RuntimeError, match=r"99\.8 % agreement, 8 of 10 for 1 x 3 x 81 x 64"):
        export._check_parity(form, parity(8), exact=True)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize(
    ("output", "value"),
    [(lambda x: x * torch.nan, "nan"), (torch.neg, r" 0\.0 %"), (lambda x: x / 0, "inf|nan")],
)
def test_exports_in_lower_precision_that_compute_something_else_are_refused(
    precision: str,
    output: Callable[[Tensor], Tensor],
    value: str,
    colored: Path,
    tmp_path: Path,
    fake_exporter: Callable[..., None],
) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 2))
    paths = sorted((colored / "val").rglob("*.png"))[:2]
    options: Any = {"precision": "bf16", "images": paths} if precision == "bf16" else {"calibrate": paths}
    fake_exporter(lambda x: model(x) + 1e-3)
    assert export_classifier(model, "ab", tmp_path / "x", "openvino", **options).parity["agreement"] == 1
    fake_exporter(lambda x: output(model(x)))
    with pytest.raises(RuntimeError, match=value):
        export_classifier(model, "ab", tmp_path / "y", "openvino", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("able", [True, False])
def test_parity_in_bfloat16_says_where_it_was_float32(
    able: bool,
    model: nn.Module,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    fake_exporter: Callable[..., None],
) -> None:
    pytest.importorskip("openvino")
    source = smt_vision.load(trained).model
    fake_exporter(source)
    settings: list[bool] = []
    monkeypatch.setattr(export, "has_bf16", lambda: able)
    monkeypatch.setattr(export, "open_program", lambda folder, format, bf16: settings.append(bf16) or source)
    words = ("export", trained, "--format", "openvino", "--precision", "bf16", "--out", tmp_path / "x")
    assert run(*words) == 0
    assert ("compared in float32" in capsys.readouterr().out) is not able
    assert Manifest.read(tmp_path / "x").parity["floating_point"] == ("bfloat16" if able else "float32")
    assert settings == [able]


class Unsupported(nn.Module):
    """A model that depends on the values of its input, which torch.export refuses."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


def test_what_cannot_be_traced_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match=r"^torch\.export, which traces the model, failed \(") as error:
        export_classifier(Unsupported(), "abc", tmp_path / "x", "torch")
    assert error.value.__cause__ is not None
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


class Failure(Exception):
    """As ONNX Runtime's: of no built-in type."""


@pytest.mark.parametrize(
    ("format", "place"),
    [
        ("onnx", "torch.onnx.export"),
        ("onnx", "onnxruntime.InferenceSession"),
        ("openvino", "openvino.convert_model"),
    ],
)
def test_failures_of_converters_and_runtimes_are_one_line(
    format: str, place: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    pytest.importorskip(RUNTIMES[format])
    pytest.importorskip("onnxscript")

    def fail(*args: Any, **options: Any) -> Any:
        raise Failure("no operator 7\nin a page of text")

    monkeypatch.setattr(logits, "trace", lambda *args: (None, True))
    if place == "onnxruntime.InferenceSession":
        monkeypatch.setattr(logits, "write", lambda *args: {})
    monkeypatch.setattr(place, fail)
    error = refusal(capsys, 1, "export", trained, "--format", format, "--out", tmp_path / "x")
    [line] = [line for line in error.splitlines() if "error:" in line]
    assert "(Failure: no operator 7 in a page of text); " in line
    assert not list(tmp_path.iterdir())


def test_failures_of_a_program_in_use(
    exported: Callable[[str], Path], colored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One error; where memory ran out, an image without a result, as with PyTorch."""
    import onnxruntime

    image, predictor = next((colored / "val").rglob("*.png")), smt_vision.load(exported("onnx"))
    messages = iter(["invalid dimension", *["Failed to allocate memory for requested buffer of size 7"] * 2])

    def fail(*args: Any, **options: Any) -> Any:
        raise Failure(next(messages))

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", fail)
    with pytest.raises(ProgramError, match=r"onnx program failed for 1 x 3 x 32 x 32 .*Failure: invalid dimension"):
        predictor([image])
    assert "not enough memory to predict" in predictor([image])[0].error
    with pytest.raises(ProgramMemoryError, match="memory ran out"):
        predictor.model(images(1, 3, 32, 32))


def test_execution_providers(exported: Callable[[str], Path], trained: Path) -> None:
    folder = exported("onnx")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_exported(folder, ["CPUExecutionProvider"])(images), load_exported(folder)(images))
    with_options = [("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})]
    assert torch.equal(smt_vision.load(folder, providers=with_options).model(images), load_exported(folder)(images))
    with pytest.raises(ValueError, match=r"expected a list, e\.g\. \['CPUExecutionProvider'\]"):
        load_exported(folder, "CPUExecutionProvider")
    with pytest.raises(ValueError, match=r"cannot run on meta.*--providers CUDAExecutionProvider"):
        smt_vision.load(folder, "meta")
    with pytest.raises(ValueError, match=r"providers.*CPUExecutionProvider.*NoSuchProvider"):
        load_exported(folder, ["NoSuchProvider", "CPUExecutionProvider"])
    with pytest.raises(ValueError, match=r"providers.*torch"):
        load_exported(exported("torch"), ["CPUExecutionProvider"])
    with pytest.raises(ValueError, match="providers"):
        smt_vision.load(trained, providers=["CPUExecutionProvider"])


def test_execution_providers_of_commands(exported: Callable[[str], Path], colored: Path, capsys: Capture) -> None:
    image, words = next((colored / "val").rglob("*.png")), ["--providers", "CPUExecutionProvider"]
    folder = exported("onnx")
    assert answer(capsys, "predict", folder, image, *words) == answer(capsys, "predict", folder, image)
    for command in (["predict", folder, image], ["eval", folder, "--data", colored]):
        assert "NoSuchProvider" in refusal(capsys, 1, *command, "--providers", "CPUExecutionProvider, NoSuchProvider")


def test_benchmark_says_how_exports_run(exported: Callable[[str], Path], capsys: Capture) -> None:
    folder = exported("onnx")
    command = ("bench", folder, "--rounds", "1", "--seconds", "0", "--memory", "false", "--batch_size", "1")
    assert answer(capsys, *command)["exports"] == {str(folder): ["onnx", "fp32"]}
    assert "runs in float32 only" in refusal(capsys, 1, *command, "--precision", "bf16")
    assert "this export runs in fp32; omit --precision int8" in refusal(capsys, 1, *command, "--precision", "int8")


def test_benchmark_says_the_precision_that_an_export_runs_in(
    exported: Callable[[str], Path], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the one that it was made for, which this CPU may not have."""
    folder = shutil.copytree(exported("openvino"), tmp_path / "half")
    replace(Manifest.read(folder), precision="bfloat16").write(folder)
    command = ("bench", folder, "--rounds", "1", "--seconds", "0", "--memory", "false", "--batch_size", "1")
    for able, precision in ((False, "fp32"), (True, "bf16")):
        monkeypatch.setattr("smt_vision.deploy.exported.has_bf16", lambda able=able: able)
        assert answer(capsys, *command)["exports"] == {str(folder): ["openvino", precision]}


def test_the_form_for_openvino_computes_the_same() -> None:
    """Norms of three axes, and SAA's grouped convolution as a dense product."""
    fused = fuse(create(num_classes=3, mixers=("S", "S", "SA", "A")).eval())
    form = for_openvino(fused)
    x = images(2, 3, 45, 61)
    with torch.no_grad():
        torch.testing.assert_close(form(x), fused(x), atol=1e-5, rtol=1e-5)
    assert sum(isinstance(module, FlatNorm) for module in form.modules()) == sum(
        isinstance(module, nn.LayerNorm) for module in fused.modules()
    )
    products = [module.expand[0] for module in form.modules() if isinstance(module, FusedSAM)]
    assert [tuple(layer.weight.shape) for layer in products] == [(2 * dim, dim) for dim in (16, 32, 64)]
    weight = products[0].weight
    assert (weight != 0).float().mean() == pytest.approx(1 / 4)  # of 16 channels in groups of 4
    assert not any(isinstance(module, FlatNorm) for module in fused.modules())
    plain = create(num_classes=3)
    assert for_openvino(plain) is plain
