"""Folders of images and label maps: layouts, labels, masks, and what is told of what cannot be used."""

import json
import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from dense_sets import write_image, write_labels
from smt_vision.data.decode import UnreadableImage, decode_labels
from smt_vision.tasks.segmentation.config import SegmentConfig
from smt_vision.tasks.segmentation.data.dataset import SegmentationDataset, open_segmentation

BINARY = SegmentConfig(kind="binary")
ADE20K = SegmentConfig(zero_is_ignored=True)
LABELS = np.array([[0, 1, 2, 255], [2, 1, 0, 0]])


def write_set(
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


def train(root: Path, config: SegmentConfig | None = None) -> SegmentationDataset:
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
    found = train(write_set(tmp_path, images, labels))
    assert len(found) == 2
    raw, target, name = found.read(1)
    assert raw == tmp_path / images / "1.jpg"
    assert name == str(raw)
    assert np.array_equal(target, LABELS)
    assert target.dtype == np.uint8
    with pytest.raises(ValueError, match=r"no folders of images and label maps for val; expected images/train/NAME"):
        open_segmentation(str(tmp_path), "val", SegmentConfig())


def test_validation_comes_before_test(tmp_path: Path) -> None:
    write_set(tmp_path, "images/test", "labels/test")
    assert open_segmentation(str(tmp_path), "val", SegmentConfig()).read(0)[0] == tmp_path / "images" / "test" / "0.jpg"
    write_set(tmp_path, "images/validation", "labels/validation")
    assert open_segmentation(str(tmp_path), "val", SegmentConfig()).read(0)[0] == tmp_path / "images/validation/0.jpg"


def test_palettes_are_not_looked_up(tmp_path: Path) -> None:
    assert np.array_equal(train(write_set(tmp_path, palette=True)).read(0)[1], LABELS)


def test_ade20k_counts_from_one(tmp_path: Path) -> None:
    root = write_set(tmp_path, labels="annotations/train", content=[[0, 1, 3, 255], [2, 1, 0, 3]], classes=None)
    table = "Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t9\t8\twall\n2\t0.1\t9\t8\tbuilding, edifice\n3\t0.1\t9\t8\tsky \n"
    (root / "objectInfo150.txt").write_text(table)
    found = train(root, ADE20K)
    assert found.classes == ("wall", "building", "sky")
    assert found.read(0)[1].tolist() == [[255, 0, 2, 255], [1, 0, 255, 2]]
    with pytest.raises(ValueError, match=r"labels 3, expected 0 to 2 for 3 classes, and 255 .*zero_is_ignored"):
        train(root)


def test_a_label_to_ignore_of_its_own(tmp_path: Path) -> None:
    classes = {"classes": ["a", "b"], "ignore_index": 9}
    found = train(write_set(tmp_path, content=[[0, 1, 9]], classes=classes))
    assert found.classes == ("a", "b")
    assert found.read(0)[1].tolist() == [[0, 1, 255]]


@pytest.mark.parametrize(("stored", "expected"), [
    ([[0, 127, 128, 129, 255]], [[0, 0, 0, 1, 1]]),  # above 128, as the published metrics have it
    ([[0, 1, 1, 0]], [[0, 1, 1, 0]]),
    ([[0, 0]], [[0, 0]]),
])  # fmt: skip
def test_binary_masks(tmp_path: Path, stored: list[list[int]], expected: list[list[int]]) -> None:
    found = train(write_set(tmp_path, "train/Imgs", "train/GT", content=stored, classes=None), BINARY)
    assert found.classes == ("object",)
    assert found.read(0)[1].tolist() == expected
    assert found.describe() == "2 images with binary masks"


def test_labels_out_of_range(tmp_path: Path) -> None:
    root = write_set(tmp_path, content=[[0, 1, 3, 7]])
    with pytest.raises(
        ValueError, match=r"2 of 2 pairs looked at .*0\.png: labels 3, 7, expected 0 to 2 .*1\.png: lab"
    ):
        train(root)
    root = write_set(tmp_path / "few", count=200)
    write_labels(root / "labels/train/150.png", np.full((2, 4), 200))  # not among those that are looked at
    found = train(root)
    bad = [found.id(i) for i in range(200)].index("150.jpg")
    with pytest.raises(
        UnreadableImage, match=r"150\.png: labels 200, expected 0 to 2 for 3 classes, and 255 for pixels"
    ):
        found.read(bad)
    found.check(count=3)
    with pytest.raises(ValueError, match=r"pairs looked at"):
        found.check(count=200)


def test_a_label_map_of_another_size(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    write_image(root / "images/train/1.jpg", 5, 2)
    with pytest.raises(ValueError, match=r"1 of 2 pairs .*1\.jpg: 5 x 2 pixels, its label map 4 x 2; mend either"):
        train(root)


def test_an_unreadable_image_is_left_to_the_loaders(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    (root / "images/train/1.jpg").write_bytes(b"rubbish")
    assert len(train(root)) == 2
    (root / "labels/train/0.png").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=r"1 of 2 pairs looked at are of no use: .*0\.png: not an image that Pillow"):
        train(root)


def test_files_without_partner(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_set(tmp_path)
    write_labels(root / "labels/train/spare.png", LABELS)
    (root / "labels/train/._0.png").write_bytes(b"left by a file manager")
    assert len(train(root)) == 2
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.endswith(f"1 label maps in {root / 'labels/train'} without an image: spare.png; left out")
    for i in range(7):
        write_image(root / f"images/train/new{i}.jpg", 4, 2)
    with pytest.raises(ValueError, match=r"7 images without a label map .*: new0\.jpg, .*new4\.jpg \.\.\.; add or rem"):
        train(root)
    write_image(root / "labels/train/0.jpg", 4, 2)
    with pytest.raises(ValueError, match=r"1 label maps with a twin of another ending: .*0\.png"):
        train(root)


def test_label_maps_of_colours(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    write_image(root / "labels/train/0.png", 4, 2)
    with pytest.raises(ValueError, match=r"0\.png: .* mode RGB; save it as"):
        train(root)


def test_wide_and_narrow_label_maps(tmp_path: Path) -> None:
    wide = np.array([[0, 300], [65535, 2]], dtype=np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert np.array_equal(decode_labels(tmp_path / "wide.png", name="wide"), wide)
    Image.fromarray(wide > 2).save(tmp_path / "narrow.png")
    assert decode_labels(tmp_path / "narrow.png", name="narrow").tolist() == [[0, 255], [255, 0]]
    with pytest.raises(UnreadableImage, match="wide: 2 x 2 pixels, more than max_pixels=3"):
        decode_labels(tmp_path / "wide.png", name="wide", max_pixels=3)
    with pytest.raises(UnreadableImage, match="none: no such file"):
        decode_labels(tmp_path / "none.png", name="none")


def test_names_of_classes(tmp_path: Path) -> None:
    root = write_set(tmp_path, classes=None)
    with pytest.raises(ValueError, match=r"the names of the classes are not known; write them into classes\.json"):
        train(root)
    file = root / "classes.json"
    for text, message in (
        ("[", "not JSON"),
        ("{}", "no list of names; expected one, or"),
        ("[1, 2]", "no list of names"),
        ('["a"]', "1 classes, 1 different names; expected 2 to 255, each once"),
        ('["a", "b", "a"]', "3 classes, 2 different names"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            train(root)
    with pytest.raises(ValueError, match=r"'/nowhere' is no folder; expected images/train/NAME\.jpg and labels/train"):
        train(Path("/nowhere"))
    (root / "images/val").mkdir()
    (root / "labels/val").mkdir()
    with pytest.raises(ValueError, match=r"images/val: no images; expected"):
        open_segmentation(str(root), "val", BINARY)


def test_camvid(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    if not (shared / "data" / "camvid").is_dir():
        pytest.skip("no CamVid among the shared files")
    found = [open_segmentation(str(shared / "data" / "camvid"), split, SegmentConfig()) for split in ("train", "val")]
    assert [len(images) for images in found] == [367, 101]
    assert found[0].classes[:4] == ("Sky", "Building", "Pole", "Road")
    assert found[0].describe() == "367 images with label maps of 11 classes"
    labels = found[0].read(0)[1]
    assert labels.shape == (360, 480)
    assert set(np.unique(labels)) <= {*range(11), 255}
    # A road is below, the sky above.
    assert np.bincount(labels[:60].ravel(), minlength=256)[:11].argmax() in (0, 1, 5)
    assert np.bincount(labels[-60:].ravel(), minlength=256)[:11].argmax() == 3
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
