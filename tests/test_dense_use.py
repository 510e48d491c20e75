"""Detectors and segmenters in use: predictions from Python and as files, evaluation, exports, and invalid requests."""

import json
import re
import shutil
import sys
import types
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning_fabric
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import smt_vision
from command import answer, refusal, run
from drawn_sets import CATEGORIES, CLASSES, scenes_recipe
from smt_vision.data.files import find_images
from smt_vision.data.padding import pad_together
from smt_vision.engine.evaluation_loop import run_evaluation
from smt_vision.engine.loop import train
from smt_vision.recipe import Input
from smt_vision.spec import ModelSpec
from smt_vision.tasks import get_task
from smt_vision.tasks.classification.predictor import Classifier
from smt_vision.tasks.detection.config import DetectConfig, DetectionInput
from smt_vision.tasks.detection.data.sources import open_detection
from smt_vision.tasks.detection.export import COORDINATES
from smt_vision.tasks.detection.heads.detectors import run_detector
from smt_vision.tasks.detection.predictor import Detector
from smt_vision.tasks.detection.results import Detections, coco_results
from smt_vision.tasks.results import decode_source, result_names
from smt_vision.tasks.segmentation.config import SegmentConfig
from smt_vision.tasks.segmentation.predictor import Segmenter

Capture = pytest.CaptureFixture[str]
INPUT = Input(interpolation="bilinear")


class FixedDetections(nn.Module):
    """Detects the same two objects in any image, at positions relative to its size."""

    def __init__(self, masks: bool = True) -> None:
        super().__init__()
        self.masks = masks

    def forward(self, image: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        detections = []
        for h, w in sizes.tolist():
            boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.25, 0.5, 0.75, 1.0]]) * torch.tensor([w, h, w, h])
            own = {"boxes": boxes, "scores": torch.tensor([0.9, 0.2]), "labels": torch.tensor([1, 0])}
            if self.masks:
                own["masks"] = torch.stack([torch.ones(28, 28), torch.zeros(28, 28)])
                own["masks"][1, :, :14] = 1  # the left half of its box
            detections.append(own)
        return detections


def fixed_detector(masks: bool = True) -> Detector:
    config = DetectConfig(head="mask_rcnn" if masks else "faster_rcnn", short_side=64, long_side=96)
    spec = ModelSpec("detect", "fixed", ("square", "triangle"), INPUT, head=config, category_ids=(1, 4))
    return Detector(FixedDetections(masks), spec)


def load_detector(source: Path, **options: float | None) -> Detector:
    detector = smt_vision.load(source, overrides={"detect": options})
    assert isinstance(detector, Detector)
    return detector


def load_segmenter(source: Path) -> Segmenter:
    segmenter = smt_vision.load(source)
    assert isinstance(segmenter, Segmenter)
    return segmenter


def read_pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# --- detections ---


def test_boxes_and_masks_are_in_pixels_of_the_stored_image() -> None:
    small, wide = fixed_detector()([Image.new("RGB", (40, 20)), Image.new("RGB", (300, 100))])
    assert (small.size, wide.size) == ((20, 40), (100, 300))
    assert small.boxes.tolist() == [[0, 0, 20, 10], [10, 10, 30, 20]]
    assert wide.boxes.tolist() == [[0, 0, 150, 50], [75, 50, 225, 100]]
    assert small.labels == ("triangle", "square")
    assert small.masks is not None
    assert small.masks.shape == (2, 20, 40)
    assert (int(small.masks[0].sum()), int(small.masks[1].sum())) == (200, 100)
    assert bool(small.masks[1, 15, 12])
    assert not bool(small.masks[1, 15, 28])


def test_unreadable_image_has_an_error_and_no_detections(tmp_path: Path) -> None:
    unreadable, found = fixed_detector()([tmp_path / "none.png", Image.new("RGB", (40, 20))], batch_size=2)
    assert "none.png" in str(unreadable.error)
    assert (len(unreadable), len(found), found.error) == (0, 2, None)


def test_above_score() -> None:
    (found,) = fixed_detector()([Image.new("RGB", (40, 20))])
    kept = found.above(0.5)
    assert (len(found), len(kept)) == (2, 1)
    assert (kept.labels, kept.class_ids.tolist()) == (("triangle",), [1])
    assert torch.equal(kept.boxes, found.boxes[:1])
    assert found.masks is not None
    assert kept.masks is not None
    assert torch.equal(kept.masks, found.masks[:1])
    assert len(found.above(0.95)) == 0


@pytest.mark.parametrize("masks", [True, False])
def test_to_torchvision(masks: bool) -> None:
    (found,) = fixed_detector(masks)([Image.new("RGB", (40, 20))])
    converted = found.to_torchvision()
    assert set(converted) == {"boxes", "labels", "scores"} | ({"masks"} if masks else set())
    assert torch.equal(converted["boxes"], found.boxes)
    assert converted["labels"].tolist() == [1, 0]
    assert converted["labels"].dtype == torch.int64
    assert converted["scores"].tolist() == pytest.approx([0.9, 0.2])
    if masks:
        assert found.masks is not None
        assert converted["masks"].dtype == torch.float32
        assert converted["masks"].shape == (2, 1, 20, 40)
        assert torch.equal(converted["masks"][:, 0] > 0.5, found.masks)


