"""Detection datasets in COCO and Pascal VOC format: contents, and errors for invalid ones."""

import copy
import json
import logging
import pickle
import re
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dense_sets import Json, annotation, coco_content, encode_rle, write_coco, write_voc
from smt_vision.data.decode import decode
from smt_vision.data.region import Region
from smt_vision.data.validation import ValidationReport
from smt_vision.tasks.detection.config import DetectConfig, DetectionAugment
from smt_vision.tasks.detection.data.dataset import DetectionDataset
from smt_vision.tasks.detection.data.masks import rasterize_masks
from smt_vision.tasks.detection.data.segmentations import check_segmentations
from smt_vision.tasks.detection.data.sources import open_detection
from smt_vision.tasks.detection.data.transforms import check_training_sizes
from smt_vision.tasks.detection.metrics import DetectionMetrics


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


@pytest.mark.parametrize(("folder", "prefix"), [("images", "images/"), ("images/train", "train/"), ("train", "train/")])
def test_file_names_that_begin_with_a_folder(tmp_path: Path, folder: str, prefix: str) -> None:
    write_coco(tmp_path)
    (tmp_path / "train").rename(tmp_path / "moved")
    (tmp_path / folder).parent.mkdir(exist_ok=True)
    (tmp_path / "moved").rename(tmp_path / folder)
    file = tmp_path / "annotations" / "instances_train.json"
    file.write_text(file.read_text().replace('"file_name": "', f'"file_name": "{prefix}'))
    images = open_detection(str(tmp_path), "train")
    assert [images.read(i)[0] for i in range(3)] == [
        tmp_path / folder / name for name in ("a.png", "b.png", "sub/c.png")
    ]


def test_another_annotation_file_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_coco(tmp_path)
    (tmp_path / "annotations" / "train.json").write_text("{}")
    assert len(open_detection(str(tmp_path), "train")) == 3
    assert f"{tmp_path / 'annotations'}: uses instances_train.json, ignores train.json" in caplog.text


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
    (set_field("images", 1, width="wide"), r"1 images.*width.*: 3"),
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
    assert [re.search(r"(\d\d) \(b\.png\)", message)[1] for message in warnings] == ["22", "21", "20"]  # type: ignore[index]
    target = images.read(1)[1]
    assert target["boxes"][1].tolist() == [0, 40, 8.5, 50]
    (stored,) = (entry for entry in images.ground_truth()["annotations"] if entry["id"] == 20)
    assert stored["bbox"] == [-1.5, 40, 10, 11]


