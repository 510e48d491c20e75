"""YOLO's layout: a configuration, images, and a text file of boxes or polygons per image; also Darknet's."""

import itertools
import logging
import os
import re
import unicodedata
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ....data.files import first_existing, is_hidden, is_image, list_files
from ....data.validation import ValidationReport, first_few
from ....text import get_logger
from ....yaml_files import parse_yaml, read_yaml_text
from .annotation_files import read_text
from .dataset import FEW, SHARES, TOLERANCE, DetectionDataset, FileIndex, stored_size
from .fields import SPLIT_NAMES, DetectionSplit, are_finite, parse_integer, shown
from .shapes import Shape, check_shapes

log = get_logger(__name__)
LAYOUT = "data.yaml with names, train and val, and labels/NAME.txt for images/NAME.jpg"
LINE = (
    "expected CLASS X_CENTER Y_CENTER WIDTH HEIGHT, or CLASS X1 Y1 X2 Y2 X3 Y3 ... for a polygon, normalized by the "
    "image size, without scores"
)
CONFIG_SUFFIXES = (".yaml", ".yml", ".data")
CONFIGS = ("data.yaml", "data.yml", "dataset.yaml", "obj.data")
NAMES = ("classes.txt", "labels/classes.txt")  # Label Studio's and LabelImg's, in place of a configuration
ALL_SPLITS = frozenset(name for names in SPLIT_NAMES.values() for name in names)
DARKNET = "*/_darknet.labels"  # Roboflow's names of classes, beside the images and text files of each split
THREADS = 8


class YoloSplit(NamedTuple):
    """A split as its configuration describes it.

    Args:
        file: The configuration.
        base: Folder that its paths are relative to.
        names: Class names.
        entries: Folders of images, and text files with one image per line.
    """

    file: Path
    base: Path
    names: list[str]
    entries: list[str]


def find_yolo(root: Path, split: DetectionSplit) -> YoloSplit | None:
    """Find a split in the configuration: ``root`` itself if it is a file, otherwise ``data.yaml`` or another in it.

    A set without configuration has ``classes.txt``, ``images/`` and ``labels/``, or Roboflow's ``_darknet.labels`` in
    the folder of each split. What has no split is ``train``.

    Returns:
        ``None`` if there is no configuration or it does not have the split.

    Raises:
        ValueError: The configuration is invalid.
    """
    file = _find_config(root)
    if file is None:
        return None
    base = file.parent
    if file.suffix in (".yaml", ".yml"):
        values = _lower_keys(parse_yaml(read_yaml_text(file, LAYOUT), file, LAYOUT, as_text=True))
        names = _class_names(values, file)
        base = _base(values.get("path"), base, file)
        if values.get("kpt_shape"):
            raise ValueError(f"{file}: has kpt_shape, so its labels are keypoints; expected boxes or polygons")
    elif file.suffix == ".data":
        lines = [line.partition("=") for line in read_text(file).split("\n") if "=" in line]
        values = {key.strip().lower(): value.strip() for key, _, value in lines}
        listed = _resolve(values.get("names", ""), [base])
        if listed is None or not os.path.isfile(listed):
            raise ValueError(f"{file}: names = {shown(values.get('names'))} is not a file; expected one name per line")
        names = _read_lines(Path(listed))
    else:
        base = root
        names = _read_lines(file)
        folders = [path.parent for path in root.glob(DARKNET)] or [*(root / "images").iterdir()]
        splits = {path.name.lower(): str(path.relative_to(root)) for path in folders if path.is_dir()}
        values = splits if ALL_SPLITS & splits.keys() else {"train": "images"}
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{file}: {len(names)} names, {len(set(names))} of them different; expected one per class")
    given = {key: entries for key in ALL_SPLITS & values.keys() if (entries := _entries(values[key], key, file))}
    name = first_existing(SPLIT_NAMES[split], given, file)
    return YoloSplit(file, base, names, given[name]) if name else None