@pytest.mark.parametrize("masks", [True, False])
def test_to_supervision(masks: bool, tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    found, unreadable = fixed_detector(masks)([Image.new("RGB", (40, 20)), tmp_path / "none.png"])
    converted = found.to_supervision()
    assert isinstance(converted, supervision.Detections)
    assert converted.xyxy.tolist() == found.boxes.tolist()
    assert converted.confidence.tolist() == pytest.approx([0.9, 0.2])
    assert converted.class_id.tolist() == [1, 0]
    assert converted["class_name"].tolist() == ["triangle", "square"]
    if masks:
        assert found.masks is not None
        assert np.array_equal(converted.mask, found.masks.numpy())
    else:
        assert converted.mask is None
    none = found.above(1.0).to_supervision()
    for empty in (unreadable.to_supervision(), none):
        assert len(empty) == 0
        assert empty.is_empty()
        assert empty["class_name"].tolist() == []
        assert len(supervision.Detections.merge([empty, empty])) == 0
    assert (none.mask is None) != masks
    assert none.mask is None or none.mask.shape == (0, 20, 40)


@dataclass
class SupervisionDetections:
    """The fields of ``supervision.Detections`` that are filled."""

    xyxy: np.ndarray
    mask: np.ndarray | None
    confidence: np.ndarray
    class_id: np.ndarray
    data: dict[str, np.ndarray]


@pytest.mark.parametrize("masks", [True, False])
def test_what_supervision_is_given(masks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package is not installed."""
    module = types.ModuleType("supervision")
    module.Detections = SupervisionDetections  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", module)
    (found,) = fixed_detector(masks)([Image.new("RGB", (40, 20))])
    for detections, names in ((found, ["triangle", "square"]), (found.above(1.0), [])):
        given = detections.to_supervision()
        assert np.array_equal(given.xyxy, detections.boxes.numpy())
        assert given.xyxy.shape == (len(names), 4)
        assert given.confidence.tolist() == pytest.approx([0.9, 0.2][: len(names)])
        assert given.class_id.tolist() == [1, 0][: len(names)]
        assert (given.class_id.dtype, given.data.keys()) == (np.int64, {"class_name"})
        assert given.data["class_name"].tolist() == names
        assert given.data["class_name"].dtype.kind == "U"
        if masks:
            assert detections.masks is not None
            assert np.array_equal(given.mask, detections.masks.numpy())
            assert (given.mask.shape, given.mask.dtype) == ((len(names), 20, 40), bool)
        else:
            assert given.mask is None


def test_coco_results() -> None:
    """COCO's own library reads them back as the same boxes and masks."""
    coco = pytest.importorskip("faster_coco_eval")
    mask = pytest.importorskip("faster_coco_eval.core.mask")
    (found,) = fixed_detector()([Image.new("RGB", (40, 20))])
    rows = coco_results(found, 7, "a.png", [1, 4])
    assert [(row["image_id"], row["category_id"], row["category"]) for row in rows] == [
        (7, 4, "triangle"), (7, 1, "square")
    ]  # fmt: skip
    assert rows[1]["bbox"] == [10, 10, 20, 10]
    truth = coco.COCO({"images": [{"id": 7, "width": 40, "height": 20}], "categories": CATEGORIES, "annotations": []})
    loaded = truth.loadRes(json.loads(json.dumps(rows)))
    assert len(loaded.anns) == 2
    assert found.masks is not None
    for row, expected in zip(rows, found.masks, strict=True):
        assert np.array_equal(mask.decode(row["segmentation"]), expected.numpy())


def test_detections_do_not_depend_on_the_batch(detector_run: Path, shapes: Path) -> None:
    """Attention covers the whole feature map, so the padding for a larger image of the batch must not be in it."""
    detector = load_detector(detector_run)
    images: list[Any] = sorted((shapes / "val").glob("*.png"))
    pixels = [detector.transform(Image.open(path).convert("RGB")) for path in images]
    images.append(Image.open(images[0]).convert("RGB").resize((190, 96)))
    batched = detector(images, batch_size=5)
    for (one,), other in zip((detector([image]) for image in images), batched, strict=True):
        assert len(one) == len(other)
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-5)
    image, sizes = pad_together([*pixels, torch.zeros(3, 192, 192)])
    with torch.no_grad():
        assert len(run_detector(detector.model, image, sizes)) == 5


# --- loading ---


def test_load_returns_the_predictor_of_the_task(detector_run: Path, segmenter_run: Path, trained: Path) -> None:
    detector = smt_vision.load(detector_run)
    assert isinstance(detector, Detector)
    assert detector.category_ids == (1, 4)
    assert isinstance(smt_vision.load(segmenter_run), Segmenter)
    assert isinstance(smt_vision.load(trained), Classifier)


def test_category_ids_default_to_1_to_k() -> None:
    spec = replace(fixed_detector().spec, category_ids=None)
    assert Detector(FixedDetections(), spec).category_ids == (1, 2)


def test_overrides(detector_run: Path, segmenter_run: Path, trained: Path) -> None:
    image = Image.new("RGB", (80, 60))
    (found,) = load_detector(detector_run, score_threshold=0.0)([image])
    threshold = float(found.scores.median())
    detector = load_detector(detector_run, score_threshold=threshold, max_detections=None)
    assert (detector.config.score_threshold, detector.config.max_detections) == (threshold, 100)
    (above,) = detector([image])
    assert 0 < len(above) < len(found)
    assert bool((above.scores > threshold).all())
    assert smt_vision.load(trained, overrides={"input": {"size": 48}}).input.size == 48
    segmenter = smt_vision.load(segmenter_run, overrides={"segment": {"test_flip": True}, "input": {"size": None}})
    assert segmenter.config.test_flip
    with pytest.raises(ValueError, match=r"input\.size.*'segment'"):
        smt_vision.load(segmenter_run, overrides={"input": {"size": 64}})
    with pytest.raises(ValueError, match=r"detect\.head"):
        smt_vision.load(detector_run, overrides={"detect": {"head": "retinanet"}})


# --- label maps ---


def test_label_maps_have_the_stored_image_size(segmenter_run: Path) -> None:
    images = [Image.new("RGB", (50, 31)), Image.new("L", (33, 100)), Path("none.png")]
    results = load_segmenter(segmenter_run)(images)
    assert [result.size for result in results] == [(31, 50), (100, 33), (0, 0)]
    for result in results[:2]:
        assert result.class_ids is not None
        assert result.class_ids.shape == result.size
        assert result.scores is None
    assert "none.png" in str(results[2].error)


def brightness_segmenter(binary: bool) -> Segmenter:
    """Assigns class 1, or the object, to bright pixels."""

    class Brightness(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            bright = image.mean(1, keepdim=True)
            return 9 * bright if binary else torch.cat([-bright, bright], dim=1)

    config = SegmentConfig(short_side=0, kind="binary" if binary else "classes", zero_is_ignored=not binary)
    classes = ("object",) if binary else ("dark", "bright")
    return Segmenter(Brightness(), ModelSpec("segment", "brightness", classes, Input(), head=config))


def third_bright() -> Image.Image:
    """30 x 20 pixels, of which the right third is white and the rest black."""
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[:, 20:] = 255
    return Image.fromarray(pixels)


def test_binary_segmenter_returns_scores() -> None:
    (result,) = brightness_segmenter(binary=True)([Image.new("RGB", (40, 40), (255, 255, 255))])
    assert result.class_ids is None
    assert result.scores is not None
    assert result.scores.shape == (40, 40)
    assert float(result.scores.min()) > 0.9


# --- files ---


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
def test_save_label_maps(binary: bool, streamed: bool, tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    paths = [tmp_path / "in" / "a.png", tmp_path / "in" / "sub" / "a.jpg"]
    for path in paths:
        third_bright().save(path)
    segmenter = brightness_segmenter(binary)
    out = tmp_path / "out"
    if streamed:
        written = segmenter.save(segmenter.stream(paths), out, images=paths)
    else:
        written = segmenter.save(segmenter(paths), out)
    folder = out / ("maps" if binary else "labels")
    assert written == [folder, out / "drawn"]
    for name in ("a.png", "sub/a.png"):
        stored = read_pixels(folder / name)
        assert stored.dtype == np.uint8
        assert stored.shape == (20, 30)
        if binary:
            assert stored[:, :19].max() < 20
            assert stored[:, 21:].min() > 235
        else:  # one more than the class, as the training labels are stored
            assert np.unique(stored[:, :19]).tolist() == [1]
            assert np.unique(stored[:, 21:]).tolist() == [2]
        with Image.open(out / "drawn" / name) as drawn:
            assert drawn.width == 30


@pytest.mark.parametrize("binary", [False, True])
def test_class_fractions(binary: bool) -> None:
    segmenter = brightness_segmenter(binary)
    (result,) = segmenter([third_bright()])
    expected = {"object": 1 / 3} if binary else {"dark": 2 / 3, "bright": 1 / 3}
    fractions = segmenter.class_fractions(result)
    assert fractions == pytest.approx(expected)
    assert list(fractions) == list(expected)  # largest first


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
def test_image_in_memory_gives_the_result_of_its_file(orientation: int, kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"x.{kind}"
    third_bright().save(file, exif=exif)
    size = (20, 30) if orientation < 5 else (30, 20)
    for predictor in (fixed_detector(), brightness_segmenter(binary=False), brightness_segmenter(binary=True)):
        with Image.open(file) as image:
            by_path, by_image = predictor([file, image], batch_size=1)
            assert by_path.size == by_image.size == size
            assert decode_source(by_image.source).size == size[::-1]
        for field in ("boxes", "masks", "class_ids", "scores"):
            if getattr(by_path, field, None) is not None:
                assert torch.equal(getattr(by_path, field), getattr(by_image, field))


def test_saved_pictures_of_images_in_memory_are_those_of_their_files(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    third_bright().save(tmp_path / "0.png", exif=exif)
    for predictor in (fixed_detector(), brightness_segmenter(binary=False)):
        with Image.open(tmp_path / "0.png") as image:
            image.load()
            pixels = image.tobytes()
            predictor.save(predictor([image]), tmp_path / "image")
            predictor.save(predictor([tmp_path / "0.png"]), tmp_path / "path")
            assert (image.size, image.tobytes()) == ((30, 20), pixels)
        drawn = [read_pixels(tmp_path / folder / "drawn" / "0.png") for folder in ("image", "path")]
        assert np.array_equal(*drawn)
        assert drawn[0].shape[1] == 20


def test_images_that_their_iterator_closes(tmp_path: Path) -> None:
    third_bright().save(tmp_path / "x.png")

    def images() -> Iterator[Image.Image]:
        for _ in range(3):
            with Image.open(tmp_path / "x.png") as image:
                yield image

    results = brightness_segmenter(binary=False)(images(), batch_size=2)
    assert [(result.error, result.size) for result in results] == [(None, (20, 30))] * 3


@pytest.mark.parametrize("image", [np.zeros((20, 30, 3), np.uint8), torch.zeros(3, 20, 30), b"x", None, 5])
def test_images_of_other_types_are_refused(image: object) -> None:
    segmenter = brightness_segmenter(binary=False)
    with pytest.raises(TypeError, match=rf"image 1 is of type {type(image).__name__}; .*PIL"):
        segmenter([third_bright(), image])  # type: ignore[list-item]


@pytest.mark.parametrize("images", ["photo.jpg", Path("photo.jpg"), third_bright()])
def test_single_image_instead_of_a_list_is_refused(images: Any) -> None:
    with pytest.raises(TypeError, match=rf"single {type(images).__name__}; expected a list"):
        brightness_segmenter(binary=False)(images)


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_evaluation_of_a_test_set_of_images_and_masks_alone(mode: str, tmp_path: Path) -> None:
    """As CAMO, COD10K, NC4K and DUTS-TE: Imgs/ and GT/ without splits."""
    for folder in ("Imgs", "GT"):
        (tmp_path / "CAMO" / folder).mkdir(parents=True)
    for i in range(3):
        third_bright().save(tmp_path / "CAMO/Imgs" / f"{i}.jpg", quality=100)
        third_bright().convert(mode).save(tmp_path / "CAMO/GT" / f"{i}.png")
    segmenter = brightness_segmenter(binary=True)
    evaluation, loader = get_task("segment").evaluation(
        segmenter, str(tmp_path / "CAMO"), replace(segmenter.input, workers=0), 2, 0, 1
    )
    fabric = lightning_fabric.Fabric(accelerator="cpu", devices=1)
    metrics = run_evaluation(fabric, evaluation, segmenter.model, loader)
    assert metrics["count"] == 3
    assert metrics["mae"] < 1
    assert list(evaluation.metric_formats) == [
        "s_measure", "weighted_f", "mean_e", "max_e", "adaptive_e", "mean_f", "max_f", "adaptive_f", "mae"
    ]  # fmt: skip
    for name in set(evaluation.metric_formats) - {"mae"}:
        assert metrics[name] > 98


def test_save_segmented_pil_images(tmp_path: Path) -> None:
    """PIL images have no path: their maps are numbered, and unreadable images leave a gap."""
    segmenter = brightness_segmenter(binary=False)
    image = third_bright()
    results = segmenter([image, Image.new("F", (8, 8)), image.convert("L")])
    assert [result.error is None for result in results] == [True, False, True]
    labels, drawn = segmenter.save(results, tmp_path)
    assert sorted(path.name for path in labels.iterdir()) == ["0.png", "2.png"]
    assert sorted(path.name for path in drawn.iterdir()) == ["0.png", "2.png"]
    assert results[0].class_ids is not None
    assert np.array_equal(read_pixels(labels / "0.png"), results[0].class_ids.numpy() + 1)
    assert np.array_equal(read_pixels(labels / "2.png"), read_pixels(labels / "0.png"))


def test_save_detections_in_pil_images(tmp_path: Path) -> None:
    """PIL images have no path: they are numbered, ids from 1 and files from 0."""
    detector = fixed_detector()
    results = detector([Image.new("RGB", (40, 20)), Image.new("F", (8, 8)), Image.new("L", (300, 100))])
    file, _, drawn = detector.save(results, tmp_path, score=0.5)
    assert sorted(path.name for path in drawn.iterdir()) == ["0.png", "2.png"]
    rows = json.loads(file.read_text())
    assert [(row["image_id"], row["category"]) for row in rows] == [
        (1, "triangle"), (1, "square"), (3, "triangle"), (3, "square")
    ]  # fmt: skip
    assert [row["bbox"] for row in rows[2:]] == [[0, 0, 150, 50], [75, 50, 150, 50]]
    assert rows[2]["segmentation"]["size"] == [100, 300]


def test_threads_share_a_predictor(detector_run: Path, segmenter_run: Path) -> None:
    """An image whose outputs are not finite is that of its own thread."""
    detector, segmenter = load_detector(detector_run, score_threshold=0.0), smt_vision.load(segmenter_run)
    images = [Image.new("RGB", (64 + 8 * i, 48), (40 * i, 90, 200 - 40 * i)) for i in range(4)]
    expected = [detector(images), segmenter(images)]
    with ThreadPoolExecutor(4) as pool:
        found = [list(pool.map(lambda image, p=p: p([image])[0], images)) for p in (detector, segmenter)]
    for one, other in zip(expected[0], found[0], strict=True):
        torch.testing.assert_close((one.boxes, one.scores), (other.boxes, other.scores), rtol=1e-4, atol=1e-4)
    for one, other in zip(expected[1], found[1], strict=True):
        assert torch.equal(one.class_ids, other.class_ids)


def test_pictures_may_be_left_out(tmp_path: Path) -> None:
    for predictor in (fixed_detector(), brightness_segmenter(binary=False)):
        folder = tmp_path / predictor.kind
        written = predictor.save(predictor([third_bright()]), folder, draw=False)
        assert all(path.exists() for path in written)
        assert not (folder / "drawn").exists()


def test_an_image_that_is_gone_is_not_drawn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.png"
    third_bright().save(path)
    for predictor in (fixed_detector(), brightness_segmenter(binary=False)):
        results = predictor([path])
        path.rename(tmp_path / "b.png")
        written = predictor.save(results, tmp_path / predictor.kind)
        assert written[0].exists()
        assert f"not drawn: {path}" in caplog.text
        (tmp_path / "b.png").rename(path)
        caplog.clear()


def test_predictions_have_at_least_the_given_score(detector_run: Path) -> None:
    image = Image.new("RGB", (96, 64), (90, 120, 60))
    detector = load_detector(detector_run, score_threshold=0.0)
    (found,) = detector([image])
    score = float(found.scores.median())
    (above,) = detector([image], score=score)
    assert 0 < len(above.scores) < len(found.scores)
    assert float(above.scores.min()) >= score


def test_drawn_detections_have_at_least_the_given_score(tmp_path: Path) -> None:
    detector = fixed_detector(masks=False)
    image = Image.new("RGB", (300, 200))
    results = detector([image])
    changed = {}
    for score in (0.95, 0.5, 0.1):
        _, _, drawn = detector.save(results, tmp_path / str(score), score=score)
        pixels = read_pixels(drawn / "0.png")[:200, :300]
        changed[score] = int((pixels > 0).any(axis=2).sum())
    assert changed[0.95] < changed[0.5] < changed[0.1]


def test_result_names(tmp_path: Path) -> None:
    names = result_names([tmp_path / "a" / "x.jpg", tmp_path / "a" / "b" / "x.png", tmp_path / "a" / "y.png"])
    assert names == [Path("x.png"), Path("b/x.png"), Path("y.png")]
    assert result_names([Path("x.jpg")]) == [Path("x.png")]
    assert result_names([Image.new("L", (1, 1))] * 2) == [Path("0.png"), Path("1.png")]
    assert result_names([]) == []
    names = result_names([tmp_path / "x.jpg", tmp_path / "x.png", tmp_path / "y.png"])
    assert names == [Path("x.jpg.png"), Path("x.png.png"), Path("y.png")]
    with pytest.raises(ValueError, match=r"x\.jpg would both be written to x\.jpg\.png"):
        result_names([tmp_path / "x.jpg.tif", tmp_path / "x.png", tmp_path / "x.jpg"])
    with pytest.raises(ValueError, match=r"x\.png is given twice"):
        result_names([tmp_path / "x.png", tmp_path / "x.png"])


def test_label_maps_of_logits_that_are_not_finite_are_errors(segmenter_run: Path) -> None:
    segmenter = smt_vision.load(segmenter_run)
    network = segmenter.model

    class Overflows(torch.nn.Module):
        """Infinite where an image is bright."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = network(images)
            return torch.where(images.mean(dim=(1, 2, 3), keepdim=True) > 1, torch.nan, logits)

    segmenter.model = Overflows().eval()
    dark, bright = (Image.new("RGB", (64, 48), color) for color in ("black", "white"))
    first, second, third = segmenter([dark, bright, dark], batch_size=3)
    assert (first.error, third.error) == (None, None)
    assert first.class_ids is not None
    assert second.class_ids is None
    assert str(second.error).startswith("1: the model's outputs are not finite")


def test_detections_of_outputs_that_are_not_finite_are_errors(detector_run: Path) -> None:
    for tiles in (0, 64):
        detector = load_detector(detector_run, tiles=tiles)
        parameter = next(p for name, p in detector.model.named_parameters() if name.endswith("weight"))
        parameter.data.fill_(torch.nan)
        found, unreadable = detector([Image.new("RGB", (96, 80)), Path("missing.jpg")])
        assert len(found) == 0
        assert found.error == (
            "0: the model's outputs are not finite; its weights may be damaged, or its training may have diverged"
        )
        assert "missing.jpg" in str(unreadable.error)


@pytest.mark.parametrize("run_fixture", ["detector_run", "segmenter_run"])
def test_evaluation_says_that_outputs_are_not_finite(
    run_fixture: str, tmp_path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    run = request.getfixturevalue(run_fixture)
    state = torch.load(run / "best.pt", weights_only=True)
    for name, values in state["model"].items():
        if name.endswith("weight") and values.ndim == 4:
            values.mul_(1e30)  # finite, as far as can be told when it is loaded
    torch.save(state, tmp_path / "damaged.pt")
    metrics = smt_vision.evaluate(tmp_path / "damaged.pt", data=smt_vision.load(run).recipe.data)
    assert metrics["count"] == 4
    assert f"the model's outputs for {metrics['count']} images are not finite" in caplog.text
    if run_fixture == "detector_run":
        assert metrics["box_ap"] == 0


# --- commands ---


def test_predict_with_a_detector(detector_run: Path, shapes: Path, tmp_path: Path, capsys: Capture) -> None:
    out, annotations = tmp_path / "found", shapes / "annotations" / "instances_val.json"
    words = ("predict", detector_run, shapes / "val", "--out", out, "--score", "0.01", "--detect.score_threshold", "0")
    printed = answer(capsys, *words, "--annotations", annotations)
    assert [Path(item["id"]).name for item in printed] == ["0.png", "1.png", "2.png", "3.png"]
    for item in printed:
        assert set(item) == {"id", "objects", "error"}
        for found in item["objects"]:
            assert found["label"] == ("square", "triangle")[found["class_id"]]
            assert 0.01 <= found["score"] <= 1
            assert len(found["box"]) == 4
    rows = json.loads((out / "detections.json").read_text())
    assert rows
    assert {row["category_id"] for row in rows} <= {1, 4}
    ids = {image["file_name"]: image["id"] for image in json.loads(annotations.read_text())["images"]}
    assert all(row["image_id"] == ids[row["file_name"]] for row in rows)
    assert all(row["segmentation"]["size"][0] == 96 for row in rows)
    assert sorted(path.name for path in (out / "drawn").iterdir()) == ["0.png", "1.png", "2.png", "3.png"]
    assert run(*words) == 0
    assert "detections.json" in capsys.readouterr().out


def test_predictions_have_the_category_ids_of_the_annotations(
    detector_run: Path, shapes: Path, tmp_path: Path, capsys: Capture
) -> None:
    content = json.loads((shapes / "annotations" / "instances_val.json").read_text())
    own = {category["name"]: category["id"] for category in content["categories"]}
    other = {"square": 70, "triangle": 3}  # another exporter's ids, in another order
    options = ("--score", "0", "--detect.score_threshold", "0")
    found = {}
    for name, ids in (("own", own), ("other", other)):
        (tmp_path / f"{name}.json").write_text(
            json.dumps({**content, "categories": [{"id": id, "name": name} for name, id in sorted(ids.items())]})
        )
        words = ("--out", tmp_path / name, "--annotations", tmp_path / f"{name}.json", *options)
        assert run("predict", detector_run, shapes / "val", *words) == 0
        found[name] = json.loads((tmp_path / name / "detections.json").read_text())
        assert found[name]
        assert {(row["category"], row["category_id"]) for row in found[name]} <= set(ids.items())
    assert [row["bbox"] for row in found["own"]] == [row["bbox"] for row in found["other"]]
    (tmp_path / "fewer.json").write_text(json.dumps({**content, "categories": [{"id": 1, "name": "square"}]}))
    capsys.readouterr()
    words = ("--out", tmp_path / "fewer", "--annotations", tmp_path / "fewer.json", *options)
    assert "triangle" in refusal(capsys, 1, "predict", detector_run, shapes / "val", *words)


def test_predict_with_a_segmenter(segmenter_run: Path, scenes: Path, tmp_path: Path, capsys: Capture) -> None:
    printed = answer(capsys, "predict", segmenter_run, scenes / "images" / "val", "--out", tmp_path / "out")
    assert [sum(item["class_fractions"].values()) for item in printed] == pytest.approx([1] * 4)
    assert all(set(item["class_fractions"]) <= set(CLASSES) for item in printed)
    label = read_pixels(tmp_path / "out" / "labels" / "2.png")
    assert label.shape == (72, 56)
    assert label.max() <= 2


@pytest.mark.parametrize(("run_fixture", "size"), [("detector_run", [3, 96, 160]), ("segmenter_run", [3, 64, 64])])
def test_info(run_fixture: str, size: list[int], request: pytest.FixtureRequest, capsys: Capture) -> None:
    printed = answer(capsys, "info", request.getfixturevalue(run_fixture))
    assert printed["input_size"] == size
    assert printed["gmac"] > 0


def test_predictions_never_overwrite_the_input_images(segmenter_run: Path, scenes: Path, capsys: Capture) -> None:
    folder = scenes / "images"
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    error = refusal(capsys, 1, "predict", segmenter_run, folder, "--out", folder)
    assert "--out" in error
    assert str(folder) in error
    assert {path: path.read_bytes() for path in folder.rglob("*.png")} == before


@pytest.mark.parametrize("option", [("--top_k", "2"), ("--score", "1"), ("--annotations", "x.json")])
def test_options_of_another_task_are_refused(
    option: tuple[str, str], segmenter_run: Path, scenes: Path, capsys: Capture
) -> None:
    error = refusal(capsys, 1, "predict", segmenter_run, scenes / "images" / "val", *option)
    assert option[0] in error
    assert "a segmenter" in error


def test_images_missing_from_the_annotations_are_refused(
    detector_run: Path, scenes: Path, shapes: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ("predict", detector_run, scenes / "classes.json", "--out", tmp_path, "--annotations")
    error = refusal(capsys, 1, *words, shapes / "annotations" / "instances_val.json")
    assert "instances_val.json" in error
    assert "1 of the 1 images" in error
    assert "classes.json" in error
    assert "classes.json" in refusal(capsys, 1, *words, scenes / "classes.json")


LOWEST = ("--detect.score_threshold", "0")


@pytest.fixture(scope="module")
def half_found(detector_run: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose objects are every other detection of the detector, which has learned nothing."""
    root = tmp_path_factory.mktemp("half_found") / "set"
    shutil.copytree(shapes, root)
    out = root / "found"
    file = root / "annotations" / "instances_val.json"
    assert run("predict", detector_run, root / "val", "--annotations", file, "--out", out, "--score", "0", *LOWEST) == 0
    rows = json.loads((out / "detections.json").read_text())[::2]
    objects = [
        {"id": i, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
        | {key: row[key] for key in ("image_id", "category_id", "bbox", "segmentation")}
        for i, row in enumerate(rows, 1)
        if min(row["bbox"][2:]) > 0
    ]
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": objects}))
    return root


def test_eval_of_a_detector(detector_run: Path, half_found: Path, capsys: Capture) -> None:
    options = ("--workers", "0", "--data", half_found, *LOWEST)
    expected = smt_vision.evaluate(
        detector_run, half_found, workers=0, overrides={"detect": {"score_threshold": 0.0}}, batch_size=2
    )
    for batch_size in ("1", "4"):
        metrics = answer(capsys, "eval", detector_run, *options, "--batch_size", batch_size)
        for name in ("mask_ap", "box_ap50", "box_ar"):
            assert 5 < metrics[name] < (101 if name == "box_ar" else 100)
            assert metrics[name] == pytest.approx(expected[name], abs=0.01)
    few = answer(capsys, "eval", detector_run, *options, "--detect.eval_detections", "3")
    assert few["box_ap"] < expected["box_ap"]
    assert run("eval", detector_run, "--workers", "0") == 0
    printed = capsys.readouterr().out
    assert "mask AP (%)" in printed
    assert "object size" in printed


def test_eval_of_a_segmenter_equals_the_run_s_metrics(segmenter_run: Path, tmp_path: Path, capsys: Capture) -> None:
    expected = json.loads((segmenter_run / "metrics.json").read_text())
    out = tmp_path / "out"
    metrics = answer(capsys, "eval", segmenter_run, "--workers", "0", "--batch_size", "3", "--out", out)
    assert metrics["miou"] == pytest.approx(expected["miou"], abs=0.01)
    assert (out / "worst.png").is_file()
    options = ("--segment.test_flip", "true", "--segment.test_scales", "[0.5,1]")
    other = answer(capsys, "eval", segmenter_run, "--workers", "0", *options)
    assert "scales 0.5, 1, flipped" in other["input"]
    assert other["miou"] != metrics["miou"]


def test_eval_of_the_test_split_of_a_segmenter(
    segmenter_run: Path, scenes: Path, tmp_path: Path, capsys: Capture
) -> None:
    root = tmp_path / "set"
    shutil.copytree(scenes, root)
    arguments = ("eval", segmenter_run, "--workers", "0", "--data", root)
    assert "for test" in refusal(capsys, 1, *arguments, "--split", "test")
    for kind in ("images", "labels"):
        (root / kind / "test").mkdir()
        shutil.copy(root / kind / "val" / "1.png", root / kind / "test")
    assert answer(capsys, *arguments, "--split", "test")["count"] == 1
    assert answer(capsys, *arguments)["count"] == 4


def test_label_maps_in_which_0_is_ignored_are_evaluated_as_others(
    segmenter_run: Path, scenes: Path, tmp_path: Path, capsys: Capture
) -> None:
    root = tmp_path / "set"
    shutil.copytree(scenes, root)
    for path in (root / "labels").rglob("*.png"):
        label = np.array(Image.open(path))
        Image.fromarray(np.where(label == 255, 0, label + 1).astype(np.uint8)).save(path)
    arguments = ("eval", segmenter_run, "--workers", "0", "--data")
    expected = answer(capsys, *arguments, scenes)
    found = answer(capsys, *arguments, root, "--segment.zero_is_ignored", "true")
    assert (found["miou"], found["confusion"]) == (expected["miou"], expected["confusion"])


def test_a_score_below_the_detector_s_own_is_an_error(detector_run: Path, shapes: Path, capsys: Capture) -> None:
    arguments = ("predict", detector_run, shapes / "val" / "0.png", "--score", "0.01")
    assert "--detect.score_threshold 0.01" in refusal(capsys, 1, *arguments)


def test_json_has_the_masks(detector_run: Path, shapes: Path, tmp_path: Path, capsys: Capture) -> None:
    options = ("--score", "0", "--detect.score_threshold", "0", "--out", tmp_path)
    (found,) = answer(capsys, "predict", detector_run, shapes / "val" / "0.png", *options)
    rows = json.loads((tmp_path / "detections.json").read_text())
    assert rows
    assert [item["segmentation"] for item in found["objects"]] == [row["segmentation"] for row in rows]


def test_interrupted_detections_are_kept(detector_run: Path, shapes: Path, tmp_path: Path) -> None:
    detector = load_detector(detector_run, score_threshold=0.0)
    images = sorted((shapes / "val").glob("*.png"))[:3]
    results = detector(images)

    def interrupted() -> Iterator[Any]:
        yield from results[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detector.save(interrupted(), tmp_path, images=images)
    assert {path.name for path in tmp_path.iterdir()} == {"detections.partial.json", "drawn"}
    rows = json.loads((tmp_path / "detections.partial.json").read_text())
    assert {row["image_id"] for row in rows} == {1, 2}
    detector.save(results, tmp_path, images=images)
    assert {path.name for path in tmp_path.iterdir()} == {"annotations.json", "detections.json", "drawn"}
    assert json.loads((tmp_path / "detections.json").read_text())[: len(rows)] == rows


def test_predictions_are_a_dataset_to_correct(detector_run: Path, shapes: Path, tmp_path: Path) -> None:
    """``annotations.json`` can be trained on as it is."""
    detector = load_detector(detector_run, score_threshold=0.0)
    images = sorted((shapes / "val").glob("*.png"))
    results = detector(images)
    score = float(results[0].scores.median())
    written = detector.save(results, tmp_path / "found", score=score)
    assert written[1] == tmp_path / "found" / "annotations.json"
    (tmp_path / "set").mkdir()
    shutil.copy(written[1], tmp_path / "set")
    shutil.copytree(shapes / "val", tmp_path / "set" / "images")
    read = open_detection(str(tmp_path / "set"), "train", 0.0)
    assert read.classes == detector.classes
    for i, result in enumerate(results):
        above = result.above(score)
        target = read.read(i)[1]
        assert target["labels"].tolist() == above.class_ids.tolist()
        np.testing.assert_allclose(target["boxes"], above.boxes, atol=1e-3)


def test_evaluate_from_python(segmenter_run: Path, detector_run: Path) -> None:
    for folder, name in ((segmenter_run, "miou"), (detector_run, "count")):
        expected = json.loads((folder / "metrics.json").read_text())
        assert smt_vision.evaluate(folder, workers=0)[name] == pytest.approx(expected[name], abs=0.01)


def test_eval_refuses_other_classes(segmenter_run: Path, scenes: Path, tmp_path: Path, capsys: Capture) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("images", "labels"):
        (other / name).symlink_to(scenes / name)
    (other / "classes.json").write_text('["sky", "road", "bus"]')
    error = refusal(capsys, 1, "eval", segmenter_run, "--data", other, "--workers", "0")
    assert ": bus; the model has sky, road, car" in error


# --- exports ---

# Tracing an SMT takes most of a minute; test_export.py does it once.
BACKBONES = ["test_resnet", pytest.param("smt_atto", marks=pytest.mark.slow)]
Head = Literal["retinanet", "fcos", "faster_rcnn", "dino", "mask_rcnn", "cascade_mask_rcnn"]


@pytest.fixture(scope="module", params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def upernet_run(backbone: str, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "upernet"
    train(replace(scenes_recipe(scenes), model=backbone, model_args={}), folder, display=False)
    return folder


@pytest.mark.parametrize("format", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_exported_segmenter_equals_the_model(
    format: str, upernet_run: Path, scenes: Path, tmp_path: Path, capsys: Capture
) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    images, folder = scenes / "images" / "val", tmp_path / format
    assert run("export", upernet_run, "--format", format, "--out", folder, "--images", images) == 0
    model, exported = load_segmenter(upernet_run), load_segmenter(folder)
    assert exported.spec == model.spec
    paths = sorted(images.iterdir())
    for expected, result in zip(model(paths), exported(paths), strict=True):
        assert expected.class_ids is not None
        assert result.class_ids is not None
        assert float((expected.class_ids == result.class_ids).float().mean()) > 0.999
    miou = [
        answer(capsys, "eval", source, "--workers", "0", "--data", scenes)["miou"] for source in (upernet_run, folder)
    ]
    assert miou[0] == pytest.approx(miou[1], abs=0.1)


def random_detector(head: Head, backbone: str, score_threshold: float = 0.0, **fields: Any) -> Detector:
    """A detector of random weights, which detects 30 objects in any image, unless it has a threshold."""
    torch.manual_seed(0)
    config = DetectConfig(
        head=head, short_side=64, long_side=96, fpn_channels=16, head_channels=32, head_norm="group",
        score_threshold=score_threshold, max_detections=30, layers=2, queries=40, **fields,
    )  # fmt: skip
    spec = ModelSpec(
        "detect", backbone, ("a", "b"), DetectionInput(interpolation="bilinear"), head=config, category_ids=(1, 4)
    )
    return Detector(get_task("detect").build_model(spec), spec, "random")


@pytest.mark.parametrize(
    ("head", "format"),
    [
        ("retinanet", "onnx"),
        pytest.param("retinanet", "openvino", marks=pytest.mark.slow),
        pytest.param("fcos", "onnx", marks=pytest.mark.slow),
        pytest.param("fcos", "openvino", marks=pytest.mark.slow),
        ("dino", "onnx"),
        pytest.param("dino", "openvino", marks=pytest.mark.slow),
        pytest.param("faster_rcnn", "onnx", marks=pytest.mark.slow),
        ("mask_rcnn", "onnx"),
        pytest.param("mask_rcnn", "openvino", marks=pytest.mark.slow),
        pytest.param("cascade_mask_rcnn", "onnx", marks=pytest.mark.slow),
        pytest.param("cascade_mask_rcnn", "openvino", marks=pytest.mark.slow),
    ],
)
def test_exported_detector_equals_the_model(
    head: Head, format: str, backbone: str, shapes: Path, tmp_path: Path
) -> None:
    """For images of any size and in any batch: the program contains everything from the padding to the masks."""
    pytest.importorskip({"onnx": "onnxruntime"}.get(format, format))
    model, folder = random_detector(head, backbone), tmp_path / "export"
    paths = sorted((shapes / "val").iterdir())
    manifest = model.export(folder, format, images=paths)
    assert manifest.name == "random"
    assert manifest.parity["agreement"] == 1
    assert manifest.parity["cases"][0]["of"] == 30
    exported = load_detector(folder)
    assert exported.spec == model.spec
    images = [Image.open(path).convert("RGB") for path in paths]
    images += [images[0].resize((70, 41)), images[0].resize((41, 99))]
    expected = model(images)
    for one, other in zip(expected, exported(images, batch_size=3), strict=True):
        assert len(one) == len(other) == 30
        assert one.class_ids.tolist() == other.class_ids.tolist()
        torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-5)
        assert (one.masks is None) == (other.masks is None)
        if one.masks is not None and other.masks is not None:
            assert float((one.masks == other.masks).float().mean()) > 0.999
    check_thresholds(folder, images, expected)


@pytest.mark.parametrize(
    ("head", "format"),
    [
        ("mask_rcnn", "onnx"),
        *(
            pytest.param(head, "onnx", marks=pytest.mark.slow)
            for head in ("retinanet", "fcos", "dino", "faster_rcnn", "cascade_mask_rcnn")
        ),
        pytest.param("mask_rcnn", "openvino", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_exported_detector_finds_nothing(
    head: Head, format: str, batch_size: int, backbone: str, shapes: Path, tmp_path: Path
) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(format, format))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    images = [*sorted((shapes / "val").iterdir()), tmp_path / "noise.png"]
    highest = [float(found.scores.max()) for found in random_detector(head, backbone)(images)]
    low, *_, high = sorted(highest)
    model = random_detector(head, backbone, (low + high) / 2)
    some, none = images[highest.index(high)], images[highest.index(low)]
    model.export(tmp_path / "export", format, images=[some], batch_size=batch_size)
    exported = load_detector(tmp_path / "export")
    expected = list(map(len, model([none, some, none])))
    assert (expected[0], expected[1] > 0, expected[2]) == (0, True, 0)
    assert list(map(len, exported([none, some, none]))) == expected
    assert list(map(len, exported([none, none]))) == [0, 0]


@pytest.mark.parametrize(
    ("head", "format"),
    [
        ("mask_rcnn", "onnx"),
        *(pytest.param(head, "onnx", marks=pytest.mark.slow) for head in ("retinanet", "fcos", "faster_rcnn", "dino")),
        *(pytest.param(head, "openvino", marks=pytest.mark.slow) for head in ("retinanet", "cascade_mask_rcnn")),
    ],
)
def test_exported_detector_of_a_batch(head: Head, format: str, backbone: str, shapes: Path, tmp_path: Path) -> None:
    """A program for three images gives the detections of each one, whichever others it is with."""
    pytest.importorskip({"onnx": "onnxruntime"}.get(format, format))
    model, folder = random_detector(head, backbone), tmp_path / "export"
    paths = sorted((shapes / "val").iterdir())
    manifest = model.export(folder, format, images=paths, batch_size=3)
    assert (manifest.batch_size, manifest.parity["agreement"]) == (3, 1)
    assert manifest.parity["cases"][0]["shape"][0] == 3
    assert manifest.parity["cases"][0]["of"] == 90
    images: list[Any] = [*paths, Image.open(paths[0]).resize((70, 41)), *paths[:2]]
    for one, other in zip(model(images), load_detector(folder)(images, batch_size=5), strict=True):
        assert one.class_ids.tolist() == other.class_ids.tolist()
        torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-5)
        assert (one.masks is None) == (other.masks is None)
        if one.masks is not None and other.masks is not None:
            assert float((one.masks == other.masks).float().mean()) > 0.999


def test_batch_size_of_an_export_is_for_detectors_in_float32(shapes: Path, segmenter_run: Path, tmp_path: Path) -> None:
    paths = sorted((shapes / "val").iterdir())
    with pytest.raises(ValueError, match=r"batch_size=2 is for detectors"):
        load_segmenter(segmenter_run).export(tmp_path / "a", "onnx", batch_size=2)
    with pytest.raises(ValueError, match=r"batch_size=2 needs float32"):
        random_detector("retinanet", "test_resnet").export(tmp_path / "b", "openvino", calibrate=paths, batch_size=2)
    with pytest.raises(ValueError, match="batch_size=0"):
        random_detector("retinanet", "test_resnet").export(tmp_path / "c", "onnx", batch_size=0)
    assert not list(tmp_path.iterdir())


def check_thresholds(folder: Path, images: Sequence[Image.Image], expected: Sequence[Detections]) -> None:
    """An export can be used with stricter thresholds, and not with others."""
    strict = load_detector(folder, score_threshold=0.5, max_detections=3)
    for result, unfiltered in zip(strict(images), expected, strict=True):
        assert len(result) == min(3, int((unfiltered.scores > 0.5).sum()))
    for name, value in (("score_threshold", -1.0), ("nms_threshold", 0.4), ("max_detections", 31)):
        with pytest.raises(ValueError, match=rf"detect\.{name}[= ]{value}"):
            load_detector(folder, **{name: value})


@pytest.mark.parametrize(
    "head",
    [
        "faster_rcnn",
        *(
            pytest.param(head, marks=pytest.mark.slow)
            for head in ("retinanet", "fcos", "mask_rcnn", "cascade_mask_rcnn")
        ),
    ],
)
def test_quantized_detector_keeps_its_coordinates(head: Head, backbone: str, shapes: Path, tmp_path: Path) -> None:
    """The network is quantized to 8 bits, the arithmetic of anchors and boxes is not."""
    pytest.importorskip("nncf")
    # With random weights, 8 bits change which class is the most probable, and with it the box of a cascade.
    model, folder = random_detector(head, backbone, cascade_boxes="shared"), tmp_path / "export"
    paths = sorted((shapes / "val").iterdir())
    assert model.export(folder, "openvino", calibrate=paths).precision == "int8"
    quantized = re.findall(r'name="([^"]+)/fq_', (folder / "model.xml").read_text())
    assert any(re.search(r"(classification_|rpn\.)head\.conv", name) for name in quantized)
    # The scattered features of all boxes are quantized as the input of the box head.
    others = [name for name in quantized if "_roi_pool/aten::scatter/" not in name]
    assert not [name for name in others if any(re.match(pattern, name) for pattern in COORDINATES)]
    for one, other in zip(model(paths), load_detector(folder)(paths), strict=True):
        nearest = (one.boxes[:, None] - other.boxes[None]).abs().amax(dim=2).amin(dim=1)
        assert nearest.median() < 2  # pixels


def test_exported_detector_in_commands(
    detector_run: Path, shapes: Path, half_found: Path, tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("onnxruntime")
    images, folder = shapes / "val", tmp_path / "onnx"
    words = ("export", detector_run, "--format", "onnx", "--out", folder, "--images", images)
    assert run(*words, *LOWEST) == 0
    printed = capsys.readouterr().out
    assert "any height and width" in printed
    assert "agreement" in printed
    metrics = [
        answer(capsys, "eval", source, "--workers", "0", "--data", half_found, *LOWEST)
        for source in (detector_run, folder)
    ]
    for name in ("mask_ap", "box_ap50", "box_ar"):
        assert metrics[0][name] > 5
        assert metrics[0][name] == pytest.approx(metrics[1][name], abs=1)  # equal scores may be sorted otherwise
    for command in (("export", folder, "--format", "onnx", "--out", tmp_path / "again"), ("info", folder)):
        error = refusal(capsys, 1, *command)
        assert "is an export" in error
        assert re.search(rf"source model[:,] {detector_run.name}\b", error)


def test_detector_exports_that_are_refused(detector_run: Path, shapes: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ("export", detector_run, "--out", tmp_path / "x", "--images", shapes / "val")
    assert "'torch'" in refusal(capsys, 1, *words, "--format", "torch")
    int8 = ("--format", "openvino", "--int8", "--calibrate", shapes / "val")
    assert "batch_size=2" in refusal(capsys, 1, *words, *int8, "--batch_size", "2")
    assert "max_drop=0.5 is not for detectors" in refusal(capsys, 1, *words, *int8, "--max_drop", "0.5")
    error = refusal(capsys, 1, *words, "--format", "openvino", "--detect.score_threshold", "0.9999")
    assert "0.png, 1.png, 2.png, 3.png" in error
    assert "score_threshold" in error
    assert not list(tmp_path.iterdir())


# --- identity of images ---


def write_frames(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20)).save(folder / name)
    return folder


def write_entries(path: Path, **ids: Any) -> Path:
    """An annotation file with an id by file name."""
    images = [{"id": id, "file_name": name, "width": 40, "height": 20} for name, id in ids.items()]
    path.write_text(json.dumps({"images": images, "categories": CATEGORIES, "annotations": []}), encoding="utf-8")
    return path


def saved_ids(images: list[Any], out: Path, annotations: Path | None = None) -> dict[str, Any]:
    """Image id by file name, as saved."""
    detector = fixed_detector()
    file, _, drawn = detector.save(detector.stream(images), out, images=images, annotations=annotations)
    rows = json.loads(file.read_text())
    assert len({row["file_name"] for row in rows}) == len({row["image_id"] for row in rows}) == len(rows) / 2
    assert len([path for path in drawn.rglob("*") if path.is_file()]) == len(rows) / 2
    return {row["file_name"]: row["image_id"] for row in rows}


def test_same_base_names_keep_their_folders(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "frames", "cam1/0001.png", "cam2/0001.png", "cam2/b/0001.jpg", "0001.png")
    ids = saved_ids(find_images([folder]), tmp_path / "found")
    assert ids == {"0001.png": 1, "cam1/0001.png": 2, "cam2/0001.png": 3, "cam2/b/0001.jpg": 4}


def test_ids_by_path_can_be_read_by_coco(tmp_path: Path) -> None:
    coco = pytest.importorskip("faster_coco_eval")
    folder = write_frames(tmp_path / "frames", "cam1/0001.png", "cam2/0001.png", "cam2/0002.png")
    names = {"cam2/0001.png": 0, "cam1/0001.png": 2**60, "cam2/0002.png": 7.0}
    annotations = write_entries(tmp_path / "frames.json", **names)
    assert saved_ids(find_images([folder]), tmp_path / "found", annotations) == names
    truth = coco.COCO(json.loads(annotations.read_text()))
    loaded = truth.loadRes(json.loads((tmp_path / "found" / "detections.json").read_text()))
    assert sorted(a["image_id"] for a in loaded.anns.values()) == [0, 0, 7, 7, 2**60, 2**60]


@pytest.mark.parametrize(
    ("file_name", "in_other_folder"),
    [("cam1/0001.png", False), ("./cam1/0001.png", False), ("cam1\\0001.png", False), ("0001.png", False),
     ("frames//cam1/0001.png", False), ("images/0001.png", True), ("../upload/cam2/0001.png", True)],
)  # fmt: skip
def test_file_name_of_an_image_as_programs_write_it(
    tmp_path: Path, file_name: str, in_other_folder: bool, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_frames(tmp_path / "frames", "cam1/0001.png")
    annotations = write_entries(tmp_path / "x.json", **{file_name: "text", "other/0002.png": 2})
    assert saved_ids([str(folder / "cam1" / "0001.png")], tmp_path / "found", annotations) == {"0001.png": "text"}
    assert (f"is {file_name}" in caplog.text) == in_other_folder


def test_accents_match_in_any_encoding(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9/1.png", "cafe\u0301/1.png"
    for k, (stored, listed) in enumerate([(composed, decomposed), (decomposed, composed)]):
        folder = write_frames(tmp_path / str(k), stored, "2.png")
        annotations = write_entries(tmp_path / "x.json", **{listed: 5, "2.png": 6})
        assert saved_ids(find_images([folder]), folder / "found", annotations) == {stored: 5, "2.png": 6}


@pytest.mark.parametrize(
    ("images", "entries", "message"),
    [
        (["0001.png"], {"cam1/0001.png": 1, "cam2/0001.png": 2}, r"/0001\.png may be cam1/0001\.png or cam2/0001\.png"),
        (["a/0001.png", "b/0001.png"], {"0001.png": 1}, r"a/0001\.png and .*b/0001\.png .*id 1\b"),
        (["a/0001.png", "b/0001.png"], {"a/0001.png": 1, "b/0001.png": 1}, r"a/0001\.png and .*b/0001\.png .*id 1\b"),
        (["a/0001.png", "b/0001.png"], {"a/0001.png": 1, "c/0001.png": 2}, r"1 of the 2 images, e\.g\. b/0001\.png"),
        (["x.PNG"], {"x.png": 1}, r"1 of the 1 images, e\.g\. x\.PNG"),
        (["x.png"], {"x.png": None}, r"image id None of x\.png"),
        (["x.png"], {"x.png": True}, r"image id True of x\.png"),
        (["x.png"], {"x.png": 1.5}, r"image id 1\.5 of x\.png"),
        (["x.png"], {"": 1}, "not a COCO annotation file"),
    ],
)
def test_ambiguous_and_missing_images_are_refused(
    tmp_path: Path, images: list[str], entries: dict[str, Any], message: str
) -> None:
    write_frames(tmp_path / "frames", *images)
    annotations = write_entries(tmp_path / "x.json", **entries)
    with pytest.raises(ValueError, match=message):
        saved_ids([tmp_path / "frames" / name for name in images], tmp_path / "found", annotations)
    assert not (tmp_path / "found" / "detections.json").exists()


def test_pil_images_have_no_entry_in_annotations(tmp_path: Path) -> None:
    annotations = write_entries(tmp_path / "x.json", **{"0.png": 1, "0": 2})
    with pytest.raises(ValueError, match=r"image 0 has no file name.*x\.json"):
        saved_ids([Image.new("RGB", (40, 20))], tmp_path / "found", annotations)


def test_links_are_images_of_their_own(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "frames", "store/1.png")
    for name in ("cam1", "cam2"):
        (folder / name).mkdir()
        (folder / name / "0001.png").symlink_to(folder / "store" / "1.png")
    ids = saved_ids(find_images([folder]), tmp_path / "found")
    assert set(ids) == {"cam1/0001.png", "cam2/0001.png", "store/1.png"}


@pytest.mark.parametrize(
    ("categories", "ids"),
    [
        ([("square", 7.0, None), ("triangle", 3.0, None)], {7, 3}),
        ([("square", "7", None), ("triangle", "3", None)], {"7", "3"}),
        # as Roboflow writes them
        ([("square", 0, "none"), ("square", 1, "square"), ("triangle", 2, "square")], {1, 2}),
    ],
)
def test_category_ids_are_those_of_the_annotations(
    tmp_path: Path, categories: list[tuple[str, Any, str | None]], ids: set[Any]
) -> None:
    frame = write_frames(tmp_path / "frames", "0.png") / "0.png"
    entries = [{"name": name, "id": id, "supercategory": parent} for name, id, parent in categories]
    images = {"5": {"id": 5, "coco_url": "http://x.org/frames/0.png"}}  # by id as in LIVECell, URLs as in LVIS
    annotations = tmp_path / "x.json"
    annotations.write_text(json.dumps({"images": images, "categories": entries, "annotations": {}}))
    detector = fixed_detector()
    file, *_ = detector.save(detector([frame]), tmp_path / "found", annotations=annotations)
    rows = json.loads(file.read_text())
    assert {row["category_id"] for row in rows} == ids
    assert {row["image_id"] for row in rows} == {5}


@pytest.mark.parametrize(
    ("ids", "message"), [((None, 3), "category id None of square"), ((3, 3), "category ids that occur more than once")]
)
def test_invalid_category_ids_are_refused(tmp_path: Path, ids: tuple[Any, Any], message: str) -> None:
    frame = write_frames(tmp_path / "frames", "0.png") / "0.png"
    annotations = write_entries(tmp_path / "x.json", **{"0.png": 1})
    content = json.loads(annotations.read_text())
    content["categories"] = [{"id": id, "name": name} for id, name in zip(ids, ("square", "triangle"), strict=True)]
    annotations.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        saved_ids([frame], tmp_path / "found", annotations)


def test_images_given_twice_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_frames(tmp_path / "frames", "1.png")
    monkeypatch.chdir(tmp_path)
    for images in ([folder / "1.png", folder / "1.png"], ["frames/1.png", str(folder / "1.png")]):
        with pytest.raises(ValueError, match=r"1\.png is given twice"):
            saved_ids(images, tmp_path / "found")


def test_predict_takes_a_file_and_its_folder_once(
    detector_run: Path, shapes: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for camera in ("cam1", "cam2"):
        write_frames(tmp_path / "frames", f"{camera}/0.png")
    monkeypatch.chdir(tmp_path)
    words = ("predict", detector_run, "frames/cam1/0.png", "frames", tmp_path / "frames" / "cam2")
    printed = answer(capsys, *words, "--out", "found", "--detect.score_threshold", "0")
    assert [item["id"] for item in printed] == ["frames/cam1/0.png", "frames/cam2/0.png"]
    rows = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert {(row["file_name"], row["image_id"]) for row in rows} == {("cam1/0.png", 1), ("cam2/0.png", 2)}
    assert sorted(path.parent.name for path in (tmp_path / "found" / "drawn").rglob("*.png")) == ["cam1", "cam2"]
