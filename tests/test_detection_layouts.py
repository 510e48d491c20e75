"""Detection data in the layouts of YOLO, Roboflow and CVAT, and held-out images where a set has no validation split."""

import copy
import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import smt_vision
from dense_sets import coco_content, write_coco, write_cvat, write_image, write_voc, write_yolo, yolo_content
from drawn_sets import shapes_recipe
from smt_vision.data.fingerprint import UsedImages
from smt_vision.data.region import Region
from smt_vision.tasks import get_task
from smt_vision.tasks.detection.data.dataset import DetectionDataset
from smt_vision.tasks.detection.data.masks import rasterize_masks
from smt_vision.tasks.detection.data.sources import open_detection
from smt_vision.tasks.detection.predictor import Detector
from smt_vision.tasks.detection.task import open_evaluation


def same(one: DetectionDataset, other: DetectionDataset) -> None:
    """The same images, by name, and the same objects, without ids."""
    assert one.classes == other.classes
    by_name = {Path(other.id(i)).name: i for i in range(len(other))}
    assert sorted(by_name) == sorted(Path(one.id(i)).name for i in range(len(one)))
    for i in range(len(one)):
        a, b = one.read(i)[1], other.read(by_name[Path(one.id(i)).name])[1]
        assert one.read(i)[0].is_file()
        order, other_order = (np.lexsort([*t["boxes"].T, t["labels"]]) for t in (a, b))
        assert a["size"] == b["size"]
        assert np.array_equal(a["boxes"][order], b["boxes"][other_order])
        assert np.array_equal(a["labels"][order], b["labels"][other_order])
        assert np.array_equal(a["crowd"][order], b["crowd"][other_order])
        assert (a["masks"] is None) == (b["masks"] is None)
        if a["masks"] is not None:
            (height, width), masks = a["size"], []
            for target, rows in ((a, order), (b, other_order)):
                full = Region(0, 0, width, height, width, height)
                masks.append(rasterize_masks([target["masks"][row] for row in rows], full, height, width))
            assert np.array_equal(*masks)
    areas = [sorted(entry["area"] for entry in images.ground_truth()["annotations"]) for images in (one, other)]
    assert areas[0] == areas[1]


def coco(root: Path, polygons: bool = True) -> DetectionDataset:
    content = yolo_content()
    for entry in content["annotations"]:
        entry.update({} if polygons else {"segmentation": None})
    return open_detection(str(write_coco(root, content)), "train")


# YOLO


@pytest.mark.parametrize("polygons", [True, False])
def test_yolo_equals_coco_of_the_same_objects(tmp_path: Path, polygons: bool) -> None:
    images = open_detection(str(write_yolo(tmp_path / "yolo", polygons=polygons)), "train")
    assert images.has_masks == polygons
    same(images, coco(tmp_path / "coco", polygons))
    assert images.read(2)[1]["boxes"].shape == (0, 4)  # without a label file


def _config(**fields: object) -> Callable[[Path], object]:
    """Other fields of data.yaml."""

    def change(root: Path) -> None:
        values = {**json.loads((root / "data.yaml").read_text()), **fields}
        (root / "data.yaml").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))

    return change


def _text(content: str) -> Callable[[Path], object]:
    return lambda root: (root / "data.yaml").write_text(content)


def _roboflow(root: Path) -> None:
    for kind in ("images", "labels"):
        (root / kind / "train").rename(root / f"{kind}_")
    (root / "train").mkdir()
    for kind in ("images", "labels"):
        (root / kind).rmdir()
        (root / f"{kind}_").rename(root / "train" / kind)
    names = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['dog', 'bottle']\n"
    (root / "data.yaml").write_text(names + "\nroboflow:\n  workspace: w\n  version: 1\n  license: CC BY 4.0\n")