@pytest.mark.parametrize("layout", ["coco", "voc"])
def test_few_boxes_outside_are_clipped_and_all_if_asked_for(
    layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    boxes = [(1 + k, 1, 10 + k, 10) for k in range(19)] + [(21, 6, 60, 25)]  # as VOC counts
    for root, outside in ((tmp_path / "few", 1), (tmp_path / "many", 2)):
        chosen = [*boxes[outside - 1 :], *[boxes[-1]] * (outside - 1)]
        if layout == "voc":
            write_voc(root, {"a": [("dog", box, 0) for box in chosen]})
        else:
            content = coco_content()
            content["annotations"] = [
                annotation(k, 7, 18, (a - 1, b - 1, c - a + 1, d - b + 1)) for k, (a, b, c, d) in enumerate(chosen, 1)
            ]
            write_coco(root, content)
    for name, clip in (("few", False), ("many", True)):
        found = open_detection(str(tmp_path / name), "train", clip_boxes=clip)
        i = next(i for i in range(len(found)) if found.id(i) == "a.png")
        assert found.read(i)[1]["boxes"][-1].tolist() == [20, 5, 40, 25]
        assert found.ground_truth()["annotations"][-1]["bbox"] == [20, 5, 40, 20]
        assert "boxes more than 2 px outside of their image" in caplog.text
        caplog.clear()
    with pytest.raises(ValueError, match=r"2 boxes outside of their image.*input\.clip_boxes"):
        open_detection(str(tmp_path / "many"), "train")


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


# COCO JSON as other tools write it


def change_all(place: str, *drop: str, **fields: Callable[[Any], object]) -> Callable[[Json], object]:
    """Drop fields of all entries, and replace others by a function of their value."""

    def change(content: Json) -> None:
        for entry in content[place]:
            for key in drop:
                del entry[key]
            entry.update({key: function(entry[key]) for key, function in fields.items()})

    return change


def chain(*changes: Callable[[Json], object]) -> Callable[[Json], object]:
    return lambda content: [change(content) for change in changes]


def box_rle(**changed: object) -> Json:
    """The mask of annotation 9, with other fields."""
    return {"segmentation": encode_rle(30, 40, (0, 20, 40, 30)) | changed}


FLOAT_COUNTS = [float(count) for count in encode_rle(30, 40, (0, 20, 40, 30))["counts"]]
SAME: dict[str, Callable[[Json], object]] = {
    "ids as text": chain(
        change_all("images", id=str), change_all("annotations", id=str, image_id=str, category_id=str),
        change_all("categories", id=str),
    ),
    "ids as floats": chain(
        change_all("images", id=float), change_all("annotations", id=float, image_id=float, category_id=float),
        change_all("categories", id=float),
    ),
    "ids as text in the images only": change_all("images", id=lambda id: f" {id} "),
    "sizes as floats": change_all("images", width=float, height=float),
    "sizes as text": change_all("images", width=str, height=str),
    "iscrowd as text": change_all("annotations", iscrowd=str),
    "iscrowd as a boolean": change_all("annotations", iscrowd=bool),
    "iscrowd as text of a boolean": change_all("annotations", iscrowd=lambda flag: str(bool(flag))),
    "iscrowd as a float": change_all("annotations", iscrowd=float),
    "iscrowd null unless 1": change_all("annotations", iscrowd=lambda flag: flag or None),
    "no areas": change_all("annotations", "area"),
    "areas null": change_all("annotations", area=lambda area: None),
    "areas as text": change_all("annotations", area=str),
    "areas 0": change_all("annotations", area=lambda area: 0),
    "areas NaN": change_all("annotations", area=lambda area: float("nan")),
    "no boxes": change_all("annotations", "bbox"),
    "boxes null": change_all("annotations", bbox=lambda box: None),
    "boxes empty": change_all("annotations", bbox=lambda box: []),
    "counts as floats": set_field("annotations", 3, **box_rle(counts=FLOAT_COUNTS)),
    "RLE size as floats": set_field("annotations", 3, **box_rle(size=[30.0, 40.0])),
    "empty polygon": set_field("annotations", 0, segmentation=[[2, 3, 12, 3, 12, 23, 2, 23], []]),
    "file name with ./": set_field("images", 0, file_name="./a.png"),
    "file name with ..": set_field("images", 0, file_name="../train/a.png"),
    "file name with folder": set_field("images", 0, file_name="sub/../a.png"),
    "Windows file name": set_field("images", 2, file_name="sub\\c.png"),
    "annotations by id, as LIVECell": lambda c: c.update(annotations={str(a["id"]): a for a in c["annotations"]}),
    "images by id": lambda c: c.update(images={str(image["id"]): image for image in c["images"]}),
    "boxes as text": change_all("annotations", bbox=lambda box: [str(side) for side in box]),
    "supercategory of the same name, as Roboflow": chain(
        set_field("categories", 0, supercategory="bottle"),
        lambda c: c["categories"].insert(0, {"id": 0, "name": "bottle", "supercategory": "none"})),
    "blanks around a class name": set_field("categories", 0, name=" bottle "),
    "unused class": lambda content: content["categories"].append({"id": 0, "name": "all", "supercategory": "none"}),
}  # fmt: skip


@pytest.mark.parametrize("form", SAME)
def test_form_of_a_field_does_not_change_the_dataset(tmp_path: Path, form: str) -> None:
    def content_of(images: DetectionDataset) -> Json:
        truth = images.ground_truth()
        return {key: sorted(truth[key], key=lambda entry: entry["id"]) for key in ("images", "annotations")}

    assert content_of(opened(tmp_path / "b", SAME[form])) == content_of(opened(tmp_path / "a"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_encoding_of_the_file(tmp_path: Path, encoding: str) -> None:
    write_coco(tmp_path)
    file = tmp_path / "annotations" / "instances_train.json"
    file.write_bytes(file.read_text().encode(encoding))
    assert len(open_detection(str(tmp_path), "train")) == 3


@pytest.mark.parametrize("offset", [0, -20, 2**62])
def test_ids_may_be_any_integer(tmp_path: Path, offset: int) -> None:
    def shift(id: int) -> int:
        return offset + id - 1

    images = opened(
        tmp_path,
        chain(
            change_all("images", id=shift),
            change_all("annotations", id=shift, image_id=shift, category_id=shift),
            change_all("categories", id=shift),
        ),
    )
    assert images.image_ids.tolist() == [offset + 6, offset + 2, offset + 89]
    assert images.category_ids == (offset + 17, offset + 43)
    assert images.read(0)[1]["ids"].tolist() == [offset, offset + 1, offset + 8]
    assert json.dumps(images.ground_truth())  # plain integers


def test_annotations_without_ids_are_numbered(tmp_path: Path) -> None:
    images = opened(tmp_path, change_all("annotations", "id"))
    assert [images.read(i)[1]["ids"].tolist() for i in range(3)] == [[2, 3, 4], [1], []]


def test_missing_box_and_area_are_those_of_the_mask(tmp_path: Path) -> None:
    ring = encode_rle(30, 40, (12, 11, 20, 21))
    two_triangles = [[10, 10, 30, 10, 10, 20], [30, 25, 20, 25, 30, 20]]

    def change(content: Json) -> None:
        content["annotations"][1] = {"id": 1, "image_id": 7, "category_id": 18, "segmentation": two_triangles}
        content["annotations"][2] = {"id": 2, "image_id": 7, "category_id": 18, "segmentation": ring}

    by_id = {entry["id"]: entry for entry in opened(tmp_path, change).ground_truth()["annotations"]}
    assert (by_id[1]["bbox"], by_id[1]["area"]) == ([10, 10, 20, 15], 100 + 25)
    assert (by_id[2]["bbox"], by_id[2]["area"]) == ([12, 11, 8, 10], 80)


def test_measures_of_masks_equal_the_library_s(tmp_path: Path) -> None:
    mask = pytest.importorskip("faster_coco_eval.core.mask", reason="the extra detect is not installed")
    rng = np.random.default_rng(0)
    pixels = [rng.random((30, 40)) < share for share in (0.0, 0.001, 0.01, 0.5, 0.99, 1.0) for _ in range(20)]
    pixels += [np.outer(np.arange(30) == row, np.arange(40) >= 3) for row in range(30)]
    rles = [mask.encode(np.asfortranarray(p.astype(np.uint8))) for p in pixels]
    stored: list[Json] = []
    for k, (rle, p) in enumerate(zip(rles, pixels, strict=True)):
        edges = np.flatnonzero(np.diff(p.T.ravel().astype(int), prepend=0))
        listed = np.diff(edges, prepend=0, append=p.size).tolist()
        text = rle["counts"] if isinstance(rle["counts"], str) else rle["counts"].decode()
        stored.append({"size": [30, 40], "counts": listed if k % 2 else text})
    report = ValidationReport("masks")
    found = check_segmentations(report, stored, np.full((len(stored), 2), (30, 40)), str)
    report.raise_errors()
    assert found.areas.tolist() == mask.area(rles).tolist() == [p.sum() for p in pixels]
    boxes = mask.toBbox(rles)
    boxes[:, 2:] += boxes[:, :2]
    full = found.areas > 0
    assert np.array_equal(found.boxes[full], boxes[full])
    assert np.isnan(found.boxes[~full]).all()


def test_long_examples_of_a_problem_are_shortened() -> None:
    report = ValidationReport("train.txt")
    for i in range(7):
        report.error("names without an image", f"{i}{'a' * 10**6}.jpg", "remove them")
    with pytest.raises(ValueError, match=r"^train.txt: 7 names .* \.\.\. a+\.jpg \.\.\.; remove them$") as error:
        report.raise_errors()
    assert len(str(error.value)) < 3000


def box_metrics(images: DetectionDataset) -> Json:
    """Metrics of detections equal to the ground truth, except that in every image the last is missing."""
    metric = DetectionMetrics(images.ground_truth(), images.classes, images.category_ids, masks=False)
    for i, image_id in enumerate(images.image_ids.tolist()):
        target = images.read(i)[1]
        keep = np.flatnonzero(~target["crowd"])[:-1]
        boxes, labels = torch.from_numpy(target["boxes"][keep]), torch.from_numpy(target["labels"][keep])
        metric.update(image_id, boxes, 1 - torch.arange(len(keep)) / 10, labels)
    return metric.compute()


@pytest.mark.parametrize("offset", [0, 1, -100, 2**62])
def test_average_precision_does_not_depend_on_ids(tmp_path: Path, offset: int) -> None:
    def change(content: Json) -> None:
        content["annotations"] = [
            annotation(offset + k, 7, 18 if k % 2 else 44, (4 * k, 0, 4, 10)) for k in range(9)
        ] + [annotation(offset + 9, 3, 18, (0, 0, 5, 5), iscrowd="0")]
        for image in content["images"]:
            image["id"] += offset
        for entry in content["annotations"]:
            entry["image_id"] += offset

    out = box_metrics(opened(tmp_path, change))
    assert (out["objects"], out["count"]) == (10, 3)
    # Of five objects per class all but one are found, at full precision: 81 of 101 recall thresholds.
    assert out["box_ap"] == pytest.approx(100 * 81 / 101)
    assert out["box_ar"] == pytest.approx(80)


REFUSED: dict[str, tuple[Callable[[Json], object], str]] = {
    "boolean id": (set_field("images", 1, id=True), r"1 images whose id.*index 1 \(True\)"),
    "null id": (set_field("images", 1, id=None), r"1 images whose id.*index 1 \(None\)"),
    "fraction as id": (set_field("images", 1, id=3.5), r"id.*3\.5"),
    "id of 100 bits": (set_field("images", 1, id=2**100), r"id.*64 bits"),
    "text as id": (set_field("images", 1, id="b"), r"id.*'b'"),
    "equal ids, one of them text": (set_field("images", 1, id="7"), r"1 image ids.*: 7"),
    "one annotation without id": (lambda c: c["annotations"][2].pop("id"), r"1 annotations whose id.*index 2"),
    "null image_id": (set_field("annotations", 1, image_id=None), r"1 annotations whose image_id.*: 1 \(None\)"),
    "class name as category_id": (set_field("annotations", 1, category_id="dog"), r"category_id.*: 1 \('dog'\)"),
    "null size": (set_field("images", 1, width=None), r"1 images whose width.*: 3 \(None\)"),
    "fraction as size": (set_field("images", 1, width=20.5), r"width.*20\.5"),
    "huge size": (set_field("images", 1, width=2**40), r"1 images without a size: b\.png"),
    "size of another image": (
        lambda c: [(i.update(width=64, height=64), c["annotations"].pop(3) if len(c["annotations"]) > 3 else 0)
                   for i in c["images"]],
        r"train/: 3 images.*a\.png 40 x 30 for 64 x 64",
    ),
    "URL": (set_field("images", 0, file_name="https://x.org/a.png"), r"1 images.*URL: https://x\.org/a\.png"),
    "path of another machine": (set_field("images", 0, file_name="/home/me/a.png"), r"path.*: /home/me/a\.png"),
    "path of Windows": (set_field("images", 0, file_name="C:\\me\\a.png"), r"path.*: C:\\me\\a\.png"),
    "percent-encoded": (set_field("images", 2, file_name="sub%2Fc.png"), r"percent-encoded: sub%2Fc\.png"),
    "blank file name": (set_field("images", 0, file_name=" "), r"file_name.*: 7 \(' '\)"),
    "folder as file name": (set_field("images", 0, file_name="sub"), r"1 images are not in .*: sub"),
    "folder with too long a name": (set_field("images", 0, file_name=f"{'x' * 300}/a.png"), r"1 images are in .*x/a"),
    "file with too long a name": (set_field("images", 0, file_name="x" * 300), r"1 images are not in .*: xxx"),
    "null character": (set_field("images", 0, file_name="a\0/a.png"), r"1 images are in .*a.png"),
    "same file twice": (set_field("images", 1, file_name="./a.png"), r"1 file names.*: a\.png \(2"),
    "number as class name": (set_field("categories", 0, name=5), r"1 categories whose name.*: 44 \(5\)"),
    "blank class name": (set_field("categories", 0, name=" "), r"categories whose name.*: 44"),
    "class names that differ in blanks": (set_field("categories", 0, name="dog "), r"category names.*: dog"),
    "null as annotation": (lambda c: c["annotations"].append(None), r"1 annotations.*index 4 \(None\)"),
    "list as image": (lambda c: c["images"].append([1]), r"1 images.*index 3 \(\[1\]\)"),
    "no box and no mask": (
        set_field("annotations", 2, bbox=None, segmentation=None), r"1 annotations whose bbox.*: 2 \(None\)"),
    "no box and an invalid mask": (
        set_field("annotations", 3, bbox=None, **box_rle(counts="zz~~")), r"1 RLE masks.*annotation 9"),
    "box of text": (set_field("annotations", 2, bbox=["1", "2", "three", "4"]), r"bbox.*: 2 \(\['1'"),
    "box of booleans": (set_field("annotations", 2, bbox=[True, 2, 3, 4]), r"bbox.*: 2 \(\[True"),
    "box with NaN": (set_field("annotations", 2, bbox=[1, float("nan"), 3, 4]), r"bbox.*: 2 \(\[1, nan"),
    "box with infinity": (set_field("annotations", 2, bbox=[1, 2, float("inf"), 4]), r"bbox.*: 2 \(\[1, 2, inf"),
    "box of 400 digits": (set_field("annotations", 2, bbox=[10**400, 2, 3, 4]), r"bbox.*: 2 \(\[1000"),
    "box of 300 digits": (set_field("annotations", 2, bbox=[0, 0, 1e300, 1e300]), r"outside.*annotation 2"),
    "boxes as shares": (
        change_all("annotations", bbox=lambda box: [0.1, 0.2, 0.5, 1]), r"4 boxes.*normal.*annotation 5 \(b\.png\)"),
    "boxes as shares, not clipped": (
        chain(change_all("annotations", bbox=lambda box: [-0.01, 0.2, 1.02, 1]),
              set_field("annotations", 0, bbox=[1, 2, 12, 12], segmentation=None)),
        r"3 of 4 boxes.*normalized.*annotation 1 \(a\.png\)"),
    "boxes as corners, told by their areas": (
        lambda c: c.update(annotations=[
            {"id": k, "image_id": 7, "category_id": 18, "bbox": [k, k, k + 9, k + 5], "area": 45}
            for k in range(1, 9)]),
        r"8 boxes whose area.*corners.*annotation 1 \(a\.png\) \[1\.0, 1\.0, 10\.0, 6\.0\]"),
    "equal annotation ids": (change_all("annotations", id=lambda id: 0), r"annotation ids.*: 0 \(4 times\); number"),
    "polygon as a list of points": (
        set_field("annotations", 0, segmentation=[[2, 3], [12, 3], [12, 13]]), r"1 segmentations.*annotation 5 "),
    "file in a folder that does not exist": (
        set_field("images", 0, file_name="upload/a.png"), r"1 images are in .*without the folders.*upload/a\.png"),
    "boxes as corners": (
        change_all("annotations", bbox=lambda box: [box[0], box[1], box[0] + box[2], box[1] + box[3]]),
        r"2 boxes outside.*: annotation 2 .*corners",
    ),
    "boxes as corners, all inside": (
        lambda c: [c["annotations"].pop(3)] + [
            c["annotations"].append(annotation(20 + k, 7, 18, (10, 10, 4, 4)) | {"bbox": [10, 10, 14, 14]})
            for k in range(4)
        ],
        r"4 boxes that overlap.*annotation 20 \(a\.png\) \[10\.0, 10\.0, 14\.0, 14\.0\].*corners",
    ),
    "polygons as shares": (
        change_all("annotations", segmentation=lambda p: [[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]]),
        r"3 boxes that overlap.*annotation 5 .*normalized",
    ),
    "iscrowd 2": (set_field("annotations", 0, iscrowd=2), r"1 annotations whose iscrowd.*: 5 \(2\)"),
    "iscrowd NaN": (set_field("annotations", 0, iscrowd=float("nan")), r"iscrowd.*: 5 \(nan\)"),
    "iscrowd list": (set_field("annotations", 0, iscrowd=[]), r"iscrowd.*: 5 \(\[\]\)"),
    "only crowds": (change_all("annotations", iscrowd=lambda flag: 1), r"train/: 4 of 4 objects.*iscrowd"),
    "no annotations": (lambda c: c["annotations"].clear(), r"train/: no objects"),
    "text as segmentation": (set_field("annotations", 0, segmentation="x"), r"1 segmentations.*annotation 5 .*'x'"),
    "polygon of points": (
        set_field("annotations", 0, segmentation=[[[1, 2], [3, 4], [5, 6], [7, 8]]]), r"polygons.*annotation 5"),
    "polygon with text": (set_field("annotations", 0, segmentation=[["1", 2, 3, 4, 5, 6]]), r"polygons.*annotation 5"),
    "polygon with null": (set_field("annotations", 0, segmentation=[[None, 2, 3, 4, 5, 6]]), r"polygons.*annotation 5"),
    "polygon with NaN": (
        set_field("annotations", 0, segmentation=[[float("nan"), 2, 3, 4, 5, 6]]), r"polygons.*annotation 5"),
    "polygon far outside": (
        set_field("annotations", 0, segmentation=[[2, 3, 1e9, 3, 12, 23]]), r"1 segmentations.*outside.*annotation 5"),
    "RLE without size": (set_field("annotations", 3, **box_rle(size=None)), r"1 RLE masks.*annotation 9 \(a\.png\)"),
    "RLE size as text": (set_field("annotations", 3, **box_rle(size=["30", "40"])), r"1 RLE masks.*annotation 9"),
    "RLE without counts": (set_field("annotations", 3, **box_rle(counts=None)), r"1 RLE masks.*annotation 9"),
    "no counts": (set_field("annotations", 3, **box_rle(counts=[])), r"RLE.*counts.*annotation 9 \(a\.png\) \[\]"),
    "counts as text": (set_field("annotations", 3, **box_rle(counts=["20", 1180])), r"RLE.*counts.*annotation 9"),
    "negative counts": (set_field("annotations", 3, **box_rle(counts=[1300, -100])), r"RLE.*counts.*annotation 9"),
    "counts with a fraction": (set_field("annotations", 3, **box_rle(counts=[0.5, 1199.5])), r"RLE.*annotation 9"),
    "too few counts": (set_field("annotations", 3, **box_rle(counts=[20, 10])), r"RLE.*counts.*annotation 9"),
    "too many counts": (set_field("annotations", 3, **box_rle(counts=[20, 1181])), r"RLE.*counts.*annotation 9"),
    "garbage as counts": (set_field("annotations", 3, **box_rle(counts="zz~~")), r"RLE.*counts.*annotation 9"),
    "truncated counts": (set_field("annotations", 3, **box_rle(counts="d0:d0P")), r"RLE.*counts.*annotation 9"),
    "counts as text of bytes": (set_field("annotations", 3, **box_rle(counts="b'd0:d'")), r"RLE.*annotation 9"),
    "counts outside of ASCII": (set_field("annotations", 3, **box_rle(counts="d0:\ud800é")), r"RLE.*annotation 9"),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_invalid_field_is_refused_with_file_and_id(tmp_path: Path, form: str) -> None:
    change, message = REFUSED[form]
    with pytest.raises(ValueError, match=message) as caught:
        opened(tmp_path, change)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "results"),
        ("", "JSON"),
        ("[" * 100_000, "JSON"),
        ('{"images": ' + "9" * 5000 + "}", "JSON"),
        ('{"images": [], "images": [{}]}', r"'images' 2 times"),
        ('{"images": [{}], "annotations": null, "categories": [{}]}', "no list of annotations"),
    ],
    ids=["results", "empty file", "deep", "5000 digits", "key twice", "null"],
)
def test_invalid_json_is_refused(tmp_path: Path, text: str, message: str) -> None:
    write_coco(tmp_path)
    (tmp_path / "annotations" / "instances_train.json").write_text(text)
    with pytest.raises(ValueError, match=rf"instances_train\.json: .*{message}"):
        open_detection(str(tmp_path), "train")


TOLD: dict[str, tuple[Callable[[Json], object], str]] = {
    "areas 0": (change_all("annotations", area=lambda area: 0), r"4 annotations whose area.*annotation 5 .* 0,"),
    "mostly crowds": (
        lambda c: [c["annotations"][k].update(iscrowd="1") for k in (0, 1)], r"3 of 4 objects are crowds.*iscrowd"),
    "LVIS": (
        set_field("images", 0, neg_category_ids=[18]), r"1 images with neg_category_ids.*: a\.png; evaluated as COCO"),
    "ignore": (set_field("annotations", 0, ignore=1), r"1 annotations.*ignore: annotation 5"),
    "score": (set_field("annotations", 0, score=0.5), r"1 annotations.*score.*annotation 5"),
    "mask without a pixel": (set_field("annotations", 1, **box_rle(counts=[1200])), r"1 RLE masks.*annotation 1 "),
    "one box that does not fit": (set_field("annotations", 2, bbox=[0, 0, 5, 5]), r"1 boxes that overlap.* 2 \(a"),
}  # fmt: skip


@pytest.mark.parametrize("form", TOLD)
def test_unusual_field_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str) -> None:
    change, message = TOLD[form]
    opened(tmp_path, change)
    (told,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert re.search(message, told)


def test_classes_without_objects_are_told(tmp_path: Path) -> None:
    images = opened(tmp_path, lambda content: content["categories"].append({"id": 0, "name": "things"}))
    assert images.describe().endswith("; 1 classes without objects: things")


def test_file_names_in_composed_and_decomposed_unicode(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    (root / "train" / "a.png").rename(root / "train" / unicodedata.normalize("NFD", "é.png"))
    file = root / "annotations" / "instances_train.json"
    file.write_text(file.read_text().replace("a.png", unicodedata.normalize("NFC", "é.png")))
    assert open_detection(str(root), "train").read(0)[0].is_file()


@pytest.mark.parametrize(
    ("side", "level", "message"),
    [
        (0.9, logging.INFO, "drops 1 of 3"),
        (3.0, logging.WARNING, "drops 2 of 3 .*classes: bottle"),
        (9.0, None, "3 of 3"),
    ],
)
def test_objects_below_min_box_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, side: float, level: int | None, message: str
) -> None:
    """At half the size, the shortest sides are 0.5 and 3 (dogs) and 1.5 pixels (bottle)."""

    def change(content: Json) -> None:
        for entry, box in zip(content["annotations"], ([2, 3, 3, 20], [0, 0, 1, 6], [10, 10, 20, 6]), strict=False):
            entry.update(bbox=box, segmentation=None)
        content["annotations"][1]["category_id"] = 18

    images = opened(tmp_path, change)
    caplog.set_level(logging.INFO)
    caplog.clear()
    # The short sides of the two images are 30 and 20.
    small = DetectConfig(train_short_sides=(10, 15), long_side=10_000, min_box=side)
    images.sizes[1] = (50, 30)
    if level is None:
        with pytest.raises(ValueError, match=rf"{message}.*min_box=9"):
            check_training_sizes(images, small, DetectionAugment())
    else:
        check_training_sizes(images, small, DetectionAugment())
        (record,) = caplog.records
        assert record.levelno == level
        assert re.search(message, record.getMessage())


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


VOC_OBJECTS = {
    "one": [("cow", (1, 1, 40, 30), 0)],
    "photo (1)": [("cow", (2, 3, 20, 10), 0)],
    "IMG 001": [("big cat", (2, 3, 20, 10), 0)],
}


def voc_with(root: Path, content: bytes | None = None, replace: tuple[str, str] | None = None) -> Path:
    """Three images; with another list, and with text of ``one.xml`` replaced."""
    write_voc(root, VOC_OBJECTS)
    if content is not None:
        (root / "ImageSets" / "Main" / "train.txt").write_bytes(content)
    if replace is not None:
        file = root / "Annotations" / "one.xml"
        assert replace[0] in file.read_text()
        file.write_text(file.read_text().replace(*replace, 1))
    return root


VOC_LISTS = {
    "blanks in names": b"one\nphoto (1)\nIMG 001\n",
    "blanks around names": b"\n  one \n\nphoto (1)\t\nIMG 001",
    "Windows line ends": b"one\r\nphoto (1)\r\nIMG 001\r\n",
    "byte order mark": b"\xef\xbb\xbfone\nphoto (1)\nIMG 001\n",
    "UTF-16": "one\r\nphoto (1)\r\nIMG 001\r\n".encode("utf-16"),
    "suffixes": b"one.png\nphoto (1).png\nIMG 001.png\n",
    "quotation marks, as CVAT": b'one\n"photo (1)"\n"IMG 001"\n',
    "quotation marks and labels": b'one 1\n"photo (1)" -1\n"IMG 001" 0\n',
    "labels of a class": b"one -1\nphoto (1)  1\nIMG 001  0\n",
}


@pytest.mark.parametrize("form", VOC_LISTS)
def test_voc_list(tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str) -> None:
    images = open_detection(str(voc_with(tmp_path / "set", VOC_LISTS[form])), "train")
    assert [images.id(i) for i in range(len(images))] == ["one.png", "photo (1).png", "IMG 001.png"]
    assert images.classes == ("big cat", "cow")
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == ("labels" in form)


def test_number_in_a_voc_name_is_not_a_label(tmp_path: Path) -> None:
    objects = [("cow", (1, 1, 5, 5), 0)]
    images = open_detection(
        str(write_voc(tmp_path / "set", {"IMG": objects, "IMG 1": objects, "IMG 0": objects})), "train"
    )
    assert [images.id(i) for i in range(3)] == ["IMG.png", "IMG 1.png", "IMG 0.png"]
    (tmp_path / "set" / "ImageSets" / "Main" / "train.txt").write_text("IMG 1\nIMG -1\n")
    with pytest.raises(ValueError, match=r"1 names in train\.txt.*: IMG -1"):
        open_detection(str(tmp_path / "set"), "train")


def test_voc_names_in_composed_and_decomposed_unicode(tmp_path: Path) -> None:
    root = voc_with(tmp_path / "set", unicodedata.normalize("NFC", "é\n").encode())
    decomposed = unicodedata.normalize("NFD", "é")
    (root / "JPEGImages" / "one.png").rename(root / "JPEGImages" / f"{decomposed}.png")
    (root / "Annotations" / "one.xml").rename(root / "Annotations" / "é.XML")
    (root / "Annotations" / "._one.xml").write_bytes(b"\0")  # as macOS leaves behind
    images = open_detection(str(root), "train")
    assert images.read(0)[0].is_file()
    assert images.read(0)[1]["boxes"].tolist() == [[0, 0, 40, 30]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\nIMG\n", r"1 names in train\.txt.*: IMG;"),
        (b"one 1\nphoto (1)\n", r"1 names.*: one 1;"),
        (b"one 2\n", r"1 names.*: one 2;"),
        (b"ONE\n", r"1 names.*: ONE;"),
        (b"one.jpg\n", r"1 names.*: one\.jpg;"),
        (b"JPEGImages/one.png\n", r"1 names.*: JPEGImages/one\.png;"),
        (b"# list\none\n", r"1 names.*: # list;"),
        ("é".encode("latin-1"), r"train\.txt: .*UTF-8"),
        (b"one\none.png\n", r"1 names that occur.*: one;"),
    ],
)
def test_invalid_voc_list_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_detection(str(voc_with(tmp_path / "set", content)), "train")


