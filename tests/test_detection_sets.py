"""Detection datasets in COCO and Pascal VOC format: contents, and errors for invalid ones."""

import copy
import json
import logging
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dense_sets import Json, annotation, coco_content, encode_rle, write_coco, write_voc
from smt_vision.data.decode import decode
from smt_vision.data.region import Region
from smt_vision.tasks.detection.data.dataset import DetectionDataset
from smt_vision.tasks.detection.data.masks import rasterize_masks
from smt_vision.tasks.detection.data.sources import open_detection


def opened(root: Path, change: Callable[[Json], object] = lambda content: None) -> DetectionDataset:
    content = coco_content()
    write_coco(root, content)
    change(content)
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return open_detection(str(root), "train")


def full_region(height: int, width: int) -> Region:
    return Region(0, 0, width, height, width, height)


def test_images_and_objects(tmp_path: Path) -> None:
    images = opened(tmp_path)
    assert len(images) == 3
    assert images.classes == ("dog", "bottle")  # in the order of their ids
    assert images.category_ids == (18, 44)
    assert images.image_ids.tolist() == [7, 3, 90]
    assert images.portrait().tolist() == [False, True, False]
    raw, target, name = images.read(0)
    assert name == str(tmp_path / "train" / "a.png")
    assert decode(raw, 3, name=name).size == (40, 30)
    assert target["size"] == (30, 40)
    assert target["boxes"].tolist() == [[0, 0, 8, 6], [10, 10, 30, 25], [0, 20, 40, 30]]
    assert target["boxes"].dtype == np.float32
    assert target["labels"].tolist() == [1, 0, 0]
    assert target["labels"].dtype == np.int64
    assert target["crowd"].tolist() == [False, False, True]
    assert target["ids"].tolist() == [1, 2, 9]
    assert target["masks"][2] == encode_rle(30, 40, (0, 20, 40, 30))
    assert images.read(1)[1]["ids"].tolist() == [5]
    empty = images.read(2)[1]
    assert empty["boxes"].shape == (0, 4)
    assert empty["masks"] == []
    assert images.describe() == (
        "3 images, 4 objects of 2 classes, 2 (dog) to 2 (dog) per class; 1 images without objects, 1 crowds"
    )


def test_ground_truth_equals_annotation_file(tmp_path: Path) -> None:
    stored, truth = coco_content(), opened(tmp_path).ground_truth()
    assert truth["images"] == stored["images"]
    by_id = {entry["id"]: entry for entry in truth["annotations"]}
    assert by_id == {entry["id"]: entry for entry in stored["annotations"]}
    assert {c["id"]: c["name"] for c in truth["categories"]} == {44: "bottle", 18: "dog"}


def test_dataset_can_be_pickled(tmp_path: Path) -> None:  # for platforms without fork
    images = opened(tmp_path)
    assert pickle.loads(pickle.dumps(images)).ground_truth() == images.ground_truth()


