"""Detection augmentation: scale jitter, IoU crops, mosaic and copy-paste."""

import pickle
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from drawn_sets import shapes_recipe, write_shapes
from smt_vision.data.loaders import TrainLoader, seed_all
from smt_vision.data.region import Region
from smt_vision.recipe import Input
from smt_vision.tasks.detection.config import DetectConfig, DetectionAugment
from smt_vision.tasks.detection.data import transforms
from smt_vision.tasks.detection.data.dataset import DetectionTarget
from smt_vision.tasks.detection.data.loaders import detection_train_loader
from smt_vision.tasks.detection.data.mixing import DetectionMix, copy_paste, mosaic
from smt_vision.tasks.detection.data.sources import open_detection

RAW = Input(mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="nearest", workers=0)
STILL = DetectionAugment(hflip=0.0)
MASKS = DetectConfig(head="mask_rcnn", short_side=48, long_side=96, train_short_sides=(48,))
BOXES = replace(MASKS, head="retinanet")


def item(shape: tuple[int, int], *boxes: tuple[int, int, int, int], color: float = 0.0) -> dict[str, Any]:
    """An image of one color with filled boxes, whose colors are above it by 0.01, 0.02 and so on."""
    image, masks = torch.full((3, *shape), float(color)), torch.zeros(len(boxes), *shape, dtype=torch.uint8)
    for k, (left, top, right, bottom) in enumerate(boxes):
        image[:, top:bottom, left:right] = color + (k + 1) / 100
        masks[k, top:bottom, left:right] = 1
    target = {"boxes": torch.tensor(boxes).float().reshape(-1, 4), "labels": torch.arange(len(boxes)), "masks": masks}
    return {"image": image, "original": shape, "target": target}


def check_objects(mixed: dict[str, Any]) -> None:
    """Each object has its color, in all of its mask and nowhere else, and the box of its mask."""
    image, target = mixed["image"][0], mixed["target"]
    for box, mask in zip(target["boxes"].tolist(), target["masks"].bool(), strict=True):
        (color,) = image[mask].unique().tolist()
        assert torch.equal(image == color, mask)
        y, x = mask.nonzero(as_tuple=True)
        assert [x.min(), y.min(), x.max() + 1, y.max() + 1] == box


# Mosaic


def test_mosaic_keeps_objects_on_their_pixels() -> None:
    sizes = [(40, 60), (50, 30), (16, 20), (90, 80)]
    boxes = [(2, 3, 10, 12), (12, 4, 19, 15), (1, 13, 5, 16)]
    counts = []
    for seed in range(50):
        seed_all(seed)
        others = iter([item(size, *boxes, color=k) for k, size in enumerate(sizes[1:], 2)])
        mixed = mosaic(item(sizes[0], *boxes, color=1), lambda others=others: next(others), min_box=2)  # type: ignore[misc]
        assert mixed["image"].shape == (3, *sizes[0])
        assert mixed["original"] == sizes[0]
        assert next(others, None) is None  # all four are used
        assert len({int(color) for color in mixed["image"].unique().tolist()} - {0}) == 4
        check_objects(mixed)
        sides = mixed["target"]["boxes"][:, 2:] - mixed["target"]["boxes"][:, :2]
        assert (sides >= 2).all()
        counts.append(len(sides))
    assert min(counts) < max(counts) <= 12


def test_mosaic_without_masks_and_objects() -> None:
    items = [item((20, 20)) for _ in range(4)]
    for each in items:
        del each["target"]["masks"]
    mixed = mosaic(items[0], lambda: items[1], min_box=1)
    assert {key: tuple(value.shape) for key, value in mixed["target"].items()} == {"boxes": (0, 4), "labels": (0,)}


def test_object_of_which_a_mosaic_shows_less_than_a_tenth_is_dropped() -> None:
    counts = []
    for seed in range(200):
        seed_all(seed)
        mixed = mosaic(item((64, 64), (0, 0, 64, 64)), lambda: item((64, 64), (0, 0, 64, 64)), min_box=1)
        sides = mixed["target"]["boxes"][:, 2:] - mixed["target"]["boxes"][:, :2]
        assert (sides.prod(1) >= 0.1 * 64 * 64).all()
        counts.append(len(sides))
    assert min(counts) < max(counts) == 4


def test_mosaic_ends_before_the_last_epochs() -> None:
    mix = DetectionMix(replace(STILL, mosaic=1.0, close_mosaic=2), MASKS, epochs=5)
    changed = [
        not torch.equal(mix(item((20, 20)), lambda: item((20, 20), color=1), epoch)["image"], item((20, 20))["image"])
        for epoch in range(5)
    ]
    assert changed == [True, True, True, False, False]


# Copy-paste


