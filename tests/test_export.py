"""Exports: they compute what the model does, know what they are, and are there whole or not at all."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import smt_vision  # noqa: F401  registers the models with timm
from command import answer, run
from debug_model import images
from smt_vision.deploy import export
from smt_vision.deploy.exported import FILES, MANIFEST, ExportedModel, Manifest, load_exported, sha256
from smt_vision.deploy.parity import parity, parity_of_detections
from smt_vision.deploy.samples import as_tensor, evenly_spaced, sample_photo_crops
from smt_vision.recipe import Input
from smt_vision.tasks.classification.data.transforms import eval_transform
from smt_vision.tasks.classification.predictor import Classifier

INPUT = Input(size=32, crop_pct=1.0)
see = partial(as_tensor, input=INPUT, transform=eval_transform(INPUT))
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch", "int8": "nncf"}
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small SMT of four stages: at 32 pixels its last map is of one position, the hard case of tracing."""
    torch.manual_seed(0)
    small = timm.create_model(
        "smt_atto", num_classes=3, embed_dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), attn_heads=2, mlp_ratios=2
    ).eval()
    for module in small.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
    return small


def card(classes: Iterable[str]) -> dict[str, Any]:
    """A classifier's."""
    return {"task": "classify", "classes": list(classes), "input": asdict(INPUT)}


@pytest.fixture(scope="module")
def exported(
    model: nn.Module, colored: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Path]]:
    """The folder of an export of ``model`` in a format, or ``int8``, made when it is first asked for; traced once."""
    root = tmp_path_factory.mktemp("exports")
    trace = export.trace
    traced = cache(partial(trace, model, INPUT))
    few = sorted((colored / "val").rglob("*.png"))[::2]

    def folder(format: str) -> Path:
        pytest.importorskip(RUNTIMES[format])
        path = root / format
        if not path.exists():
            kind, calibrate = ("openvino", few) if format == "int8" else (format, ())
            export.export_model(model, card(["a", "b", "c"]), path, name="small", format=kind, calibrate=calibrate)
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "trace", lambda net, input: traced() if net is model else trace(net, input))
        yield folder


# --- what an export computes


@pytest.mark.parametrize("format", FILES)
def test_logits_are_the_models(format: str, model: nn.Module, exported: Callable[[str], Path]) -> None:
    program = load_exported(exported(format))
    for shape in ((1, 3, 32, 32), (3, 3, 33, 34), (1, 3, 35, 70), (5, 3, 97, 61)):
        x = images(*shape)
        with torch.inference_mode():
            expected = model(x)
        for _ in range(3):  # the first call of a shape may take another way than the later ones
            logits = program(x)
            assert logits.shape == (shape[0], 3)
            assert (logits - expected).abs().max() <= 1e-4 * max(1, expected.abs().max())
    nchw = program(x.contiguous(memory_format=torch.channels_last).requires_grad_())
    assert torch.allclose(nchw, expected, atol=1e-4)


@pytest.mark.parametrize("format", FILES)
def test_manifest(format: str, model: nn.Module, exported: Callable[[str], Path]) -> None:
    folder = exported(format)
    manifest = Manifest.read(folder)
    assert (manifest.name, manifest.architecture, manifest.format) == ("small", "smt_atto", format)
    assert (manifest.precision, manifest.classes, manifest.input) == ("float32", ("a", "b", "c"), INPUT)
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
    assert parity["images"] == ["8 crops of matplotlib's grace_hopper.jpg"]


def test_a_shape_gets_a_program_of_its_own_when_it_comes_again(exported: Callable[[str], Path]) -> None:
    program = load_exported(exported("openvino"))
    compiled = program.program.programs  # type: ignore[union-attr]

    def compilations(*batches: int) -> int:
        before = len(compiled)
        for batch in batches:
            program(images(batch, 3, 32, 32))
        return len(compiled) - before

    assert compilations(4) == 1  # for any shape
    assert compilations(1) == 0  # the same
    assert compilations(4, 4, 4) == 1
    assert compilations(1, 4) == 1
    assert compilations(*range(5, 9), *range(5, 9)) == 4
    assert compilations(*2 * (2, 3, 9, 10)) == 2  # no more than eight, and none is given up for another
    assert next(iter(compiled)) is None


