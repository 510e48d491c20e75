"""Regions, and the transforms of detection and segmentation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from dense_sets import encode_rle
from sample_images import levels, picture
from smt_vision.data.decode import UnreadableImage
from smt_vision.data.loaders import seed_all
from smt_vision.data.region import Region, fit_size
from smt_vision.recipe import Augment, Input
from smt_vision.tasks.detection.config import DetectConfig, DetectionAugment
from smt_vision.tasks.detection.data import transforms as detection
from smt_vision.tasks.detection.data.dataset import DetectionTarget
from smt_vision.tasks.segmentation.config import SegmentConfig
from smt_vision.tasks.segmentation.data import transforms as segmentation

PLAIN = DetectionAugment(hflip=0.0, color_jitter=0.0)
RAW = Input(mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bilinear")
FLIPS = [(False, False), (True, False), (False, True), (True, True)]


# Regions


@pytest.mark.parametrize(("hflip", "vflip"), FLIPS)
def test_region_matches_torchvision_crop_resize_flip(hflip: bool, vflip: bool) -> None:
    image = picture(60, 80)
    boxes = np.array([[12.0, 7.0, 30.0, 41.0], [0.0, 0.0, 15.0, 15.0], [0.0, 0.0, 5.0, 60.0]])
    region = Region(10, 5, 70, 45, 90, 70, hflip, vflip)
    steps = [v2.Resize((70, 90), v2.InterpolationMode.BILINEAR)]
    steps += [v2.RandomHorizontalFlip(1.0)] * hflip + [v2.RandomVerticalFlip(1.0)] * vflip
    theirs = v2.Compose(steps)(
        v2.functional.crop(image, 5, 10, 40, 60),
        v2.functional.crop(tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(60, 80)), 5, 10, 40, 60),
    )
    seen = region.image(image, "bilinear", exact=True)
    assert levels(seen, theirs[0]).max() == 0
    assert np.allclose(region.boxes(boxes), theirs[1].numpy())
    sides = region.boxes(boxes)[:, 2:] - region.boxes(boxes)[:, :2]
    assert (sides[2] <= 0).any()  # outside the crop
    assert (sides[:2] > 0).all()


@pytest.mark.parametrize(("hflip", "vflip"), FLIPS)
def test_region_of_labels_matches_region_of_image(hflip: bool, vflip: bool) -> None:
    labels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    region = Region(2, 1, 8, 5, 6, 4, hflip, vflip)
    seen = region.image(Image.fromarray(labels), "bilinear", exact=True)
    assert np.array_equal(region.labels(labels), np.asarray(seen))
    doubled = Region(2, 1, 8, 5, 12, 8, hflip, vflip).labels(labels)
    assert np.array_equal(doubled, region.labels(labels).repeat(2, 0).repeat(2, 1))
    halved = Region(0, 0, 8, 6, 4, 3, hflip, vflip).labels(labels)
    assert set(halved.ravel().tolist()) <= set(labels.ravel().tolist())
    assert halved.shape == (3, 4)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((640, 480), (1067, 800)), ((480, 640), (800, 1067)), ((2000, 500), (1333, 333)), ((10, 10), (800, 800))],
)
def test_fit_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fit_size(*size, 800, 1333) == expected


# Objects


def target(height: int = 60, width: int = 80) -> DetectionTarget:
    corners = [(0, 0, 10, 10), (40, 20, 80, 60), (20, 20, 20.5, 60), (0, 0, 80, 60), (30, 30, 31, 31)]
    boxes = np.array(corners, dtype=np.float32)
    return DetectionTarget(
        size=(height, width),
        boxes=boxes,
        labels=np.array([3, 1, 2, 0, 4]),
        masks=[encode_rle(height, width, tuple(round(value) for value in box)) for box in corners],
        crowd=np.array([False, False, False, True, False]),
        ids=np.array([10, 11, 12, 13, 14]),
    )


def test_detection_eval_transform() -> None:
    image = picture(60, 80)
    sample = detection.DetectionTransform(RAW, DetectConfig(short_side=30, long_side=36), None)(
        image, target(), "x.png"
    )
    assert sample["image"].shape == (3, 27, 36)
    assert sample["original"] == (60, 80)
    assert set(sample) == {"image", "original"}
    resized = np.asarray(image.resize((36, 27), Image.Resampling.BILINEAR)).transpose(2, 0, 1) / 255
    assert np.abs(sample["image"].numpy() - resized).max() < 2.1 / 255


@pytest.mark.parametrize("head", ["mask_rcnn", "faster_rcnn"])
def test_detection_train_transform_keeps_visible_objects(head: str) -> None:
    if head == "mask_rcnn":
        pytest.importorskip("faster_coco_eval.core.mask", reason="the extra detect is not installed")
    detect = DetectConfig(head=head, train_short_sides=(120,), min_box=1.5)
    sample = detection.DetectionTransform(RAW, detect, PLAIN)(picture(60, 80), target(), "x.png")
    found = sample["target"]
    assert sample["image"].shape == (3, 120, 160)
    # Of the five, one is a crowd and one is narrower than 1.5 pixels at this size.
    assert found["boxes"].tolist() == [[0, 0, 20, 20], [80, 40, 160, 120], [60, 60, 62, 62]]
    assert found["labels"].tolist() == [3, 1, 4]
    assert found["boxes"].dtype == torch.float32
    assert found["labels"].dtype == torch.int64
    assert ("masks" in found) == (head == "mask_rcnn")
    if "masks" in found:
        assert found["masks"].shape == (3, 120, 160)
        assert found["masks"].dtype == torch.uint8
        assert found["masks"].sum((1, 2)).tolist() == [400, 6400, 4]
        assert found["masks"][0, :20, :20].all()


def test_object_with_mask_outside_the_crop_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faster_coco_eval.core.mask", reason="the extra detect is not installed")
    monkeypatch.setattr(detection, "train_region", lambda *_: Region(0, 0, 40, 30, 40, 30))
    objects = target()
    objects["masks"][1] = encode_rle(60, 80, (50, 40, 80, 60))
    objects["boxes"][1] = (20, 20, 80, 60)
    found = detection.DetectionTransform(RAW, DetectConfig(), PLAIN)(picture(60, 80), objects, "x.png")["target"]
    assert found["labels"].tolist() == [3]  # the third has a box of half a pixel, the fifth is outside
    assert len(found["masks"]) == len(found["boxes"]) == 1


def test_image_without_objects() -> None:
    objects = target()
    objects = {key: value if key == "size" else value[:0] for key, value in objects.items()}
    for masks in ([], None):
        sample = detection.DetectionTransform(RAW, DetectConfig(head="retinanet"), PLAIN)(
            picture(60, 80), objects | {"masks": masks}, "x.png"
        )
        assert sample["target"]["boxes"].shape == (0, 4)
        assert sample["target"]["labels"].dtype == torch.int64


def test_annotations_that_contradict_the_image() -> None:
    transform = detection.DetectionTransform(RAW, DetectConfig(), PLAIN)
    with pytest.raises(UnreadableImage, match=r"x\.png: 80 x 60.*60 x 80"):
        transform(picture(60, 80), target(80, 60), "x.png")
    pytest.importorskip("faster_coco_eval.core.mask", reason="the extra detect is not installed")
    objects = target()
    objects["masks"][0] = {"size": [60, 80], "counts": [1, 2]}
    with pytest.raises(UnreadableImage, match=r"x\.png: .*\[10, 11, 12?.*14\]"):
        transform(picture(60, 80), objects, "x.png")


def test_short_sides_and_flips_are_random() -> None:
    detect = DetectConfig(train_short_sides=(480, 512, 544))
    regions = [detection.train_region(640, 480, detect, DetectionAugment(hflip=0.5, vflip=0.25)) for _ in range(400)]
    assert {region.height for region in regions} == {480, 512, 544}
    assert all((region.left, region.top, region.right, region.bottom) == (0, 0, 640, 480) for region in regions)
    assert 160 < sum(region.hflip for region in regions) < 240
    assert 70 < sum(region.vflip for region in regions) < 130


def test_crop_branch_crops_half_of_the_images() -> None:
    detect = DetectConfig(train_short_sides=tuple(range(480, 801, 32)), crop_branch=True)
    regions = [detection.train_region(640, 480, detect, PLAIN) for _ in range(1000)]
    cropped = [
        region for region in regions if (region.left, region.top, region.right, region.bottom) != (0, 0, 640, 480)
    ]
    assert 400 < len(cropped) < 600
    for region in cropped:
        width, height = region.right - region.left, region.bottom - region.top
        assert 0 <= region.left < region.right <= 640
        assert 0 <= region.top < region.bottom <= 480
        # 384 to 600 pixels of the image at a short side of 400, 500 or 600.
        assert 384 * 480 / 600 - 1 <= width <= 600 * 480 / 400 + 1
        assert 384 * 480 / 600 - 1 <= height <= 480
        assert min(region.width, region.height) in detect.train_short_sides or max(region.width, region.height) == 1333
        assert region.width / region.height == pytest.approx(width / height, rel=0.01)
    tiny = [detection.train_region(30, 2, detect, PLAIN) for _ in range(100)]
    assert all(0 <= region.left < region.right <= 30 and 0 <= region.top < region.bottom <= 2 for region in tiny)


def test_color_jitter_is_applied_in_training_only() -> None:
    detect = DetectConfig(head="retinanet", short_side=60, train_short_sides=(60,))
    strong = replace(PLAIN, color_jitter=0.8)
    still = detection.DetectionTransform(RAW, detect, PLAIN)(picture(60, 80), target(), "x")["image"]
    seed_all(1)
    changed = detection.DetectionTransform(RAW, detect, strong)(picture(60, 80), target(), "x")["image"]
    assert (changed - still).abs().mean() > 0.02
    evaluated = detection.DetectionTransform(RAW, detect, None)(picture(60, 80), target(), "x")["image"]
    assert torch.equal(evaluated, still)


# Label maps


def halves(height: int = 60, width: int = 80) -> np.ndarray:
    labels = np.zeros((height, width), dtype=np.uint8)
    labels[:, width // 2 :] = 1
    return labels


@pytest.mark.parametrize(("short_side", "size"), [(30, (30, 40)), (0, (60, 80)), (90, (72, 96))])
def test_segmentation_eval_transform_keeps_labels_at_file_size(short_side: int, size: tuple[int, int]) -> None:
    config = SegmentConfig(short_side=short_side, long_side=96)
    sample = segmentation.SegmentationTransform(RAW, config, None)(picture(60, 80), halves(), "x.png")
    assert sample["image"].shape == (3, *size)
    assert torch.equal(sample["label"], torch.from_numpy(halves()))
    assert sample["label"].dtype == torch.uint8


def test_images_are_squashed_in_training_and_evaluation() -> None:
    config = SegmentConfig(short_side=32, squash=True, crop=(32, 32), scale=(1.0, 1.0), max_class_share=1.0)
    for augment, label in ((None, (60, 80)), (PLAIN, (32, 32))):
        sample = segmentation.SegmentationTransform(RAW, config, augment)(picture(60, 80), halves(), "x.png")
        assert sample["image"].shape == (3, 32, 32)
        assert sample["label"].shape == label
    assert torch.equal(sample["label"], torch.from_numpy(halves(32, 32)).long())
    assert sample["sizes"].tolist() == [32, 32]  # no padding
    with pytest.raises(ValueError, match=r"segment\.squash=true.*short_side=0"):
        SegmentConfig(short_side=0, squash=True)


def test_segmentation_train_crops() -> None:
    config = SegmentConfig(short_side=60, crop=(50, 60), scale=(0.5, 2.0), max_class_share=1.0)
    transform = segmentation.SegmentationTransform(RAW, config, Augment(hflip=0.5))
    padded = 0
    for i in range(40):
        seed_all(i)
        sample = transform(picture(60, 80), halves(), "x.png")
        assert sample["image"].shape == (3, 50, 60)
        assert sample["label"].shape == (50, 60)
        ignored = sample["label"] == 255
        padded += bool(ignored.any())
        assert not sample["image"][:, ignored].any()
        assert set(sample["label"].unique().tolist()) <= {0, 1, 255}
    assert 3 < padded < 37


def test_labels_stay_aligned_with_pixels() -> None:
    labels = halves()
    image = Image.fromarray(np.repeat(labels[..., None] * 200, 3, axis=2))  # bright where the label is 1
    config = SegmentConfig(short_side=60, crop=(30, 30), photometric=False, max_class_share=0.9)
    transform = segmentation.SegmentationTransform(RAW, config, Augment(hflip=0.5, vflip=0.5))
    for i in range(30):
        seed_all(i)
        sample = transform(image, labels, "x.png")
        bright, known = sample["image"][0] > 100 / 255, sample["label"] != 255
        agree = (bright == (sample["label"] == 1))[known].float().mean()
        assert agree > 0.96  # except at the edge, where the image is interpolated


def test_crop_of_one_class_is_sampled_again() -> None:
    labels = np.zeros((100, 100), dtype=np.uint8)
    labels[:20] = 255
    labels[:, 60:] = 1
    config = SegmentConfig(short_side=0, crop=(30, 30), scale=(1.0, 1.0), max_class_share=0.75)

    def share(config: SegmentConfig) -> float:
        found = []
        for _ in range(200):
            counts = np.bincount(segmentation.train_region(labels, config, PLAIN).labels(labels).ravel(), minlength=3)
            found.append(counts[:2].max() <= 0.75 * counts[:2].sum())
        return float(np.mean(found))

    assert share(replace(config, max_class_share=1.0)) < 0.4
    assert share(replace(config, max_class_share=1.0)) < 0.4
    assert share(config) > 0.85


@pytest.mark.parametrize("max_class_share", [0.75, 1.0])
def test_crop_without_labels_is_sampled_again(max_class_share: float) -> None:
    labels = np.full((100, 100), 255, dtype=np.uint8)
    labels[40:60, 40:60] = [0, 1] * 10
    config = SegmentConfig(short_side=0, crop=(30, 30), scale=(1.0, 1.0), max_class_share=max_class_share)
    crops = [segmentation.train_region(labels, config, PLAIN).labels(labels) for _ in range(200)]
    assert np.mean([(crop != 255).any() for crop in crops]) > 0.98  # a single sample would have 47 %


def test_random_scale_keeps_aspect_ratio() -> None:
    config = SegmentConfig(short_side=100, crop=(64, 64), scale=(0.5, 2.0), max_class_share=1.0)
    regions = [segmentation.train_region(halves(200, 300), config, PLAIN) for _ in range(300)]
    scales = [region.width / (region.right - region.left) for region in regions]
    assert min(scales) < 0.3
    assert max(scales) > 0.9
    assert np.mean(scales) == pytest.approx(1.25 / 2, abs=0.03)
    for region in regions:
        assert region.height / (region.bottom - region.top) == pytest.approx(
            region.width / (region.right - region.left), rel=0.03
        )
        assert region.width <= 64
        assert region.height <= 64
    narrow = [region.left for region in regions if region.right - region.left < 100]
    assert min(narrow) < 20
    assert max(narrow) > 180


def test_photometric_distortion() -> None:
    config = SegmentConfig(short_side=0, crop=(60, 80), scale=(1.0, 1.0), max_class_share=1.0)
    still = segmentation.SegmentationTransform(RAW, replace(config, photometric=False), PLAIN)
    plain = still(picture(60, 80), halves(), "x")["image"]
    changes = []
    for i in range(40):
        seed_all(i)
        changed = segmentation.SegmentationTransform(RAW, config, PLAIN)(picture(60, 80), halves(), "x")["image"]
        changes.append(float((changed - plain).abs().mean()))
    assert sum(change == 0 for change in changes) < 10  # one in sixteen is unchanged
    assert np.mean(changes) > 0.03
    seen = segmentation.SegmentationTransform(RAW, config, None)(picture(60, 80), halves(), "x")["image"]
    assert torch.equal(seen, plain)


def test_label_map_of_another_size() -> None:
    with pytest.raises(UnreadableImage, match=r"x\.png: 80 x 60.*60 x 80"):
        segmentation.SegmentationTransform(RAW, SegmentConfig(), PLAIN)(picture(60, 80), halves(80, 60), "x.png")


def test_grayscale_images() -> None:
    grayscale = Input(channels=1, mean=(0.5,), std=(0.5,))
    image = picture(60, 80).convert("L")
    sample = segmentation.SegmentationTransform(grayscale, SegmentConfig(crop=(32, 32)), PLAIN)(image, halves(), "x")
    assert sample["image"].shape == (1, 32, 32)
    strong = replace(PLAIN, color_jitter=0.5)
    found = detection.DetectionTransform(grayscale, DetectConfig(head="retinanet", train_short_sides=(30,)), strong)
    assert found(image, target(), "x")["image"].shape == (1, 30, 40)
