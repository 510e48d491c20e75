"""COCO's JSON: boxes, polygons, run lengths, crowds, images without objects, category ids with gaps."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ....data.dataset import Split
from ....data.validation import ValidationReport, shown
from .dataset import DetectionDataset, Objects, Segmentation, check_boxes, check_files

PREFIXES = {"train": ("train",), "val": ("val", "test")}  # of annotation files; the first that one has is taken


def find_coco(root: Path, split: Split) -> Path | None:
    """The split's annotations: ``annotations/instances_train2017.json``, or so; without a split in it, ``None``.

    Raises:
        ValueError: there are several.
    """
    for prefix in PREFIXES[split]:
        for pattern in (f"instances_{prefix}*.json", f"{prefix}*.json"):
            found = sorted((root / "annotations").glob(pattern))
            if len(found) > 1:
                names = ", ".join(file.name for file in found)
                raise ValueError(f"{found[0].parent}: several files for {split}: {names}; leave one of them there")
            if found:
                return found[0]
    return None


def open_coco(root: Path, file: Path) -> DetectionDataset:
    """Open the images that a COCO JSON names.

    Args:
        root: the images are in a folder of it that is called like the file without ``instances_``, as ``train2017/``,
            or ``images/train2017/``; else in ``images/`` or in ``root`` itself.
        file: the annotations, of the keys ``images``, ``annotations`` and ``categories``.

    Raises:
        ValueError: it cannot be used; every kind of mistake is named with the first few cases.
    """
    content = _content(file)
    images, categories = content["images"], content["categories"]
    findings = ValidationReport(str(file))
    ids, image_ids = (_column(images, key, "images", file) for key in ("file_name", "id"))
    sizes = np.array([_column(images, key, "images", file) for key in ("height", "width")], dtype=np.int64).T
    category_ids, names = (_column(categories, key, "categories", file) for key in ("id", "name"))
    for kind, values in (
        ("image ids", image_ids),
        ("file names", ids),
        ("category ids", category_ids),
        ("category names", names),
    ):
        _check_distinct(findings, kind, values)
    for i in np.flatnonzero((sizes <= 0).any(1)):
        findings.error("images without a size", ids[i], "give their width and height in pixels")
    folder = _image_folder(root, file, ids)
    check_files(findings, folder, ids)

    classes = dict(sorted(zip(category_ids, names, strict=True)))  # numbered in the order of their ids
    objects = _objects(content["annotations"], file, findings, image_ids, list(classes), ids, sizes)
    findings.tell()
    return DetectionDataset(
        folder, ids, sizes, np.array(image_ids, dtype=np.int64), list(classes.values()), list(classes), objects
    )


def _objects(
    annotations: list[dict[str, Any]],
    file: Path,
    findings: ValidationReport,
    image_ids: list[int],
    category_ids: list[int],
    names: list[str],
    sizes: npt.NDArray[np.int64],
) -> Objects:
    """The annotations as columns, checked; ``names`` and ``sizes`` are the images'."""
    ids = _column(annotations, "id", "annotations", file)
    _check_distinct(findings, "annotation ids", ids)
    image = _places(annotations, "image_id", image_ids, "images", file, findings)
    label = _places(annotations, "category_id", category_ids, "categories", file, findings)
    boxes = _boxes(annotations, file)
    segmentations = [annotation.get("segmentation") or None for annotation in annotations]

    def case(m: int) -> str:
        return f"annotation {ids[m]} ({names[image[m]]})"

    placed = np.flatnonzero(image >= 0)
    check_boxes(findings, boxes[placed], sizes[image[placed]], lambda i: case(int(placed[i])))
    for m in placed.tolist():
        if segmentations[m] is not None:
            height, width = sizes[image[m]].tolist()
            _check_segmentation(findings, segmentations[m], height, width, partial(case, m))
    areas = [a.get("area", w * h) for a, (w, h) in zip(annotations, boxes[:, 2:].tolist(), strict=True)]
    return Objects(
        image=image,
        boxes=boxes,
        labels=label,
        crowd=np.array([bool(annotation.get("iscrowd", 0)) for annotation in annotations], dtype=bool),
        areas=np.array(areas, dtype=np.float64),
        ids=np.array(ids, dtype=np.int64),
        segmentations=segmentations,
    )


