"""Pascal VOC layout: a text file of image names per split, an XML file of boxes per image."""

import codecs
import os
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ....data.dataset import Split
from ....data.files import TRAIN_NAMES, VAL_NAMES, first_existing, is_image, list_files
from ....data.validation import ValidationReport
from .dataset import DetectionDataset, Objects, are_shares, check_boxes
from .fields import MAX_SIDE, parse_flag, parse_number, shown

LAYOUT = (
    "Annotations/NAME.xml, JPEGImages/NAME.jpg, and ImageSets/Main/train.txt and val.txt, or trainval.txt and "
    "test.txt, with one NAME per line"
)
_LABELED = re.compile(r"(.*\S)\s+(-1|0|1)")  # as in ImageSets/Main/cat_train.txt of VOC
_QUOTED = re.compile(r'^"([^"]+)"(\s.*)?$')
_ENCODING = re.compile(rb"""<\?xml[^>]*\sencoding\s*=\s*["']([\w.:-]+)["']""")


class _Box(NamedTuple):
    """An object: class name, box as stored (xmin, ymin, xmax, ymax), and whether it is marked difficult."""

    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


def find_voc(root: Path, split: Split) -> Path | None:
    """Find the list of image names of a split; ``None`` if there is none."""
    lists = root / "ImageSets" / "Main"
    existing = {path.stem for path in lists.glob("*.txt")}
    name = first_existing(TRAIN_NAMES if split == "train" else VAL_NAMES, existing, lists)
    if split == "train" and name is None and "trainval" in existing and existing.isdisjoint(set(VAL_NAMES) - {"test"}):
        name = "trainval"  # beside test, as usual for VOC 2007; it has the images of val
    return lists / f"{name}.txt" if name else None


def open_voc(root: Path, list_file: Path) -> DetectionDataset:
    """Open the images of a Pascal VOC list.

    The classes are the sorted names in all files of ``Annotations/``, so that all splits have the same. Box coordinates
    count from one and include the last pixel. Objects marked difficult are ignored, like COCO's crowds. An XML file
    belongs to the image of its own name, not to the one in its field ``filename``.

    Raises:
        ValueError: The data is invalid; the message lists the first few cases of each kind of error.
    """
    report = ValidationReport(str(root))
    images = _files_by_stem(root / "JPEGImages", is_image)
    files = _files_by_stem(root / "Annotations", lambda name: name.lower().endswith(".xml"))
    parsed = {stem: _parse(root / "Annotations", names[0], report) for stem, names in files.items()}
    stems = _read_list(list_file, images, files.keys() | images.keys(), report)
    for stem in stems:
        if stem not in images or stem not in parsed:
            report.error(
                f"names in {list_file.name} without an image in JPEGImages/ or a file in Annotations/",
                stem,
                "download them, or remove them from the list",
            )
        for names in (images.get(stem, []), files.get(stem, [])):
            if len(names) > 1:
                report.error(f"names in {list_file.name} with several files", " and ".join(names), "keep one of each")
    for stem in sorted(stem for stem, count in Counter(stems).items() if count > 1):
        report.error(f"names that occur more than once in {list_file.name}", stem, "keep one of each")
    report.raise_errors()

    report = ValidationReport(str(root))
    classes = sorted({box.name for _, boxes in parsed.values() for box in boxes})
    class_ids = {name: k for k, name in enumerate(classes)}
    rows = [(row, box) for row, stem in enumerate(stems) for box in parsed[stem][1]]
    sizes = np.array([parsed[stem][0] for stem in stems], dtype=np.int64)
    corners = np.array([box.corners for _, box in rows], dtype=np.float64).reshape(-1, 4)
    image = np.array([row for row, _ in rows], dtype=np.int64)

    def case(m: int) -> str:
        row, box = rows[m]
        return f"{files[stems[row]][0]} ({box.name})"

    are_shares(report, corners, case)
    for m in np.flatnonzero((corners[:, :2] == 0).any(1)).tolist():
        report.warning(
            "boxes that begin at 0",
            case(m),
            "read as Pascal VOC, whose coordinates count from 1; if yours count from 0, add 1 to all of them",
        )
    with np.errstate(over="ignore", invalid="ignore"):  # of absurd coordinates, which are reported as errors
        boxes = np.concatenate([corners[:, :2] - 1, corners[:, 2:] - corners[:, :2] + 1], axis=1)
        check_boxes(report, boxes, sizes[image], case)
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
    return DetectionDataset(root / "JPEGImages", ids, sizes, image_ids, classes, category_ids, objects)


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
    lines = [line.strip() for line in _read_text(list_file).split("\n") if line.strip()]
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


def _read_text(path: Path) -> str:
    """Text in UTF-8, or in UTF-16 with a byte order mark, as Windows' shell writes it; names are composed Unicode."""
    data = path.read_bytes()
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8 ({error}); save it as UTF-8") from error
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))


class _Builder(ElementTree.TreeBuilder):
    """Refuses document types: they can define entities that expand to gigabytes, and VOC has none."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it has a DOCTYPE; remove it")


def _decode(data: bytes) -> str | bytes:
    """XML as text if it declares its encoding: the parser does not know encodings of several bytes such as GB2312."""
    declared = _ENCODING.match(data)
    if not declared:
        return data
    encoding = declared[1].decode()
    # A declaration that is readable as ASCII is not in UTF-16, whatever it says; .NET writes such files in UTF-8.
    return data.decode("utf-8" if encoding.lower().startswith("utf-16") else encoding)


def _parse(folder: Path, name: str, report: ValidationReport) -> tuple[tuple[int, int], list[_Box]]:
    """Image height and width, and the objects."""
    try:
        data = (folder / name).read_bytes()
        parser = ElementTree.XMLParser(target=_Builder())  # noqa: S314  the builder refuses what is dangerous in XML
        tree = ElementTree.fromstring(_decode(data), parser)  # noqa: S314
        height, width = _find_number(tree, "size/height"), _find_number(tree, "size/width")
        if min(height, width) < 1 or max(height, width) > MAX_SIDE or not (height.is_integer() and width.is_integer()):
            raise ValueError(f"size {width:g} x {height:g}")
        return (int(height), int(width)), list(_objects(tree))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        fix = (
            "expected the size of the image, and per object a name and a bndbox of xmin, ymin, xmax and ymax in pixels"
        )
        report.error("files in Annotations/ that are invalid", f"{name} ({error})", fix)
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
