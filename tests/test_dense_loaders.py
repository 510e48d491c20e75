"""Batches of images with objects and with label maps: shapes, padding, seeds, ranks, unreadable files."""

import logging
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dense_sets import annotation, coco_content, encode_rle, write_coco, write_image, write_labels
from smt_vision.data.decode import UnreadableImage, decode
from smt_vision.data.loaders import TrainLoader, seed_all
from smt_vision.data.padding import pad_together
from smt_vision.recipe import Input
from smt_vision.tasks.detection.config import DetectConfig, DetectionAugment
from smt_vision.tasks.detection.data.dataset import DetectionDataset
from smt_vision.tasks.detection.data.loaders import detection_eval_loader, detection_train_loader
from smt_vision.tasks.detection.data.sources import open_detection
from smt_vision.tasks.segmentation.config import SegmentConfig
from smt_vision.tasks.segmentation.data.dataset import SegmentationDataset
from smt_vision.tasks.segmentation.data.loaders import segmentation_eval_loader, segmentation_train_loader
from smt_vision.tasks.segmentation.data.sources import open_segmentation

SMALL = Input(workers=0, max_unreadable=2, interpolation="bilinear")
BOXES = DetectConfig(head="retinanet", short_side=40, long_side=60, train_short_sides=(24, 40))
CROPS = SegmentConfig(short_side=30, crop=(24, 32))
AUGMENT = DetectionAugment(hflip=0.5, color_jitter=0.4)
IMAGES = 9


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images, portrait and landscape in turn; image i has i objects."""
    content = coco_content() | {"images": [], "annotations": []}
    for i in range(IMAGES):
        width, height = (48, 32) if i % 2 else (30, 45)
        content["images"].append({"id": 100 + i, "file_name": f"{i}.png", "width": width, "height": height})
        for k in range(i):
            box = (2 * k, 2 * k, 2 * k + 12, 2 * k + 10)
            shape: dict[str, Any] = {} if k % 2 else {"segmentation": encode_rle(height, width, box)}
            content["annotations"].append(annotation(10 * i + k, 100 + i, 18, (2 * k, 2 * k, 12, 10), **shape))
    return write_coco(tmp_path_factory.mktemp("coco"), content)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    for i in range(IMAGES):
        width, height = (48, 32) if i % 2 else (30, 45)
        write_image(root / "images" / "train" / f"{i}.png", width, height, seed=i)
        labels = np.random.default_rng(i).integers(0, 4, (height, width))
        write_labels(root / "labels" / "train" / f"{i}.png", np.where(labels == 3, 255, labels))
    (root / "classes.json").write_text('["a", "b", "c"]')
    return root


def objects(root: Path) -> DetectionDataset:
    return open_detection(str(root), "train")


def maps(root: Path) -> SegmentationDataset:
    return open_segmentation(str(root), "train", CROPS)


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(equal, left, right))
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


Make = Callable[..., TrainLoader[Any]]


@pytest.fixture(params=["detection", "segmentation"])
def make(request: pytest.FixtureRequest, coco: Path, folders: Path) -> Make:
    """A training loader of either task; ``images`` replaces its dataset."""

    def detect(workers: int = 0, images: DetectionDataset | None = None, **more: int) -> TrainLoader[Any]:
        given = replace(SMALL, workers=workers)
        return detection_train_loader(images or objects(coco), given, AUGMENT, BOXES, 2, seed=3, **more)

    def segment(workers: int = 0, images: SegmentationDataset | None = None, **more: int) -> TrainLoader[Any]:
        given = replace(SMALL, workers=workers)
        return segmentation_train_loader(images or maps(folders), given, AUGMENT, CROPS, 2, seed=3, **more)

    return detect if request.param == "detection" else segment


def test_padding() -> None:
    images = [torch.ones(3, 33, 20), torch.full((3, 10, 64), 2.0)]
    batch, sizes = pad_together(images)
    assert batch.shape == (2, 3, 64, 64)
    assert sizes.tolist() == [[33, 20], [10, 64]]
    assert torch.equal(batch[0, :, :33, :20], images[0])
    assert torch.equal(batch[1, :, :10], images[1])
    assert batch.sum() == images[0].sum() + images[1].sum()


def test_detection_batches(coco: Path) -> None:
    pytest.importorskip("faster_coco_eval.core.mask", reason="the extra detect is not installed")
    images = objects(coco)
    loader = detection_train_loader(images, SMALL, AUGMENT, replace(BOXES, head="mask_rcnn"), 2, seed=0)
    batches = list(loader.epoch(0))
    assert loader.batches_per_epoch == len(batches) == 4
    mixed = 0
    for batch in batches:
        assert set(batch) == {"image", "sizes", "original", "index", "unreadable", "targets"}
        assert batch["image"].dtype == torch.float32
        assert batch["image"].shape[:2] == (2, 3)
        assert all(side % 32 == 0 for side in batch["image"].shape[2:])
        mixed += len({bool(portrait) for portrait in images.portrait()[batch["index"]]}) == 2
        columns = (batch["index"].tolist(), batch["original"].tolist(), batch["sizes"].tolist(), batch["targets"])
        for index, original, (height, width), target in zip(*columns, strict=True):
            assert original == images.sizes[index].tolist()
            assert min(height, width) in (24, 40) or max(height, width) == 60
            assert len(target["boxes"]) == len(target["labels"]) == index
            assert target["masks"].shape == (index, height, width)
            assert target["masks"].dtype == torch.uint8
            assert (target["boxes"] <= torch.tensor([width, height, width, height])).all()
            assert (target["labels"] == 0).all()
            for box, mask in zip(target["boxes"].round().int().tolist(), target["masks"], strict=True):
                left, top, right, bottom = box
                assert mask[top + 1 : bottom - 1, left + 1 : right - 1].all()
                assert mask.sum() <= (bottom - top + 2) * (right - left + 2)
    assert mixed <= 1


def test_detection_evaluation(coco: Path) -> None:
    images = objects(coco)
    batches = list(detection_eval_loader(images, SMALL, BOXES, 4))
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert batches[0]["image"].shape == (4, 3, 64, 64)
    assert batches[0]["sizes"].tolist() == [[60, 40], [40, 60]] * 2
    assert batches[0]["original"].tolist() == [[45, 30], [32, 48]] * 2
    assert "targets" not in batches[0]
    shares = [list(detection_eval_loader(images, SMALL, BOXES, 2, rank=rank, world=2)) for rank in range(2)]
    assert sorted(i for share in shares for batch in share for i in batch["index"].tolist()) == list(range(9))


def test_segmentation_batches(folders: Path) -> None:
    loader = segmentation_train_loader(maps(folders), SMALL, AUGMENT, CROPS, 4, seed=0)
    assert loader.batches_per_epoch == 2
    for batch in loader.epoch(0):
        assert set(batch) == {"image", "label", "sizes", "index", "unreadable"}
        assert batch["image"].shape == (4, 3, 24, 32)
        assert batch["label"].shape == (4, 24, 32)
        assert batch["label"].dtype == torch.int64
        assert set(batch["label"].unique().tolist()) == {0, 1, 2, 255}


def test_segmentation_evaluation(folders: Path) -> None:
    images = maps(folders)
    batches = list(segmentation_eval_loader(images, SMALL, CROPS, 4))
    assert batches[0]["image"].shape == (4, 3, 64, 64)
    assert batches[0]["sizes"].tolist() == [[45, 30], [30, 45]] * 2
    assert [tuple(label.shape) for label in batches[0]["label"]] == [(45, 30), (32, 48)] * 2
    assert np.array_equal(batches[2]["label"][0].numpy(), images.read(8)[1])
    assert not batches[0]["image"][0, :, 45:].any()
    assert not batches[0]["image"][0, :, :, 30:].any()
    shares = [list(segmentation_eval_loader(images, SMALL, CROPS, 2, rank=rank, world=2)) for rank in range(2)]
    assert sorted(i for share in shares for batch in share for i in batch["index"].tolist()) == list(range(9))


def test_batches_do_not_depend_on_workers_and_resume_exactly(make: Make) -> None:
    full = make()
    first, second = list(full.epoch(0)), list(full.epoch(1))
    assert len(first) == 4
    assert not equal(first, second)
    for workers in (0, 1):
        loader = make(workers)
        assert equal(list(loader.epoch(1, start_batch=2)), second[2:])
        assert equal(list(loader.epoch(0)), first)
        loader.close()


def test_ranks_split_an_epoch(make: Make) -> None:
    seen = [batch["index"].tolist() for rank in range(2) for batch in make(rank=rank, world=2).epoch(0)]
    assert [len(batch) for batch in seen] == [2] * 4
    assert len({i for batch in seen for i in batch}) == 8


def test_sample_depends_on_seed_epoch_and_index(make: Make) -> None:
    loader = make()
    dataset: Any = loader._loader.dataset
    copy = pickle.loads(pickle.dumps(dataset))  # for platforms without fork
    sample = dataset[0, 5]
    assert equal(sample, copy[0, 5])
    raw, target, name = dataset.images.read(5)
    seed_all(3, 0, 5)
    assert equal(sample, {**dataset.transform(decode(raw, 3, name=name), target, name), "index": 5, "unreadable": []})
    assert not equal(sample, dataset[1, 5])


def test_unreadable_images_are_replaced_and_logged(
    make: Make, coco: Path, folders: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    loader = make()
    images: Any = loader.images
    original = images.read

    def read(i: int) -> tuple[Any, Any, str]:
        raw, target, name = original(i)
        return (b"not an image" if i in (2, 6) else raw), target, name

    images.read = read
    seen = [batch["index"].tolist() for batch in loader.epoch(0)]
    assert [len(batch) for batch in seen] == [2] * 4
    assert {2, 6}.isdisjoint(i for batch in seen for i in batch)
    assert 1 <= len(loader.unreadable) <= 2
    assert "1 of at most 2: " in caplog.text
    loader.max_unreadable = 0
    with pytest.raises(UnreadableImage, match="max_unreadable=0"):
        list(loader.epoch(1))


@pytest.mark.parametrize("max_unreadable", [1, 10])
def test_an_unreadable_partner_of_a_mixed_image_drops_no_batch(coco: Path, max_unreadable: int) -> None:
    augment = DetectionAugment(hflip=0.0, mosaic=1.0)
    input = replace(SMALL, max_unreadable=max_unreadable)
    loader = detection_train_loader(objects(coco), input, augment, BOXES, 1, seed=0)
    images: Any = loader.images
    original = images.read
    images.read = lambda i: (b"not an image", *original(i)[1:]) if i == 2 else original(i)
    for epoch in range(6):
        seen = [batch["index"].tolist() for batch in loader.epoch(epoch)]
        assert [len(batch) for batch in seen] == [1] * loader.batches_per_epoch
        # Only the image itself is replaced.
        assert set(range(IMAGES)) - {i for batch in seen for i in batch} == {2}
    assert len(loader.unreadable) == 1


def test_image_of_another_size_than_annotated_is_unreadable(coco: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = objects(coco)
    images.sizes = images.sizes.copy()
    images.sizes[4] = 45, 31
    loader = detection_eval_loader(images, SMALL, BOXES, 4)
    assert [i for batch in loader for i in batch["index"].tolist()] == [0, 1, 2, 3, 5, 6, 7, 8]
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert re.search(r"4\.png: 30 x 45.*31 x 45", record.getMessage())


def test_batch_of_unreadable_images_only_is_skipped(coco: Path) -> None:
    images = objects(coco)
    images.sizes = images.sizes + (np.arange(IMAGES) < 2)[:, None]
    loader = detection_eval_loader(images, SMALL, BOXES, 2)
    assert [batch["index"].tolist() for batch in loader] == [[2, 3], [4, 5], [6, 7], [8]]
    assert len(loader.unreadable) == 2


def test_head_with_masks_requires_masks(coco: Path) -> None:
    content = coco_content()
    del content["annotations"][1]["segmentation"]
    root = write_coco(coco.parent / "no_masks", content)
    with pytest.raises(ValueError, match=r"1 of 4 .*a\.png"):
        detection_train_loader(objects(root), SMALL, AUGMENT, DetectConfig(), 2, seed=0)
    detection_train_loader(objects(root), SMALL, AUGMENT, BOXES, 2, seed=0)


@pytest.mark.parametrize(("name", "head"), [("bccd", "retinanet"), ("nuclei", "mask_rcnn"), ("coco_tiny", "mask_rcnn")])
def test_real_detection_batches(shared: Path, name: str, head: Any) -> None:
    pytest.importorskip("faster_coco_eval.core.mask", reason="the extra detect is not installed")
    if not (shared / "data" / name).is_dir():
        pytest.skip(f"no {name} among the shared files")
    images = open_detection(str(shared / "data" / name), "train")
    detect = DetectConfig(head=head, train_short_sides=(192, 256), long_side=448, crop_branch=True)
    batch = next(detection_train_loader(images, SMALL, AUGMENT, detect, 4, seed=0).epoch(0))
    assert batch["image"].isfinite().all()
    for target, (height, width) in zip(batch["targets"], batch["sizes"].tolist(), strict=True):
        boxes = target["boxes"]
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
        assert ((boxes[:, 2:] - boxes[:, :2]) >= 1).all()
        if head == "mask_rcnn":
            assert target["masks"].shape == (len(boxes), height, width)
            assert target["masks"].flatten(1).any(1).all()


def test_camvid_batches(shared: Path) -> None:
    if not (shared / "data" / "camvid").is_dir():
        pytest.skip("no CamVid among the shared files")
    images = open_segmentation(str(shared / "data" / "camvid"), "train", SegmentConfig())
    batch = next(segmentation_train_loader(images, SMALL, AUGMENT, SegmentConfig(crop=(128, 128)), 4, seed=0).epoch(0))
    assert batch["image"].shape == (4, 3, 128, 128)
    assert set(batch["label"].unique().tolist()) <= {*range(11), 255}
