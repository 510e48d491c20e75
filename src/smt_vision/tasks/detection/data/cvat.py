"""CVAT's own format: one XML file of boxes and polygons for all images ("CVAT for images 1.1")."""

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

import numpy as np

from ....data.files import first_existing
from ....data.validation import ValidationReport, first_few
from ....text import get_logger
from .annotation_files import parse_xml
from .dataset import DetectionDataset, FileIndex
from .fields import MAX_SIDE, SPLIT_NAMES, DetectionSplit, parse_integer, parse_number, shown
from .shapes import Shape, check_shapes

log = get_logger(__name__)
FILE = "annotations.xml"
EXPECTED = "expected CVAT for images 1.1: images with name, width and height, and in them boxes and polygons"
OTHER_SHAPES = "only boxes without rotation, and polygons, are read; export the project as COCO"


class CvatSplit(NamedTuple):
    """Images of a file, the names of its labels, and the name of the subset."""

    file: Path
    images: list[Element]
    labels: list[str]
    subset: str | None


def find_cvat(root: Path, split: DetectionSplit) -> CvatSplit | None:
    """The images of a split, CVAT's subset, in ``annotations.xml``; all of them are ``train`` if there are no subsets.

    Returns:
        ``None`` if there is no such file or it does not have the split.

    Raises:
        ValueError: The file is not XML, or of another format of CVAT.
    """
    file = root / FILE
    if not file.is_file():
        return None
    try:
        tree = parse_xml(file.read_bytes())
    except (ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{file}: not XML ({error}); export it again") from error
    if tree.tag != "annotations" or tree.find("track") is not None:
        raise ValueError(f"{file}: <{tree.tag}>{' of a video' if tree.tag == 'annotations' else ''}; {EXPECTED}")
    images = tree.findall("image")
    subsets = Counter((image.get("subset") or "").lower() for image in images)
    labels = list(dict.fromkeys((label.findtext("name") or "").strip() for label in tree.findall("meta//labels/label")))
    name = first_existing(SPLIT_NAMES[split], subsets, file)
    if others := [subset for subset in subsets if name and not _is_split(subset)]:
        log.warning("%s: uses the subset %s, ignores images of %s", file, name, first_few(list(map(repr, others))))
    if name:
        return CvatSplit(file, [image for image in images if (image.get("subset") or "").lower() == name], labels, name)
    return None if any(map(_is_split, subsets)) or split != "train" else CvatSplit(file, images, labels, None)


def _is_split(subset: str) -> bool:
    return any(subset in names for names in SPLIT_NAMES.values())


def open_cvat(root: Path, split: CvatSplit, clip_boxes: bool = False) -> DetectionDataset:
    """Open the images of a split, which are in ``images/`` or beside the file; the classes are its labels.

    Raises:
        ValueError: The data is invalid; the message lists the first few cases of each kind of error.
    """
    report = ValidationReport(str(split.file))
    files = FileIndex()
    ids, sizes, shapes = list[str](), list[tuple[int, int]](), list[Shape]()
    for i, image in enumerate(split.images):
        name = image.get("name") or ""
        ids.append(_find_image(root, name, image.get("subset") or "", files) or "")
        if not ids[-1]:
            report.error("images that are not in images/", shown(name), "export the project with its images")
        height, width = (parse_integer(image.get(side)) or 0 for side in ("height", "width"))
        sizes.append((height, width))
        if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
            report.error("images without a size", shown(name), EXPECTED)
        groups: dict[tuple[str, int], int] = {}
        for element in image:
            try:
                found = _shape(element, i, split.labels)
                if found is not None:
                    _add(shapes, found, element.get("group_id"), groups)
            except ValueError as error:
                report.error("shapes that are invalid or not supported", f"{name} ({error})", OTHER_SHAPES)
    for name, count in Counter(filter(None, ids)).items():
        if count > 1:
            report.error("images that occur more than once", name, "keep one of each")
    if not ids or not split.labels:
        raise ValueError(f"{split.file}: {len(ids)} images and {len(split.labels)} labels; {EXPECTED}")
    report.raise_errors()

    def case(m: int) -> str:
        return f"{ids[shapes[m].image]} ({split.labels[shapes[m].label]})"

    all_sizes = np.array(sizes, dtype=np.int64)
    objects = check_shapes(report, shapes, all_sizes, case, clip_boxes)
    report.raise_errors()
    image_ids, category_ids = np.arange(1, len(ids) + 1), range(1, len(split.labels) + 1)
    return DetectionDataset(root, ids, all_sizes, image_ids, split.labels, category_ids, objects)


def _find_image(root: Path, name: str, subset: str, files: FileIndex) -> str | None:
    for folder in (f"images/{subset}", "images", subset, ""):
        if name and (found := files.find(root / folder, name)):
            return os.path.normpath(os.path.join(folder, found))
    return None


def _add(shapes: list[Shape], shape: Shape, group: str | None, groups: dict[tuple[str, int], int]) -> None:
    """Append the object of an element, or add its polygon to the object of which it is another part.

    As in CVAT's COCO export, polygons of an image with the same label and group are one object; ``groups`` has its
    index.
    """
    if shape.polygons and group and group != "0":
        first = groups.setdefault((group, shape.label), len(shapes))
        if first < len(shapes):
            shapes[first] = shape._replace(polygons=[*(shapes[first].polygons or []), *shape.polygons])
            return
    shapes.append(shape)


def _shape(element: Element, image: int, labels: list[str]) -> Shape | None:
    """The object of an element of an image; ``None`` for a tag, which describes the whole image."""
    if element.tag == "tag":
        return None
    label = (element.get("label") or "").strip()
    if label not in labels:
        raise ValueError(f"{element.tag} with the label {shown(label)}, which is not in meta")
    if element.tag == "box" and not parse_number(element.get("rotation") or "0"):
        left, top, right, bottom = (_number(element, side) for side in ("xtl", "ytl", "xbr", "ybr"))
        return Shape(image, labels.index(label), (left, top, right - left, bottom - top), None)
    if element.tag == "polygon":
        points = [point.split(",") for point in (element.get("points") or "").split(";")]
        values = [number for point in points for value in point if (number := parse_number(value)) is not None]
        if len(points) < 3 or any(len(point) != 2 for point in points) or len(values) < 2 * len(points):
            raise ValueError(f"polygon of {label}: points {shown(element.get('points'))}")
        return Shape(image, labels.index(label), None, [values])
    raise ValueError(f"{'rotated ' if element.tag == 'box' else ''}{element.tag} of {label}")


def _number(element: Element, name: str) -> float:
    number = parse_number(element.get(name))
    if number is None:
        raise ValueError(f"{element.tag}: {name} {shown(element.get(name))}, expected a number")
    return number
