"""COCO JSON: boxes, polygons, RLE masks, crowds, images without objects, category ids with gaps."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ....data.dataset import Split
from ....data.validation import ValidationReport, first_few
from .dataset import DetectionDataset, Objects, Segmentation, check_boxes, check_files

PREFIXES = {"train": ("train",), "val": ("val", "test")}  # of annotation file names; the first with a match is used


def find_coco(root: Path, split: Split) -> Path | None:
    """Find the annotation file of a split, e.g. ``annotations/instances_train2017.json``; ``None`` if there is none.

    Raises:
        ValueError: Several files match.
    """
    for prefix in PREFIXES[split]:
        for pattern in (f"instances_{prefix}*.json", f"{prefix}*.json"):
            files = sorted((root / "annotations").glob(pattern))
            if len(files) > 1:
                names = ", ".join(file.name for file in files)
                raise ValueError(f"{files[0].parent}: several files for {split}: {names}; keep only one of them")
            if files:
                return files[0]
    return None


def open_coco(root: Path, file: Path) -> DetectionDataset:
    """Open the images of a COCO annotation file.

    Args:
        root: Folder of the dataset. Images are in a subfolder named like the file without ``instances_``, e.g.
            ``train2017/`` or ``images/train2017/``; otherwise in ``images/`` or in ``root`` itself.
        file: Annotation file with the keys ``images``, ``annotations`` and ``categories``.

    Raises:
        ValueError: The file is invalid; the message lists the first few cases of each kind of error.
    """
    content = _read_content(file)
    images, categories = content["images"], content["categories"]
    report = ValidationReport(str(file))
    ids, image_ids = (_column(images, key, "images", file) for key in ("file_name", "id"))
    sizes = np.array([_column(images, key, "images", file) for key in ("height", "width")], dtype=np.int64).T
    category_ids, names = (_column(categories, key, "categories", file) for key in ("id", "name"))
    for kind, values in (
        ("image ids", image_ids),
        ("file names", ids),
        ("category ids", category_ids),
        ("category names", names),
    ):
        _check_distinct(report, kind, values)
    for i in np.flatnonzero((sizes <= 0).any(1)):
        report.error("images without a size", ids[i], "give their width and height in pixels")
    folder = _image_folder(root, file, ids)
    check_files(report, folder, ids)

    classes = dict(sorted(zip(category_ids, names, strict=True)))  # class indices follow the order of the category ids
    objects = _objects(content["annotations"], file, report, image_ids, list(classes), ids, sizes)
    report.raise_errors()
    return DetectionDataset(
        folder, ids, sizes, np.array(image_ids, dtype=np.int64), list(classes.values()), list(classes), objects
    )


def _objects(
    annotations: list[dict[str, Any]],
    file: Path,
    report: ValidationReport,
    image_ids: list[int],
    category_ids: list[int],
    names: list[str],
    sizes: npt.NDArray[np.int64],
) -> Objects:
    """Validate the annotations and convert them to columns; ``names`` and ``sizes`` belong to the images."""
    ids = _column(annotations, "id", "annotations", file)
    _check_distinct(report, "annotation ids", ids)
    image = _indices(annotations, "image_id", image_ids, "images", file, report)
    labels = _indices(annotations, "category_id", category_ids, "categories", file, report)
    boxes = _boxes(annotations, file)
    segmentations = [annotation.get("segmentation") or None for annotation in annotations]

    def case(m: int) -> str:
        return f"annotation {ids[m]} ({names[image[m]]})"

    valid = np.flatnonzero(image >= 0)
    check_boxes(report, boxes[valid], sizes[image[valid]], lambda i: case(int(valid[i])))
    for m in valid.tolist():
        if segmentations[m] is not None:
            height, width = sizes[image[m]].tolist()
            _check_segmentation(report, segmentations[m], height, width, partial(case, m))
    areas = [a.get("area", w * h) for a, (w, h) in zip(annotations, boxes[:, 2:].tolist(), strict=True)]
    return Objects(
        image=image,
        boxes=boxes,
        labels=labels,
        crowd=np.array([bool(annotation.get("iscrowd", 0)) for annotation in annotations], dtype=bool),
        areas=np.array(areas, dtype=np.float64),
        ids=np.array(ids, dtype=np.int64),
        segmentations=segmentations,
    )


def _indices(
    annotations: list[dict[str, Any]], key: str, known: list[int], kind: str, file: Path, report: ValidationReport
) -> npt.NDArray[np.int64]:
    """(M,) index of the image or category of each annotation; -1, reported as an error, if its id is unknown."""
    index_of = {id: i for i, id in enumerate(known)}
    indices = np.array([index_of.get(id, -1) for id in _column(annotations, key, "annotations", file)], dtype=np.int64)
    for m in np.flatnonzero(indices < 0):
        case = f"{annotations[m]['id']} ({key} {annotations[m][key]})"
        report.error(f"annotations whose {key} is not among the {kind}", case, "add it, or remove them")
    return indices


def _read_content(file: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); download or create the file again") from error
    missing = [
        key
        for key in ("images", "annotations", "categories")
        if not isinstance(content, dict) or not isinstance(content.get(key), list)
    ]
    if missing:
        raise ValueError(
            f"{file}: no list of {' and of '.join(missing)}; expected COCO object detection format with images, "
            "annotations and categories"
        )
    if not content["images"] or not content["categories"]:
        raise ValueError(f"{file}: {len(content['images'])} images and {len(content['categories'])} categories; "
                         "expected at least one of each")  # fmt: skip
    return content


def _column(entries: list[dict[str, Any]], key: str, kind: str, file: Path) -> list[Any]:
    """One field of all entries; ids and sizes must be integers."""
    expected_type = str if key in ("file_name", "name") else int
    invalid = [
        f"{e.get('id', f'index {i}')}" for i, e in enumerate(entries) if not isinstance(e.get(key), expected_type)
    ]
    if invalid:
        expected = "a string" if expected_type is str else "an integer"
        raise ValueError(
            f"{file}: {len(invalid)} {kind} whose {key} is missing or not {expected}: {first_few(invalid)}"
        )
    return [entry[key] for entry in entries]


def _boxes(annotations: list[dict[str, Any]], file: Path) -> npt.NDArray[np.float64]:
    """Boxes (M, 4) as x, y, width, height."""
    boxes = [annotation.get("bbox") for annotation in annotations]
    invalid = [
        f"{annotation['id']} ({box})"
        for annotation, box in zip(annotations, boxes, strict=True)
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box)
    ]
    if invalid:
        raise ValueError(f"{file}: {len(invalid)} annotations whose bbox is not four numbers: {first_few(invalid)}")
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _check_distinct(report: ValidationReport, kind: str, values: Sequence[Any]) -> None:
    if len(set(values)) < len(values):
        for value, count in Counter(values).items():
            if count > 1:
                report.error(f"{kind} that occur more than once", f"{value} ({count} times)", "keep one of each")


def _check_segmentation(
    report: ValidationReport, segmentation: Segmentation, height: int, width: int, case: Callable[[], str]
) -> None:
    """Check that a segmentation is a list of polygons, or an RLE mask of the image's size."""
    if isinstance(segmentation, dict):
        if list(segmentation.get("size", ())) != [height, width] or "counts" not in segmentation:
            report.error(
                "RLE masks whose size is not that of the image",
                f"{case()} {segmentation.get('size')} for {[height, width]}",
                "expected counts, and a size of the image's height and width",
            )
    elif not isinstance(segmentation, list) or any(not isinstance(p, list) or len(p) % 2 for p in segmentation):
        report.error("segmentations that are neither polygons nor RLE masks", case(), "expected [[x, y, x, y, ...]]")
    elif all(len(polygon) < 6 for polygon in segmentation):
        report.warning("polygons of fewer than three points", case(), "mask training ignores these objects")


def _image_folder(root: Path, file: Path, ids: list[str]) -> Path:
    name = file.stem.removeprefix("instances_")
    candidates = [root / name, root / "images" / name, root / "images", root]
    with_images = [folder for folder in candidates if (folder / ids[0]).is_file()]
    existing = [folder for folder in candidates if folder.is_dir()]
    return (with_images or existing)[0]
