"""Pascal VOC layout: a text file of image names per split, an XML file of boxes per image."""

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ....data.dataset import Split
from ....data.files import TRAIN_NAMES, VAL_NAMES, first_existing, is_hidden, is_image
from ....data.validation import ValidationReport
from .dataset import DetectionDataset, Objects, check_boxes

LAYOUT = "Annotations/NAME.xml, JPEGImages/NAME.jpg, and ImageSets/Main/train.txt and val.txt with one NAME per line"


class _Box(NamedTuple):
    """An object: class name, box as x, y, width and height, and whether it is marked difficult."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


def find_voc(root: Path, split: Split) -> Path | None:
    """Find the list of image names of a split; ``None`` if there is none."""
    lists = root / "ImageSets" / "Main"
    existing = [path.stem for path in sorted(lists.glob("*.txt"))]
    name = first_existing(TRAIN_NAMES if split == "train" else VAL_NAMES, existing, lists)
    return lists / f"{name}.txt" if name else None


def open_voc(root: Path, list_file: Path) -> DetectionDataset:
    """Open the images of a Pascal VOC list.

    The classes are the sorted names in all files of ``Annotations/``, so that all splits have the same. Box coordinates
    count from one and include the last pixel. Objects marked difficult are ignored, like COCO's crowds.

    Raises:
        ValueError: The data is invalid; the message lists the first few cases of each kind of error.
    """
    report = ValidationReport(str(root))
    stems = [line.split()[0] for line in list_file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not stems:
        raise ValueError(f"{list_file}: no image names; expected one name per line")
    images, annotations = (
        [path for path in sorted((root / folder).iterdir()) if not is_hidden(path.name)]
        for folder in ("JPEGImages", "Annotations")
    )
    files = {path.stem: path.name for path in images if is_image(path.name)}
    parsed = {path.stem: _parse(path, report) for path in annotations if path.suffix.lower() == ".xml"}
    for stem in stems:
        if stem not in files or stem not in parsed:
            report.error(
                f"names in {list_file.name} without an image in JPEGImages/ or a file in Annotations/",
                stem,
                "download them, or remove them from the list",
            )
    for stem in sorted(stem for stem, count in Counter(stems).items() if count > 1):
        report.error(f"names that occur more than once in {list_file.name}", stem, "keep one of each")
    report.raise_errors()

    classes = sorted({box.name for _, boxes in parsed.values() for box in boxes})
    class_ids = {name: k for k, name in enumerate(classes)}
    rows = [(row, box) for row, stem in enumerate(stems) for box in parsed[stem][1]]
    sizes = np.array([parsed[stem][0] for stem in stems], dtype=np.int64)
    boxes = np.array([box.box for _, box in rows], dtype=np.float64).reshape(-1, 4)
    image = np.array([row for row, _ in rows], dtype=np.int64)
    check_boxes(report, boxes, sizes[image], lambda m: f"{stems[rows[m][0]]}.xml ({rows[m][1].name})")
    report.raise_errors()
    objects = Objects(
        image=image,
        boxes=boxes,
        labels=np.array([class_ids[box.name] for _, box in rows], dtype=np.int64),
        crowd=np.array([box.difficult for _, box in rows], dtype=bool),
        areas=boxes[:, 2:].prod(1),
        ids=np.arange(1, len(rows) + 1),
        segmentations=[None] * len(rows),
    )
    ids = [files[stem] for stem in stems]
    image_ids, category_ids = np.arange(1, len(ids) + 1), range(1, len(classes) + 1)
    return DetectionDataset(root / "JPEGImages", ids, sizes, image_ids, classes, category_ids, objects)


def _parse(path: Path, report: ValidationReport) -> tuple[tuple[int, int], list[_Box]]:
    """Image height and width, and the objects."""
    try:
        tree = ElementTree.parse(path).getroot()
        size = _parse_number(tree, "size/height"), _parse_number(tree, "size/width")
        if min(size) < 1:
            raise ValueError(f"size {size[1]:g} x {size[0]:g}")
        return (int(size[0]), int(size[1])), list(_objects(tree))
    except (ElementTree.ParseError, ValueError) as error:
        report.error("files in Annotations/ that are invalid", f"{path.name} ({error})", f"expected {LAYOUT}")
        return (1, 1), []


def _objects(tree: ElementTree.Element) -> Iterator[_Box]:
    for item in tree.iterfind("object"):
        left, top, right, bottom = (_parse_number(item, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
        name = (item.findtext("name") or "").strip()
        if not name:
            raise ValueError("object without a name")
        box = (left - 1, top - 1, right - left + 1, bottom - top + 1)
        yield _Box(name, box, (item.findtext("difficult") or "0").strip() == "1")


def _parse_number(element: ElementTree.Element, path: str) -> float:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"missing {path}")
    return float(text)
