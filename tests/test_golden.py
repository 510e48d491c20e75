"""Files of earlier formats load, and the models in them say what they said when the files were written."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from drawn_sets import write_shapes
from smt_vision import load
from smt_vision.deploy.exported import MANIFEST, Manifest
from smt_vision.engine.loop import train
from smt_vision.legacy import upgrade
from smt_vision.tasks import read_recipe, read_spec
from tiny_run import COLORS, write_images

GOLDEN = Path(__file__).parent / "golden"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text())


@pytest.mark.parametrize("file", ["classify.pt", "classify.safetensors", "classify-onnx"])
def test_classifier(file: str) -> None:
    if file.endswith("onnx"):
        pytest.importorskip("onnxruntime")
    (found,) = load(GOLDEN / file)([GOLDEN / "scene.png"])
    assert found.label == EXPECTED["classify"]["label"]
    assert [label for label, _ in found.top] == [label for label, _ in EXPECTED["classify"]["top"]]
    assert [score for _, score in found.top] == pytest.approx([s for _, s in EXPECTED["classify"]["top"]], abs=1e-5)


def test_detector() -> None:
    expected = EXPECTED["detect"]
    detector = load(GOLDEN / "detect.pt", overrides={"detect": {"score_threshold": 0.01}})
    assert detector.classes == ("square", "triangle")
    assert detector.spec.category_ids == (1, 4)
    (found,) = detector([GOLDEN / "shapes.png"])
    assert len(found) == expected["count"]
    assert found.class_ids[:5].tolist() == expected["class_ids"]
    assert torch.allclose(found.scores[:5], torch.tensor(expected["scores"]), atol=1e-5)
    assert torch.allclose(found.boxes[:5], torch.tensor(expected["boxes"]), atol=1e-3)
    assert found.masks[:5].sum((1, 2)).tolist() == pytest.approx(expected["mask_pixels"], abs=2)


@pytest.mark.parametrize(
    ("head", "field", "expected"),
    [
        ({"head": "fcos"}, "fcos_points", "corner"),
        ({"head": "fcos", "fcos_points": "center"}, "fcos_points", "center"),
        ({"head": "retinanet"}, "fcos_points", None),
        ({"head": "cascade_mask_rcnn"}, "cascade_boxes", "shared"),
        ({"head": "cascade_mask_rcnn", "cascade_boxes": "class"}, "cascade_boxes", "class"),
        ({"head": "mask_rcnn"}, "cascade_boxes", None),
        ({"head": "cascade_mask_rcnn"}, "roi_aligned", False),
        ({"head": "faster_rcnn"}, "roi_aligned", False),
        ({"head": "mask_rcnn", "roi_aligned": True}, "roi_aligned", True),
        ({"head": "retinanet"}, "roi_aligned", None),
    ],
)
def test_earlier_heads_stay_as_they_were(head: dict[str, Any], field: str, expected: Any) -> None:
    upgraded = upgrade({"spec": {"task": "detect", "head": head}, "recipe": {"task": "detect", "detect": head}})
    assert upgraded["spec"]["head"].get(field) == expected
    assert upgraded["recipe"]["detect"].get(field) == expected


def test_segmenter() -> None:
    (found,) = load(GOLDEN / "segment.pt")([GOLDEN / "scene.png"])
    counts = np.bincount(found.class_ids.numpy().ravel(), minlength=3).tolist()
    assert counts == pytest.approx(EXPECTED["segment"]["pixels"], abs=2)


@pytest.fixture
def interrupted_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of an earlier format that stopped after half of its steps, and its images."""
    for split, counts, seed in (("train", [8, 8, 8], 0), ("val", [4, 4, 4], 1)):
        write_images(tmp_path / "images" / split, COLORS, counts, seed)
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(GOLDEN / "half_last.pt", run / "last.pt")
    shutil.copy(GOLDEN / "recipe.yaml", run / "recipe.yaml")
    monkeypatch.chdir(tmp_path)
    return run


@pytest.mark.usefixtures("no_report")
def test_resume_run_of_earlier_format(interrupted_run: Path) -> None:
    recipe = read_recipe(yaml.safe_load((interrupted_run / "recipe.yaml").read_text()))
    assert recipe.task == "classify"
    run = train(recipe, interrupted_run, display=False)
    assert run.step == len(EXPECTED["resumed"]["log"])
    lines = [json.loads(line) for line in (interrupted_run / "log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}
    expected = {step: loss for step, loss in EXPECTED["resumed"]["log"] if step > 5}
    assert losses == pytest.approx(expected, abs=1e-5)
    assert run.metrics["loss"] == pytest.approx(EXPECTED["resumed"]["loss"], abs=1e-5)


@pytest.mark.parametrize(("file", "task"), [("detect-manifest.json", "detect"), ("segment-manifest.json", "segment")])
def test_manifest(file: str, task: str, tmp_path: Path) -> None:
    shutil.copy(GOLDEN / file, tmp_path / MANIFEST)
    manifest = Manifest.read(tmp_path)
    spec = read_spec(manifest.spec)
    assert spec.task == task
    assert manifest.dynamic_image_size
    assert manifest.batch_size == (1 if task == "detect" else None)
    # Version 3 had no batch size.
    later = {name: value for name, value in asdict(manifest).items() if name != "batch_size"} | {"version": 3}
    (tmp_path / MANIFEST).write_text(json.dumps(later))
    assert Manifest.read(tmp_path) == manifest
    assert spec.classes == (("square", "triangle") if task == "detect" else ("sky", "road", "car"))
    assert spec.input.interpolation == "bilinear"
    if task == "detect":
        assert (spec.category_ids, spec.head.score_threshold, spec.head.anchor_sizes[0]) == ((1, 4), 0.01, 8)
    else:
        assert spec.head.crop == (64, 64)


def test_the_images_are_those_of_then(tmp_path: Path) -> None:
    shapes = write_shapes(tmp_path / "shapes")
    assert (shapes / "val" / "0.png").read_bytes() == (GOLDEN / "shapes.png").read_bytes()
