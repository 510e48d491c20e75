"""Images with object boxes and optional masks, the common form of COCO and Pascal VOC datasets.

Shapes: N images, M objects in total; box coordinates in pixels from the top left corner of the image.
"""

import copy
import itertools
import logging
import os
import pickle
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypedDict

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from ....data import bands
from ....data.dataset import RawDataset
from ....data.files import files_in, image_formats
from ....data.fingerprint import hash_bytes
from ....data.subset import group_by
from ....data.validation import ValidationReport, first_few
from ....text import get_logger

log = get_logger(__name__)
TOLERANCE = 2.0  # pixels that a box may extend outside of the image, e.g. if coordinates count from one
PROBED = 16  # images whose header is read when a dataset is opened
ROUNDING = 0.01  # pixels; COCO boxes have two decimals
FEW = 0.05  # of the objects, those that are clipped to their image; more of them are taken for another format
SHARES = 1.1  # largest coordinate that is taken for a share of the image size, which may be rounded or not clipped
Segmentation = Any  # as COCO stores it: polygons or an RLE mask, compressed or not


class DetectionTarget(TypedDict):
    """The n objects of an image.

    Args:
        size: Image height and width according to the annotations.
        boxes: Boxes (n, 4) float32, ``(x1, y1, x2, y2)``, clipped to the image.
        labels: Class indices (n,) int64, 0 to K - 1.
        masks: n segmentations as stored, or ``None`` for a dataset with boxes only.
        crowd: Flags (n,) bool of regions with many objects and of objects marked difficult, which are no targets of
            training, where their area is background, and on which evaluation ignores detections.
        ids: Annotation ids (n,) int64, for messages.
    """

    size: tuple[int, int]
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    masks: list[Segmentation] | None
    crowd: npt.NDArray[np.bool_]
    ids: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Objects:
    """All objects of a dataset, one per row.

    Args:
        image: Index of the object's image (M,).
        boxes: Boxes (M, 4) float64 in COCO's format: x, y, width, height.
        labels: Class indices (M,), 0 to K - 1.
        crowd: Crowd flags (M,) as in :class:`DetectionTarget`.
        areas: Areas (M,) in square pixels, by which evaluation groups objects by size.
        ids: Annotation ids (M,) as stored.
        segmentations: M segmentations, ``None`` for an object with a box only.
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

    Annotations are stored in arrays, which worker processes share; reading Python lists would copy them into each
    worker, because it changes their reference counts.

    Args:
        folder: Folder of the images.
        ids: N image paths relative to ``folder``.
        sizes: Image heights and widths (N, 2).
        image_ids: Image ids (N,) for the results format.
        classes: K class names.
        category_ids: K category ids for the results format; they may have gaps.
        objects: Objects of all images, in any order.
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

    def raw(self, i: int) -> Path:
        return self.folder / self.id(i)

    def read(self, i: int) -> tuple[Path, DetectionTarget, str]:
        """Path of image ``i``, its objects, and its name for messages."""
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
        return self.raw(i), target, self.name(i)

    def hash_labels(self) -> int:
        # Not the masks: they change with their boxes, and a million polygons would take long.
        columns = (self._first, self._boxes, self._labels, self._crowd)
        return hash_bytes(*(column.tobytes() for column in columns))

    def objects(self) -> dict[str, npt.NDArray[Any]]:
        """All objects except crowds: ``image`` (M,), and ``boxes``, ``labels`` and ``areas`` as in :class:`Objects`."""
        keep = ~self._crowd
        columns = {
            "image": np.repeat(np.arange(len(self)), np.diff(self._first)),
            "boxes": self._boxes,
            "labels": self._labels,
            "areas": self._areas,
        }
        return {name: values[keep] for name, values in columns.items()}

    def crowds(self) -> npt.NDArray[np.bool_]:
        """Crowd flags (M,) of all objects."""
        return self._crowd

    @property
    def has_masks(self) -> bool:
        """Whether any object has a mask."""
        return bool(self._masks.filled.any())

    def require_masks(self) -> None:
        """Check that all objects, except crowds, have a mask.

        Raises:
            ValueError: Objects have no mask.
        """
        missing = np.flatnonzero(~self._masks.filled & ~self._crowd)
        if len(missing):
            images = np.searchsorted(self._first, missing, side="right") - 1
            cases = [f"{self._object_ids[row]} ({self.id(image)})" for row, image in zip(missing, images, strict=True)]
            raise ValueError(
                f"{self.where}: {len(missing)} of {len(self._labels)} objects have a box but no segmentation: "
                f"{first_few(cases)}; add their masks, or train a head without masks (--detect.head faster_rcnn or "
                "retinanet)"
            )

    def portrait(self) -> npt.NDArray[np.bool_]:
        """Whether each image is portrait, i.e. higher than wide (N,)."""
        return self.sizes[:, 0] > self.sizes[:, 1]

    def describe(self) -> str:
        """Number of images, objects and classes, the rarest and the most frequent class, and what training ignores."""
        counts = np.bincount(self._labels, minlength=len(self.classes))
        rarest, commonest = int(counts.argmin()), int(counts.argmax())
        empty = int((np.diff(self._first) == 0).sum())
        unused = [name for name, count in zip(self.classes, counts, strict=True) if count == 0]
        return (
            f"{len(self)} images, {len(self._labels)} objects of {len(self.classes)} classes, "
            f"{counts[rarest]} ({self.classes[rarest]}) to {counts[commonest]} ({self.classes[commonest]}) per class; "
            f"{empty} images without objects, {int(self._crowd.sum())} crowds"
        ) + (f"; {len(unused)} classes without objects: {first_few(unused)}" if unused else "")

    def check_crowds(self) -> None:
        """Warn if most objects, or all of a class, are crowds or difficult, which are no targets of training.

        Raises:
            ValueError: All are, or there are no objects.
        """
        crowds, count = int(self._crowd.sum()), len(self._labels)
        ignored = f"{self.where}: {crowds} of {count} objects are crowds or marked difficult"
        gone = self._lost_classes(np.ones_like(self._crowd), self._crowd)
        ignored += f", among them all of {len(gone)} classes: {first_few(gone)}" if gone else ""
        advice = (
            "training takes their area as background, and evaluation ignores detections on them; if they are ordinary "
            "objects, set iscrowd or difficult to 0 (CVAT's "
            "COCO export marks all objects that were drawn with the brush)"
        )
        if crowds == count:
            raise ValueError(f"{ignored if count else f'{self.where}: no objects'}; {advice if count else 'add some'}")
        if gone or crowds > count / 2:
            log.warning("%s; %s", ignored, advice)

    def check_sizes(self) -> None:
        """Compare the annotated sizes with the headers of a few images.

        Raises:
            ValueError: None of them has its annotated size. A single one is reported when it is decoded.
        """
        differ = []
        for i in np.linspace(0, len(self) - 1, min(PROBED, len(self))).astype(int).tolist():
            size = stored_size(self.folder / self.id(i))
            if size == tuple(self.sizes[i]):
                return
            if size is not None:
                differ.append(f"{self.id(i)} {size[1]} x {size[0]} for {self.sizes[i, 1]} x {self.sizes[i, 0]}")
        if differ:
            raise ValueError(
                f"{self.where}: {len(differ)} images checked, and none has the width and height of its annotations: "
                f"{first_few(differ)}; widths and heights may be swapped, or the images resized (the EXIF orientation "
                "is applied)"
            )

    def check_sides(self, scales: npt.NDArray[np.float64], smallest: float, when: str) -> None:
        """Warn if training drops most objects, of the dataset or of a class, because they are too small.

        Args:
            scales: Factors by which the width and height of each image are resized (N, 2).
            smallest: Shortest side in pixels, after the resize, of an object that is kept.
            when: The resize in messages.

        Raises:
            ValueError: All objects are dropped.
        """
        image = np.repeat(np.arange(len(self)), np.diff(self._first))
        sides = (self._boxes[:, 2:] * scales[image]).min(1, initial=np.inf)
        objects = ~self._crowd
        dropped = objects & ((sides < smallest) | (sides <= 0))
        if not dropped.any():
            return
        gone = self._lost_classes(objects, dropped)
        message = (
            f"{self.where}: training drops {dropped.sum()} of {objects.sum()} objects, whose boxes have a side below "
            f"min_box={smallest:g} pixels {when}"
        ) + (f", among them all of {len(gone)} classes: {first_few(gone)}" if gone else "")
        advice = "the boxes must be in pixels; for small objects raise the image size or lower --detect.min_box"
        if dropped.sum() == objects.sum():
            raise ValueError(f"{message}; {advice}")
        log.log(
            logging.WARNING if gone or dropped.sum() > objects.sum() / 2 else logging.INFO, "%s; %s", message, advice
        )

    def _lost_classes(self, objects: npt.NDArray[np.bool_], dropped: npt.NDArray[np.bool_]) -> list[str]:
        """The classes of which all of some objects are dropped; both are masks of the objects (M,)."""
        counts, lost = (np.bincount(self._labels[rows], minlength=len(self.classes)) for rows in (objects, dropped))
        return [name for name, n, m in zip(self.classes, counts, lost, strict=True) if n == m > 0]

    def unused_classes(self) -> list[int]:
        """Indices of the classes without an object."""
        return np.flatnonzero(np.bincount(self._labels, minlength=len(self.classes)) == 0).tolist()

    def select(self, keep: npt.NDArray[np.int64]) -> Self:
        subset = super().select(keep)
        counts = np.diff(self._first)[keep]
        subset._first = np.concatenate([[0], np.cumsum(counts)])
        rows = np.repeat(self._first[keep] - subset._first[:-1], counts) + np.arange(counts.sum())
        subset.sizes, subset.image_ids = self.sizes[keep], self.image_ids[keep]
        subset._boxes, subset._areas, subset._labels = self._boxes[rows], self._areas[rows], self._labels[rows]
        subset._crowd, subset._object_ids = self._crowd[rows], self._object_ids[rows]
        subset._masks = self._masks.select(rows)
        return subset

    def by_class(self) -> list[npt.NDArray[np.int64]]:
        """See the base class. Crowds do not count."""
        image, label = self.presence()
        return [*group_by(label, image), np.setdiff1d(np.arange(len(self)), image)]

    def presence(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """See the base class. Crowds do not count."""
        image = np.repeat(np.arange(len(self)), np.diff(self._first))[~self._crowd]
        pairs = np.unique(np.stack([self._labels[~self._crowd], image], axis=1), axis=0)
        return pairs[:, 1], pairs[:, 0]

    def relabel(self, classes: Sequence[str], indices: Sequence[int]) -> Self:
        """See the base class. Classes that the dataset does not have get category ids above its own."""
        relabeled = copy.copy(self)
        relabeled._labels = np.asarray(indices, dtype=np.int64)[self._labels]
        own, unused = dict(zip(indices, self.category_ids, strict=True)), itertools.count(max(self.category_ids) + 1)
        relabeled.category_ids = tuple(own[k] if k in own else next(unused) for k in range(len(classes)))
        relabeled.classes = tuple(classes)
        return relabeled

    def ground_truth(self) -> dict[str, Any]:
        """The dataset in COCO format, for evaluation: objects as stored, including crowds."""
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
    """A list of plain Python values, pickled into one byte array; ``None`` takes no space."""

    def __init__(self, values: Sequence[object]) -> None:
        packed = [b"" if value is None else pickle.dumps(value, pickle.HIGHEST_PROTOCOL) for value in values]
        self.filled = np.array([len(value) > 0 for value in packed], dtype=bool)
        self._ends = np.cumsum([0, *map(len, packed)], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(packed), dtype=np.uint8)

    def select(self, rows: npt.NDArray[np.int64]) -> "_Packed":
        """The values at some rows."""
        return _Packed([self[row] for row in rows.tolist()])

    def __getitem__(self, i: int) -> Any:
        # The bytes were pickled in __init__: no data from a file is unpickled.
        packed = self._bytes[self._ends[i] : self._ends[i + 1]].tobytes()
        return pickle.loads(packed) if self.filled[i] else None  # noqa: S301


def check_boxes(
    report: ValidationReport,
    boxes: npt.NDArray[np.float64],
    sizes: npt.NDArray[np.int64],
    case: Callable[[int], str],
    clip: bool = False,
) -> None:
    """Report boxes that are malformed, have no area, or extend outside of their image.

    The latter are a warning if they are few: boxes that are stored as corners, or with width and height in the other
    order, extend outside as well, but they are many. Datasets clip the boxes that they return for training.

    Args:
        report: Report to add to.
        boxes: Boxes (M, 4) as x, y, width, height.
        sizes: Image height and width of each box (M, 2).
        case: Function from a row to its name in messages.
        clip: Accept any number of boxes that extend outside of their image, and those that are entirely outside.
    """
    malformed = ~np.isfinite(boxes).all(1) | (boxes[:, 2:] < 0).any(1)
    beyond = np.concatenate([-boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - sizes[:, ::-1]], axis=1).max(1, initial=0)
    for row in np.flatnonzero(malformed):
        report.error("boxes that are not x, y, width and height", f"{case(row)} {boxes[row].tolist()}", "fix them")
    for row in np.flatnonzero(~malformed & (boxes[:, 2:] == 0).any(1)):
        report.warning("boxes without area", case(row), "training ignores them, evaluation counts them as COCO does")
    outside = ~malformed & (beyond > TOLERANCE)
    overlaps = (boxes[:, :2] < sizes[:, ::-1]).all(1) & (boxes[:, :2] + boxes[:, 2:] > 0).all(1)
    few = int((outside & overlaps).sum()) <= FEW * len(boxes)
    accepted = outside & (clip | (overlaps & few))
    for row in np.flatnonzero(accepted):
        fix = "clipped for training, and evaluated as stored"
        report.warning(f"boxes more than {TOLERANCE:g} px outside of their image", case(row), fix)
    for row in np.flatnonzero(outside & ~accepted):
        height, width = sizes[row]
        report.error(
            "boxes outside of their image",
            f"{case(row)} {boxes[row].tolist()} in {width} x {height}",
            f"more than {TOLERANCE:g} px outside is not a rounding error: boxes may be stored as corners (x1, y1, x2, "
            "y2), widths and heights may be swapped, or the images resized; fix the boxes, or clip them all with "
            "input.clip_boxes (on the command line: --input.clip_boxes true)",
        )
    for row in np.flatnonzero(~malformed & (beyond > ROUNDING) & (beyond <= TOLERANCE)):
        report.warning(f"boxes up to {TOLERANCE:g} px outside of their image", case(row), "clipped")


def are_shares(report: ValidationReport, boxes: npt.NDArray[np.float64], case: Callable[[int], str]) -> bool:
    """Whether most boxes (M, 4) of a file are shares of the image size instead of pixels, reported as an error.

    A single such box may be in pixels, but not most of them.
    """
    shares = np.flatnonzero((np.abs(boxes) <= SHARES).all(1))
    if len(shares) <= len(boxes) / 2:
        return False
    for row in shares.tolist():
        report.error(
            f"of {len(boxes)} boxes lie between 0 and 1, as normalized coordinates do",
            f"{case(row)} {boxes[row].tolist()}",
            "multiply them by the image's width and height in pixels",
        )
    return True


class FileIndex:
    """Files by name; each folder is listed once.

    Names are found as stored, with Windows' backslashes, and with accented letters as one character or as two, which
    differs between file systems.
    """

    def __init__(self) -> None:
        self._listed: dict[Path, dict[str, str]] = {}

    def names(self, folder: Path) -> dict[str, str]:
        """Names of the files of a folder, as stored, by name and by name in Unicode's composed form."""
        if folder not in self._listed:
            self._listed[folder] = _list_files(folder)
        return self._listed[folder]

    def find(self, folder: Path, name: str) -> str | None:
        """The path of a file relative to ``folder``, the shortest one; ``None`` if there is no such file."""
        for form in dict.fromkeys((name, name.replace("\\", "/"))):
            path = folder / form
            listed = self.names(path.parent)
            if found := listed.get(path.name) or listed.get(unicodedata.normalize("NFC", path.name)):
                return found if form == path.name else os.path.relpath(path.parent / found, folder)
        return None


def stored_size(path: Path) -> tuple[int, int] | None:
    """Height and width of an image file, from its header; ``None`` for an unreadable image."""
    # The readers can raise almost any exception on a damaged file.
    with suppress(Exception), Image.open(path, formats=image_formats()) as image:
        width, height = image.size
        return (width, height) if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5 else (height, width)
    with suppress(Exception), open(path, "rb") as file:
        if bands.has_arrays(file.read(8)):
            return bands.stored_size(path)
    return None


def _list_files(folder: Path) -> dict[str, str]:
    names = files_in(folder)
    return {unicodedata.normalize("NFC", name): name for name in names} | {name: name for name in names}