@pytest.mark.parametrize(
    ("file", "folder"),
    [("instances_train2017", "train2017"), ("instances_train2017", "images/train2017"), ("train", "images")],
)
def test_file_and_folder_names(tmp_path: Path, file: str, folder: str) -> None:
    write_coco(tmp_path)
    (tmp_path / "annotations" / "instances_train.json").rename(tmp_path / "annotations" / f"{file}.json")
    (tmp_path / folder).parent.mkdir(exist_ok=True)
    (tmp_path / "train").rename(tmp_path / folder)
    (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
    images = open_detection(str(tmp_path), "train")
    assert images.read(0)[0] == tmp_path / folder / "a.png"


def test_val_is_preferred_to_test(tmp_path: Path) -> None:
    other = copy.deepcopy(coco_content())
    write_coco(tmp_path, other, "test")
    assert open_detection(str(tmp_path), "val").where == f"{tmp_path / 'test'}/"
    write_coco(tmp_path, other, "val")
    assert open_detection(str(tmp_path), "val").where == f"{tmp_path / 'val'}/"


def test_polygons_and_rle_masks_agree(tmp_path: Path) -> None:
    mask = pytest.importorskip("faster_coco_eval.core.mask", reason="the extra detect is not installed")
    rle = encode_rle(30, 40, (4, 5, 15, 25))
    compressed = mask.frPyObjects(rle, 30, 40)
    compressed = compressed | {"counts": compressed["counts"].decode()}
    polygon = [[4, 5, 15, 5, 15, 25, 4, 25]]
    masks = rasterize_masks([rle, compressed, polygon, [[1, 2, 3, 4]]], full_region(30, 40), 30, 40)
    expected = np.zeros((30, 40))
    expected[5:25, 4:15] = 1
    assert masks.dtype == np.uint8
    for got in masks[:3]:
        assert np.array_equal(got, expected)
    assert not masks[3].any()  # two points enclose nothing


@pytest.mark.parametrize(("hflip", "vflip"), [(False, False), (True, False), (False, True), (True, True)])
def test_masks_are_transformed_like_pixels(hflip: bool, vflip: bool) -> None:
    pytest.importorskip("faster_coco_eval.core.mask", reason="the extra detect is not installed")
    rle, polygon = encode_rle(30, 40, (4, 6, 16, 24)), [[4, 6, 16, 6, 16, 24, 4, 24]]
    original = rasterize_masks([rle], full_region(30, 40), 30, 40)[0]
    region = Region(2, 4, 38, 28, 72, 12, hflip=hflip, vflip=vflip)  # twice as wide, half as high
    expected = region.labels(original)
    assert expected.sum() == 24 * 9  # 12 x 18 pixels of it, all in the window
    masks = rasterize_masks([rle, polygon], region, 30, 40)
    assert np.array_equal(masks[0], expected)
    assert np.array_equal(masks[1], expected)
    assert not rasterize_masks([rle, polygon], Region(20, 0, 40, 30, 20, 30), 30, 40).any()


def set_field(place: str, index: int, **fields: object) -> Callable[[Json], object]:
    return lambda content: content[place][index].update(fields)


ERRORS: list[tuple[Callable[[Json], object], str]] = [
    (
        set_field("annotations", 0, image_id=8),
        r"image_id.*: 5 \(image_id 8\)",
    ),
    (set_field("annotations", 1, category_id=2), r"category_id.*: 1 \(category_id 2\)"),
    (set_field("annotations", 1, id=5), r"1 annotation ids.*: 5 \(2"),
    (set_field("images", 1, id=7), r"1 image ids.*: 7 \(2"),
    (set_field("images", 1, file_name="a.png"), r"1 file names.*: a\.png"),
    (set_field("categories", 1, name="bottle"), r"1 category names.*: bottle"),
    (set_field("categories", 1, id=44), r"1 category ids.*: 44"),
    (set_field("images", 1, file_name="no.png"), r"1 images.*train: no\.png"),
    (set_field("images", 1, file_name=None), r"1 images.*file_name.*: 3"),
    (set_field("images", 1, width="9"), r"1 images.*width.*: 3"),
    (set_field("images", 1, width=0), r"1 images.*size.*: b\.png"),
    (set_field("annotations", 2, bbox=[1, 2, 3]), r"1 annotations.*bbox.*: 2 \(\[1, 2, 3\]\)"),
    (set_field("annotations", 2, bbox=[9, 9, -1, 3]), r"1 boxes.*: annotation 2 \(a\.png\)"),
    (
        set_field("annotations", 2, bbox=[10, 10, 33, 15]),
        r"1 boxes.*: annotation 2 \(a\.png\) \[10\.0, .*\].*40 x 30",
    ),
    (
        set_field("annotations", 3, segmentation={"size": [40, 30], "counts": [1200]}),
        r"annotation 9 \(a\.png\).*\[40, 30\].*\[30, 40\]",
    ),
    (set_field("annotations", 2, segmentation=[1, 2, 3, 4, 5, 6]), r"1 segmentations.*annotation 2"),
    (set_field("annotations", 2, segmentation=[[1, 2, 3, 4, 5, 6, 7]]), r"segmentations.*polygons"),
    (lambda content: content.pop("categories"), r"categories.*COCO"),
    (lambda content: content["images"].clear(), r"0 images.*2 categories"),
]


@pytest.mark.parametrize(("change", "message"), ERRORS, ids=[message[:50] for _, message in ERRORS])
def test_invalid_annotations(tmp_path: Path, change: Callable[[Json], object], message: str) -> None:
    with pytest.raises(ValueError, match=rf"instances_train\.json: .*{message}"):
        opened(tmp_path, change)


def test_all_errors_are_reported_at_once_with_counts(tmp_path: Path) -> None:
    def change(content: Json) -> None:
        content["annotations"] += [annotation(100 + i, 7, 18, (50 + i, 0, 3, 3)) for i in range(8)]
        content["images"][2]["file_name"] = "no.png"

    with pytest.raises(ValueError, match=r"1 images.*no\.png") as caught:
        opened(tmp_path, change)
    assert re.search(r"8 boxes.*: annotation 100 \(a\.png\)", str(caught.value))
    assert "annotation 104" in str(caught.value)
    assert "annotation 105" not in str(caught.value)


def test_tolerated_problems_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(content: Json) -> None:
        content["annotations"] += [
            annotation(20, 3, 18, (-1.5, 40, 10, 11)),
            annotation(21, 3, 18, (5, 5, 0, 4)),
            annotation(22, 3, 18, (5, 5, 4, 4), segmentation=[[5, 5, 9, 9]]),
        ]

    images = opened(tmp_path, change)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [re.search(r"(\d\d) \(b\.png\)", message)[1] for message in warnings] == ["21", "20", "22"]  # type: ignore[index]
    target = images.read(1)[1]
    assert target["boxes"][1].tolist() == [0, 40, 8.5, 50]
    (stored,) = (entry for entry in images.ground_truth()["annotations"] if entry["id"] == 20)
    assert stored["bbox"] == [-1.5, 40, 10, 11]


def test_missing_masks(tmp_path: Path) -> None:
    def change(content: Json) -> None:
        del content["annotations"][0]["segmentation"]
        content["annotations"][2]["segmentation"] = []
        content["annotations"][3]["segmentation"] = None  # a crowd, which needs no mask

    images = opened(tmp_path, change)
    assert images.has_masks
    with pytest.raises(ValueError, match=r"2 of 4 .*: 2 \(a\.png\), 5 \(b\.png\)"):
        images.require_masks()


def test_invalid_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train.*COCO.*Pascal VOC"):
        open_detection(str(tmp_path), "train")
    with pytest.raises(ValueError, match=r"'/nowhere' is not a directory"):
        open_detection("/nowhere", "train")
    write_coco(tmp_path)
    annotations = tmp_path / "annotations"
    (annotations / "instances_train.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"instances_train\.json: .*JSON"):
        open_detection(str(tmp_path), "train")
    (annotations / "instances_train2.json").write_text("{}")
    with pytest.raises(ValueError, match=r"train.*: instances_train\.json, instances_train2\.json"):
        open_detection(str(tmp_path), "train")


# Pascal VOC


def test_voc(tmp_path: Path) -> None:
    write_voc(
        tmp_path,
        {
            "one": [("sheep", (1, 1, 40, 30), 0), ("cow", (11, 6, 20, 15), 1)],
            "two": [],
            "three": [("cow", (2, 3, 2, 3), 0)],
        },
    )
    images = open_detection(str(tmp_path), "train")
    assert images.classes == ("cow", "sheep")
    assert not images.has_masks
    raw, target, name = images.read(0)
    assert raw == tmp_path / "JPEGImages" / "one.png"
    assert name == str(raw)
    # VOC counts pixels from 1, and a box includes its last pixel.
    assert target["boxes"].tolist() == [[0, 0, 40, 30], [10, 5, 20, 15]]
    assert target["labels"].tolist() == [1, 0]
    assert target["crowd"].tolist() == [False, True]
    assert target["masks"] is None
    assert images.read(1)[1]["boxes"].shape == (0, 4)
    assert images.read(2)[1]["boxes"].tolist() == [[1, 2, 2, 3]]
    truth = images.ground_truth()
    assert [entry["area"] for entry in truth["annotations"]] == [1200, 100, 1]
    assert [entry["iscrowd"] for entry in truth["annotations"]] == [0, 1, 0]
    assert "segmentation" not in truth["annotations"][0]
    assert truth["images"][2] == {"id": 3, "file_name": "three.png", "height": 30, "width": 40}


def test_files_of_tools_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_voc(tmp_path / "voc", {"one": [("cow", (1, 1, 40, 30), 0)], "two": []})
    write_coco(tmp_path / "coco")
    for name in (
        "voc/Annotations/._one.xml",
        "voc/Annotations/.ipynb_checkpoints/one.xml",
        "voc/JPEGImages/._one.jpg",
        "voc/JPEGImages/Thumbs.db",
        "voc/ImageSets/Main/._train.txt",
        "coco/annotations/._instances_train.json",
        "coco/annotations/.DS_Store",
        "coco/__MACOSX/annotations/._instances_train.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    images = open_detection(str(root), "train")
    assert [images.id(i) for i in range(len(images))] == ["one.png", "two.png"]
    assert images.classes == ("cow",)
    assert len(open_detection(str(tmp_path / "coco"), "train")) == 3
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_one_of_several_validation_lists_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_voc(tmp_path, {"one": [("cow", (1, 1, 40, 30), 0)], "two": []})
    for name, stem in (("val", "one"), ("test", "two")):
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text(f"{stem}\n")
    with caplog.at_level(logging.WARNING):
        assert open_detection(str(root), "val").id(0) == "one.png"
    assert "ignores" not in caplog.text
    (root / "ImageSets" / "Main" / "valid.txt").write_text("two\n")
    assert open_detection(str(root), "val").id(0) == "one.png"
    assert "uses val, ignores valid, test" in caplog.text


def test_voc_errors(tmp_path: Path) -> None:
    write_voc(tmp_path / "a", {"one": [("cow", (1, 1, 43, 30), 0)]})
    with pytest.raises(ValueError, match=r"1 boxes.*: one\.xml \(cow\) \[0\.0, 0\.0, 43\.0, 30\.0\]"):
        open_detection(str(tmp_path / "a"), "train")
    root = write_voc(tmp_path / "b", {"one": [], "two": []})
    (root / "ImageSets" / "Main" / "train.txt").write_text("one\nno\none\n")
    with pytest.raises(ValueError, match=r"train\.txt.*: no.*train\.txt.*: one"):
        open_detection(str(root), "train")
    (root / "ImageSets" / "Main" / "train.txt").write_text("one\ntwo\n")
    (root / "Annotations" / "one.xml").write_text("<annotation><size>")
    (root / "Annotations" / "two.xml").write_text("<annotation><object/></annotation>")
    with pytest.raises(ValueError, match=r"2 files.*Annotations/.*: one\.xml \(.*two\.xml \("):
        open_detection(str(root), "train")
    (root / "ImageSets" / "Main" / "train.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"train\.txt"):
        open_detection(str(root), "train")


# Real datasets


@pytest.mark.parametrize(
    ("name", "split", "images", "objects", "crowds"),
    [
        ("bccd", "train", 205, 2804, 0),
        ("bccd", "val", 87, 1137, 0),
        ("nuclei", "train", 464, 20497, 0),
        ("nuclei", "val", 67, 3026, 0),
        ("coco_tiny", "train", 50, 470, 5),
        ("coco_tiny", "val", 50, 382, 5),
    ],
)
def test_real_datasets(
    shared: Path, caplog: pytest.LogCaptureFixture, name: str, split: str, images: int, objects: int, crowds: int
) -> None:
    if not (shared / "data" / name).is_dir():
        pytest.skip(f"no {name} among the shared files")
    found = open_detection(str(shared / "data" / name), split)
    targets = [found.read(i)[1] for i in range(len(found))]
    assert len(found) == images
    assert sum(len(target["labels"]) for target in targets) == objects
    assert sum(target["crowd"].sum() for target in targets) == crowds
    assert found.has_masks == (name != "bccd")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_nuclei_masks_fill_their_boxes(shared: Path) -> None:
    pytest.importorskip("faster_coco_eval.core.mask", reason="the extra detect is not installed")
    if not (shared / "data" / "nuclei").is_dir():
        pytest.skip("no nuclei among the shared files")
    images = open_detection(str(shared / "data" / "nuclei"), "val")
    checked = 0
    for i in range(5):
        target = images.read(i)[1]
        masks = rasterize_masks(target["masks"], full_region(*target["size"]), *target["size"])
        for mask, box in zip(masks, target["boxes"], strict=True):
            y, x = mask.nonzero()
            assert [x.min(), y.min(), x.max() + 1, y.max() + 1] == box.tolist()
            checked += 1
    assert checked > 50