def test_8_bits(model: nn.Module, exported: Callable[[str], Path], colored: Path, capfd: Any) -> None:
    folder = exported("int8")
    assert capfd.readouterr().out == ""  # progress is told on standard error
    manifest = Manifest.read(folder)
    assert (manifest.precision, manifest.format) == ("int8", "openvino")
    assert manifest.parity["tolerance"] is None
    assert len(manifest.parity["images"]) == 6
    assert {"openvino", "nncf"} <= manifest.versions.keys()
    assert 'element_type="i8"' in (folder / "model.xml").read_text()
    program = load_exported(folder)
    seen = torch.stack([see(path) for path in sorted((colored / "val").rglob("*.png"))])
    with torch.inference_mode():
        expected, logits = model(seen), program(seen)
    assert 0.9 < torch.corrcoef(torch.stack([expected.flatten(), logits.flatten()]))[0, 1] < 1 - 1e-9
    for sides in ((45, 70), (45, 70)):  # ranges that followed the rows of an image would not fit another height
        assert program(F.interpolate(seen, sides)).isfinite().all()


def test_exports_in_predict_and_eval(trained: Path, colored: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "deployed"
    assert run("export", trained, "--format", "torch", "--images", colored / "val", "--out", folder) == 0
    out = capsys.readouterr().out
    assert "any batch size, any height and width" in out
    assert "8 of 8" in out
    photos = colored / "val" / "red"
    eager, deployed = (answer(capsys, "predict", source, photos) for source in (trained, folder))
    for one, other in zip(eager, deployed, strict=True):
        assert (one["id"], one["label"]) == (other["id"], other["label"])
        assert one["probability"] == pytest.approx(other["probability"], rel=1e-4)
    words = ("--data", colored, "--workers", "0", "--engine.accelerator", "cpu", "--batch_size", "5")
    eager, deployed = (answer(capsys, "eval", source, *words) for source in (trained, folder))
    assert deployed["model"] == str(folder)
    assert deployed["count"] == eager["count"] == 12
    assert deployed["top1"] == eager["top1"]
    assert deployed["loss"] == pytest.approx(eager["loss"], rel=1e-4)
    assert run("export", trained, "--format", "torch", "--out", folder) == 1
    assert "--force" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["deployed"]


class OneSize(nn.Module):
    """A classifier that is no SMT and takes one size alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 32 * 32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


def test_a_model_of_one_size_that_is_no_smt(tmp_path: Path) -> None:
    model = OneSize()
    manifest = export.export_model(model, card(["a", "b"]), tmp_path / "x", name="one", format="torch")
    assert (manifest.architecture, manifest.dynamic_image_size) == ("OneSize", False)
    assert [case["shape"] for case in manifest.parity["cases"]] == [[8, 3, 32, 32], [1, 3, 32, 32]]
    program = load_exported(tmp_path / "x")
    x = images(3, 3, 32, 32)
    assert torch.allclose(program(x), model(x), atol=1e-5)
    for wrong in (images(1, 3, 32, 40), images(1, 1, 32, 32), images(3, 32, 32)):
        with pytest.raises(ValueError, match=r"takes images \(B, 3, 32, 32\), not "):
            program(wrong)
    for odd in (x.double(), x.to("meta")):
        with pytest.raises(ValueError, match="takes float32 images on the CPU"):
            program(odd)


# --- an export that is wrong is not left behind


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Tensor], Tensor]], None]:
    """Lets exports be made in no time: their program is the one given."""

    def pretend(program: Callable[[Tensor], Tensor]) -> None:
        monkeypatch.setattr(export, "trace", lambda model, input: (None, True))
        monkeypatch.setattr(export, "write", lambda program, folder, *rest: (folder / "model.pt2").touch() or {})
        monkeypatch.setattr(export, "open_program", lambda folder, format: program)

    return pretend


@pytest.mark.parametrize("off", [1e-2, float("nan")])
def test_an_export_that_disagrees_is_refused(
    off: float, model: nn.Module, tmp_path: Path, pretended: Callable[..., None]
) -> None:
    pretended(model)
    folder = tmp_path / "x"
    export.export_model(model, card("abc"), folder, name="m", format="torch")
    before = (folder / MANIFEST).read_text()
    pretended(lambda x: model(x) + off)
    for target, replacing in ((folder, True), (tmp_path / "y", False)):
        with pytest.raises(RuntimeError, match=r"m computes something else: .* Nothing was written"):
            export.export_model(model, card("abc"), target, name="m", format="torch", replace=replacing)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (folder / MANIFEST).read_text() == before


def test_parity_finds_the_difference(model: nn.Module) -> None:
    x = images(4, 3, 64, 64)
    with torch.no_grad():
        scale = max(1, float(model(x).abs().max()))
        same = parity(model, model, x, dynamic_image_size=False)
        assert (same["max_difference"], same["agreement"]) == (0, 1)
        assert [case["shape"] for case in same["cases"]] == [[4, 3, 64, 64], [1, 3, 64, 64]]
        later = iter([0.0, 0.5, 0.0, 0.0])  # off in the second call of the first shape
        found = parity(model, lambda x: model(x) + next(later), x, dynamic_image_size=False)
        assert found["cases"][0]["max_difference"] == pytest.approx(0.5 / scale, rel=1e-4)
        assert found["cases"][1]["max_difference"] == 0
        assert found["max_difference"] == found["cases"][0]["max_difference"]
        later = iter([0.0, 0.0, 0.0, float("nan")])
        found = parity(model, lambda x: model(x) + next(later), x, dynamic_image_size=False)
        assert np.isnan(found["max_difference"])
        turned = parity(model, lambda x: -model(x), x, dynamic_image_size=True)
        assert turned["agreement"] < 1
        assert [tuple(case["shape"][2:]) for case in turned["cases"]] == [
            (64, 64), (64, 64), (81, 47), (47, 81), (32, 32)
        ]  # fmt: skip


def test_parity_of_detections_finds_the_difference() -> None:
    """Order does not count; a class, a box that is elsewhere and one that is missing do."""
    boxes = torch.tensor([[0.0, 0, 20, 10], [30, 5, 40, 25], [31, 5, 41, 25]])
    found = (boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 0, 0]), torch.rand(3, 28, 28))

    def compared(*other: Tensor) -> dict[str, Any]:
        return parity_of_detections(lambda image: found, lambda image: other, [torch.zeros(3, 40, 50)])  # type: ignore[arg-type]

    turned = compared(*(values.flip(0) for values in found))
    assert (turned["max_difference"], turned["agreement"]) == (0, 1)
    assert [(case["shape"], case["agree"], case["of"]) for case in turned["cases"]] == [
        ([1, 3, 40, 50], 3, 3), ([1, 3, 51, 50], 3, 3), ([1, 3, 32, 32], 3, 3)
    ]  # fmt: skip
    scored = compared(boxes, found[1] - 0.25, *found[2:])
    assert (scored["max_difference"], scored["agreement"]) == (pytest.approx(0.25), 1)
    assert compared(boxes, found[1], torch.tensor([1, 1, 0]), found[3])["agreement"] == pytest.approx(2 / 3)
    assert compared(boxes + torch.tensor([[0.0], [0], [0.06]]), *found[1:])["agreement"] == pytest.approx(2 / 3)
    moved = compared(boxes + 0.01, *found[1:])
    assert (moved["max_difference"], moved["agreement"]) == (pytest.approx(0.01 / 32, rel=1e-3), 1)
    assert compared(*(values[:1] for values in found))["agreement"] == pytest.approx(1 / 3)
    assert compared(*(values[:0] for values in found))["agreement"] == 0
    assert np.isnan(compared(*found[:3], found[3] * torch.nan)["max_difference"])


def test_folders_that_are_taken(model: nn.Module, tmp_path: Path, pretended: Callable[..., None]) -> None:
    pretended(model)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    for replacing, told in ((False, "exists already"), (True, f"no {MANIFEST}")):
        with pytest.raises(FileExistsError, match=told):
            export.export_model(model, card("abc"), precious, name="m", format="torch", replace=replacing)
    assert [path.read_text() for path in precious.iterdir()] == ["mine"]
    for name in ("first", "second"):
        export.export_model(model, card("abc"), tmp_path / "x", name=name, format="torch", replace=True)
    assert Manifest.read(tmp_path / "x").name == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "x"]


# --- wrong words


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    maps = timm.create_model("smt_atto", features_only=True)
    for model, told in ((maps, "makes a list, and"), (OneSize(), r"a tensor \(1, 2\)")):
        with pytest.raises(ValueError, match=told):
            export.export_model(model, card("abc"), tmp_path / "x", name="m", format="torch")
    with pytest.raises(ValueError, match="one of onnx, openvino, torch"):
        export.export_model(OneSize(), card("ab"), tmp_path / "x", name="m", format="tflite")
    with pytest.raises(ValueError, match="8 bits are for the format 'openvino', not 'onnx'"):
        export.export_model(
            OneSize(), card("ab"), tmp_path / "x", name="m", format="onnx", calibrate=[tmp_path / "x.png"]
        )
    with pytest.raises(ValueError, match="an export already; export what it was made of: runs/x"):
        export.export_model(
            ExportedModel(lambda x: x, replace(_manifest(), name="runs/x")), card("ab"), tmp_path / "x",
            name="m", format="torch",
        )  # fmt: skip
    (tmp_path / "broken.png").write_text("no image")
    with pytest.raises(ValueError, match=r"broken\.png"):
        export.export_model(
            OneSize(), card("ab"), tmp_path / "x", name="m", format="torch", images=[tmp_path / "broken.png"]
        )
    assert [path.name for path in tmp_path.iterdir()] == ["broken.png"]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("--format openvino --int8", 1, "--int8 needs --calibrate FOLDER"),
        ("--format openvino --calibrate .", 1, "--calibrate needs --int8"),
        ("--format openvino --int8 --calibrate nowhere", 1, "no file or folder nowhere"),
        ("--format onnx --images nowhere", 1, "no file or folder nowhere"),
        ("--format tflite", 2, "openvino"),
        ("", 2, "format"),
    ],
)
def test_wrong_words(words: str, code: int, told: str, capsys: Capture) -> None:
    assert run("export", "no_such_model", *words.split()) == code
    out, error = capsys.readouterr()
    assert told in error
    assert out == ""


def test_a_missing_package_is_named_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(export.PACKAGES, "onnx", ("no_such_package",))
    with pytest.raises(ImportError, match=r"pip install 'smt-vision\[export\]'"):
        export.export_model(OneSize(), card("ab"), tmp_path / "x", name="m", format="onnx")


# --- folders that are no exports


def _manifest(**changes: Any) -> Manifest:
    manifest = Manifest(
        name="m", architecture="a", format="torch", precision="float32", parameters=1, classes=("a", "b"),
        card={"task": "classify"}, input=INPUT,
        dynamic_image_size=True, parity={}, versions={}, files={"model.pt2": "0" * 64}, created="now",
    )  # fmt: skip
    return replace(manifest, **changes)


def test_folders_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no {MANIFEST}"):
        load_exported(tmp_path)
    for text, told in (
        ("{", "not readable as JSON"),
        ("[]", "has no version"),
        ('{"version": 99}', "of version 99; this one reads up to 2: update"),
        ('{"version": 1}', "architecture, classes"),
        ('{"version": 2}', "architecture, card, classes"),
    ):
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(ValueError, match=told):
            load_exported(tmp_path)
    _manifest(format="tflite").write(tmp_path)
    with pytest.raises(ValueError, match="'tflite'"):
        load_exported(tmp_path)
    _manifest().write(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.pt2 is missing"):
        load_exported(tmp_path)
    (tmp_path / "model.pt2").write_bytes(b"changed")
    with pytest.raises(ValueError, match=r"model\.pt2 is not the file that was exported"):
        load_exported(tmp_path)


def test_a_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    manifest = _manifest(input=Input(size=64, mean=(0.5, 0.5, 0.5), std=(0.1, 0.2, 0.3)), parity={"agreement": 1.0})
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest


def test_a_manifest_of_the_first_version_is_a_classifier_s(tmp_path: Path) -> None:
    values = asdict(_manifest(version=1))
    del values["card"]
    (tmp_path / MANIFEST).write_text(json.dumps(values))
    assert Manifest.read(tmp_path) == _manifest(version=1)


def test_exports_run_on_the_cpu(tmp_path: Path) -> None:
    _manifest().write(tmp_path)
    with pytest.raises(ValueError, match="runs on the CPU and not on cuda"):
        Classifier.load(tmp_path, device="cuda")


# --- images


def test_samples() -> None:
    assert evenly_spaced(range(10), 3) == [0, 3, 6]
    assert evenly_spaced("ab", 5) == ["a", "b"]
    crops = sample_photo_crops()
    tensors = [see(crop) for crop in crops]
    assert [tuple(t.shape) for t in tensors] == [(3, 32, 32)] * 8
    assert len({np.asarray(crop).tobytes() for crop in crops}) == 8
    assert min(float(t.std()) for t in tensors) > 0.1  # a picture, not a surface