def open_yolo(root: Path, split: YoloSplit, clip_boxes: bool = False) -> DetectionDataset:
    """Open the images of a split.

    The label file of an image is at its path with the last folder ``images`` replaced by ``labels``, or beside it. An
    image without a label file, or with an empty one, has no objects.

    Raises:
        ValueError: The data is invalid; the message lists the first few cases of each kind of error.
    """
    report = ValidationReport(str(split.file))
    files = FileIndex()
    by_entry = {entry: list(_images(entry, split, files, report)) for entry in dict.fromkeys(split.entries)}
    images = [image for entry in split.entries for image in by_entry[entry]]
    report.raise_errors()
    if not images:
        raise ValueError(f"{split.file}: no images in {', '.join(split.entries)}; expected {LAYOUT}")
    labels = [_label_file(image, files) for image in images]
    if not any(labels):
        raise ValueError(
            f"{split.file}: none of {len(images)} images has a label file, e.g. {images[0]}; expected {LAYOUT}, or the "
            "label file beside its image"
        )
    _check_distinct(report, images, labels)
    missing = [str(image) for image, label in zip(images, labels, strict=True) if label is None]
    for entry, found in by_entry.items():
        if found and {*map(str, found)} <= {*missing}:
            report.error("folders without a label file for any of their images", entry, f"expected {LAYOUT}")
    if missing:  # as images without objects may be
        level = logging.WARNING if len(missing) > len(images) / 2 else logging.INFO
        message = "%s: %d of %d images have no label file, and are used as images without objects: %s"
        log.log(level, message, split.file, len(missing), len(images), first_few(missing))
    with ThreadPoolExecutor(THREADS) as pool:
        # An unreadable image is reported when it is decoded.
        sizes = np.array([size or (1, 1) for size in pool.map(stored_size, images)], dtype=np.int64)

    shapes, places = list[Shape](), list[str]()
    for i, label in enumerate(labels):
        known: set[tuple[float, ...]] = set()
        for number, line in enumerate(read_text(label).split("\n") if label else (), 1):
            place = f"{os.path.relpath(label or '', split.base)}:{number}"
            if line.strip() and (values := _parse_line(line, len(split.names), place, report)):
                if tuple(values) in known:
                    report.warning("objects that are labeled twice", place, "used once, as Ultralytics does")
                    continue
                known.add(tuple(values))
                shapes.append(_shape(i, values, *sizes[i, ::-1].tolist()))
                places.append(place)
    report.raise_errors()
    shapes = _clip_few(shapes, sizes, places, report, clip_boxes)
    objects = check_shapes(report, shapes, sizes, places.__getitem__, clip_boxes)
    report.raise_errors()
    inside = all(path.is_relative_to(split.base) for path in images)
    folder = split.base if inside else Path(os.path.commonpath([path.parent for path in images]))
    ids = [path.relative_to(folder).as_posix() for path in images]
    image_ids, category_ids = np.arange(1, len(ids) + 1), range(1, len(split.names) + 1)
    return DetectionDataset(folder, ids, sizes, image_ids, split.names, category_ids, objects)


def _find_config(root: Path) -> Path | None:
    if root.is_file():
        return root if root.suffix in CONFIG_SUFFIXES else None
    if known := [root / name for name in CONFIGS if (root / name).is_file()]:
        return known[0]
    others = sorted(path for pattern in ("*.yaml", "*.yml") for path in root.glob(pattern) if path.is_file())
    if len(others) > 1:
        names = ", ".join(path.name for path in others)
        raise ValueError(
            f"{root}: several YAML files: {names}; call that of the dataset data.yaml, or pass it as --data"
        )
    if others:
        return others[0]
    names_files = [root / name for name in NAMES if (root / name).is_file() and (root / "images").is_dir()]
    return next(iter(names_files or sorted(root.glob(DARKNET))), None)


def _lower_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key).lower(): value for key, value in values.items()}


def _class_names(values: Mapping[str, Any], file: Path) -> list[str]:
    """The field ``names``, a list or a mapping by index."""
    names, count = values.get("names"), values.get("nc")
    if isinstance(names, dict):
        indices = [parse_integer(key) for key in names]
        if set(indices) != set(range(len(names))):
            raise ValueError(f"{file}: names has the keys {shown(list(names))}; expected the indices 0, 1, 2, ...")
        names = [name for _, name in sorted(zip(indices, names.values(), strict=True))]
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"{file}: names is {shown(names)}; expected a list of class names, or a mapping by index")
    if count not in (None, "") and parse_integer(count) != len(names):
        raise ValueError(f"{file}: nc is {shown(count)} and names has {len(names)}; expected the same number")
    return [name.strip() for name in names]


def _base(path: Any, folder: Path, file: Path) -> Path:
    """The field ``path``, relative to the folder of the configuration; that folder where it does not exist."""
    if path is None or path == "":
        return folder
    if not isinstance(path, str):
        raise ValueError(f"{file}: path is {shown(path)}; expected a folder")
    if os.path.isdir(folder / path):
        return folder / path
    log.warning("%s: path %s does not exist here; its own folder is used instead", file, shown(path))
    return folder


