"""Pascal VOC layout: a text file of image names per split, an XML file of boxes per image."""

import os
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ....data.files import TRAIN_NAMES, VAL_NAMES, first_existing, is_hidden, is_image, list_files
from ....data.validation import ValidationReport
from .annotation_files import parse_xml, read_text
from .dataset import DetectionDataset, Objects, are_shares, check_boxes
from .fields import MAX_SIDE, SPLIT_NAMES, DetectionSplit, parse_flag, parse_number, shown

LAYOUT = (
    "Annotations/NAME.xml, JPEGImages/NAME.jpg, and ImageSets/Main/train.txt and val.txt, or trainval.txt and "
    "test.txt, with one NAME per line; or NAME.xml beside NAME.jpg in train/ and valid/"
)
LABEL_MAP = "labelmap.txt"  # of datumaro, with which CVAT exports
_LABELED = re.compile(r"(.*\S)\s+(-1|0|1)")  # as in ImageSets/Main/cat_train.txt of VOC
_QUOTED = re.compile(r'^"([^"]+)"(\s.*)?$')


class _Box(NamedTuple):
    """An object: class name, box as stored (xmin, ymin, xmax, ymax), and whether it is marked difficult."""

    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


_Parsed = tuple[tuple[int, int], list[_Box]]  # image height and width, and the objects


def find_voc(root: Path, split: DetectionSplit) -> Path | None:
    """Find the list of image names of a split, or, in a set without lists, the folder of its XML files.

    In a set without lists, the XML files are beside the images in ``train/``, ``valid/`` and so on, as Roboflow writes
    them, or all in ``Annotations/`` or beside the images, without splits. CVAT's list of a set without splits is called
    ``default``.

    Returns:
        ``None`` if there is neither. What has no split is found as ``train``.
    """
    lists = root / "ImageSets" / "Main"
    by_name = {path.stem.lower(): path for path in sorted(lists.glob("*.txt"))}
    if by_name:
        name = first_existing(SPLIT_NAMES[split], by_name, lists)
        if split == "train" and name is None and by_name.keys().isdisjoint(set(VAL_NAMES) - {"test"}):
            # Beside test, as usual for VOC 2007; trainval has the images of val.
            name = next((name for name in ("trainval", "default") if name in by_name), None)
        return by_name[name] if name else None
    folders = _folders_with_xml(root)
    name = first_existing(SPLIT_NAMES[split], folders, root)
    if name or split != "train" or not folders.keys().isdisjoint(VAL_NAMES):
        return folders[name] if name else None
    return folders.get("annotations") or (root if any(map(_is_xml, root.glob("*.xml"))) else None)


def open_voc(root: Path, source: Path, clip_boxes: bool = False) -> DetectionDataset:
    """Open the images of a Pascal VOC list, or of a folder of XML files; see :func:`find_voc`.

    The classes are the sorted names in all files of ``Annotations/``, or of the folders of all splits, so that all
    splits have the same. Box coordinates count from one and include the last pixel; in exports of CVAT, which have a
    ``labelmap.txt``, they count from zero and end after the last pixel. Objects marked difficult are
    crowds. An XML file belongs to the image of its own name, not to the one in its field
    ``filename``.

    Raises:
        ValueError: The data is invalid; the message lists the first few cases of each kind of error.
    """
    report = ValidationReport(str(root))
    is_list = not source.is_dir()
    file_folder = root / "Annotations" if is_list else source
    beside = file_folder.name.lower() != "annotations"
    image_folders = [file_folder] if beside else [root / name for name in ("JPEGImages", "images", file_folder.name)]
    image_folder = next((folder for folder in image_folders if folder.is_dir()), image_folders[0])
    images = _files_by_stem(image_folder, is_image)
    files, parsed = _parse_folder(file_folder, report)
    names_elsewhere = set() if is_list else _names_in_other_splits(root, source, report)
    where = source.name if is_list else f"{source.name}/"
    known = files.keys() | images.keys()
    stems = _read_list(source, images, known, report) if is_list else sorted(known)
    for stem in stems:
        if stem not in images or stem not in parsed:
            report.error(
                f"names in {where} without an image in {image_folder.name}/ or a file in {file_folder.name}/",
                stem,
                f"download them, or remove them{' from the list' if is_list else ''}",
            )
        for names in (images.get(stem, []), files.get(stem, [])):
            if len(names) > 1:
                report.error(f"names in {where} with several files", " and ".join(names), "keep one of each")
    for stem in sorted(stem for stem, count in Counter(stems).items() if count > 1):
        report.error(f"names that occur more than once in {where}", stem, "keep one of each")
    report.raise_errors()

    report = ValidationReport(str(root))
    classes = sorted(names_elsewhere | {box.name for _, boxes in parsed.values() for box in boxes})
    class_ids = {name: k for k, name in enumerate(classes)}
    rows = [(row, box) for row, stem in enumerate(stems) for box in parsed[stem][1]]
    sizes = np.array([parsed[stem][0] for stem in stems], dtype=np.int64)
    corners = np.array([box.corners for _, box in rows], dtype=np.float64).reshape(-1, 4)
    image = np.array([row for row, _ in rows], dtype=np.int64)

    def case(m: int) -> str:
        row, box = rows[m]
        return f"{files[stems[row]][0]} ({box.name})"

    are_shares(report, corners, case)
    first = 0 if (root / LABEL_MAP).is_file() else 1
    for m in np.flatnonzero((corners[:, :2] == 0).any(1)).tolist() if first else ():
        report.warning(
            "boxes that begin at 0",
            case(m),
            "read as Pascal VOC, whose coordinates count from 1; if yours count from 0, add 1 to all of them",
        )
    with np.errstate(over="ignore", invalid="ignore"):  # of absurd coordinates, which are reported as errors
        boxes = np.concatenate([corners[:, :2] - first, corners[:, 2:] - corners[:, :2] + first], axis=1)
        check_boxes(report, boxes, sizes[image], case, clip_boxes)
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
    ids = [images[stem][0] for stem in stems]
    image_ids, category_ids = np.arange(1, len(ids) + 1), range(1, len(classes) + 1)
    return DetectionDataset(image_folder, ids, sizes, image_ids, classes, category_ids, objects)


