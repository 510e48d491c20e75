"""Detection results and the files that hold them. Shapes: N detections of an image of H x W pixels, K classes."""

import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from ...extras import require
from ...files import write_text_atomic
from ...recipe import Input
from ...text import get_logger
from ..classes import class_candidates, some_names
from ..results import (
    DRAWN,
    Source,
    decode_source,
    image_names,
    kept_when_interrupted,
    result_names,
    save_drawn,
    with_sources,
)
from .box_masks import BoxMasks
from .data.coco import file_name, own_categories
from .metrics import encode_rle
from .pictures import draw_detections

RESULTS, ANNOTATIONS = "detections.json", "annotations.json"
log = get_logger(__name__)


@dataclass(frozen=True)
class Detections:
    """Detected objects of an image, best first, on the CPU.

    Args:
        source: Image as passed by the caller.
        id: Path of the image, or its index among the passed images.
        size: Height H and width W of the stored image.
        boxes: Boxes (N, 4) float32, ``(x1, y1, x2, y2)`` in pixels of the stored image.
        scores: Scores (N,) float32 in [0, 1].
        class_ids: Class indices (N,) int64, 0 to K - 1.
        box_masks: Masks, each computed on access: the i-th (H, W) bool is ``box_masks[i]``; ``None`` for a detector
            without masks.
        labels: Class name of each detection.
        error: Reason why the image could not be read; N is then 0.
    """

    source: Source
    id: str
    size: tuple[int, int]
    boxes: Tensor
    scores: Tensor
    class_ids: Tensor
    box_masks: BoxMasks | None
    labels: tuple[str, ...]
    error: str | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def masks(self) -> Tensor | None:
        """All masks (N, H, W) bool, recomputed at each access; for large images, read ``box_masks`` one by one."""
        return None if self.box_masks is None else self.box_masks.stacked()

    def above(self, score: float) -> "Detections":
        """The detections with at least this score."""
        keep = self.scores >= score
        return replace(
            self,
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            class_ids=self.class_ids[keep],
            box_masks=None if self.box_masks is None else self.box_masks[keep],
            labels=tuple(label for label, kept in zip(self.labels, keep.tolist(), strict=True) if kept),
        )

    def to_torchvision(self) -> dict[str, Tensor]:
        """The dict of torchvision's detection models: ``boxes``, ``labels`` (class indices from 0), ``scores`` and,
        with masks, ``masks`` (N, 1, H, W) float32."""
        out, masks = {"boxes": self.boxes, "labels": self.class_ids, "scores": self.scores}, self.masks
        return out if masks is None else out | {"masks": masks[:, None].float()}

    def to_supervision(self) -> Any:
        """A ``supervision.Detections``, with the class names as ``data["class_name"]``.

        Raises:
            ImportError: supervision is not installed.
        """
        import numpy as np

        supervision, masks = require("supervision"), self.masks
        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            mask=None if masks is None else masks.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.class_ids.numpy(),
            data={"class_name": np.array(self.labels, dtype=str)},
        )


class _Entry(NamedTuple):
    """An image of an annotation file: folders and file name, id, and ``file_name`` as stored."""

    parts: tuple[str, ...]
    id: int | str
    file_name: str


class _Annotations(NamedTuple):
    """What results need of an annotation file: its images by file name without folders, and its categories."""

    images: dict[str, list[_Entry]]
    category_ids: list[int | str]
    category_names: list[str]


