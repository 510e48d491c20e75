"""A detector's results as files."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ...files import write_atomic
from ..results import DRAWN, decode_source, result_names, save_image, with_sources
from .metrics import encode_rle
from .pictures import draw_detections

if TYPE_CHECKING:
    from .predictor import Detections

RESULTS = "detections.json"


def coco_ids(annotations: Path, names: Sequence[str]) -> list[int]:
    """The ids of images in a COCO annotation file, by file name.

    Raises:
        ValueError: It is not such a file, or does not name an image.
    """
    try:
        images = json.loads(annotations.read_text(encoding="utf-8"))["images"]
        known = {Path(image["file_name"]).name: int(image["id"]) for image in images}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(
            f"{annotations}: not a COCO annotation file with images, their file_name and id: {error!r}"
        ) from error
    if missing := [name for name in names if name not in known]:
        raise ValueError(
            f"{annotations} does not name {len(missing)} of the {len(names)} images, e.g. {missing[0]}; omit the "
            "annotations, or use those of these images"
        )
    return [known[name] for name in names]


def coco_results(detections: "Detections", image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """An image's detections in COCO's results format, with the names of file and class beside the numbers.

    Args:
        detections: The detections.
        image_id: Id of the image.
        category_ids: COCO's ids of the classes, by class index.
    """
    count = len(detections)
    masks: Sequence[bytes | None] = [None] * count if detections.masks is None else encode_rle(detections.masks)
    rows = []
    for box, score, class_id, label, mask in zip(
        detections.boxes.tolist(),
        detections.scores.tolist(),
        detections.class_ids.tolist(),
        detections.labels,
        masks,
        strict=True,
    ):
        x1, y1, x2, y2 = (round(side, 4) for side in box)
        row = {
            "image_id": image_id,
            "file_name": Path(detections.id).name,
            "category_id": category_ids[class_id],
            "category": label,
            "bbox": [x1, y1, round(x2 - x1, 4), round(y2 - y1, 4)],
            "score": round(score, 6),
        }
        if mask is not None:
            row["segmentation"] = {"size": list(detections.size), "counts": mask.decode()}
        rows.append(row)
    return rows


def write_detections(
    results: Iterable["Detections"],
    images: Sequence[str | Path | Image.Image] | None,
    folder: Path,
    *,
    classes: Sequence[str],
    category_ids: Sequence[int],
    score: float,
    annotations: Path | None,
) -> list[Path]:
    """See :meth:`smt_vision.tasks.detection.predictor.Detector.save`."""
    results, images = with_sources(results, images)
    names = result_names(images)
    file_names = [
        name.name if isinstance(i, Image.Image) else Path(i).name for i, name in zip(images, names, strict=True)
    ]
    image_ids = range(1, len(names) + 1) if annotations is None else coco_ids(annotations, file_names)
    rows: list[dict[str, Any]] = []
    for result, name, image_id in zip(results, names, image_ids, strict=True):
        if result.error is not None:
            continue
        rows += coco_results(result, image_id, category_ids)
        shown = result.above(score)
        drawn = draw_detections(
            decode_source(result.source), shown.boxes, shown.class_ids, shown.scores, shown.masks, classes=classes
        )
        save_image(drawn, folder / DRAWN / name)

    def write(part: Path) -> None:
        part.write_text(json.dumps(rows), encoding="utf-8")

    write_atomic(folder / RESULTS, write)
    return [folder / RESULTS, folder / DRAWN]
