"""Images with boxes, and perhaps masks, of objects: as COCO's and Pascal VOC's files become one.

Shapes: N images, M objects of all of them; boxes in pixels from the image's corner.
"""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from ....data.dataset import RawDataset
from ....data.validation import ValidationReport, shown

TOLERANCE = 2.0  # pixels that a box may reach outside of its image, as it does where someone counted from one
ROUNDING = 0.01  # pixels: COCO's own boxes have two decimals
Segmentation = Any  # as COCO stores it: polygons, or run lengths, compressed or not


class DetectionTarget(TypedDict):
    """The objects of one image of n.

    size: its height and width, as the annotations have them. boxes: (n, 4) float32, x0 y0 x1 y1, clipped to the image.
    labels: (n,) int64, 0 to K - 1. masks: n segmentations as stored, or ``None`` for a set of boxes alone. crowd: (n,)
    bool, a region of many objects, or one too hard to count: nothing to learn, and no mistake to find. ids: (n,) int64,
    as messages name an object.
    """

    size: tuple[int, int]
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    masks: list[Segmentation] | None
    crowd: npt.NDArray[np.bool_]
    ids: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Objects:
    """All objects of a set, a row each.

    Attributes:
        image: (M,) the place of its image in the set.
        boxes: (M, 4) float64, as COCO stores them: x, y, width, height.
        labels: (M,) 0 to K - 1.
        crowd: (M,) as in :class:`DetectionTarget`.
        areas: (M,) square pixels, by which evaluation tells small objects from large ones.
        ids: (M,) as stored.
        segmentations: M, ``None`` where an object has a box alone.
    """

    image: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]
    areas: npt.NDArray[np.float64]
    ids: npt.NDArray[np.int64]
    segmentations: Sequence[Segmentation | None]


class DetectionDataset(RawDataset[DetectionTarget]):
    """Images by index, not decoded, with their objects.

    Everything is in arrays, so that worker processes share it: a million Python lists would be copied as they are read.

    Args:
        folder: that the images are in.
        ids: N paths in it.
        sizes: (N, 2) height and width.
        image_ids: (N,) numbers by which results name the images.
        classes: K names.
        category_ids: K numbers by which results name the classes; they may have gaps.
        objects: of all images, in any order.
    """

    def __init__(
        self,
        folder: Path,
        ids: Sequence[str],
        sizes: npt.NDArray[np.int64],
        image_ids: npt.NDArray[np.int64],
        classes: Sequence[str],
        category_ids: Sequence[int],
        objects: Objects,
    ) -> None:
        super().__init__(classes, ids, f"{folder}/")
        self.folder = folder
        self.sizes = sizes
        self.image_ids = image_ids
        self.category_ids = tuple(category_ids)
        order = np.argsort(objects.image, kind="stable")
        self._first = np.searchsorted(objects.image[order], np.arange(len(ids) + 1))
        self._boxes, self._areas = objects.boxes[order], objects.areas[order]
        self._labels, self._crowd, self._object_ids = objects.labels[order], objects.crowd[order], objects.ids[order]
        self._masks = _Packed([objects.segmentations[row] for row in order])

    def read(self, i: int) -> tuple[Path, DetectionTarget, str]:
        """Image ``i`` as a path, its objects, and its name for messages."""
        rows = slice(self._first[i], self._first[i + 1])
        height, width = self.sizes[i].tolist()
        corners = self._boxes[rows].copy()
        corners[:, 2:] += corners[:, :2]
        target = DetectionTarget(
            size=(height, width),
            boxes=corners.clip(0, (width, height, width, height)).astype(np.float32),
            labels=self._labels[rows],
            masks=[self._masks[row] for row in range(rows.start, rows.stop)] if self.has_masks else None,
            crowd=self._crowd[rows],
            ids=self._object_ids[rows],
        )
        return self.folder / self.id(i), target, self.name(i)

    @property
    def has_masks(self) -> bool:
        """Whether any object has a mask."""
        return bool(self._masks.filled.any())

    def require_masks(self) -> None:
        """For a network that learns masks.

        Raises:
            ValueError: objects to learn from lack a mask.
        """
        lacking = np.flatnonzero(~self._masks.filled & ~self._crowd)
        if len(lacking):
            images = np.searchsorted(self._first, lacking, side="right") - 1
            cases = [f"{self._object_ids[row]} ({self.id(image)})" for row, image in zip(lacking, images, strict=True)]
            raise ValueError(
                f"{self.where}: {len(lacking)} of {len(self._labels)} objects have a box but no segmentation: "
                f"{shown(cases)}; add their masks, or train a head of boxes alone (--detect.head faster_rcnn or "
                "retinanet)"
            )

    def portrait(self) -> npt.NDArray[np.bool_]:
        """(N,) whether each image is higher than wide."""
        return self.sizes[:, 0] > self.sizes[:, 1]

    def describe(self) -> str:
        """Images, objects, classes, the rarest and the most frequent class, and what training leaves out."""
        counts = np.bincount(self._labels, minlength=len(self.classes))
        few, many = int(counts.argmin()), int(counts.argmax())
        empty = int((np.diff(self._first) == 0).sum())
        return (
            f"{len(self)} images, {len(self._labels)} objects of {len(self.classes)} classes, {counts[few]} "
            f"({self.classes[few]}) to {counts[many]} ({self.classes[many]}) a class; {empty} images without objects, "
            f"{int(self._crowd.sum())} objects are crowds"
        )

    def ground_truth(self) -> dict[str, Any]:
        """The whole set in COCO's format, for evaluation: objects as they are stored, crowds included."""
        annotations = []
        for i, image_id in enumerate(self.image_ids.tolist()):
            for row in range(self._first[i], self._first[i + 1]):
                segmentation = self._masks[row]
                annotations.append(
                    {
                        "id": int(self._object_ids[row]),
                        "image_id": image_id,
                        "category_id": self.category_ids[self._labels[row]],
                        "bbox": self._boxes[row].tolist(),
                        "area": float(self._areas[row]),
                        "iscrowd": int(self._crowd[row]),
                        **({} if segmentation is None else {"segmentation": segmentation}),
                    }
                )
        images = [
            {"id": image_id, "file_name": self.id(i), "height": height, "width": width}
            for i, (image_id, (height, width)) in enumerate(
                zip(self.image_ids.tolist(), self.sizes.tolist(), strict=True)
            )
        ]
        categories = [{"id": k, "name": name} for k, name in zip(self.category_ids, self.classes, strict=True)]
        return {"images": images, "annotations": annotations, "categories": categories}


