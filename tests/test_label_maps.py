"""Segmentation datasets in folders: layouts, label maps, binary masks, class names, and errors that name the files."""

import json
import logging
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from dense_sets import write_image, write_labels
from smt_vision.data.decode import UnreadableImage
from smt_vision.data.label_maps import decode_labels
from smt_vision.tasks.segmentation.config import SegmentConfig
from smt_vision.tasks.segmentation.data.dataset import SegmentationDataset
from smt_vision.tasks.segmentation.data.sources import open_segmentation

BINARY = SegmentConfig(kind="binary")
ADE20K = SegmentConfig(zero_is_ignored=True)
LABELS = np.array([[0, 1, 2, 255], [2, 1, 0, 0]])


def write_dataset(
    root: Path,
    images: str = "images/train",
    labels: str = "labels/train",
    content: npt.ArrayLike = LABELS,
    classes: object = ("sky", "road", "car"),
    count: int = 2,
    palette: bool = False,
) -> Path:
    height, width = np.asarray(content).shape
    for i in range(count):
        write_image(root / images / f"{i}.jpg", width, height, seed=i)
        write_labels(root / labels / f"{i}.png", content, palette=palette)
    if classes is not None:
        (root / "classes.json").write_text(json.dumps(classes))
    return root


def open_train(root: Path, config: SegmentConfig | None = None) -> SegmentationDataset:
    return open_segmentation(str(root), "train", config or SegmentConfig())


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images/train", "labels/train"),
        ("images/training", "annotations/training"),
        ("image/train", "masks/train"),
        ("train/images", "train/masks"),
        ("TrainDataset/Imgs", "TrainDataset/GT"),
        ("DUTS-TR/DUTS-TR-Image", "DUTS-TR/DUTS-TR-Mask"),
        ("images/train/city/one", "labels/train/city/one"),
    ],
)
def test_layouts(tmp_path: Path, images: str, labels: str) -> None:
    found = open_train(write_dataset(tmp_path, images, labels))
    assert len(found) == 2
    raw, target, name = found.read(1)
    assert raw == tmp_path / images / "1.jpg"
    assert name == str(raw)
    assert np.array_equal(target, LABELS)
    assert target.dtype == np.uint8
    with pytest.raises(ValueError, match=r"for val.*images/train/NAME"):
        open_segmentation(str(tmp_path), "val", SegmentConfig())


def test_validation_split_is_preferred_to_test_split(tmp_path: Path) -> None:
    write_dataset(tmp_path, "images/test", "labels/test")
    assert open_segmentation(str(tmp_path), "val", SegmentConfig()).read(0)[0] == tmp_path / "images" / "test" / "0.jpg"
    write_dataset(tmp_path, "images/validation", "labels/validation")
    assert open_segmentation(str(tmp_path), "val", SegmentConfig()).read(0)[0] == tmp_path / "images/validation/0.jpg"


def test_palette_indices_are_the_labels(tmp_path: Path) -> None:
    assert np.array_equal(open_train(write_dataset(tmp_path, palette=True)).read(0)[1], LABELS)


def test_zero_is_ignored_in_ade20k(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, labels="annotations/train", content=[[0, 1, 3, 255], [2, 1, 0, 3]], classes=None)
    table = "Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t9\t8\twall\n2\t0.1\t9\t8\tbuilding, edifice\n3\t0.1\t9\t8\tsky \n"
    (root / "objectInfo150.txt").write_text(table)
    found = open_train(root, ADE20K)
    assert found.classes == ("wall", "building", "sky")
    assert found.read(0)[1].tolist() == [[255, 0, 2, 255], [1, 0, 255, 2]]
    with pytest.raises(ValueError, match=r"labels 3\b.*0 to 2.*255.*zero_is_ignored"):
        open_train(root)


def test_ignore_index_of_classes_json(tmp_path: Path) -> None:
    classes = {"classes": ["a", "b"], "ignore_index": 9}
    found = open_train(write_dataset(tmp_path, content=[[0, 1, 9]], classes=classes))
    assert found.classes == ("a", "b")
    assert found.read(0)[1].tolist() == [[0, 1, 255]]


@pytest.mark.parametrize(("stored", "expected"), [
    ([[0, 127, 128, 129, 255]], [[0, 0, 0, 1, 1]]),  # above 128, as in the published metrics
    ([[0, 1, 1, 0]], [[0, 1, 1, 0]]),
    ([[0, 0]], [[0, 0]]),
])  # fmt: skip
def test_binary_masks(tmp_path: Path, stored: list[list[int]], expected: list[list[int]]) -> None:
    found = open_train(write_dataset(tmp_path, "train/Imgs", "train/GT", content=stored, classes=None), BINARY)
    assert found.classes == ("object",)
    assert found.read(0)[1].tolist() == expected
    assert "2 images" in found.describe()
    assert "binary" in found.describe()