def _places(
    annotations: list[dict[str, Any]], key: str, known: list[int], kind: str, file: Path, findings: ValidationReport
) -> npt.NDArray[np.int64]:
    """(M,) the place of what each annotation refers to; -1 where there is none, which is an error."""
    place = {number: i for i, number in enumerate(known)}
    found = np.array([place.get(n, -1) for n in _column(annotations, key, "annotations", file)], dtype=np.int64)
    for m in np.flatnonzero(found < 0):
        case = f"{annotations[m]['id']} ({key} {annotations[m][key]})"
        findings.error(f"annotations whose {key} is not among the {kind}", case, "add it there, or remove them")
    return found


def _content(file: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); fetch or write it again") from error
    lacking = [
        key
        for key in ("images", "annotations", "categories")
        if not isinstance(content, dict) or not isinstance(content.get(key), list)
    ]
    if lacking:
        raise ValueError(
            f"{file}: no list of {' and of '.join(lacking)}; expected COCO's object detection format, with images, "
            "annotations and categories"
        )
    if not content["images"] or not content["categories"]:
        raise ValueError(f"{file}: {len(content['images'])} images and {len(content['categories'])} categories; "
                         "expected some of both")  # fmt: skip
    return content


def _column(entries: list[dict[str, Any]], key: str, kind: str, file: Path) -> list[Any]:
    """One field of all entries; ids and sizes must be whole numbers."""
    kinds = str if key in ("file_name", "name") else int
    wrong = [f"{e.get('id', f'number {i}')}" for i, e in enumerate(entries) if not isinstance(e.get(key), kinds)]
    if wrong:
        expected = "text" if kinds is str else "a whole number"
        raise ValueError(f"{file}: {len(wrong)} {kind} whose {key} is missing or not {expected}: {shown(wrong)}; mend "
                         "them")  # fmt: skip
    return [entry[key] for entry in entries]


def _boxes(annotations: list[dict[str, Any]], file: Path) -> npt.NDArray[np.float64]:
    """(M, 4) x, y, width, height."""
    boxes = [annotation.get("bbox") for annotation in annotations]
    wrong = [
        f"{annotation['id']} ({box})"
        for annotation, box in zip(annotations, boxes, strict=True)
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box)
    ]
    if wrong:
        raise ValueError(f"{file}: {len(wrong)} annotations whose bbox is not four numbers: {shown(wrong)}; mend them")
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _check_distinct(findings: ValidationReport, kind: str, values: Sequence[Any]) -> None:
    if len(set(values)) < len(values):
        for value, count in Counter(values).items():
            if count > 1:
                findings.error(f"{kind} that occur more than once", f"{value} ({count} times)", "keep one of each")


def _check_segmentation(
    findings: ValidationReport, segmentation: Segmentation, height: int, width: int, case: Callable[[], str]
) -> None:
    """Polygons of pairs of numbers, or run lengths of the image's size."""
    if isinstance(segmentation, dict):
        if list(segmentation.get("size", ())) != [height, width] or "counts" not in segmentation:
            findings.error(
                "run lengths of another size than their image's",
                f"{case()} {segmentation.get('size')} for {[height, width]}",
                "expected counts, and as size the image's height and width",
            )
    elif not isinstance(segmentation, list) or any(not isinstance(p, list) or len(p) % 2 for p in segmentation):
        findings.error(
            "segmentations that are neither polygons nor run lengths", case(), "expected [[x, y, x, y, ...]]"
        )
    elif all(len(polygon) < 6 for polygon in segmentation):
        findings.warning("outlines of less than three points", case(), "training of masks leaves these objects out")


def _image_folder(root: Path, file: Path, ids: list[str]) -> Path:
    name = file.stem.removeprefix("instances_")
    candidates = [root / name, root / "images" / name, root / "images", root]
    holding = [folder for folder in candidates if (folder / ids[0]).is_file()]
    there = [folder for folder in candidates if folder.is_dir()]
    return (holding or there)[0]