def test_two_files_of_a_voc_name_are_refused(tmp_path: Path) -> None:
    root = voc_with(tmp_path / "set")
    shutil.copy(root / "JPEGImages" / "one.png", root / "JPEGImages" / "one.jpg")
    with pytest.raises(ValueError, match=r"1 names.*several files: one\.jpg and one\.png"):
        open_detection(str(root), "train")


@pytest.mark.parametrize(
    ("replace", "difficult"),
    [
        (("<difficult>0</difficult>", ""), False),
        (("<difficult>0", "<difficult>"), False),
        (("<difficult>0", "<difficult>Unspecified"), False),
        (("<difficult>0", "<difficult> 1 "), True),
        (("<difficult>0", "<difficult>True"), True),
        (("<width>40", "<width> 40.0 "), False),
        (("<xmin>1<", "<xmin> 1.0 <"), False),
    ],
)
def test_form_of_a_voc_field(tmp_path: Path, replace: tuple[str, str], difficult: bool) -> None:
    target = open_detection(str(voc_with(tmp_path / "set", None, replace)), "train").read(0)[1]
    assert target["boxes"].tolist() == [[0, 0, 40, 30]]
    assert target["crowd"].tolist() == [difficult]


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (("<difficult>0", "<difficult>2"), r"difficult '2'"),
        (("<width>40", "<width>wide"), r"size/width 'wide'"),
        (("<width>40", "<width>inf"), r"size/width 'inf'"),
        (("<width>40", "<width>0"), r"size 0 x 30"),
        (("<width>40", "<width>40.5"), r"size 40\.5 x 30"),
        (("<width>40</width>", ""), r"missing size/width"),
        (("<xmin>1<", "<xmin>nan<"), r"xmin 'nan'"),
        (("<xmin>1<", "<xmin>1,5<"), r"xmin '1,5'"),
        (("<xmin>1<", "<xmin>1_0<"), r"xmin '1_0'"),
        (("<xmin>1<", "<xmin><"), r"xmin ''"),
        (("<xmin>1</xmin>", ""), r"missing bndbox/xmin"),
        (("<xmin>1<", "<xmin>41<"), r"xmin 41, xmax 40"),
        (("<name>cow", "<name> "), r"without a name"),
        (("<annotation>", '<!DOCTYPE a [<!ENTITY b "cow">]><annotation>'), r"DOCTYPE"),
        (("<annotation>", '<?xml version="1.0" encoding="none"?><annotation>'), r"encoding"),
    ],
)
def test_invalid_voc_file_is_refused(tmp_path: Path, replace: tuple[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=rf"1 files in Annotations/.*: one\.xml \(.*{message}"):
        open_detection(str(voc_with(tmp_path / "set", None, replace)), "train")


def test_voc_set_that_loses_its_objects(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    box = (1, 1, 10, 10)
    mostly = write_voc(tmp_path / "a", {"one": [("cow", box, 1), ("cow", box, 1), ("cow", box, 0)]})
    open_detection(str(mostly), "train")
    assert "2 of 3 objects are crowds or marked difficult" in caplog.text
    with pytest.raises(ValueError, match=r"1 of 1 objects.*difficult"):
        open_detection(str(write_voc(tmp_path / "b", {"one": [("cow", box, 1)]})), "train")
    with pytest.raises(ValueError, match=r"no objects"):
        open_detection(str(write_voc(tmp_path / "c", {"one": []})), "train")
    shares = [("cow", (0.1, 0.2, 0.5, 1.0), 0)]
    with pytest.raises(ValueError, match=r"2 boxes.*normalized.*one\.xml \(cow\) \[0\.1, 0\.2, 0\.5, 1\.0\]"):
        open_detection(str(write_voc(tmp_path / "d", {"one": shares, "two": shares})), "train")
    caplog.clear()
    open_detection(str(write_voc(tmp_path / "e", {"one": [("cow", (0, 1, 10, 10), 0)]})), "train")
    assert re.search(r"1 boxes that begin at 0: one\.xml \(cow\).*count from 1", caplog.text)


def test_voc_boxes_of_cvat_count_from_zero(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """datumaro writes x, y, x + width and y + height, and a label map."""
    boxes = [("cow", (0.0, 0.0, 40.0, 30.0), 0), ("cow", (10.5, 5.25, 20.0, 15.0), 0)]
    write_voc(tmp_path, {"one": boxes})
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\ncow:128,0,0::\n")
    found = open_detection(str(tmp_path), "train")
    assert found.read(0)[1]["boxes"].tolist() == [[0, 0, 40, 30], [10.5, 5.25, 20, 15]]
    assert found.objects()["areas"].tolist() == [1200, 9.5 * 9.75]
    assert "begin at 0" not in caplog.text


def test_a_class_of_crowds_only_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    box = (1, 1, 10, 10)
    root = write_voc(tmp_path, {"one": [("cow", box, 0)] * 5 + [("dog", box, 1)] * 2 + [("cow", box, 1)]})
    open_detection(str(root), "train")
    message = r"3 of 8 objects are crowds or marked difficult, among them all of 1 classes: dog; .*brush"
    assert re.search(message, caplog.text)


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


def test_voc_names_with_folders(tmp_path: Path) -> None:
    objects = {"cam1/0.a": [("cow", (1, 1, 5, 5), 0)], "cam2/0.a": [("cow", (2, 3, 20, 10), 0)]}
    for folder in ("Annotations", "JPEGImages"):
        for camera in ("cam1", "cam2"):
            (tmp_path / "set" / folder / camera).mkdir(parents=True)
    for stem, boxes in objects.items():
        part = write_voc(tmp_path / stem, {"0.a": boxes})
        for folder, suffix in (("Annotations", "xml"), ("JPEGImages", "png")):
            (part / folder / f"0.a.{suffix}").rename(tmp_path / "set" / folder / f"{stem}.{suffix}")
    lists = tmp_path / "set" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("cam2/0.a\ncam1/0.a\n")
    images = open_detection(str(tmp_path / "set"), "val")
    assert [images.id(i) for i in range(2)] == ["cam2/0.a.png", "cam1/0.a.png"]
    assert [images.read(i)[1]["boxes"].tolist() for i in range(2)] == [[[1, 2, 20, 10]], [[0, 0, 5, 5]]]


@pytest.mark.parametrize(
    ("declared", "written"),
    [("GB2312", "gbk"), ("gb18030", "gb18030"), ("utf-16", "utf-16"), ("utf-16", "utf-8"), ("UTF-8", "utf-8-sig")],
)
def test_encoding_of_voc_files(tmp_path: Path, declared: str, written: str) -> None:
    file = voc_with(tmp_path) / "Annotations" / "one.xml"
    text = file.read_text().replace("cow", "\u732b")
    file.write_bytes(f'<?xml version="1.0" encoding="{declared}"?>{text}'.encode(written))
    assert "\u732b" in open_detection(str(tmp_path), "train").classes


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (("<object>", "<objects><object>"), r"one\.xml .*mismatched tag"),
        (("<object>", "<Object><a/></Object><object>"), r"one\.xml \(an object that is not an <object>"),
        (("<bndbox>", "<bndbox/><bndbox>"), r"one\.xml \(cow: 2 bndbox"),
    ],
)
def test_voc_objects_that_would_be_lost_are_refused(tmp_path: Path, replace: tuple[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_detection(str(voc_with(tmp_path, replace=replace)), "train")


def test_trainval_is_the_training_list_beside_test(tmp_path: Path) -> None:
    lists = voc_with(tmp_path) / "ImageSets" / "Main"
    (lists / "train.txt").rename(lists / "trainval.txt")
    (lists / "test.txt").write_text("one\n")
    assert len(open_detection(str(tmp_path), "train")) == 3
    (lists / "test.txt").rename(lists / "val.txt")
    with pytest.raises(ValueError, match="no annotations for train"):
        open_detection(str(tmp_path), "train")


def test_lvis_file_names_are_in_the_url(tmp_path: Path) -> None:
    def change(content: Json) -> None:
        content["images"].pop()
        for image in content["images"]:
            image["coco_url"] = f"http://x.org/train/{image.pop('file_name')}"

    images = opened(tmp_path, change)
    assert [images.read(i)[0] for i in range(2)] == [tmp_path / "train" / name for name in ("a.png", "b.png")]


def test_roboflow_layout(tmp_path: Path) -> None:
    write_coco(tmp_path)
    file = tmp_path / "annotations" / "instances_train.json"
    file.rename(tmp_path / "train" / "_annotations.coco.json")
    assert open_detection(str(tmp_path), "train").ground_truth()["annotations"]
    (tmp_path / "train").rename(tmp_path / "valid")
    images = open_detection(str(tmp_path), "val")
    assert images.read(0)[0] == tmp_path / "valid" / "a.png"