def test_labels_out_of_range_are_named(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, content=[[0, 1, 3, 7]])
    with pytest.raises(ValueError, match=r"2 of 2\b.*0\.png: labels 3, 7\b.*0 to 2.*1\.png: labels 3, 7\b"):
        open_train(root)
    root = write_dataset(tmp_path / "few", count=200)
    write_labels(root / "labels/train/150.png", np.full((2, 4), 200))  # not in the sample that is checked on opening
    found = open_train(root)
    bad = [found.id(i) for i in range(200)].index("150.jpg")
    with pytest.raises(UnreadableImage, match=r"150\.png: labels 200\b.*0 to 2.*255"):
        found.read(bad)
    found.check(count=3)
    with pytest.raises(ValueError, match=r"1 of 200\b.*150\.png"):
        found.check(count=200)


def test_label_map_of_another_size_is_named(tmp_path: Path) -> None:
    root = write_dataset(tmp_path)
    write_image(root / "images/train/1.jpg", 5, 2)
    with pytest.raises(ValueError, match=r"1 of 2\b.*1\.jpg: 5 x 2\b.*4 x 2\b"):
        open_train(root)


def test_unreadable_label_map_is_an_error_and_unreadable_image_is_not(tmp_path: Path) -> None:
    root = write_dataset(tmp_path)
    (root / "images/train/1.jpg").write_bytes(b"rubbish")
    assert len(open_train(root)) == 2
    (root / "labels/train/0.png").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=r"1 of 2\b.*0\.png"):
        open_train(root)


def test_unpaired_files_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_dataset(tmp_path)
    write_labels(root / "labels/train/spare.png", LABELS)
    (root / "labels/train/._0.png").write_bytes(b"metadata of a file manager")
    assert len(open_train(root)) == 2
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert re.search(rf"\b1 .*{root / 'labels/train'}.*: spare\.png\b", warning)  # hidden files do not count
    for i in range(7):
        write_image(root / f"images/train/new{i}.jpg", 4, 2)
    with pytest.raises(ValueError, match=r"\b7 .*: new0\.jpg, .*new4\.jpg \.\.\."):
        open_train(root)
    write_image(root / "labels/train/0.jpg", 4, 2)
    with pytest.raises(ValueError, match=r"labels/train/0\.png"):
        open_train(root)


def test_color_label_map_is_refused(tmp_path: Path) -> None:
    root = write_dataset(tmp_path)
    write_image(root / "labels/train/0.png", 4, 2)
    with pytest.raises(ValueError, match=r"0\.png: .*\bRGB\b"):
        open_train(root)


def test_decode_labels_of_1_and_16_bits(tmp_path: Path) -> None:
    wide = np.array([[0, 300], [65535, 2]], dtype=np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert np.array_equal(decode_labels(tmp_path / "wide.png", name="wide"), wide)
    Image.fromarray(wide > 2).save(tmp_path / "narrow.png")
    assert decode_labels(tmp_path / "narrow.png", name="narrow").tolist() == [[0, 1], [1, 0]]
    with pytest.raises(UnreadableImage, match=r"wide: 2 x 2.*max_pixels=3"):
        decode_labels(tmp_path / "wide.png", name="wide", max_pixels=3)
    with pytest.raises(UnreadableImage, match="missing: "):
        decode_labels(tmp_path / "missing.png", name="missing")


def test_invalid_class_names_are_refused(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, classes=None)
    with pytest.raises(ValueError, match=r"classes\.json"):
        open_train(root)
    file = root / "classes.json"
    for text, match in (
        ("[", r"classes\.json: .*JSON"),
        ("{}", r"classes\.json: .*'classes'"),
        ("[1, 2]", r"classes\.json: .*'classes'"),
        ('["a"]', r"\b1 .*\b1 .*2 to 255"),
        ('["a", "b", "a"]', r"\b3 .*\b2 .*2 to 255"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=match):
            open_train(root)
    with pytest.raises(ValueError, match=r"'/nowhere'.*images/train/NAME\.jpg.*labels/train"):
        open_train(Path("/nowhere"))
    (root / "images/val").mkdir()
    (root / "labels/val").mkdir()
    with pytest.raises(ValueError, match=r"images/val: "):
        open_segmentation(str(root), "val", BINARY)


def test_camvid(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    if not (shared / "data" / "camvid").is_dir():
        pytest.skip("camvid is not among the reference files")
    found = [open_segmentation(str(shared / "data" / "camvid"), split, SegmentConfig()) for split in ("train", "val")]
    assert [len(images) for images in found] == [367, 101]
    assert found[0].classes[:4] == ("Sky", "Building", "Pole", "Road")
    assert "367 images" in found[0].describe()
    assert "11 classes" in found[0].describe()
    labels = found[0].read(0)[1]
    assert labels.shape == (360, 480)
    assert set(np.unique(labels)) <= {*range(11), 255}
    # the sky is at the top, the road at the bottom
    assert np.bincount(labels[:60].ravel(), minlength=256)[:11].argmax() in (0, 1, 5)
    assert np.bincount(labels[-60:].ravel(), minlength=256)[:11].argmax() == 3
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
