"""Exports to ExecuTorch and Core ML."""

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import smt_vision
from command import answer, refusal
from smt_vision import load
from smt_vision.deploy.exported import Manifest


def _with_paths(folder: Path) -> list[Path]:
    """The files of an export that have paths of this package in them, e.g. in stack traces."""
    root = str(Path(smt_vision.__file__).parent).encode()
    return [path for path in folder.rglob("*") if path.is_file() and root in path.read_bytes()]


@pytest.mark.slow
def test_executorch_classifier(
    trained: Path, colored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("executorch", reason="the extra executorch is not installed")
    out = tmp_path / "exported"
    manifest = answer(capsys, "export", trained, "--format", "executorch", "--images", colored / "val", "--out", out)
    assert "model.pte" in manifest["files"]
    assert manifest["dynamic_image_size"] is False
    assert not _with_paths(out)
    assert manifest["parity"]["max_difference"] < 1e-4
    assert [case["shape"] for case in manifest["parity"]["cases"]] == [[8, 3, 32, 32], [1, 3, 32, 32]]
    images = sorted((colored / "val").rglob("*.png"))
    exported, model = load(out), load(trained)
    for found, expected in zip(exported(images), model(images), strict=True):
        assert found.label == expected.label
        assert found.score == pytest.approx(expected.score, abs=1e-4)
    metrics = answer(capsys, "eval", out, "--data", colored, "--workers", "0")
    assert (metrics["count"], metrics["top1"]) == (12, 100.0)
    with pytest.raises(ValueError, match=r"\(B, 3, 32, 32\)"):
        exported.model(torch.zeros(1, 3, 64, 64))


@pytest.mark.slow
def test_executorch_segmenter(
    segmenter_run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("executorch", reason="the extra executorch is not installed")
    out = tmp_path / "exported"
    manifest = answer(capsys, "export", segmenter_run, "--format", "executorch", "--out", out)
    assert manifest["parity"]["max_difference"] < 1e-4
    assert manifest["parity"]["agreement"] > 0.999
    error = refusal(capsys, 1, "predict", out, scenes / "images" / "val", "--out", tmp_path / "labeled")
    assert "any size" in error


@pytest.mark.slow
@pytest.mark.parametrize("fixture", ["trained", "segmenter_run"])
def test_coreml_has_the_shapes_of_the_model(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tools = pytest.importorskip("coremltools", reason="the extra coreml is not installed")
    run = request.getfixturevalue(fixture)
    out = tmp_path / "exported"
    manifest = answer(capsys, "export", run, "--format", "coreml", "--out", out)
    description = tools.utils.load_spec(str(out / "model.mlpackage")).description
    (image,), (logits,) = description.input, description.output
    side = 32 if fixture == "trained" else manifest["spec"]["head"]["crop"][0]
    classes = len(manifest["spec"]["classes"])
    assert (image.name, tuple(image.type.multiArrayType.shape)) == ("images", (1, 3, side, side))
    expected = (1, classes) if fixture == "trained" else (1, classes, side, side)
    assert (logits.name, tuple(logits.type.multiArrayType.shape)) == ("logits", expected)
    assert Manifest.read(out).files.keys() >= {"model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"}
    assert not _with_paths(out)
    if sys.platform != "darwin":
        assert "macOS" in manifest["parity"]["reason"]
        Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
        assert "macOS" in refusal(capsys, 1, "predict", out, tmp_path / "a.png")


@pytest.mark.parametrize("format", ["executorch", "coreml", "torch"])
def test_detectors_are_refused(
    format: str, detector_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refusal(capsys, 1, "export", detector_run, "--format", format, "--out", tmp_path / "out")
    assert format in error
    assert "onnx" in error
    assert not (tmp_path / "out").exists()