def coco_ids(
    annotations: Path, images: Sequence[Source], classes: Sequence[str]
) -> tuple[list[int | str], list[int | str] | None]:
    """Ids of images and classes in a COCO annotation file, as they are written there.

    An image is the entry whose ``file_name`` is the end of its path, e.g. ``cam1/0001.png`` or ``0001.png`` for
    ``data/cam1/0001.png``; the longest such ``file_name`` counts. If there is none, it is the entry whose
    ``file_name`` ends in its path relative to the common folder of the images, e.g. ``val/0001.png`` for
    ``photos/0001.png``, with a warning. Classes are matched with the categories by name.

    Returns:
        Image ids, and category ids by class index; ``None`` if the file has no categories.

    Raises:
        ValueError: The annotation file is invalid, an image is missing from it or has several entries, two images have
            the same entry or id, or a class is not among the categories.
    """
    by_base, known_ids, known_names = _read_annotations(annotations)
    found: dict[int | str, str] = {}
    missing: list[str] = []
    elsewhere: list[str] = []
    for source, name in zip(images, image_names(images), strict=True):
        if isinstance(source, Image.Image):
            raise ValueError(f"image {name} has no file name to find in {annotations}; pass the paths of the images")
        path, relative = _parts(os.path.abspath(source)), _parts(name)
        entries = by_base.get(path[-1], [])
        matches = [entry for entry in entries if path[-len(entry.parts) :] == entry.parts]
        longest = max((len(entry.parts) for entry in matches), default=0)
        matches = [entry for entry in matches if len(entry.parts) == longest]
        if not matches:
            matches = [entry for entry in entries if entry.parts[-len(relative) :] == relative]
            elsewhere += [f"{source} is {entry.file_name}" for entry in matches]
        if len(matches) > 1:
            raise ValueError(
                f"{source} may be {' or '.join(entry.file_name for entry in matches)} in {annotations}; keep the "
                "images in the folders that their file_name has"
            )
        if not matches:
            missing.append(name)
            continue
        (entry,) = matches
        other = found.setdefault(entry.id, str(source))
        if other != str(source):
            raise ValueError(
                f"{other} and {source} would have the id {entry.id!r} in {annotations} (file_name {entry.file_name}); "
                "expected an entry with its own id for each image"
            )
    if missing:
        raise ValueError(
            f"{annotations} does not contain {len(missing)} of the {len(images)} images, e.g. {missing[0]}; omit the "
            "annotations, or use those of these images"
        )
    if elsewhere:
        log.warning(
            "%s: %d of the %d images are in other folders there, e.g. %s", annotations, len(elsewhere), len(images),
            elsewhere[0],
        )  # fmt: skip
    if not known_names:
        return list(found), None
    candidates = class_candidates(classes, known_names)
    if unmatched := [name for name, indices in zip(classes, candidates, strict=True) if len(indices) != 1]:
        raise ValueError(
            f"{annotations}: has no category, or several, for {len(unmatched)} of the model's {len(classes)} classes: "
            f"{some_names(unmatched)}; its categories are {some_names(known_names)}. Use the annotations of a dataset "
            "with the model's classes, or omit them"
        )
    return list(found), [known_ids[k] for (k,) in candidates]


def _read_annotations(annotations: Path) -> _Annotations:
    entries = defaultdict(list)
    try:
        content = json.loads(annotations.read_bytes())
        images = content["images"]
        for image in images.values() if isinstance(images, dict) else images:
            name = file_name(image)
            id = _stored_id(image, "image", name)
            parts = _parts(name)
            entries[parts[-1]].append(_Entry(parts, id, name))
        categories = own_categories(content.get("categories") or [])
        names = [category["name"].strip() for category in categories]
        ids = [_stored_id(category, "category", category["name"]) for category in categories]
        if len(set(ids)) < len(ids):
            raise ValueError(f"category ids that occur more than once: {ids}")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError, RecursionError) as error:
        raise ValueError(
            f"{annotations}: not a COCO annotation file with images, their file_name and id: {error!r}"
        ) from error
    return _Annotations(entries, ids, names)


def _stored_id(entry: dict[str, Any], kind: str, name: str) -> int | str:
    """The id of an entry as written, as an integer if it is a float such as 12.0."""
    id = entry["id"]
    if isinstance(id, float) and id.is_integer():
        id = int(id)
    if not isinstance(id, int | str) or isinstance(id, bool):
        raise TypeError(f"{kind} id {id!r} of {name}")
    return id


def _parts(name: str) -> tuple[str, ...]:
    """Folders and file name of a path as any program writes it; accents have several encodings."""
    path = unicodedata.normalize("NFC", name).replace("\\", "/")
    return tuple(part for part in path.split("/") if part not in ("", "."))