def test_pasted_objects_cover_those_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda count: torch.arange(count) % 2)  # the first and the third are pasted
    below = item((20, 30), (0, 0, 8, 8), (4, 10, 12, 18), (10, 2, 15, 7), (20, 10, 28, 18))
    above = item((20, 40), (2, 0, 20, 8), (0, 0, 40, 20), (24, 12, 36, 20), color=1)
    above["image"][:, 12:, 24:36] = 1.03
    above["image"][:, :8, 2:20] = 1.01
    mixed = copy_paste(below, above, min_box=2.5)
    # The first is left with a column of 2 pixels, the third with nothing, the fourth with an L.
    assert mixed["target"]["labels"].tolist() == [1, 3, 0, 2]
    assert mixed["target"]["boxes"].tolist() == [[4, 10, 12, 18], [20, 10, 28, 18], [2, 0, 20, 8], [24, 12, 30, 20]]
    assert mixed["target"]["masks"].sum((1, 2)).tolist() == [64, 64 - 24, 18 * 8, 6 * 8]
    check_objects({**mixed, "target": {key: value[1:] for key, value in mixed["target"].items()}})
    assert below["image"][0, 0, 2] == pytest.approx(0.01)  # the items are not changed
    assert mixed["image"].shape == below["image"].shape


def ell(color: int = 1) -> dict[str, Any]:
    """An object in the shape of an L: its upper part reaches to the left, its lower part to the right."""
    shaped = item((64, 64), (10, 10, 54, 60))
    shaped["target"]["masks"][0, 20:, :40] = 0
    shaped["target"]["masks"][0, :20, 20:] = 0
    shaped["image"][:] = shaped["target"]["masks"].float() * color / 100
    return shaped


def test_boxes_of_objects_that_are_cut_are_those_of_what_is_left() -> None:
    """The lower part is not shown, so the box ends where the upper one does."""
    for seed in range(100):
        seed_all(seed)
        others = map(ell, range(1, 4))
        check_objects(mosaic(item((64, 64)), lambda others=others: next(others), min_box=1))  # type: ignore[misc]
    target = {key: np.asarray(value) for key, value in ell()["target"].items()}
    target |= {
        "masks": [[[10, 10, 20, 10, 20, 20, 10, 20], [40, 20, 54, 20, 54, 60, 40, 60]]],
        "crowd": np.zeros(1, bool),
    }
    target |= {"ids": np.arange(1), "size": (64, 64)}
    for crop, expected in (((0, 0, 64, 19), [10, 10, 20, 19]), ((0, 0, 30, 64), [10, 10, 20, 20])):
        region = Region(*crop, crop[2], crop[3])
        transform = transforms.DetectionTransform(RAW, MASKS, STILL)
        objects = transform._objects(target, np.ones(1, bool), region, "x")
        assert objects["boxes"].tolist() == [expected]
        boxes_only = transforms.DetectionTransform(RAW, BOXES, STILL)._objects(target, np.ones(1, bool), region, "x")
        assert boxes_only["boxes"].tolist() == [[10, 10, min(54, crop[2]), min(60, crop[3])]]


def test_pasted_objects_are_cut_at_the_border(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda count: torch.zeros(count))
    mixed = copy_paste(item((19, 64)), ell(), min_box=1)
    assert mixed["target"]["boxes"].tolist() == [[10, 10, 20, 19]]
    check_objects(mixed)
    # What is too small for an object is not pasted at all.
    mixed = copy_paste(item((19, 64)), ell(), min_box=10)
    assert len(mixed["target"]["boxes"]) == 0
    assert not mixed["image"].any()


def test_nothing_is_pasted_from_an_image_without_objects() -> None:
    below = item((20, 30), (0, 0, 8, 8))
    mixed = copy_paste(below, item((10, 50), color=1), min_box=1)
    assert torch.equal(mixed["image"], below["image"])
    assert all(torch.equal(mixed["target"][key], value) for key, value in below["target"].items())


# Scale jitter and IoU crops


@pytest.mark.parametrize("bounds", [(0.5, 0.5), (2.0, 2.0), (0.1, 2.0)])
def test_scale_jitter(bounds: tuple[float, float]) -> None:
    detect, augment = DetectConfig(train_short_sides=(48,), long_side=96), replace(STILL, scale_jitter=bounds)
    regions = [transforms.train_region(160, 120, detect, augment) for _ in range(300)]
    factors = np.array([[r.width / (r.right - r.left), r.height / (r.bottom - r.top)] for r in regions]) / (48 / 120)
    assert factors.min() == pytest.approx(bounds[0], abs=0.05)
    assert factors.max() == pytest.approx(bounds[1], abs=0.05)
    assert np.allclose(factors[:, 0], factors[:, 1], rtol=0.2)
    enlarged = [region for region, (factor, _) in zip(regions, factors, strict=True) if factor > 1.05]
    assert all(region.height == 48 and abs(region.width - 64) <= 1 for region in enlarged)
    if bounds[0] > 1:
        assert len({(region.left, region.top) for region in regions}) > 50