def _parse_folder(folder: Path, report: ValidationReport) -> tuple[dict[str, list[str]], dict[str, _Parsed]]:
    """Names of the XML files of a folder, and the content of the first one of each, by path without suffix."""
    files = _files_by_stem(folder, lambda name: name.lower().endswith(".xml"))
    return files, {stem: _parse(folder, names[0], report) for stem, names in files.items()}


def _names_in_other_splits(root: Path, source: Path, report: ValidationReport) -> set[str]:
    """Names of the objects in the XML files of the other splits' folders."""
    others = [
        folder
        for name, folder in _folders_with_xml(root).items()
        if name in TRAIN_NAMES + VAL_NAMES and folder != source
    ]
    return {box.name for other in others for _, boxes in _parse_folder(other, report)[1].values() for box in boxes}


def _folders_with_xml(root: Path) -> dict[str, Path]:
    """The folders in ``root`` that have XML files, by name in lower case."""
    return {path.parent.name.lower(): path.parent for path in sorted(root.glob("*/*.xml")) if _is_xml(path)}


def _is_xml(path: Path) -> bool:
    return path.is_file() and not is_hidden(path.name)


def _files_by_stem(folder: Path, wanted: Callable[[str], bool]) -> dict[str, list[str]]:
    """Paths of files relative to a folder, by path without suffix, in Unicode's composed form.

    The files of a name are sorted.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected Pascal VOC layout: {LAYOUT}")
    listing = list_files(folder)
    files: dict[str, list[str]] = defaultdict(list)
    for name in sorted(filter(wanted, (*listing.images, *listing.others))):
        files[unicodedata.normalize("NFC", os.path.splitext(name)[0])].append(name)
    return dict(files)


def _read_list(
    list_file: Path, images: Mapping[str, list[str]], known: Set[str], report: ValidationReport
) -> list[str]:
    """Names of a list: its lines, or their first column if every line ends with a label, as in VOC's class lists.

    A line is the name of an image, with blanks, or its file name with the suffix. CVAT writes names with blanks in
    quotation marks.
    """
    lines = [line.strip() for line in read_text(list_file).split("\n") if line.strip()]
    lines = [line if line in known else _QUOTED.sub(r"\1\2", line) for line in lines]
    if not lines:
        raise ValueError(f"{list_file}: no image names; expected one name per line")
    labeled = [_LABELED.fullmatch(line) for line in lines]
    if all(labeled) and known.isdisjoint(lines):
        report.warning(
            f"lines in {list_file.name} with a label, as in VOC's lists of one class",
            lines[0],
            "all images are used, also those with -1; objects are read from Annotations/ only",
        )
        lines = [match[1] for match in labeled if match]
    file_names = {unicodedata.normalize("NFC", name): stem for stem, names in images.items() for name in names}
    return [line if line in known else file_names.get(line, line) for line in lines]


def _parse(folder: Path, name: str, report: ValidationReport) -> _Parsed:
    """Image height and width, and the objects."""
    try:
        data = (folder / name).read_bytes()
        tree = parse_xml(data)
        height, width = _find_number(tree, "size/height"), _find_number(tree, "size/width")
        if min(height, width) < 1 or max(height, width) > MAX_SIDE or not (height.is_integer() and width.is_integer()):
            raise ValueError(f"size {width:g} x {height:g}")
        return (int(height), int(width)), list(_objects(tree))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        fix = (
            "expected the size of the image, and per object a name and a bndbox of xmin, ymin, xmax and ymax in pixels"
        )
        report.error(f"files in {folder.name}/ that are invalid", f"{name} ({error})", fix)
        return (1, 1), []


def _objects(tree: ElementTree.Element) -> Iterator[_Box]:
    objects = tree.findall("object")
    if len(objects) < sum(str(element.tag).lower() == "object" for element in tree.iter()):
        raise ValueError("an object that is not an <object> directly in the root element")
    for item in objects:
        name = (item.findtext("name") or "").strip()
        if not name:
            raise ValueError("object without a name")
        if (count := len(item.findall("bndbox"))) > 1:
            raise ValueError(f"{name}: {count} bndbox, expected one per object")
        left, top, right, bottom = (_find_number(item, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
        if left > right or top > bottom:
            raise ValueError(f"{name}: xmin {left:g}, xmax {right:g}, ymin {top:g}, ymax {bottom:g}")
        text = (item.findtext("difficult") or "").strip()
        difficult = False if text.lower() in ("", "unspecified") else parse_flag(text)
        if difficult is None:
            raise ValueError(f"{name}: difficult {shown(text)}, expected 0 or 1")
        yield _Box(name, (left, top, right, bottom), difficult)


def _find_number(element: ElementTree.Element, path: str) -> float:
    text = element.findtext(path)
    number = parse_number(text)
    if number is None:
        raise ValueError(f"missing {path}" if text is None else f"{path} {shown(text)}, expected a number")
    return number