class _Packed:
    """A list of plain Python values in one array of bytes; ``None`` takes no room."""

    def __init__(self, values: Sequence[object]) -> None:
        packed = [b"" if value is None else pickle.dumps(value, pickle.HIGHEST_PROTOCOL) for value in values]
        self.filled = np.array([len(value) > 0 for value in packed], dtype=bool)
        self._ends = np.cumsum([0, *map(len, packed)], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(packed), dtype=np.uint8)

    def __getitem__(self, i: int) -> Any:
        # The bytes are our own, made above: nothing of a file is unpickled.
        return pickle.loads(self._bytes[self._ends[i] : self._ends[i + 1]].tobytes()) if self.filled[i] else None


def check_boxes(
    findings: ValidationReport,
    boxes: npt.NDArray[np.float64],
    sizes: npt.NDArray[np.int64],
    case: Callable[[int], str],
) -> None:
    """Find boxes that are none, that have no area, or that reach outside of their image.

    Args:
        findings: to add to.
        boxes: (M, 4) x, y, width, height.
        sizes: (M, 2) height and width of each box's image.
        case: what to call a row.
    """
    malformed = ~np.isfinite(boxes).all(1) | (boxes[:, 2:] < 0).any(1)
    beyond = np.concatenate([-boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - sizes[:, ::-1]], axis=1).max(1, initial=0)
    for row in np.flatnonzero(malformed):
        findings.error("boxes that are not x, y, width and height", f"{case(row)} {boxes[row].tolist()}", "mend them")
    for row in np.flatnonzero(~malformed & (boxes[:, 2:] == 0).any(1)):
        findings.warning(
            "boxes without area", case(row), "training leaves them out, evaluation counts them as COCO's does"
        )
    for row in np.flatnonzero(~malformed & (beyond > TOLERANCE)):
        height, width = sizes[row]
        findings.error(
            "boxes outside of their image",
            f"{case(row)} {boxes[row].tolist()} in {width} x {height}",
            f"more than {TOLERANCE:g} px outside is no rounding: boxes may be stored as corners, widths and heights "
            "swapped, or the images resized; mend or clip them",
        )
    for row in np.flatnonzero(~malformed & (beyond > ROUNDING) & (beyond <= TOLERANCE)):
        findings.warning(f"boxes up to {TOLERANCE:g} px outside of their image", case(row), "clipped")


def check_files(findings: ValidationReport, folder: Path, ids: Sequence[str]) -> None:
    """Find images that are not there; each folder is listed once."""
    listed: dict[Path, set[str]] = {}
    for name in ids:
        path = folder / name
        if path.parent not in listed:
            listed[path.parent] = {file.name for file in path.parent.iterdir()} if path.parent.is_dir() else set()
        if path.name not in listed[path.parent]:
            findings.error(f"images are not in {folder}", name, "fetch them, or take them out of the annotations")