def test_iou_crop_keeps_the_objects_whose_center_is_inside() -> None:
    boxes = np.array([(0, 0, 10, 10), (30, 20, 70, 50), (60, 0, 80, 60), (0, 0, 80, 60)], dtype=np.float32)
    crowd = np.array([False, False, False, True])
    target = DetectionTarget(size=(60, 80), boxes=boxes, labels=np.arange(4), masks=None, crowd=crowd, ids=np.arange(4))
    detect = DetectConfig(head="retinanet", train_short_sides=(60,), long_side=400)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    transform = transforms.DetectionTransform(RAW, detect, replace(STILL, iou_crop=1.0))
    shapes = set()
    for seed in range(40):
        seed_all(seed)
        crop, used = transform._sample_iou_crop(picture, target)
        left, top, right, bottom = crop or (0, 0, 80, 60)
        assert 0 <= left < right <= 80
        assert 0 <= top < bottom <= 60
        x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
        inside = (left < x) & (x < right) & (top < y) & (y < bottom)
        assert used.tolist() == (inside & ~crowd).tolist()
        seed_all(seed)
        random.random()  # whether there is a crop
        sample = transform(picture, target, "a.png")
        shapes.add(tuple(sample["image"].shape))
        assert set(sample["target"]["labels"].tolist()) <= set(np.flatnonzero(used).tolist())
    assert len(shapes) > 15


@pytest.mark.parametrize("size", [(1, 1), (7, 200), (200, 3)])
def test_iou_crop_of_small_images_and_images_without_objects(size: tuple[int, int]) -> None:
    height, width = size
    detect = DetectConfig(head="retinanet", train_short_sides=(16,), long_side=64)
    transform = transforms.DetectionTransform(RAW, detect, replace(STILL, iou_crop=1.0))
    for count in (0, 1):
        boxes = np.array([[0, 0, width, height]] * count, dtype=np.float32).reshape(-1, 4)
        target = DetectionTarget(
            size=size, boxes=boxes, labels=np.zeros(count, np.int64), masks=None, crowd=np.zeros(count, bool),
            ids=np.arange(count),
        )  # fmt: skip
        assert len(transform(Image.new("RGB", (width, height)), target, "a")["target"]["boxes"]) == count


# In training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", images=6)


ALL = DetectionAugment(
    hflip=0.5, mosaic=0.7, close_mosaic=1, copy_paste=0.7, iou_crop=0.5, scale_jitter=(0.5, 1.5), color_jitter=0.2
)


def loader(data: Path, workers: int, **more: Any) -> TrainLoader[Any]:
    images = open_detection(str(data), "train")
    return detection_train_loader(images, replace(RAW, workers=workers), ALL, MASKS, 2, seed=3, epochs=3, **more)


def contents(batches: Iterator[Any]) -> list[Any]:
    return [(b["image"], b["index"].tolist(), [t[k] for t in b["targets"] for k in sorted(t)]) for b in batches]


def test_mixed_batches_do_not_depend_on_workers_and_resume_exactly(data: Path) -> None:
    pytest.importorskip("faster_coco_eval.core.mask", reason="the extra detect is not installed")
    plain = loader(data, 0)
    first, second = contents(plain.epoch(0)), contents(plain.epoch(1))
    assert len(first) == 3
    for workers in (0, 1):
        again = loader(data, workers)
        for ours, theirs in ((contents(again.epoch(1, start_batch=2)), second[2:]), (contents(again.epoch(0)), first)):
            assert len(ours) == len(theirs)
            for (image, index, targets), (image2, index2, targets2) in zip(ours, theirs, strict=True):
                assert torch.equal(image, image2)
                assert index == index2
                assert all(map(torch.equal, targets, targets2))
        again.close()
    dataset: Any = plain._loader.dataset
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[0, 2]["image"], dataset[0, 2]["image"])


def test_unreadable_image_of_a_mosaic_is_reported_and_the_batch_full(data: Path, tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "set", images=6)
    (root / "train" / "4.png").write_bytes(b"no image")
    batches = list(loader(root, 0).epoch(0))
    assert [len(batch["index"]) for batch in batches] == [2, 2, 2]
    assert any("4.png" in message for batch in batches for message in batch["unreadable"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(augment=replace(STILL, mosaic=0.5, close_mosaic=3)), r"augment\.close_mosaic=3"),
        (
            dict(augment=replace(STILL, copy_paste=0.5), detect=DetectConfig(head="retinanet")),
            r"augment\.copy_paste=0\.5",
        ),
    ],
)
def test_augmentation_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(shapes_recipe(tmp_path, epochs=3), **change)