def coco_results(
    detections: Detections, image_id: int | str, file_name: str, category_ids: Sequence[int | str]
) -> list[dict[str, Any]]:
    """An image's detections in COCO's results format, with the image's file name and the class names added.

    Args:
        detections: Detections of the image.
        image_id: COCO image id.
        file_name: Name of the image, unique among the images.
        category_ids: COCO category ids, by class index.
    """
    rows = []
    for box, score, class_id, label, segmentation in zip(
        detections.boxes.tolist(),
        detections.scores.tolist(),
        detections.class_ids.tolist(),
        detections.labels,
        segmentations(detections),
        strict=True,
    ):
        x1, y1, x2, y2 = (round(side, 4) for side in box)
        row = {
            "image_id": image_id,
            "file_name": file_name,
            "category_id": category_ids[class_id],
            "category": label,
            "bbox": [x1, y1, round(x2 - x1, 4), round(y2 - y1, 4)],
            "score": round(score, 6),
            **segmentation,
        }
        rows.append(row)
    return rows


def segmentations(detections: Detections) -> list[dict[str, Any]]:
    """Per detection its mask as COCO's compressed RLE, under ``segmentation``; empty without masks."""
    if detections.box_masks is None:
        return [{} for _ in range(len(detections))]
    masks = [mask for chunk in detections.box_masks.chunks() for mask in encode_rle(chunk)]
    return [{"segmentation": {"size": list(detections.size), "counts": mask.decode()}} for mask in masks]


def draw_result(
    result: Detections, score: float, classes: Sequence[str], input: Input, legend: bool = True
) -> Image.Image:
    """A readable image with its detections of at least a score drawn over it."""
    shown = result.above(score)
    return draw_detections(
        decode_source(result.source, input), shown.boxes, shown.class_ids, shown.scores, shown.box_masks,
        classes=classes, legend=legend,
    )  # fmt: skip


def write_detections(
    results: Iterable[Detections],
    images: Sequence[Source] | None,
    folder: Path,
    *,
    classes: Sequence[str],
    category_ids: Sequence[int],
    score: float,
    annotations: Path | None,
    input: Input,
    draw: bool,
) -> list[Path]:
    """See :meth:`smt_vision.tasks.detection.predictor.Detector.save`."""
    results, images = with_sources(results, images)
    outputs, names = result_names(images), image_names(images)
    image_ids: Sequence[int | str] = range(1, len(images) + 1)
    written_ids: Sequence[int | str] = category_ids
    if annotations is not None:
        image_ids, known = coco_ids(annotations, images, classes)
        written_ids = known or category_ids
    rows: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []

    def save(path: Path) -> bool:
        if entries:
            write_text_atomic(path, json.dumps(rows))
        return bool(entries)

    with kept_when_interrupted(folder / RESULTS, save):
        for result, output, name, image_id in zip(results, outputs, names, image_ids, strict=True):
            if result.error is not None:
                continue
            found = coco_results(result, image_id, name, written_ids)
            rows += found
            entries.append({"id": image_id, "file_name": name, "height": result.size[0], "width": result.size[1]})
            shown = (row for row, value in zip(found, result.scores.tolist(), strict=True) if value >= score)
            objects += [_as_annotation(row, len(objects) + i) for i, row in enumerate(shown, 1)]
            if draw:
                save_drawn(lambda: draw_result(result, score, classes, input), folder / DRAWN / output)  # noqa: B023
    categories = [{"id": id, "name": name} for id, name in zip(written_ids, classes, strict=True)]
    dataset = {"images": entries, "annotations": objects, "categories": categories}
    write_text_atomic(folder / RESULTS, json.dumps(rows))
    write_text_atomic(folder / ANNOTATIONS, json.dumps(dataset))
    return [folder / RESULTS, folder / ANNOTATIONS, *([folder / DRAWN] if draw else [])]


def _as_annotation(row: Mapping[str, Any], id: int) -> dict[str, Any]:
    """A detection in COCO's results format as an annotation of a COCO dataset."""
    area = row["bbox"][2] * row["bbox"][3]
    if "segmentation" in row:
        area = float(require("faster_coco_eval.core.mask", "detect").area(row["segmentation"]))
    kept = {key: row[key] for key in ("image_id", "category_id", "bbox", "segmentation", "score") if key in row}
    return {"id": id, **kept, "area": area, "iscrowd": 0}