def _list(prefix: str, *more: str, name: str = "train.txt") -> Callable[[Path], object]:
    def change(root: Path) -> None:
        lines = [f"{prefix}images/train/{image}\r\n" for image in ("a.png", "b.png", "sub/c.png", *more)]
        (root / name).write_text("".join(lines).replace("{root}", str(root)))
        _config(train=name)(root)

    return change


def _darknet(root: Path) -> None:
    """CVAT's YOLO 1.1."""
    (root / "obj_train_data" / "sub").mkdir(parents=True)
    for kind in ("images", "labels"):
        for path in (root / kind / "train").rglob("*.*"):
            path.rename(root / "obj_train_data" / path.relative_to(root / kind / "train"))
        shutil.rmtree(root / kind)
    (root / "data.yaml").unlink()
    (root / "obj.names").write_text("dog\nbottle\n")
    lines = ["classes = 2", "train = data/train.txt", "names = data/obj.names", "backup = backup/"]
    (root / "obj.data").write_text("\n".join(lines) + "\n")
    (root / "train.txt").write_text("".join(f"data/obj_train_data/{n}\n" for n in ("a.png", "b.png", "sub/c.png")))


def _roboflow_darknet(root: Path) -> None:
    (root / "train").mkdir()
    for kind in ("images", "labels"):
        for path in (root / kind / "train").rglob("*.*"):
            path.rename(root / "train" / path.name)
        shutil.rmtree(root / kind)
    (root / "data.yaml").unlink()
    (root / "train" / "_darknet.labels").write_text("dog\nbottle")


def _label_studio(root: Path) -> None:
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("dog\nbottle\n")
    (root / "notes.json").write_text("{}")


def _beside(root: Path) -> None:
    for path in (root / "labels" / "train").glob("*.txt"):
        path.rename(root / "images" / "train" / path.name)


def _rewrite(change: Callable[[str], str]) -> Callable[[Path], object]:
    def of_all(root: Path) -> None:
        for path in (root / "labels").rglob("*.txt"):
            path.write_bytes(change(path.read_text()).encode("utf-16" if change is str else "utf-8"))

    return of_all


FORMS: dict[str, Callable[[Path], object]] = {
    "names are a list": _config(names=["dog", "bottle"]),
    "keys of names are text": _text("names: {'1': bottle, '0': dog}\ntrain: images/train\n"),
    "nc": _config(nc=2),
    "path": _config(path="."),
    "path to a folder": lambda root: _config(path="images", train="train")(root),
    "path that does not exist here": _config(path="/datasets/elsewhere"),
    "absolute path": lambda root: _config(path=str(root))(root),
    "absolute train": lambda root: _config(train=str(root / "images" / "train"))(root),
    "train is a list of folders": _config(train=["images/train"]),
    "train is the folder of the images and labels": _config(train="images"),
    "no space": _text("train: images/train/\nval:\ntest: # optional\nnames:\n  0: dog\n  1: bottle\n"),
    "download is not run": _text("train: images/train\nnames: [dog, bottle]\ndownload: rm -r .\n"),
    "backslashes": _config(train="images\\train"),
    "upper case": lambda root: _text("Train: images/train\nNames: [dog, bottle]\n")(root),
    "another name": lambda root: (root / "data.yaml").rename(root / "set.yml"),
    "list": _list(""),
    "list with ./": _list("./"),
    "list of CVAT": _list("data/"),
    "list of absolute paths": _list("{root}/"),
    "Roboflow": _roboflow,
    "Roboflow's Darknet": _roboflow_darknet,
    "CVAT's YOLO 1.1": _darknet,
    "Label Studio": _label_studio,
    "labels beside the images": _beside,
    "class indices are floats": _rewrite(lambda text: re.sub(r"^(\d)", r"\1.000000", text, flags=re.M)),
    "blanks and empty lines": _rewrite(lambda text: f"\r\n{text.replace(' ', '  ')} \r\n\n".replace("\n", "\r\n")),
    "byte order mark": _rewrite(lambda text: f"\ufeff{text}"),
    "UTF-16": _rewrite(str),
    "empty label file": lambda root: (root / "labels" / "train" / "sub" / "c.txt").write_text(""),
    "classes.txt of LabelImg": lambda root: (root / "labels" / "train" / "classes.txt").write_text("dog\nbottle\n"),
}