def _entries(value: Any, split: str, file: Path) -> list[str]:
    """The paths of a split: text, or a list of texts; none if it is empty."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(path, str) for path in values):
        raise ValueError(f"{file}: {split} is {shown(value)}; expected a path, or a list of paths")
    return [path for path in values if path not in ("", "null", "~")]


def _read_lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def _resolve(path: str, folders: list[Path]) -> str | None:
    """The first that exists of a path in some folders.

    Roboflow's ``../train/images`` is ``train/images`` beside the configuration, and Darknet's and CVAT's
    ``data/train.txt`` is ``train.txt``.
    """
    plain = path.replace("\\", "/")
    inner = re.sub(r"^(\.{1,2}/)+", "", plain)
    for form in dict.fromkeys((path, plain, inner, inner.removeprefix("data/"))):
        for folder in folders:
            if form and os.path.exists(folder / form):
                return os.path.normpath(folder / form)
    return None


def _images(entry: str, split: YoloSplit, files: FileIndex, report: ValidationReport) -> list[Path]:
    """The images of a folder, or those that a text file lists."""
    found = _resolve(entry, [split.base, split.file.parent])
    if found is None:
        raise ValueError(
            f"{split.file}: {shown(entry)} does not exist in {split.base}; expected a folder of images, or a text file "
            "with one image per line. Without val, images of train are held out"
        )
    if os.path.isdir(found):
        images = [Path(found, name) for name in sorted(list_files(Path(found)).images)]
        _warn_unused_labels(images, files, report)
        return images
    if not os.path.isfile(found) or not found.endswith(".txt"):
        raise ValueError(f"{split.file}: {shown(entry)} is not a folder of images, nor a text file with one per line")
    images = []
    for line in _read_lines(Path(found)):
        image = _resolve(line, [Path(found).parent, split.base]) if is_image(line) else None
        if image is None or not os.path.isfile(image):
            report.error(
                f"lines in {os.path.basename(found)} that are not images in {split.base}", line,
                "expected paths relative to that folder; correct them, or list the folder in the configuration",
            )  # fmt: skip
        else:
            images.append(Path(image))
    return images


def _label_file(image: Path, files: FileIndex) -> Path | None:
    for label in _label_paths(image):
        if found := files.find(label.parent, label.name):
            return label.parent / found
    return None


def _label_paths(image: Path) -> list[Path]:
    """Where the label file of an image may be, the first place first."""
    parts, beside = image.parts, image.with_suffix(".txt")
    folders = [i for i, part in enumerate(parts[:-1]) if part.lower() == "images"]
    if not folders:
        return [beside]
    return [Path(*parts[: folders[-1]], "labels", *parts[folders[-1] + 1 :]).with_suffix(".txt"), beside]


def _warn_unused_labels(images: list[Path], files: FileIndex, report: ValidationReport) -> None:
    """Tell label files beside those of a folder's images that belong to none of them."""
    expected = [_label_paths(image)[0] for image in images]
    for folder in sorted({path.parent for path in expected}):
        used = {unicodedata.normalize("NFC", path.name) for path in expected if path.parent == folder}
        for name in sorted({unicodedata.normalize("NFC", name) for name in files.names(folder)} - used):
            if name.endswith(".txt") and name != "classes.txt" and not is_hidden(name):
                report.warning(f"label files in {folder} without an image", name, "not used")


def _check_distinct(report: ValidationReport, images: list[Path], labels: list[Path | None]) -> None:
    first: dict[Path, Path] = {}
    for image, label in zip(images, labels, strict=True):
        other = first.setdefault(label or image, image)
        if other is not image:
            report.error("images that occur twice, or share a label file", f"{other} and {image}", "keep one of each")
    report.raise_errors()


def _parse_line(line: str, classes: int, place: str, report: ValidationReport) -> list[float] | None:
    """Class index and coordinates; ``None``, reported as an error, for an invalid line."""
    words = line.split()
    try:
        values = [] if "_" in line else [float(word) for word in words]
    except ValueError:
        values = []
    case = f"{place} ({shown(line.strip())})"
    if not (len(values) == 5 or (len(values) > 6 and len(values) % 2)) or not are_finite(values):
        report.error("lines that are neither a box nor a polygon", case, LINE)
    elif not (values[0].is_integer() and 0 <= values[0] < classes):
        report.error(f"class indices that are not those of the {classes} names", case, f"expected 0 to {classes - 1}")
    elif min(values) < 1 - SHARES or max(values[1:]) > SHARES:
        report.error(
            "lines with values outside of 0 to 1", case, "divide pixels by the width and height of the image, or clip "
            "the objects to it",
        )  # fmt: skip
    else:
        return values
    return None


def _shape(image: int, values: list[float], width: int, height: int) -> Shape:
    """The object of a line, in pixels."""
    label, *coordinates = values
    if len(coordinates) > 4:
        sides = itertools.cycle((width, height))
        return Shape(image, int(label), None, [[value * side for value, side in zip(coordinates, sides, strict=False)]])
    x, y, w, h = coordinates
    return Shape(image, int(label), ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height), None)


def _clip_few(
    shapes: list[Shape], sizes: npt.NDArray[np.int64], places: list[str], report: ValidationReport, clip_all: bool
) -> list[Shape]:
    """Clip boxes that extend outside of their image, reported as a warning, if they are few or ``clip_all`` is set.

    Unlike those of other layouts, they are evaluated as clipped, too.
    """
    clipped = {}
    for i, shape in enumerate(shapes):
        if shape.box is not None:
            (x, y, w, h), (height, width) = shape.box, sizes[shape.image].tolist()
            if max(-x, -y, x + w - width, y + h - height) > TOLERANCE:
                left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
                if left < right and top < bottom:
                    clipped[i] = shape._replace(box=(left, top, right - left, bottom - top))
    if len(clipped) > FEW * len(shapes) and not clip_all:
        return shapes
    for i in clipped:
        report.warning(f"boxes more than {TOLERANCE:g} px outside of their image", places[i], "clipped")
    return [clipped.get(i, shape) for i, shape in enumerate(shapes)]
