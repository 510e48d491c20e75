"""COCO JSON: boxes, polygons, RLE masks, crowds, images without objects, category ids with gaps."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from ....data.files import first_existing
from ....data.validation import ValidationReport, first_few
from ....text import get_logger
from .dataset import TOLERANCE, DetectionDataset, FileIndex, Objects, are_shares, check_boxes
from .fields import (
    INT64,
    MAX_SIDE,
    SPLIT_NAMES,
    DetectionSplit,
    are_finite,
    parse_flag,
    parse_integer,
    parse_number,
    shown,
)
from .segmentations import check_segmentations

log = get_logger(__name__)
KINDS = ("images", "annotations", "categories")
# Prefixes of annotation file names; the first with a match is used. CVAT calls a set without splits "default".
PREFIXES: Mapping[DetectionSplit, tuple[str, ...]] = {
    "train": ("train", "default"),
    "val": ("val", "test"),
    "test": ("test",),
}
ROBOFLOW = "_annotations.coco.json"  # the annotation file in the folder of each split, beside the images
# The only annotation file of a set without splits, in its folder: Roboflow's and Label Studio's names, and usual ones.
SINGLE = (ROBOFLOW, "result.json", "annotations.json", "coco.json")
PROBED = 100  # file names by which the folder of the images is found
FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")  # fields of LVIS images
UNUSED = (  # fields of an annotation that have no effect here: field, kind of warning, consequence
    ("ignore", "annotations with the field ignore", "it has no effect, as in COCO's evaluation; set iscrowd instead"),
    ("score", "annotations with a score, as predictions have", "they are used as ground truth"),
)


def find_coco(root: Path, split: DetectionSplit) -> Path | None:
    """Find the annotation file of a split, e.g. ``annotations/instances_train2017.json``; ``None`` if there is none.

    Roboflow's ``train/_annotations.coco.json`` is found, too, and as ``train`` CVAT's ``instances_default.json`` and
    the file of a set without splits: ``_annotations.coco.json``, Label Studio's ``result.json``, ``annotations.json``
    or ``coco.json``.

    Raises:
        ValueError: Several files match.
    """
    folder = root / "annotations"
    listed = sorted(folder.glob("*.json"))
    for prefix in PREFIXES[split]:
        named, others = (
            [file for file in listed if file.name.lower().startswith(f"{start}{prefix}")]
            for start in ("instances_", "")
        )
        files = named or others
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise ValueError(f"{folder}: several files for {split}: {names}; keep only one of them")
        if named and others:
            log.warning("%s: uses %s, ignores %s", folder, files[0].name, ", ".join(file.name for file in others))
        if files:
            return files[0]
    folders = [path.parent.name for path in root.glob(f"*/{ROBOFLOW}")]
    name = first_existing(SPLIT_NAMES[split], folders, root)
    if name or split != "train":
        return root / name / ROBOFLOW if name else None
    files = [root / name for name in SINGLE if (root / name).is_file() and _has_coco_keys(root / name)]
    if len(files) > 1:
        raise ValueError(f"{root}: several annotation files: {', '.join(f.name for f in files)}; keep only one of them")
    return files[0] if files else None


def _has_coco_keys(file: Path) -> bool:
    """Whether a file may be in COCO format; a damaged one may, too."""
    content = file.read_bytes()
    return file.name == ROBOFLOW or all(f'"{kind}"'.encode() in content for kind in KINDS)


def open_coco(root: Path, file: Path, clip_boxes: bool = False) -> DetectionDataset:
    """Open the images of a COCO annotation file.

    Numbers may be written as text or as whole floats where COCO has integers. Missing annotation ids, boxes, areas and
    crowd flags are replaced: by the position, the box of the segmentation, its area (or the box's), and no crowd.

    Args:
        root: Folder of the dataset. Images are in a subfolder named like the file without ``instances_``, e.g.
            ``train2017/`` or ``images/train2017/``; otherwise in ``images/``, in ``root`` itself, or beside the file.
        file: Annotation file with the keys ``images``, ``annotations`` and ``categories``.
        clip_boxes: See :func:`smt_vision.tasks.detection.data.dataset.check_boxes`.

    Raises:
        ValueError: The file is invalid; the message lists the first few cases of each kind of error.
    """
    content = _read_content(file)
    images, categories = content["images"], own_categories(content["categories"])
    report = ValidationReport(str(file))
    image_ids = _integers(images, "id", "images", file)
    for image in images:
        image["file_name"] = file_name(image)
    names = _strings(images, "file_name", "images", file)
    sizes = np.array([_integers(images, key, "images", file) for key in ("height", "width")], dtype=np.int64).T
    category_ids = _integers(categories, "id", "categories", file)
    classes = [name.strip() for name in _strings(categories, "name", "categories", file)]
    for i in np.flatnonzero(((sizes <= 0) | (sizes > MAX_SIDE)).any(1)):
        report.error("images without a size", names[i], "give their width and height in pixels")
    report.raise_errors()
    folder, ids = _find_images(root, file, names, report)
    for kind, values in (
        ("image ids", image_ids),
        ("file names", ids),
        ("category ids", category_ids),
        ("category names", classes),
    ):
        _check_distinct(report, kind, values, "keep one of each")
    for image, name in zip(images, names, strict=True):
        if any(image.get(key) for key in FEDERATED):
            report.warning(
                f"images with {' or '.join(FEDERATED)}, as in LVIS", name, "evaluated as COCO, not as LVIS: detections "
                "of classes that were not annotated in an image count as false"
            )  # fmt: skip
    if len(categories) < len(content["categories"]):
        log.warning(
            "%s: ignored %d categories that are only the supercategory of a category of the same name, as Roboflow "
            "writes them", file, len(content["categories"]) - len(categories),
        )  # fmt: skip

    # Class indices follow the order of the category ids.
    class_of = dict(sorted(zip(category_ids, classes, strict=True)))
    with np.errstate(over="ignore", invalid="ignore"):  # of absurd coordinates, which are reported as errors
        objects = _objects(content["annotations"], file, report, image_ids, list(class_of), ids, sizes, clip_boxes)
    report.raise_errors()
    return DetectionDataset(
        folder, ids, sizes, np.array(image_ids, dtype=np.int64), list(class_of.values()), list(class_of), objects
    )


def file_name(image: Mapping[str, Any]) -> Any:
    """The path of an image; where there is none, as in LVIS, the folder and name in its ``coco_url``."""
    name, url = image.get("file_name"), image.get("coco_url")
    return "/".join(url.split("/")[-2:]) if name is None and isinstance(url, str) else name


def own_categories(categories: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Categories without those that are the supercategory of a category of the same name.

    Roboflow writes such a category, without objects, before the classes.
    """

    def is_child(category: Mapping[str, Any]) -> bool:
        return category.get("name") is not None and category.get("supercategory") == category.get("name")

    names = [category["name"] for category in categories if is_child(category)]
    return [category for category in categories if category.get("name") not in names or is_child(category)]


def _objects(
    annotations: list[dict[str, Any]],
    file: Path,
    report: ValidationReport,
    image_ids: list[int],
    category_ids: list[int],
    names: list[str],
    sizes: npt.NDArray[np.int64],
    clip_boxes: bool,
) -> Objects:
    """Validate the annotations and convert them to columns; ``names`` and ``sizes`` belong to the images."""
    if any(annotation.get("id") is not None for annotation in annotations):
        ids = _integers(annotations, "id", "annotations", file)
    else:
        ids = list(range(1, len(annotations) + 1))
        if ids:
            log.info("%s: the annotations have no ids; they are numbered from 1 in the order of the file", file)
    _check_distinct(report, "annotation ids", ids, "number the annotations, or remove all of their ids")
    image = _indices(annotations, ids, "image_id", image_ids, "images", file, report)
    labels = _indices(annotations, ids, "category_id", category_ids, "categories", file, report)

    def case(m: int) -> str:
        return f"annotation {ids[m]} ({names[image[m]]})"

    known = np.flatnonzero(image >= 0)
    stored = [annotations[m].get("segmentation") for m in known.tolist()]
    measured = check_segmentations(report, stored, sizes[image[known]], lambda i: case(int(known[i])))
    segmentations: list[Any] = [None] * len(annotations)
    outlines, mask_areas = np.full((len(annotations), 4), np.nan), np.full(len(annotations), np.nan)
    outlines[known], mask_areas[known] = measured.boxes, measured.areas
    for m, value in zip(known.tolist(), measured.values, strict=True):
        segmentations[m] = value
    extents = sizes[image[known]][:, ::-1]
    beyond = np.concatenate([-outlines[known, :2], outlines[known, 2:] - extents], axis=1) > np.tile(extents, 2)
    for m in known[beyond.any(1)].tolist():
        report.error(
            "segmentations that extend outside of their image by more than its size",
            f"{case(m)} {outlines[m].tolist()}",
            "expected polygons in pixels of the stored image",
        )

    boxes = _boxes(annotations, ids, outlines, file, report)
    crowd = _crowd(annotations, ids, file)
    check_boxes(report, boxes[known], sizes[image[known]], lambda i: case(int(known[i])), clip_boxes)
    if not are_shares(report, boxes[known], lambda i: case(int(known[i]))):
        _check_outlines(report, boxes, outlines, np.flatnonzero((image >= 0) & ~crowd), case)
    for key, kind, consequence in UNUSED:
        for m in known.tolist():
            if annotations[m].get(key) not in (None, False, 0, "0"):
                report.warning(kind, case(m), consequence)
    return Objects(
        image=image,
        boxes=boxes,
        labels=labels,
        crowd=crowd,
        areas=_areas(annotations, boxes, mask_areas, report, known, case),
        ids=np.array(ids, dtype=np.int64),
        segmentations=segmentations,
    )


def _indices(
    annotations: list[dict[str, Any]],
    ids: list[int],
    key: str,
    known: list[int],
    kind: str,
    file: Path,
    report: ValidationReport,
) -> npt.NDArray[np.int64]:
    """(M,) index of the image or category of each annotation; -1, reported as an error, if its id is unknown."""
    index_of = {id: i for i, id in enumerate(known)}
    values = _integers(annotations, key, "annotations", file)
    indices = np.array([index_of.get(value, -1) for value in values], dtype=np.int64)
    for m in np.flatnonzero(indices < 0):
        case = f"{ids[m]} ({key} {values[m]})"
        report.error(f"annotations whose {key} is not among the {kind}", case, "add it, or remove them")
    return indices


def _read_content(file: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(file.read_bytes(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error}); download or create the file again") from error
    if isinstance(content, list):
        raise ValueError(
            f"{file}: a list, as COCO's results format has; expected an annotation file, an object with images, "
            "annotations and categories"
        )
    for kind in KINDS:
        if isinstance(content, dict) and isinstance(content.get(kind), dict):  # by id, as in LIVECell
            content[kind] = list(content[kind].values())
    missing = [key for key in KINDS if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise ValueError(
            f"{file}: no list of {' and of '.join(missing)}; expected COCO object detection format with images, "
            "annotations and categories"
        )
    if not content["images"] or not content["categories"]:
        raise ValueError(f"{file}: {len(content['images'])} images and {len(content['categories'])} categories; "
                         "expected at least one of each")  # fmt: skip
    for kind in KINDS:
        invalid = [f"index {i} ({shown(e)})" for i, e in enumerate(content[kind]) if not isinstance(e, dict)]
        if invalid:
            raise ValueError(f"{file}: {len(invalid)} {kind} that are not objects with fields: {first_few(invalid)}")
    return content


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        key, count = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"an object has the key {key!r} {count} times: {shown(fields)}")
    return fields


def _integers(entries: list[dict[str, Any]], key: str, kind: str, file: Path) -> list[int]:
    """An integer field of all entries."""
    values = [entry.get(key) for entry in entries]
    numbers = [value if type(value) is int and -INT64 <= value < INT64 else parse_integer(value) for value in values]
    _check_values(entries, values, [number is not None for number in numbers], key, kind, "an integer of 64 bits", file)
    return numbers  # type: ignore[return-value]


def _strings(entries: list[dict[str, Any]], key: str, kind: str, file: Path) -> list[str]:
    """A text field of all entries, which may not be blank."""
    values = [entry.get(key) for entry in entries]
    valid = [isinstance(value, str) and bool(value.strip()) for value in values]
    _check_values(entries, values, valid, key, kind, "a text", file)
    return values  # type: ignore[return-value]


def _check_values(
    entries: list[dict[str, Any]],
    values: Sequence[Any],
    valid: Sequence[bool],
    key: str,
    kind: str,
    expected: str,
    file: Path,
) -> None:
    """Raise a ValueError that names the entries whose value of a field is not valid."""
    if all(valid):
        return
    cases = [
        f"{f'index {i}' if key == 'id' or entries[i].get('id') is None else entries[i]['id']} ({shown(values[i])})"
        for i, good in enumerate(valid)
        if not good
    ]
    raise ValueError(f"{file}: {len(cases)} {kind} whose {key} is missing or not {expected}: {first_few(cases)}")


def _boxes(
    annotations: list[dict[str, Any]],
    ids: list[int],
    outlines: npt.NDArray[np.float64],
    file: Path,
    report: ValidationReport,
) -> npt.NDArray[np.float64]:
    """Boxes (M, 4) as x, y, width, height; those of the segmentations where there is none."""
    boxes = np.full((len(annotations), 4), np.nan)
    invalid = []
    for m, annotation in enumerate(annotations):
        box = annotation.get("bbox")
        numbers = box
        if isinstance(box, list) and not {int, float}.issuperset(map(type, box)):
            numbers = [parse_number(side) for side in box]
        if isinstance(numbers, list) and len(numbers) == 4 and are_finite(numbers):
            boxes[m] = numbers
        elif box in (None, []) and not np.isnan(outlines[m, 0]):
            left, top, right, bottom = outlines[m]
            boxes[m] = left, top, right - left, bottom - top
        else:
            invalid.append(f"{ids[m]} ({shown(box)})")
    if invalid:
        report.raise_errors()  # a segmentation may be invalid
        raise ValueError(
            f"{file}: {len(invalid)} annotations whose bbox is not four numbers, x, y, width and height in pixels, and "
            f"which have no segmentation instead: {first_few(invalid)}"
        )
    return boxes


def _crowd(annotations: list[dict[str, Any]], ids: list[int], file: Path) -> npt.NDArray[np.bool_]:
    values = [annotation.get("iscrowd") for annotation in annotations]
    flags = [False if value is None else parse_flag(value) for value in values]
    _check_values(annotations, values, [flag is not None for flag in flags], "iscrowd", "annotations", "0 or 1", file)
    return np.array(flags, dtype=bool)


def _areas(
    annotations: list[dict[str, Any]],
    boxes: npt.NDArray[np.float64],
    mask_areas: npt.NDArray[np.float64],
    report: ValidationReport,
    known: npt.NDArray[np.int64],
    case: Callable[[int], str],
) -> npt.NDArray[np.float64]:
    """Areas (M,) as stored; where none is stored that of the segmentation, or else of the box."""
    values = [annotation.get("area") for annotation in annotations]
    stored = np.array([np.nan if (area := parse_number(v)) is None else area for v in values], dtype=np.float64)
    box_areas = boxes[:, 2:].prod(1)
    usable = (stored > 0) | ((stored == 0) & (box_areas == 0))
    for m in known[~usable[known]].tolist():
        if values[m] is not None:
            report.warning(
                "annotations whose area is not a positive number",
                f"{case(m)} {shown(values[m])}",
                "the area of the segmentation, or of the box, is used instead",
            )
    x, y, width, height = boxes.T
    corners = np.isclose(stored, (width - x) * (height - y), rtol=0.01) & (width > x) & (height > y)
    corners = known[(corners & ~np.isclose(stored, box_areas, rtol=0.01))[known]]
    if len(corners) > len(known) / 2:
        for m in corners.tolist():
            report.error(
                "boxes whose area is that of the corners x1, y1, x2, y2", f"{case(m)} {boxes[m].tolist()}",
                "expected x, y, width and height",
            )  # fmt: skip
    return np.where(usable, stored, np.where(np.isnan(mask_areas), box_areas, mask_areas))


def _check_outlines(
    report: ValidationReport,
    boxes: npt.NDArray[np.float64],
    outlines: npt.NDArray[np.float64],
    rows: npt.NDArray[np.int64],
    case: Callable[[int], str],
) -> None:
    """Report boxes that do not fit their segmentation: an error if these are most of the boxes that have one."""
    rows = rows[~np.isnan(outlines[rows, 0]) & np.isfinite(boxes[rows]).all(1)]
    box, outline = boxes[rows].copy(), outlines[rows]
    box[:, 2:] += box[:, :2]
    shared = (np.minimum(box[:, 2:], outline[:, 2:]) - np.maximum(box[:, :2], outline[:, :2])).clip(0).prod(1)
    union = (box[:, 2:] - box[:, :2]).prod(1) + (outline[:, 2:] - outline[:, :2]).prod(1) - shared
    differ = (shared < union / 2) & (np.abs(box - outline).max(1, initial=0) > TOLERANCE)
    kind = "boxes that overlap the extent of their segmentation by less than half"
    for i in np.flatnonzero(differ).tolist():
        message = f"{case(int(rows[i]))} {boxes[rows[i]].tolist()}, segmentation from {outline[i].tolist()}"
        if differ.sum() > len(rows) / 2:
            report.error(
                kind, message, "boxes may be stored as corners, or segmentations in normalized coordinates; expected "
                "x, y, width and height, and polygons, in pixels"
            )  # fmt: skip
        else:
            report.warning(kind, message, "both are used as stored")


def _check_distinct(report: ValidationReport, kind: str, values: Sequence[Any], fix: str) -> None:
    if len(set(values)) < len(values):
        for value, count in Counter(values).items():
            if count > 1:
                report.error(f"{kind} that occur more than once", f"{value} ({count} times)", fix)


def _find_images(root: Path, file: Path, names: list[str], report: ValidationReport) -> tuple[Path, list[str]]:
    """The folder of the images, and their paths in it."""
    name = file.stem.removeprefix("instances_")
    candidates = (root / name, root / "images" / name, root / "images", root, file.parent)
    folders = [folder for folder in candidates if folder.is_dir()]
    files = FileIndex()
    folder = max(folders, key=lambda folder: sum(files.find(folder, name) is not None for name in names[:PROBED]))
    paths = [files.find(folder, name) for name in names]
    for path, name in zip(paths, names, strict=True):
        if path is None:
            report.error(*_missing(files, folder, name))
    return folder, [path or name for path, name in zip(paths, names, strict=True)]


def _missing(files: FileIndex, folder: Path, name: str) -> tuple[str, str, str]:
    """Kind, case and fix of the error for an image that does not exist."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
        return "images whose file_name is a URL", name, f"download them, and write their paths in {folder}"
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return "images whose file_name is a path that does not exist here", name, f"write their paths in {folder}"
    if "%" in name and files.find(folder, unquote(name)):
        return "images whose file_name is percent-encoded", name, f"write the names of the files in {folder}"
    base = re.split(r"[/\\]", name)[-1]
    if files.find(folder, base):
        kind = f"images are in {folder} without the folders of their file_name"
        return kind, name, "write the names of the files, or move the files"
    return f"images are not in {folder}", name, "download them, or remove them from the annotations"