@pytest.mark.parametrize("form", FORMS)
def test_form_of_a_yolo_set_does_not_change_it(tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture) -> None:
    root = write_yolo(tmp_path / "yolo")
    FORMS[form](root)
    same(open_detection(str(root), "train"), coco(tmp_path / "coco"))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (form == "path that does not exist here"), warnings


def test_configuration_file_as_data(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "yolo")
    (root / "data.yaml").rename(root / "own.yaml")
    (root / "other.yaml").write_text("a: 1")
    same(open_detection(str(root / "own.yaml"), "train"), coco(tmp_path / "coco"))
    with pytest.raises(ValueError, match=r"several YAML files: other\.yaml, own\.yaml"):
        open_detection(str(root), "train")


@pytest.mark.parametrize(
    ("name", "message"), [("a.zip", "is not a supported file .unpack"), ("a.yaml", "is not a directory")]
)
def test_file_that_is_no_dataset_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=f"{re.escape(name)}' {message}.*COCO.*YOLO.*CVAT"):
        open_detection(str(tmp_path / name), "train")


def test_class_names_are_read_as_written(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (root / "data.yaml").write_text("names: [no, 012]\ntrain: images/train\n")
    assert open_detection(str(root), "train").classes == ("no", "012")


def _line(text: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        path = root / "labels" / "train" / "a.txt"
        path.write_text(f"{path.read_text()}\n{text}\n")  # in line 4

    return change


INVALID: dict[str, tuple[Callable[[Path], object], str]] = {
    "too few values": (_line("0 0.5 0.5 0.1"), r"neither a box nor.*: labels/train/a\.txt:4 \('0 0.5 0.5 0.1'\)"),
    "score": (_line("0 0.5 0.5 0.1 0.1 0.9"), r"a\.txt:4 .*without scores"),
    "odd coordinate": (_line("0 0.1 0.1 0.5 0.1 0.5 0.5 0.3"), r"a\.txt:4"),
    "two points": (_line("0 0.1 0.1 0.5"), r"a\.txt:4"),
    "not a number": (_line("0 0.5 0.5 x 0.1"), r"a\.txt:4"),
    "underscore": (_line("0 0.5 0.5 0_1 0.1"), r"a\.txt:4"),
    "nan": (_line("0 nan 0.5 0.1 0.1"), r"a\.txt:4"),
    "commas": (_line("0,0.5,0.5,0.1,0.1"), r"a\.txt:4"),
    "name instead of index": (_line("dog 0.5 0.5 0.1 0.1"), r"a\.txt:4"),
    "pixels": (_line("0 20 15 10 10"), r"outside of 0 to 1.*a\.txt:4 .*divide pixels"),
    "negative": (_line("0 -0.5 0.5 0.1 0.1"), r"a\.txt:4"),
    "box beyond the image": (_line("0 0.9 0.5 0.4 0.1"), r"boxes outside of their image.*a\.txt:4"),
    "polygon beyond the image": (_line("0 0.5 0.5 1.09 0.5 0.5 0.8"), r"boxes outside of their image.*a\.txt:4"),
    "class": (_line("2 0.5 0.5 0.1 0.1"), r"class indices that are not those of the 2 names.*a\.txt:4 .*0 to 1"),
    "class between two": (_line("0.5 0.5 0.5 0.1 0.1"), r"class indices.*a\.txt:4"),
    "negative class": (_line("-1 0.5 0.5 0.1 0.1"), r"a\.txt:4"),
    "not text": (lambda root: (root / "labels/train/a.txt").write_bytes(b"\xff\xfe\xff"), r"a\.txt: not text"),
    "no names": (_config(names=None), r"data\.yaml: names is None"),
    "names is a number": (_config(names=2), r"data\.yaml: names is '2'"),
    "gap in names": (_config(names={0: "dog", 2: "bottle"}), r"data\.yaml: names has the keys \['0', '2'\]"),
    "name twice": (_config(names=["dog", "dog"]), r"data\.yaml: 2 names, 1 of them different"),
    "nc differs": (_config(nc=3), r"data\.yaml: nc is '3' and names has 2"),
    "no train": (_config(train=None), r"no annotations for train"),
    "train does not exist": (_config(train="images/none"), r"data\.yaml: 'images/none' does not exist"),
    "train is a mapping": (_config(train={"a": "b"}), r"data\.yaml: train is \{'a': 'b'\}"),
    "train is an image": (_config(train="images/train/a.png"), r"data\.yaml: 'images/train/a\.png' is not a folder"),
    "path is a list": (_config(path=["a"]), r"data\.yaml: path is \['a'\]"),
    "list with a missing image": (_list("", "x.png"), r"train\.txt.*: images/train/x\.png"),
    "list with an image twice": (_list("", "a.png"), r"occur twice.*a\.png"),
    "two images of a label file": (
        lambda root: shutil.copy(root / "images/train/a.png", root / "images/train/a.jpg"), r"a\.jpg and .*a\.png",
    ),
    "no class names": (lambda root: (root / "data.yaml").unlink(), r"it has labels/, but no data\.yaml or classes"),
    "no labels": (lambda root: (root / "labels").rename(root / "annotations"), r"none of 3 images has a label file"),
    "no images": (lambda root: [path.unlink() for path in (root / "images").rglob("*.png")], "no images in images"),
    "keypoints": (_config(kpt_shape=[17, 3]), r"data\.yaml: has kpt_shape"),
    "not YAML": (_text("names: ["), r"data\.yaml: not valid YAML"),
    "alias": (_text("names: &a [dog]\ntrain: *a\n"), r"data\.yaml: line 2: the alias"),
    "tag": (_text("names: !!python/object/apply:os.system [exit]\n"), r"data\.yaml: line 1: the tag"),
    "not a mapping": (_text("- a\n"), r"data\.yaml: contains \['a'\]; expected data\.yaml with names"),
}  # fmt: skip


@pytest.mark.parametrize("form", INVALID)
def test_invalid_yolo_set_is_one_error_with_its_place(tmp_path: Path, form: str) -> None:
    root = write_yolo(tmp_path / "yolo")
    change, message = INVALID[form]
    change(root)
    with pytest.raises(ValueError, match=message) as error:
        open_detection(str(root), "train")
    assert len(str(error.value).splitlines()) == 1


def test_unused_label_files_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_yolo(tmp_path)
    (root / "labels" / "train" / "gone.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    open_detection(str(root), "train")
    assert re.search(r"1 label files in .*labels/train without an image: gone\.txt; not used", caplog.text)


def test_images_without_label_files_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_yolo(tmp_path)
    caplog.set_level(logging.INFO)
    for new, message in (
        (1, r"INFO .* 2 of 4 images have no label file.*new0"),
        (2, "WARNING .* 3 of 5 images have no"),
    ):
        Image.new("RGB", (20, 20)).save(root / "images" / "train" / f"new{new - 1}.png")
        caplog.clear()
        assert len(open_detection(str(root), "train")) == 3 + new
        assert re.search(message, caplog.text)
    other = root / "elsewhere" / "pictures"
    other.mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(other / "other.png")
    config = root / "data.yaml"
    entries = {**json.loads(config.read_text()), "train": ["images/train", "elsewhere/pictures"]}
    config.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"1 folders without a label file for any of their images: elsewhere/pictures"):
        open_detection(str(root), "train")
    (other / "other.txt").write_text("")
    assert len(open_detection(str(root), "train")) == 6


def test_an_object_that_is_labeled_twice_is_used_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_yolo(tmp_path)
    before = open_detection(str(root), "train").objects()
    label = next(path for path in sorted((root / "labels" / "train").iterdir()) if path.read_text().strip())
    lines = label.read_text().splitlines()
    label.write_text("\n".join([*lines, lines[0].replace(" ", "  ")]))
    caplog.clear()
    after = open_detection(str(root), "train").objects()
    assert all(np.array_equal(after[name], before[name]) for name in ("labels", "boxes"))
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"1 objects that are labeled twice: labels/train/{label.name}:{len(lines) + 1}; used once" in warning


def test_few_boxes_of_a_yolo_set_that_extend_outside_are_clipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_yolo(tmp_path)
    label = root / "labels" / "train" / "a.txt"  # of an image of 64 x 32 pixels
    inside = [f"0 0.5 0.5 0.{n} 0.1" for n in range(100, 140)]
    label.write_text("\n".join([*inside, "1 0.9375 0.25 0.25 1.0"]))
    objects = open_detection(str(root), "train").objects()
    assert [52.0, 0.0, 12.0, 24.0] in objects["boxes"].tolist()
    assert 288.0 in objects["areas"].tolist()
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "1 boxes more than 2 px outside of their image: labels/train/a.txt:41; clipped" in warning
    label.write_text("\n".join([*inside, "1 1.05 0.25 0.02 0.1"]))  # no part of it is inside
    with pytest.raises(ValueError, match=r"boxes outside of their image: labels/train/a\.txt:41"):
        open_detection(str(root), "train")


def test_damaged_image_of_a_yolo_set_is_unreadable_and_no_error(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (root / "images" / "train" / "b.png").write_bytes(b"no image")
    assert len(open_detection(str(root), "train")) == 3


def test_size_of_an_image_of_a_yolo_set_is_that_of_the_upright_image(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "train" / "a.jpg", 64, 32)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(tmp_path / "images/train/a.jpg").save(tmp_path / "images/train/a.jpg", exif=exif)
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("names: [a]\ntrain: images/train\n")
    assert open_detection(str(tmp_path), "train").read(0)[1]["boxes"].tolist() == [[8, 16, 24, 48]]


# Roboflow and CVAT


def test_splits_of_roboflow(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "yolo")
    _roboflow(root)
    for split in ("valid", "test"):
        shutil.copytree(root / "train", root / split)
    for split in ("val", "test"):
        images = open_detection(str(root), split)  # type: ignore[arg-type]
        assert f"/{'valid' if split == 'val' else split}/" in images.name(0)
        same(images, coco(tmp_path / split))


def _subset(folder: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        (root / "images").mkdir()
        (root / "train").rename(root / "images" / folder)
        (root / "annotations" / "instances_train.json").rename(root / "annotations" / f"instances_{folder}.json")

    return change


@pytest.mark.parametrize("subset", ["default", "Train", "Training"])
def test_subsets_of_cvat_s_coco(tmp_path: Path, subset: str) -> None:
    expected = open_detection(str(write_coco(tmp_path / "plain", coco_content())), "train")
    root = write_coco(tmp_path / "coco", coco_content())
    _subset(subset)(root)
    same(open_detection(str(root), "train"), expected)
    if subset == "Train":
        shutil.copytree(root / "images" / "Train", root / "images" / "Validation")
        shutil.copy(root / "annotations/instances_Train.json", root / "annotations/instances_Validation.json")
        assert "/Validation/" in open_detection(str(root), "val").name(0)


def test_roboflow_s_coco_without_splits(tmp_path: Path) -> None:
    expected = coco(tmp_path / "plain")
    root = write_coco(tmp_path / "coco", yolo_content())
    (root / "annotations" / "instances_train.json").rename(root / "train" / "_annotations.coco.json")
    same(open_detection(str(root / "train"), "train"), expected)


def test_one_coco_file_without_splits(tmp_path: Path) -> None:
    """As Label Studio exports it: ``result.json`` beside ``images/``."""
    expected = coco(tmp_path / "plain")
    content = yolo_content()
    for image in content["images"]:
        image["file_name"] = f"images/{image['file_name']}"
    root = write_coco(tmp_path / "coco", yolo_content())
    (root / "annotations" / "instances_train.json").unlink()
    (root / "train").rename(root / "images")
    (root / "result.json").write_text(json.dumps(content))
    same(open_detection(str(root), "train"), expected)
    (root / "coco.json").write_text("[]")  # not of the format
    (root / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"several annotation files: result\.json, annotations\.json; keep only one"):
        open_detection(str(root), "train")


OBJECTS = {"a": [("dog", (2, 3, 20, 25), 0), ("cat", (5, 5, 30, 28), 1)], "b": [("cat", (1, 1, 40, 30), 0)], "c": []}


def _flat(*names: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        for name in names:
            (root / name).mkdir(exist_ok=True)
            for path in (*(root / "JPEGImages").iterdir(), *(root / "Annotations").iterdir()):
                shutil.copy(path, root / name / path.name)
        for name in ("JPEGImages", "Annotations", "ImageSets"):
            shutil.rmtree(root / name)

    return change


def _rename(**names: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        for old, new in names.items():
            (root / old).rename(root / new)

    return change


VOC_FORMS: dict[str, Callable[[Path], object]] = {
    "Roboflow": _flat("train", "valid"),
    "one folder": _flat("."),
    "without lists": lambda root: shutil.rmtree(root / "ImageSets"),
    "lower case, without lists": lambda root: (
        shutil.rmtree(root / "ImageSets"), _rename(Annotations="annotations", JPEGImages="images")(root),
    ),
    "CVAT without subsets": lambda root: _rename(**{"train.txt": "default.txt"})(root / "ImageSets" / "Main"),
    "CVAT's subset": lambda root: _rename(**{"train.txt": "Train.txt"})(root / "ImageSets" / "Main"),
}  # fmt: skip


@pytest.mark.parametrize("form", VOC_FORMS)
def test_form_of_a_voc_set_does_not_change_it(tmp_path: Path, form: str) -> None:
    expected = open_detection(str(write_voc(tmp_path / "plain", OBJECTS)), "train")
    root = write_voc(tmp_path / "set", OBJECTS)
    VOC_FORMS[form](root)
    (root / "README.dataset.txt").write_text("a set")
    same(open_detection(str(root), "train"), expected)


def test_splits_of_roboflow_s_voc_have_the_same_classes(tmp_path: Path) -> None:
    root = write_voc(tmp_path, OBJECTS)
    _flat("train", "valid")(root)
    for name in ("a.xml", "a.png"):
        (root / "valid" / name).unlink()
    images = open_detection(str(root), "val")
    assert images.classes == ("cat", "dog")
    assert [images.id(i) for i in range(2)] == ["b.png", "c.png"]
    (root / "valid" / "b.xml").unlink()
    with pytest.raises(ValueError, match=r"names in valid/ without an image in valid/ or a file in valid/: b"):
        open_detection(str(root), "val")


@pytest.mark.parametrize("polygons", [True, False])
@pytest.mark.parametrize("subset", ["", "Train", "default"])
def test_cvat_s_own_format_equals_coco_of_the_same_objects(tmp_path: Path, polygons: bool, subset: str) -> None:
    root = write_cvat(tmp_path / "cvat", yolo_content(), polygons, subset)
    same(open_detection(str(root), "train"), coco(tmp_path / "coco", polygons))


def test_polygons_of_a_cvat_group_are_one_object(tmp_path: Path) -> None:
    square = [[2, 2, 2, 8, 8, 8, 8, 2], [20, 20, 20, 28, 28, 28, 28, 20]]
    parts = "".join(
        f'<polygon label="{label}" group_id="{group}" points="{points(polygon)}"/>'
        for label, group, polygon in (
            ("bottle", 1, square[0]), ("dog", 1, square[0]), ("bottle", 1, square[1]), ("bottle", 0, square[0]),
            ("bottle", 0, square[1]),
        )
    )  # fmt: skip
    box = '<box label="bottle" group_id="1" xtl="1" ytl="1" xbr="9" ybr="9"/>'
    root = write_cvat(tmp_path, yolo_content(), True, "")
    file = root / "annotations.xml"
    file.write_text(
        re.sub(r"(<image [^>]*>).*?(</image>)", rf"\1{parts}{box}\2", file.read_text(), count=1, flags=re.S)
    )
    found = open_detection(str(root), "train")
    target = found.read(0)[1]
    assert [found.classes[k] for k in target["labels"]] == ["bottle", "dog", "bottle", "bottle", "bottle"]
    assert target["boxes"].tolist() == [[2, 2, 28, 28], [2, 2, 8, 8], [2, 2, 8, 8], [20, 20, 28, 28], [1, 1, 9, 9]]
    assert target["masks"] is not None
    assert target["masks"][0] == square


def points(polygon: list[int]) -> str:
    return ";".join(f"{x},{y}" for x, y in zip(polygon[::2], polygon[1::2], strict=True))


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        ((r"<box ", '<box rotation="30.5" '), r"a\.png \(rotated box of bottle\).*export the project as COCO"),
        ((r"<box (.*?)/>", r"<ellipse \1/>"), r"ellipse of bottle"),
        ((r'label="dog"', 'label="cat"'), r"a\.png \(box with the label 'cat', which is not in meta\)"),
        ((r'xtl="0"', 'xtl="x"'), r"a\.png \(box: xtl 'x', expected a number\)"),
        ((r'xbr="8"', 'xbr="-1"'), r"boxes that are not x, y.*a\.png"),
        ((r'xbr="8"', 'xbr="99"'), r"boxes outside of their image.*a\.png"),
        ((r'width="64"', 'width="0"'), r"images without a size: 'a\.png'"),
        ((r'name="a.png"', 'name="z.png"'), r"images that are not in images/: 'z\.png'"),
        ((r'name="b.png"', 'name="a.png"'), r"images that occur more than once: images/a\.png"),
        ((r"<image .*</image>", ""), r"0 images and 2 labels"),
        ((r"<annotations>", "<annotations><track/>"), r"<annotations> of a video"),
        ((r"<version>", "<"), r"annotations\.xml: not XML"),
        ((r"<annotations>", "<!DOCTYPE a><annotations>"), r"annotations\.xml: not XML \(it has a DOCTYPE"),
    ],
)
def test_invalid_cvat_file_is_one_error_with_its_place(tmp_path: Path, replace: tuple[str, str], message: str) -> None:
    root = write_cvat(tmp_path, yolo_content(), polygons=False)
    file = root / "annotations.xml"
    file.write_text(re.sub(*replace, file.read_text(), flags=re.S if "</image>" in replace[0] else 0))
    with pytest.raises(ValueError, match=message):
        open_detection(str(root), "train")


# Held-out images


def many(root: Path, count: int = 20) -> Path:
    """A set without splits: ``count`` images with a dog, three of them also with a bottle."""
    write_yolo(root, {"images": [], "annotations": [], "categories": yolo_content()["categories"]})
    (root / "labels" / "train").mkdir(parents=True)
    for i in range(count):
        write_image(root / "images" / "train" / f"{i}.png", 32, 32, seed=i)
        rare = "1 0.2 0.2 0.2 0.2\n" if i % 8 == 1 else ""
        (root / "labels" / "train" / f"{i}.txt").write_text(f"0 0.5 0.5 0.5 0.5\n{rare}")
    return root


def names(images: DetectionDataset) -> set[str]:
    return {images.id(i) for i in range(len(images))}


def test_held_out_images_are_stratified_and_depend_on_ids_and_seed_only(tmp_path: Path) -> None:
    root = many(tmp_path / "one")
    train, val = (open_detection(str(root), split, val_fraction=0.3) for split in ("train", "val"))
    assert (len(train), len(val)) == (14, 6)
    assert names(train) | names(val) == names(open_detection(str(root), "train"))
    assert not names(train) & names(val)
    assert [np.bincount(images._labels).tolist() for images in (train, val)] == [[14, 2], [6, 1]]
    shutil.copytree(root, tmp_path / "two" / "deep")
    assert names(open_detection(str(tmp_path / "two" / "deep"), "val", val_fraction=0.3)) == names(val)
    assert names(open_detection(str(root), "val", val_fraction=0.3, seed=1)) != names(val)
    assert len(open_detection(str(root), "val", val_fraction=1.0)) == 20
    with pytest.raises(ValueError, match="val_fraction"):
        open_detection(str(root), "train", val_fraction=1.0)
    with pytest.raises(ValueError, match="no annotations for val"):
        open_detection(str(root), "val")
    with pytest.raises(ValueError, match="no annotations for test"):
        open_detection(str(root), "test", val_fraction=0.3)
    for i in range(1, 20):
        (root / "images" / "train" / f"{i}.png").unlink()
    with pytest.raises(ValueError, match="1 images, too few to hold any out"):
        open_detection(str(root), "val", val_fraction=0.3)


def test_nothing_is_held_out_beside_a_validation_split(tmp_path: Path) -> None:
    content = copy.deepcopy(yolo_content())
    root = write_yolo(write_yolo(tmp_path, content), content, "val")
    for split in ("train", "val"):
        assert len(open_detection(str(root), split, val_fraction=0.3)) == 3  # type: ignore[arg-type]


def test_evaluation_on_the_training_set_uses_the_images_that_training_held_out(tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval", reason="the extra detect is not installed")
    root = many(tmp_path / "one")
    recipe = shapes_recipe(root, head="retinanet")
    recipe = replace(recipe, seed=7, input=replace(recipe.input, val_fraction=0.3))
    training = get_task("detect").training(recipe)
    assert (len(training.train_set), len(training.val_set)) == (14, 6)
    used = UsedImages(np.unique(training.train_set.fingerprints()), np.unique(training.val_set.identities()))
    model = Detector(training.model, training.spec, recipe=recipe, used_images=used)
    shutil.copytree(root, tmp_path / "moved")
    other = many(tmp_path / "other", 4)
    (other / "images" / "train" / "0.png").unlink()
    others = {f"images/train/{i}.png" for i in (1, 2, 3)}
    for data, expected in ((tmp_path / "moved", names(training.val_set)), (other, others)):
        evaluation, _ = open_evaluation(model, str(data), replace(model.input, workers=0), 2, 0, 1)
        assert names(evaluation.val_set) == expected


def test_split_that_is_evaluated(tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval", reason="the extra detect is not installed")
    root = write_yolo(tmp_path)
    _roboflow(root)
    for split in ("valid", "test"):
        shutil.copytree(root / "train", root / split)
    recipe = shapes_recipe(root, head="retinanet")
    training = get_task("detect").training(recipe)
    model = Detector(training.model, training.spec, recipe=recipe)
    for split, folder in (("val", "valid"), ("test", "test")):
        evaluation, _ = open_evaluation(model, str(root), model.input, 2, 0, 1, split)  # type: ignore[arg-type]
        assert all(name.startswith(f"{folder}/") for name in names(evaluation.val_set))


def test_split_of_another_task_is_refused() -> None:
    with pytest.raises(ValueError, match=r"split='test'.* a classifier, for which expected val; .*--data"):
        smt_vision.evaluate("smt_femto.cifar10", "images", workers=0, split="test")
