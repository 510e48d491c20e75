"""COCO's average precision, by faster-coco-eval; exact on any number of processes, because detections are gathered.

Shapes: N detections of an image of H x W pixels, K classes; boxes ``(x1, y1, x2, y2)`` in pixels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...extras import require

# The twelve numbers in COCO's order. AP: mean of IoU 0.50 to 0.95; sizes: below 32 x 32, to 96 x 96, above; the first
# two recalls are of so many detections an image, the others of all.
NUMBERS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
COLUMNS = 8  # of a detection: image, class, score, box, bytes of the mask


class DetectionMetrics:
    """Average precision and recall of boxes, and of masks, from images in any order.

    Args:
        ground_truth: the set in COCO's format, images with their sizes, objects and categories; crowds are neither
            found nor missed.
        classes: K names, by label.
        category_ids: K ids of the categories, by label.
        masks: masks are measured, too.
        max_detections: of an image that count, the best first; COCO's own is 100.
        device: where processes exchange their detections.

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
        device = torch.device(device)
        self.device = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
        self.ground_truth = ground_truth
        self.classes, self.category_ids = tuple(classes), tuple(category_ids)
        self.masks = masks
        self.max_detections = max_detections
        self._sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
        self._seen: list[Tensor] = []
        self._rows: list[Tensor] = []
        self._bytes: list[Tensor] = []

    def update(
        self, image_id: int, boxes: Tensor, scores: Tensor, labels: Tensor, masks: Sequence[bytes] | None = None
    ) -> None:
        """Adds an image's detections.

        Args:
            image_id: as in the ground truth; once over all processes.
            boxes: (N, 4) in pixels of the image as stored; N may be 0.
            scores: (N,).
            labels: (N,) int64, 0 to K - 1.
            masks: N masks as :func:`encode_rle` gives them, where masks are measured.

        Raises:
            ValueError: the ground truth has no such image, or masks are measured and there are not N of them.
        """
        if image_id not in self._sizes:
            raise ValueError(f"image id {image_id} is not in the ground truth of {len(self._sizes)} images")
        encoded = list(masks or [])
        if self.masks and len(encoded) != len(boxes):
            raise ValueError(f"image id {image_id}: {len(boxes)} boxes and {len(encoded)} masks; give one for each")
        rows = torch.zeros(len(boxes), COLUMNS, dtype=torch.float64)
        rows[:, 0] = image_id
        rows[:, 1] = labels
        rows[:, 2] = scores
        rows[:, 3:7] = boxes
        rows[:, 7] = torch.tensor([len(rle) for rle in encoded]) if self.masks else 0
        self._seen.append(torch.tensor([image_id]))
        self._rows.append(rows)
        self._bytes.append(torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8) if encoded else _NO_BYTES)

    def reduce(self, all_gather: Callable[[Tensor], Tensor]) -> None:
        """Makes this the detections of all processes; call it once, after the last image.

        Args:
            all_gather: stacks what the processes give, tensors of one shape, along a new first dimension.
        """
        self._seen, self._rows, self._bytes = (
            [_gather_ragged(torch.cat([empty, *parts]).to(self.device), all_gather).cpu()]
            for empty, parts in (
                (torch.zeros(0, dtype=torch.int64), self._seen),
                (torch.zeros(0, COLUMNS, dtype=torch.float64), self._rows),
                (_NO_BYTES, self._bytes),
            )
        )

    def detections(self) -> list[dict[str, Any]]:
        """The detections as COCO's results files hold them: plain data, boxes ``[x, y, width, height]``."""
        counts = torch.cat([_NO_BYTES, *self._bytes]).numpy().tobytes()
        found: list[dict[str, Any]] = []
        start = 0
        for image_id, label, score, x1, y1, x2, y2, length in torch.cat([_NO_ROWS, *self._rows]).tolist():
            item = {
                "image_id": int(image_id),
                "category_id": self.category_ids[int(label)],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            if self.masks:
                end = start + int(length)
                item["segmentation"] = {"size": [*self._sizes[int(image_id)]], "counts": counts[start:end].decode()}
                start = end
            found.append(item)
        return found

    def compute(self) -> dict[str, Any]:
        """The metrics of all images given so far.

        Returns:
            In percent, ``box_ap``, ``box_ap50``, ``box_ap75``, ``box_ap_small``, ``box_ap_medium``, ``box_ap_large``,
            ``box_ar1``, ``box_ar10``, ``box_ar``, ``box_ar_small``, ``box_ar_medium``, ``box_ar_large``, and the same
            with ``mask_`` where masks are measured, ``None`` where no object is of that size; ``count`` of images and
            ``objects``; ``per_class``, a list of ``{"class": name, "count": objects, "box_ap": percent or None,
            "box_ap50", ...}``.

        Raises:
            ValueError: no image was given, or none of them shows an object.
        """
        seen = set(torch.cat([torch.zeros(0, dtype=torch.int64), *self._seen]).tolist())
        if not seen:
            raise ValueError("no image was evaluated: the evaluation set, or this process's share of it, is empty")
        objects = [a for a in self.ground_truth["annotations"] if a["image_id"] in seen and not a.get("iscrowd")]
        if not objects:
            raise ValueError(f"none of the {len(seen)} images evaluated shows an object; evaluate on images with some")
        of_class = dict.fromkeys(self.category_ids, 0)
        for annotation in objects:
            of_class[annotation["category_id"]] += 1
        per_class: list[dict[str, Any]] = [
            {"class": name, "count": of_class[category]}
            for name, category in zip(self.classes, self.category_ids, strict=True)
        ]
        out: dict[str, Any] = {}
        for kind in ("box", "mask") if self.masks else ("box",):
            evaluation = self._evaluate(kind, sorted(seen))
            out |= {f"{kind}_{name}": _percent(x) for name, x in zip(NUMBERS, evaluation.stats, strict=True)}
            # (IoU, recall, class in the order of the ids, area, detections): all areas, all detections
            precision = evaluation.eval["precision"][:, :, :, 0, -1]
            for row, category in zip(per_class, self.category_ids, strict=True):
                own = precision[:, :, evaluation.params.catIds.index(category)]
                row[f"{kind}_ap"] = _percent(own.mean())
                row[f"{kind}_ap50"] = _percent(own[0].mean())
        return {**out, "count": len(seen), "objects": len(objects), "per_class": per_class}

    def _evaluate(self, kind: str, seen: list[int]) -> Any:
        """faster-coco-eval's evaluation of boxes or masks; its copies are its own, since it writes into them."""
        quiet = dict(print_function=_silent)
        truth = self._library.COCO(
            {**self.ground_truth, "annotations": [dict(a) for a in self.ground_truth["annotations"]]}, **quiet
        )
        found = self.detections()
        if kind == "mask":
            for detection in found:  # or the area of a mask, by which its size is told, would be that of its box
                del detection["bbox"]
        evaluation = self._library.COCOeval_faster(
            truth, truth.loadRes(found), iouType="bbox" if kind == "box" else "segm", **quiet
        )
        evaluation.params.imgIds = seen
        evaluation.params.maxDets = [1, 10, self.max_detections]
        evaluation.run()
        return evaluation


def encode_rle(masks: Tensor) -> list[bytes]:
    """Masks (N, H, W) bool as COCO's run lengths, a few bytes each.

    Raises:
        ImportError: faster-coco-eval is not installed.
    """
    if not len(masks):
        return []
    columns = np.asfortranarray(masks.permute(1, 2, 0).to("cpu", torch.uint8).numpy())
    return [_as_bytes(rle["counts"]) for rle in require("faster_coco_eval.core.mask", "detect").encode(columns)]


_NO_BYTES = torch.zeros(0, dtype=torch.uint8)
_NO_ROWS = torch.zeros(0, COLUMNS, dtype=torch.float64)


def _gather_ragged(own: Tensor, all_gather: Callable[[Tensor], Tensor]) -> Tensor:
    """The processes' tensors, which differ in length, one after the other: lengths first, then padded."""
    lengths = all_gather(torch.tensor([len(own)], device=own.device)).reshape(-1).tolist()
    padded = own.new_zeros(max(lengths), *own.shape[1:])
    padded[: len(own)] = own
    gathered = all_gather(padded).reshape(len(lengths), *padded.shape)
    return torch.cat([part[:length] for part, length in zip(gathered, lengths, strict=True)])


def _percent(share: float) -> float | None:
    """COCO says -1 where there is nothing to find."""
    return None if share < 0 else 100 * float(share)


def _as_bytes(counts: str | bytes) -> bytes:
    return counts.encode() if isinstance(counts, str) else counts


def _silent(*_: Any) -> None:
    """In place of the library's printing."""
