"""COCO average precision by faster-coco-eval; exact on any number of processes, because detections are gathered.

Shapes: N detections per image of H x W pixels, K classes; boxes ``(x1, y1, x2, y2)`` in pixels.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...extras import require
from ..bootstrap import percentile_interval, resampled_counts
from ..samples import gather_rows, with_float64

# The twelve COCO metrics in the order of COCOeval. AP: mean over IoU 0.50 to 0.95; sizes: below 32 x 32, to 96 x 96,
# above; ar1 and ar10 count the best 1 and 10 detections per image, the other recalls max_detections.
METRIC_NAMES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
CURVES = {"ap50": 0, "ap75": 5}  # IoU thresholds of the precision-recall curves, by their index in COCO's
COLUMNS = 8  # per detection: image index, class index, score, box (4), length of the encoded mask in bytes


class DetectionMetrics:
    """Average precision and recall of boxes, and optionally of masks, from images in any order.

    Args:
        ground_truth: Dataset in COCO format: images with their sizes, annotations and categories. Crowds are ignored:
            they count neither as hits nor as misses.
        classes: K class names, by class index.
        category_ids: K category ids, by class index.
        masks: Whether to evaluate masks in addition to boxes.
        max_detections: Maximum number of detections per image, best first; COCO uses 100.
        device: Device on which processes exchange their detections.

    Raises:
        ImportError: faster-coco-eval is not installed.
    """

    def __init__(
        self,
        ground_truth: dict[str, Any],
        classes: Sequence[str],
        category_ids: Sequence[int],
        *,
        masks: bool,
        max_detections: int = 100,
        device: torch.device | str = "cpu",
    ) -> None:
        self._library = require("faster_coco_eval", "detect")
        self.device = with_float64(device)
        self.ground_truth = ground_truth
        self.classes, self.category_ids = tuple(classes), tuple(category_ids)
        self.masks = masks
        self.max_detections = max_detections
        # Images are exchanged by index: float64 does not hold all 64-bit ids.
        self._index_of = {image["id"]: i for i, image in enumerate(ground_truth["images"])}
        self._images: list[Tensor] = []
        self._rows: list[Tensor] = []
        self._bytes: list[Tensor] = []

    def update(
        self, image_id: int, boxes: Tensor, scores: Tensor, labels: Tensor, masks: Sequence[bytes] | None = None
    ) -> None:
        """Add the detections of an image.

        Args:
            image_id: Image id in the ground truth; each image is added once over all processes.
            boxes: Boxes (N, 4) in pixels of the image as stored; N may be 0.
            scores: Scores (N,).
            labels: Class indices (N,) int64, 0 to K - 1.
            masks: N masks as returned by :func:`encode_rle`, if masks are evaluated.

        Raises:
            ValueError: The ground truth has no such image, or masks are evaluated and their number is not N.
        """
        if image_id not in self._index_of:
            raise ValueError(f"image id {image_id} is not in the ground truth of {len(self._index_of)} images")
        index = self._index_of[image_id]
        encoded = list(masks or [])
        if self.masks and len(encoded) != len(boxes):
            raise ValueError(f"image id {image_id}: {len(boxes)} boxes and {len(encoded)} masks; expected equally many")
        rows = torch.zeros(len(boxes), COLUMNS, dtype=torch.float64)
        rows[:, 0] = index
        rows[:, 1] = labels
        rows[:, 2] = scores
        rows[:, 3:7] = boxes
        rows[:, 7] = torch.tensor([len(rle) for rle in encoded]) if self.masks else 0
        self._images.append(torch.tensor([index]))
        self._rows.append(rows)
        self._bytes.append(torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8) if encoded else _NO_BYTES)

    def reduce(self, all_gather: Callable[[Tensor], Tensor]) -> None:
        """Gather the detections of all processes; call it once, after the last image.

        Args:
            all_gather: Stacks tensors of equal shape from all processes along a new first dimension.
        """
        self._images, self._rows, self._bytes = (
            [gather_rows(torch.cat([empty, *parts]).to(self.device), all_gather).cpu()]
            for empty, parts in (
                (torch.zeros(0, dtype=torch.int64), self._images),
                (torch.zeros(0, COLUMNS, dtype=torch.float64), self._rows),
                (_NO_BYTES, self._bytes),
            )
        )

    def detections(self) -> list[dict[str, Any]]:
        """Detections in COCO's results format: plain data, boxes ``[x, y, width, height]``."""
        counts = torch.cat([_NO_BYTES, *self._bytes]).numpy().tobytes()
        results: list[dict[str, Any]] = []
        start = 0
        for index, class_id, score, x1, y1, x2, y2, length in torch.cat([_NO_ROWS, *self._rows]).tolist():
            image = self.ground_truth["images"][int(index)]
            result = {
                "image_id": image["id"],
                "category_id": self.category_ids[int(class_id)],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            if self.masks:
                end = start + int(length)
                result["segmentation"] = {
                    "size": [image["height"], image["width"]],
                    "counts": counts[start:end].decode(),
                }
                start = end
            results.append(result)
        return results

    def compute(self) -> dict[str, Any]:
        """Metrics over all images added so far.

        Returns:
            In percent: ``box_ap``, ``box_ap50``, ``box_ap75``, ``box_ap_small``, ``box_ap_medium``, ``box_ap_large``,
            ``box_ar1``, ``box_ar10``, ``box_ar``, ``box_ar_small``, ``box_ar_medium``, ``box_ar_large``, and the same
            with prefix ``mask_`` if masks are evaluated; ``None`` if no object has that size. Further ``count``, the
            number of images; ``objects``, the number of objects; and ``per_class``, a list of
            ``{"class": name, "count": objects, "box_ap": percent or None, "box_ap50", ...}``. ``curves``: by kind, for
            ``ap50`` and ``ap75``, the precision in [0, 1] at recalls of 0, 0.01, ... 1, averaged over the classes.

        Raises:
            ValueError: No image was added, or none of the images shows an object.
        """
        images = self.ground_truth["images"]
        image_ids = {images[i]["id"] for i in torch.cat([torch.zeros(0, dtype=torch.int64), *self._images]).tolist()}
        if not image_ids:
            raise ValueError("no image was evaluated: the validation set, or this process's part of it, is empty")
        objects = [a for a in self.ground_truth["annotations"] if a["image_id"] in image_ids and not a.get("iscrowd")]
        if not objects:
            raise ValueError(f"none of the {len(image_ids)} evaluated images shows an object; use images with objects")
        counts = Counter(annotation["category_id"] for annotation in objects)
        per_class: list[dict[str, Any]] = [
            {"class": name, "count": counts[category]}
            for name, category in zip(self.classes, self.category_ids, strict=True)
        ]
        # Categories and images of the evaluation are numbered in the order of their ids.
        places = {category: k for k, category in enumerate(sorted(self.category_ids))}
        out: dict[str, Any] = {}
        curves: dict[str, Any] = {}
        for kind in ("box", "mask") if self.masks else ("box",):
            evaluation = self._evaluation(kind, image_ids)
            evaluation.run()
            out |= {f"{kind}_{name}": _percent(x) for name, x in zip(METRIC_NAMES, evaluation.stats, strict=True)}
            # Shape (IoU, recall, category in the order of ids, area range, max detections): all areas, all detections.
            precision = evaluation.eval["precision"][:, :, :, 0, -1]
            known = precision[:, :, (precision >= 0).all((0, 1))]  # classes with objects
            curves[kind] = {name: known[iou].mean(-1).round(4).tolist() for name, iou in CURVES.items()}
            for row, category in zip(per_class, self.category_ids, strict=True):
                class_precision = precision[:, :, places[category]]
                row[f"{kind}_ap"] = _percent(class_precision.mean())
                row[f"{kind}_ap50"] = _percent(class_precision[0].mean())
        return {**out, "count": len(image_ids), "objects": len(objects), "per_class": per_class, "curves": curves}

    def interval(self, kind: str, resamples: int) -> tuple[float, float]:
        """Bootstrap interval of the AP of boxes (``box``) or masks (``mask``) in percent, by resampling the images."""
        image_ids = {self.ground_truth["images"][i]["id"] for i in torch.cat(self._images).tolist()}
        evaluation = self._evaluation(kind, image_ids, separate_eval=True)
        params = evaluation.params  # of all areas and numbers of detections, AP needs one
        params.areaRng, params.areaRngLbl, params.maxDets = (
            params.areaRng[:1],
            params.areaRngLbl[:1],
            [self.max_detections],
        )
        evaluation.evaluate()
        # Matches by category and image; an image that is drawn twice counts twice.
        matches = np.array(evaluation._evalImgs_cpp, dtype=object).reshape(len(params.catIds), -1)
        accumulate = self._library.faster_eval_api_cpp.COCOevalAccumulate
        found = []
        for counts in resampled_counts(len(image_ids), resamples):
            for row in counts:
                drawn = np.repeat(np.arange(len(row)), row)
                precision = accumulate(evaluation._paramsEval, matches[:, drawn].ravel().tolist())["precision"]
                found.append(precision[precision >= 0].mean() if (precision >= 0).any() else np.nan)
        return percentile_interval(100 * np.array(found))

    def _evaluation(self, kind: str, image_ids: set[int], separate_eval: bool = False) -> Any:
        """faster-coco-eval on boxes or masks, with a copy of the dataset, because the library modifies it.

        In the copy, ids are numbers from 1, in the order of the ids. The library marks a match by the object's id, so
        that an id below 1 would count as no match, and it holds ids as floats, which cannot be told apart from 2**53.
        """
        quiet = dict(print_function=_silent)
        truth, detections = self.ground_truth, self.detections()
        images = _numbers(image["id"] for image in truth["images"])
        categories = _numbers(self.category_ids)
        if kind == "mask":
            for detection in detections:  # otherwise size buckets would use the box area, not the mask area
                del detection["bbox"]
        annotations = [
            {**(_with_mask(annotation) if kind == "mask" else annotation), "id": number}
            for number, annotation in enumerate(truth["annotations"], start=1)
        ]
        for row in (*annotations, *detections):
            row["image_id"], row["category_id"] = images[row["image_id"]], categories[row["category_id"]]
        dataset = {
            "images": [{**image, "id": images[image["id"]]} for image in truth["images"]],
            "categories": [{"id": number, "name": str(number)} for number in categories.values()],
            "annotations": annotations,
        }
        ground_truth = self._library.COCO(dataset, **quiet)
        evaluation = self._library.COCOeval_faster(
            ground_truth,
            ground_truth.loadRes(detections),
            iouType="bbox" if kind == "box" else "segm",
            separate_eval=separate_eval,
            **quiet,
        )
        evaluation.params.imgIds = sorted(images[id] for id in image_ids)
        # The library sorts them, and takes the last one for everything but recalls.
        evaluation.params.maxDets = [min(limit, self.max_detections) for limit in (1, 10)] + [self.max_detections]
        return evaluation


def encode_rle(masks: Tensor) -> list[bytes]:
    """Encode masks (N, H, W) bool as compressed COCO RLE masks.

    Raises:
        ImportError: faster-coco-eval is not installed.
    """
    if not len(masks):
        return []
    columns = np.asfortranarray(masks.permute(1, 2, 0).to("cpu", torch.uint8).numpy())
    return [_as_bytes(rle["counts"]) for rle in require("faster_coco_eval.core.mask", "detect").encode(columns)]


_NO_BYTES = torch.zeros(0, dtype=torch.uint8)
_NO_ROWS = torch.zeros(0, COLUMNS, dtype=torch.float64)


def _numbers(ids: Iterable[int]) -> dict[int, int]:
    """Numbers from 1, in the order of the ids."""
    return {id: number for number, id in enumerate(sorted(ids), start=1)}


def _with_mask(annotation: dict[str, Any]) -> dict[str, Any]:
    """An annotation whose box stands for its mask if it has none, e.g. a crowd with a box only."""
    if "segmentation" in annotation:
        return annotation
    x, y, width, height = annotation["bbox"]
    corners = [x, y, x + width, y, x + width, y + height, x, y + height]
    return {**annotation, "segmentation": [corners]}


def _percent(value: float) -> float | None:
    """A metric in percent; COCOeval returns -1 if there are no objects."""
    return None if value < 0 else 100 * float(value)


def _as_bytes(counts: str | bytes) -> bytes:
    return counts.encode() if isinstance(counts, str) else counts


def _silent(*_: Any) -> None:
    """Replaces the library's print function."""
