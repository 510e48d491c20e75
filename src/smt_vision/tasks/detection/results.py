"""Detection results and the files that hold them. Shapes: N detections of an image of H x W pixels, K classes."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ...extras import require
from ...files import write_atomic
from ..results import DRAWN, Source, decode_source, result_names, save_image, with_sources
from .metrics import encode_rle
from .pictures import draw_detections

RESULTS = "detections.json"


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
        masks: Masks (N, H, W) bool, or ``None`` for a detector without masks.
        labels: Class name of each detection.
        error: Reason why the image could not be read; N is then 0.
    """

    source: Source
    id: str
    size: tuple[int, int]
    boxes: Tensor
    scores: Tensor
    class_ids: Tensor
    masks: Tensor | None
    labels: tuple[str, ...]
    error: str | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def above(self, score: float) -> "Detections":
        """The detections with at least this score."""
        keep = self.scores >= score
        return replace(
            self,
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            class_ids=self.class_ids[keep],
            masks=None if self.masks is None else self.masks[keep],
            labels=tuple(label for label, kept in zip(self.labels, keep.tolist(), strict=True) if kept),
        )

    def to_torchvision(self) -> dict[str, Tensor]:
        """The dict of torchvision's detection models: ``boxes``, ``labels`` (class indices from 0), ``scores`` and,
        with masks, ``masks`` (N, 1, H, W) float32."""
        out = {"boxes": self.boxes, "labels": self.class_ids, "scores": self.scores}
        return out if self.masks is None else out | {"masks": self.masks[:, None].float()}

    def to_supervision(self) -> Any:
        """A ``supervision.Detections``, with the class names as ``data["class_name"]``.

        Raises:
            ImportError: supervision is not installed.
        """
        import numpy as np

        supervision = require("supervision")
        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            mask=None if self.masks is None else self.masks.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.class_ids.numpy(),
            data={"class_name": np.array(self.labels, dtype=str)},
        )


def coco_ids(annotations: Path, names: Sequence[str]) -> list[int]:
    """Image ids of file names in a COCO annotation file.

    Raises:
        ValueError: The annotation file is invalid, or an image is missing from it.
    """
    try:
        images = json.loads(annotations.read_text(encoding="utf-8"))["images"]
        ids = {Path(image["file_name"]).name: int(image["id"]) for image in images}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(
            f"{annotations}: not a COCO annotation file with images, their file_name and id: {error!r}"
        ) from error
    if missing := [name for name in names if name not in ids]:
        raise ValueError(
            f"{annotations} does not contain {len(missing)} of the {len(names)} images, e.g. {missing[0]}; omit the "
            "annotations, or use those of these images"
        )
    return [ids[name] for name in names]


def coco_results(detections: Detections, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """An image's detections in COCO's results format, with the image's file name and the class names added.

    Args:
        detections: Detections of the image.
        image_id: COCO image id.
        category_ids: COCO category ids, by class index.
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
    results: Iterable[Detections],
    images: Sequence[Source] | None,
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

    def write(path: Path) -> None:
        path.write_text(json.dumps(rows), encoding="utf-8")

    write_atomic(folder / RESULTS, write)
    return [folder / RESULTS, folder / DRAWN]
