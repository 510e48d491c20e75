"""Detectors and segmenters in use: predictions from Python and as files, evaluation, exports, and errors."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from command import answer, refusal, run
from drawn_sets import CATEGORIES, scenes_recipe
from smt_vision.data.padding import pad_together
from smt_vision.engine.loop import train
from smt_vision.recipe import Input
from smt_vision.spec import ModelSpec
from smt_vision.tasks.build import build_backbone
from smt_vision.tasks.classification.predictor import Classifier
from smt_vision.tasks.detection.config import DetectConfig
from smt_vision.tasks.detection.export import COORDINATES
from smt_vision.tasks.detection.heads.detectors import build_detector, run_detector
from smt_vision.tasks.detection.predictor import Detector
from smt_vision.tasks.detection.results import Detections, coco_results
from smt_vision.tasks.load import load
from smt_vision.tasks.results import result_names
from smt_vision.tasks.segmentation.config import SegmentConfig
from smt_vision.tasks.segmentation.predictor import Segmenter
from smt_vision.tasks.segmentation.results import SegmentationResult

Capture = pytest.CaptureFixture[str]


class ConstantDetector(nn.Module):
    """Detects the same two objects in any image, relative to its size."""

    def forward(self, image: torch.Tensor, sizes: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        found = []
        for h, w in sizes.tolist():
            boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.25, 0.5, 0.75, 1.0]]) * torch.tensor([w, h, w, h])
            masks = torch.stack([torch.ones(28, 28), torch.zeros(28, 28)])
            masks[1, :, :14] = 1  # the left half of its box
            found.append(
                {"boxes": boxes, "scores": torch.tensor([0.9, 0.2]), "labels": torch.tensor([1, 0]), "masks": masks}
            )
        return found


def constant_detector() -> Detector:
    config = DetectConfig(short_side=64, long_side=96)
    spec = ModelSpec(
        "detect", "none", ("square", "triangle"), Input(interpolation="bilinear"), head=config, category_ids=(1, 4)
    )
    return Detector(ConstantDetector(), spec)


def test_detections_are_in_pixels_of_the_stored_image() -> None:
    small, wide = constant_detector()([Image.new("RGB", (40, 20)), Image.new("RGB", (300, 100))])
    assert (small.size, wide.size) == ((20, 40), (100, 300))
    assert small.boxes.tolist() == [[0, 0, 20, 10], [10, 10, 30, 20]]
    assert wide.boxes.tolist() == [[0, 0, 150, 50], [75, 50, 225, 100]]
    assert small.labels == ("triangle", "square")
    assert small.masks is not None
    assert small.masks.shape == (2, 20, 40)
    assert (int(small.masks[0].sum()), int(small.masks[1].sum())) == (200, 100)
    assert bool(small.masks[1, 15, 12])
    assert not bool(small.masks[1, 15, 28])


def test_unreadable_image_has_an_error_and_the_others_results(tmp_path: Path) -> None:
    found = constant_detector()([tmp_path / "none.png", Image.new("RGB", (40, 20))], batch_size=2)
    assert "none.png" in str(found[0].error)
    assert (len(found[0].boxes), len(found[1].boxes), found[1].error) == (0, 2, None)


def test_coco_results(tmp_path: Path) -> None:
    """The COCO library reads the results back unchanged."""
    coco = pytest.importorskip("faster_coco_eval")
    mask = pytest.importorskip("faster_coco_eval.core.mask")
    (found,) = constant_detector()([Image.new("RGB", (40, 20))])
    rows = coco_results(found, 7, [1, 4])
    assert [(row["image_id"], row["category_id"], row["category"]) for row in rows] == [
        (7, 4, "triangle"), (7, 1, "square")
    ]  # fmt: skip
    assert rows[1]["bbox"] == [10, 10, 20, 10]
    truth = coco.COCO({"images": [{"id": 7, "width": 40, "height": 20}], "categories": CATEGORIES, "annotations": []})
    loaded = truth.loadRes(json.loads(json.dumps(rows)))
    assert len(loaded.anns) == 2
    assert found.masks is not None
    for row, own in zip(rows, found.masks, strict=True):
        assert np.array_equal(mask.decode(row["segmentation"]), own.numpy())


def test_detections_above_a_score() -> None:
    (found,) = constant_detector()([Image.new("RGB", (40, 20))])
    kept = found.above(0.5)
    assert isinstance(kept, Detections)
    assert (len(found), len(kept), kept.labels, kept.class_ids.tolist()) == (2, 1, ("triangle",), [1])
    assert kept.masks is not None
    assert kept.masks.shape == (1, 20, 40)


def test_detections_to_torchvision() -> None:
    from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

    (found,) = constant_detector()([Image.new("RGB", (40, 20))])
    out = found.to_torchvision()
    assert {key: (tuple(value.shape), value.dtype) for key, value in out.items()} == {
        "boxes": ((2, 4), torch.float32),
        "labels": ((2,), torch.int64),
        "scores": ((2,), torch.float32),
        "masks": ((2, 1, 20, 40), torch.float32),
    }
    canvas = torch.zeros(3, 20, 40, dtype=torch.uint8)
    assert draw_bounding_boxes(canvas, out["boxes"]).any()
    assert draw_segmentation_masks(canvas, out["masks"][:, 0] > 0.5, colors="white").any()
    assert set(replace(found, masks=None).to_torchvision()) == {"boxes", "labels", "scores"}


def test_detections_to_supervision() -> None:
    supervision = pytest.importorskip("supervision")
    (found,) = constant_detector()([Image.new("RGB", (40, 20))])
    out = found.to_supervision()
    assert isinstance(out, supervision.Detections)
    assert np.array_equal(out.xyxy, found.boxes.numpy())
    assert np.array_equal(out.mask, found.masks.numpy())
    assert out.data["class_name"].tolist() == ["triangle", "square"]
    assert len(out[out.confidence > 0.5]) == 1


def test_save_detections_of_pil_images(tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    detector = constant_detector()
    images = [Image.new("RGB", (40, 20)), Image.new("L", (60, 30))]
    written = detector.save(detector(images), tmp_path)
    assert written == [tmp_path / "detections.json", tmp_path / "drawn"]
    rows = json.loads((tmp_path / "detections.json").read_text())
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(1, 4), (1, 1), (2, 4), (2, 1)]
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["0.png", "1.png"]


def test_save_label_maps_of_pil_images(tmp_path: Path) -> None:
    segmenter = brightness_segmenter(binary=False)
    segmenter.save(segmenter([Image.new("RGB", (40, 20), (255, 255, 255))]), tmp_path)
    assert np.unique(np.asarray(Image.open(tmp_path / "labels" / "0.png"))).tolist() == [2]


def test_detections_do_not_depend_on_the_batch(detector_run: Path, shapes: Path) -> None:
    """Attention covers the whole map, so padding to a larger image of the batch would change results."""
    detector = load(detector_run)
    paths = sorted((shapes / "val").glob("*.png"))
    wide = Image.open(paths[0]).convert("RGB").resize((190, 96))
    together = detector([*paths, wide], batch_size=5)
    for one, other in zip((detector([path])[0] for path in [*paths, wide]), together, strict=True):
        assert len(one.boxes) == len(other.boxes)
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-5)
    pixels = [detector.transform(Image.open(path).convert("RGB")) for path in paths]
    image, sizes = pad_together([*pixels, torch.zeros(3, 192, 192)])
    with torch.no_grad():
        assert len(run_detector(detector.model, image, sizes)) == 5


def test_load_by_task(detector_run: Path, segmenter_run: Path, trained: Path) -> None:
    detector, segmenter = load(detector_run), load(segmenter_run)
    assert isinstance(detector, Detector)
    assert detector.category_ids == (1, 4)
    assert isinstance(segmenter, Segmenter)
    assert isinstance(load(trained), Classifier)


def test_load_with_overrides(detector_run: Path, segmenter_run: Path, trained: Path) -> None:
    detector = load(detector_run, overrides={"detect": {"score_threshold": 0.9, "max_detections": None}})
    assert isinstance(detector, Detector)
    assert (detector.config.score_threshold, detector.config.max_detections) == (0.9, 100)
    assert all(bool((found.scores > 0.9).all()) for found in detector([Image.new("RGB", (80, 60))]))
    assert load(trained, overrides={"input": {"size": 48}}).input.size == 48
    segmenter = load(segmenter_run, overrides={"segment": {"test_flip": True}, "input": {"size": None}})
    assert isinstance(segmenter, Segmenter)
    assert segmenter.config.test_flip
    with pytest.raises(ValueError, match=r"input\.size"):
        load(segmenter_run, overrides={"input": {"size": 64}})
    with pytest.raises(ValueError, match=r"detect\.head"):
        load(detector_run, overrides={"detect": {"head": "retinanet"}})


def test_label_maps_have_the_stored_size(segmenter_run: Path) -> None:
    results = load(segmenter_run)([Image.new("RGB", (50, 31)), Image.new("L", (33, 100)), Path("none.png")])
    assert [result.size for result in results] == [(31, 50), (100, 33), (0, 0)]
    assert results[0].class_ids.shape == (31, 50)
    assert results[2].error is not None


def brightness_segmenter(binary: bool) -> Segmenter:
    """Bright pixels are class 1, or of a binary segmenter the object."""

    class Bright(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            bright = image.mean(1, keepdim=True)
            return 9 * bright if binary else torch.cat([-bright, bright], dim=1)

    config = SegmentConfig(short_side=0, kind="binary" if binary else "classes", zero_is_ignored=not binary)
    spec = ModelSpec("segment", "none", ("object",) if binary else ("dark", "bright"), Input(), head=config)
    return Segmenter(Bright(), spec)


@pytest.mark.parametrize("binary", [False, True])
def test_maps_as_files(binary: bool, tmp_path: Path) -> None:
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[:, 20:] = 255
    (tmp_path / "in" / "sub").mkdir(parents=True)
    paths = [tmp_path / "in" / "a.png", tmp_path / "in" / "sub" / "a.jpg"]
    for path in paths:
        Image.fromarray(pixels).save(path)
    segmenter = brightness_segmenter(binary)
    out = tmp_path / "out"
    results = segmenter(paths)
    assert segmenter.save(results, out) == [out / ("maps" if binary else "labels"), out / "drawn"]
    assert segmenter.class_fractions(results[0])["object" if binary else "bright"] == pytest.approx(1 / 3)
    folder = out / ("maps" if binary else "labels")
    for name in ("a.png", "sub/a.png"):
        stored = np.asarray(Image.open(folder / name))
        assert stored.dtype == np.uint8
        assert stored.shape == (20, 30)
        if binary:
            assert stored[:, :19].max() < 20
            assert stored[:, 21:].min() > 235
        else:  # one more than the class, as the training's labels are stored
            assert np.unique(stored[:, :19]).tolist() == [1]
            assert np.unique(stored[:, 21:]).tolist() == [2]
        with Image.open(out / "drawn" / name) as drawn:
            assert drawn.width == 30


def test_result_names(tmp_path: Path) -> None:
    names = result_names([tmp_path / "a" / "x.jpg", tmp_path / "a" / "b" / "x.png", tmp_path / "a" / "y.png"])
    assert names == [Path("x.png"), Path("b/x.png"), Path("y.png")]
    assert result_names([Path("x.jpg")]) == [Path("x.png")]
    with pytest.raises(ValueError, match=r"x\.jpg.*x\.png"):
        result_names([tmp_path / "x.jpg", tmp_path / "x.png"])


# --- command line


def test_predict_with_a_detector(detector_run: Path, shapes: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "found"
    words = (
        "predict", detector_run, shapes / "val", "--out", out, "--score", "0.01", "--detect.score_threshold", "0"
    )  # fmt: skip
    printed = answer(capsys, *words, "--annotations", shapes / "annotations" / "instances_val.json")
    assert [Path(item["id"]).name for item in printed] == ["0.png", "1.png", "2.png", "3.png"]
    assert all({"label", "class_id", "score", "box"} == set(found) for item in printed for found in item["objects"])
    rows = json.loads((out / "detections.json").read_text())
    assert rows
    assert {row["category_id"] for row in rows} <= {1, 4}
    assert {row["image_id"] for row in rows} <= {1, 2, 3, 4}
    assert all(row["segmentation"]["size"][0] == 96 for row in rows)
    assert sorted(path.name for path in (out / "drawn").iterdir()) == ["0.png", "1.png", "2.png", "3.png"]
    assert run(*words) == 0
    assert "detections.json" in capsys.readouterr().out


def test_predict_with_a_segmenter(segmenter_run: Path, scenes: Path, tmp_path: Path, capsys: Capture) -> None:
    printed = answer(capsys, "predict", segmenter_run, scenes / "images" / "val", "--out", tmp_path / "out")
    assert [sum(item["class_fractions"].values()) for item in printed] == pytest.approx([1] * 4)
    label = np.asarray(Image.open(tmp_path / "out" / "labels" / "2.png"))
    assert label.shape == (72, 56)
    assert label.max() <= 2


@pytest.mark.parametrize(("run_of", "size"), [("detector_run", [3, 96, 160]), ("segmenter_run", [3, 64, 64])])
def test_info(run_of: str, size: list[int], request: pytest.FixtureRequest, capsys: Capture) -> None:
    printed = answer(capsys, "info", request.getfixturevalue(run_of))
    assert printed["input_size"] == size
    assert printed["gmac"] > 0


def test_predictions_do_not_overwrite_input_images(segmenter_run: Path, scenes: Path, capsys: Capture) -> None:
    folder = scenes / "images"
    assert f"folder {folder}" in refusal(capsys, 1, "predict", segmenter_run, folder, "--out", folder)


@pytest.mark.parametrize(
    "option",
    [("--top_k", "2"), ("--score", "1"), ("--annotations", "x.json")],
)
def test_options_of_another_task(option: tuple[str, str], segmenter_run: Path, scenes: Path, capsys: Capture) -> None:
    assert option[0] in refusal(capsys, 1, "predict", segmenter_run, scenes / "images" / "val", *option)


def test_image_ids_of_unannotated_images(
    detector_run: Path, scenes: Path, shapes: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = shapes / "annotations" / "instances_val.json"
    words = ("predict", detector_run, scenes / "classes.json", "--out", tmp_path, "--annotations")
    assert re.search(r"instances_val\.json .*1 of the 1 images.*classes\.json", refusal(capsys, 1, *words, file))
    assert "classes.json" in refusal(capsys, 1, *words, scenes / "classes.json")


def test_eval_of_detector_equals_metrics_of_run(detector_run: Path, capsys: Capture) -> None:
    of_run = json.loads((detector_run / "metrics.json").read_text())
    for batch_size in ("1", "4"):
        printed = answer(capsys, "eval", detector_run, "--workers", "0", "--batch_size", batch_size)
        for number in ("mask_ap", "box_ap50", "box_ar"):
            assert printed[number] == pytest.approx(of_run[number], abs=0.01)
    assert run("eval", detector_run, "--workers", "0") == 0
    shown = capsys.readouterr().out
    assert "mask AP (%)" in shown


def test_eval_of_segmenter(segmenter_run: Path, tmp_path: Path, capsys: Capture) -> None:
    of_run = json.loads((segmenter_run / "metrics.json").read_text())
    printed = answer(capsys, "eval", segmenter_run, "--workers", "0", "--batch_size", "3", "--out", tmp_path / "out")
    assert printed["miou"] == pytest.approx(of_run["miou"], abs=0.01)
    assert (tmp_path / "out" / "worst.png").is_file()
    words = ("--workers", "0", "--segment.test_flip", "true", "--segment.test_scales", "[0.5,1]")
    flipped = answer(capsys, "eval", segmenter_run, *words)
    assert "0.5, 1, flipped" in flipped["input"]
    assert flipped["miou"] != printed["miou"]


def test_eval_with_other_classes(segmenter_run: Path, scenes: Path, tmp_path: Path, capsys: Capture) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("images", "labels"):
        (other / name).symlink_to(scenes / name)
    (other / "classes.json").write_text('["sky", "road", "bus"]')
    error = refusal(capsys, 1, "eval", segmenter_run, "--data", other, "--workers", "0")
    assert re.search("sky, road, bus.*sky, road, car", error, re.DOTALL)


# --- exports


# Tracing an SMT takes most of a minute; test_export.py does it once.
BACKBONES = ["test_resnet", pytest.param("smt_atto", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def upernet_run(backbone: str, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "upernet"
    train(replace(scenes_recipe(scenes), model=backbone, model_args={}), folder, display=False)
    return folder


def exported(run_folder: Path, tmp_path: Path, format: str, images: Path) -> Path:
    out = tmp_path / format
    assert run("export", run_folder, "--format", format, "--out", out, "--images", images) == 0
    return out


@pytest.mark.parametrize("format", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_segmenter_export_agrees(format: str, upernet_run: Path, scenes: Path, tmp_path: Path, capsys: Capture) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    images = scenes / "images" / "val"
    folder = exported(upernet_run, tmp_path, format, images)
    own, theirs = load(upernet_run), load(folder)
    assert theirs.classes == own.classes
    assert theirs.config == own.config
    for one, other in zip(own(sorted(images.iterdir())), theirs(sorted(images.iterdir())), strict=True):
        assert one.class_ids is not None
        assert other.class_ids is not None
        assert float((one.class_ids == other.class_ids).float().mean()) > 0.999
    capsys.readouterr()
    numbers = [answer(capsys, "eval", m, "--workers", "0", "--data", scenes)["miou"] for m in (upernet_run, folder)]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.1)


Head = Literal["retinanet", "faster_rcnn", "mask_rcnn", "cascade_mask_rcnn"]


def small_detector(head: Head, backbone: str) -> Detector:
    """Random weights; detects 30 objects in any image."""
    torch.manual_seed(0)
    config = DetectConfig(
        head=head, short_side=64, long_side=96, fpn_channels=16, head_channels=32, head_norm="group",
        score_threshold=0.0, max_detections=30,
    )  # fmt: skip
    spec = ModelSpec("detect", backbone, ("a", "b"), Input(interpolation="bilinear"), head=config, category_ids=(1, 4))
    model = build_detector(build_backbone(spec, pretrained=False, checkpoint=None), 2, config)
    return Detector(model, spec)


@pytest.mark.parametrize(
    ("head", "format"),
    [
        ("retinanet", "onnx"),
        pytest.param("retinanet", "openvino", marks=pytest.mark.slow),
        pytest.param("faster_rcnn", "onnx", marks=pytest.mark.slow),
        ("mask_rcnn", "openvino"),
        ("cascade_mask_rcnn", "onnx"),
        pytest.param("cascade_mask_rcnn", "openvino", marks=pytest.mark.slow),
    ],
)
def test_detector_export_agrees(
    head: Head,
    format: str,
    backbone: str,
    shapes: Path,
    tmp_path: Path,
) -> None:
    """The program contains everything from padding to masks, for images of any size and any batch size."""
    pytest.importorskip({"onnx": "onnxruntime"}.get(format, format))
    own = small_detector(head, backbone)
    images = sorted((shapes / "val").iterdir())
    manifest = own.export(tmp_path / "x", format, images=images)
    assert manifest.parity["agreement"] == 1
    assert manifest.parity["cases"][0]["of"] == 30
    theirs = load(tmp_path / "x")
    assert (theirs.config, theirs.category_ids) == (own.config, (1, 4))
    pictures = [Image.open(path).convert("RGB") for path in images]
    pictures += [pictures[0].resize((70, 41)), pictures[0].resize((41, 99))]
    for one, other in zip(own(pictures), theirs(pictures, batch_size=3), strict=True):
        assert len(one.boxes) == len(other.boxes) == 30
        assert one.class_ids.tolist() == other.class_ids.tolist()
        torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-5)
        assert (one.masks is None) == (other.masks is None)
        if one.masks is not None and other.masks is not None:
            assert float((one.masks == other.masks).float().mean()) > 0.999
    strict = load(tmp_path / "x", overrides={"detect": {"score_threshold": 0.5, "max_detections": 3}})
    for found, all_found in zip(strict(pictures), own(pictures), strict=True):  # type: ignore[arg-type]
        assert len(found.boxes) == min(3, int((all_found.scores > 0.5).sum()))  # type: ignore[union-attr]
    for name, value in (("score_threshold", -1.0), ("nms_threshold", 0.4), ("max_detections", 31)):
        with pytest.raises(ValueError, match=rf"--detect\.{name} {value}"):
            load(tmp_path / "x", overrides={"detect": {name: value}})


def test_quantized_detector_keeps_coordinates_in_float32(backbone: str, shapes: Path, tmp_path: Path) -> None:
    """Only the network is quantized, not the arithmetic of anchors and boxes."""
    pytest.importorskip("nncf")
    own = small_detector("retinanet", backbone)
    images = sorted((shapes / "val").iterdir())
    assert own.export(tmp_path / "x", "openvino", calibrate=images).precision == "int8"
    quantized = re.findall(r'name="([^"]+)/fq_', (tmp_path / "x" / "model.xml").read_text())
    assert any("classification_head.conv" in name for name in quantized)
    assert not [name for name in quantized if any(re.match(pattern, name) for pattern in COORDINATES)]
    for one, other in zip(own(images), load(tmp_path / "x")(images), strict=True):
        nearest = (one.boxes[:, None] - other.boxes[None]).abs().amax(dim=2).amin(dim=1)
        assert nearest.median() < 2  # pixels


def test_exported_detector_in_use(detector_run: Path, shapes: Path, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("onnxruntime")
    images, folder = shapes / "val", tmp_path / "onnx"
    words = ("export", detector_run, "--format", "onnx", "--out", folder, "--images", images)
    assert run(*words, "--detect.score_threshold", "0.01") == 0
    shown = capsys.readouterr().out
    assert "any height and width" in shown
    numbers = [
        answer(capsys, "eval", m, "--workers", "0", "--data", shapes, "--detect.score_threshold", "0.05")
        for m in (detector_run, folder)
    ]
    for name in ("mask_ap", "box_ap50", "box_ar"):
        assert numbers[0][name] == pytest.approx(numbers[1][name], abs=0.1)
    assert str(folder) in refusal(capsys, 1, "export", folder, "--format", "onnx", "--out", tmp_path / "x")
    assert str(folder) in refusal(capsys, 1, "info", folder)


def test_detectors_that_cannot_be_exported(detector_run: Path, shapes: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ("export", detector_run, "--out", tmp_path / "x", "--images", shapes / "val")
    assert "'onnx' or 'openvino'" in refusal(capsys, 1, *words, "--format", "torch")
    quantized = ("--format", "openvino", "--int8", "--calibrate", shapes / "val")
    assert "detect.head='mask_rcnn'" in refusal(capsys, 1, *words, *quantized)
    error = refusal(capsys, 1, *words, "--format", "openvino", "--detect.score_threshold", "0.9999")
    assert "0.png, 1.png, 2.png, 3.png" in error
    assert not list(tmp_path.iterdir())


def test_result_of_binary_segmenter() -> None:
    (result,) = brightness_segmenter(binary=True)([Image.new("RGB", (40, 40), (255, 255, 255))])
    assert isinstance(result, SegmentationResult)
    assert result.class_ids is None
    assert float(result.scores.min()) > 0.9
    assert scenes_recipe(Path("x"), kind="binary").segment.kind == "binary"
