"""A dataset of images with label maps, read from two folders.

Shapes: an image and its label map have H x W pixels.
"""

import copy
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from ....data.dataset import RawDataset
from ....data.decode import UnreadableImage, decode
from ....data.fingerprint import hash_bytes, hash_file, map_images
from ....data.label_maps import OBJECT_ABOVE, decode_labels, decode_mask
from ....data.retry import retried
from ....data.validation import ValidationReport
from ....text import get_logger
from ..config import IGNORE_INDEX, SegmentConfig

log = get_logger(__name__)
CHECKED = 64  # pairs read when a dataset is opened, so that systematic errors are found before a run starts
COUNTING_THREADS = 4  # each holds a decoded label map
LOSSY = ("JPEG", "JPEG2000", "WEBP", "AVIF")  # Pillow's names of formats that may change class indices
Labels = npt.NDArray[np.uint8]


class SegmentationDataset(RawDataset[Labels]):
    """Image paths by index, with label maps that are decoded on access.

    Args:
        images: Folder of the images.
        labels: Folder of the label maps.
        ids: N image paths relative to ``images``.
        label_ids: N label map paths relative to ``labels``.
        classes: K class names; one for binary masks.
        config: ``kind`` and ``zero_is_ignored`` are used.
        ignore: Stored label of ignored pixels; ``None`` if the dataset does not name it, then it is 255.
        colors: Color of each class, if label maps show classes by color.
    """

    def __init__(
        self,
        images: Path,
        labels: Path,
        ids: Sequence[str],
        label_ids: Sequence[str],
        classes: Sequence[str],
        config: SegmentConfig,
        ignore: int | None = None,
        colors: Sequence[tuple[int, int, int]] | None = None,
    ) -> None:
        super().__init__(classes, ids, f"{images}/")
        self.images = images
        self.labels = labels
        self.binary = config.is_binary
        self.zero_is_ignored = config.zero_is_ignored
        self.ignore = IGNORE_INDEX if ignore is None else ignore
        self.ignore_is_assumed = ignore is None
        self.colors = colors
        self._num_labels = len(classes)
        self._indices = np.arange(256, dtype=np.uint8)  # class index of each label
        self._label_ids = np.array([os.fsencode(name) for name in label_ids], dtype=np.bytes_)
        self._pixels: npt.NDArray[np.int64] | None = None

    def raw(self, i: int) -> Path:
        return self.images / self.id(i)

    def read(self, i: int) -> tuple[Path, Labels, str]:
        """Path of image ``i``, its labels ``(H, W)`` uint8, and its name for messages.

        Labels are 0 to K - 1, or 255 for ignored pixels. In binary masks, 1 is the object and 0 the background.

        Raises:
            UnreadableImage: The label map cannot be read or contains invalid labels.
        """
        path = self._label_path(i)
        if self.binary:
            labels = (decode_mask(path, name=str(path)) > OBJECT_ABOVE).astype(np.uint8)
        else:
            labels = self._indices[self._classes(decode_labels(path, name=str(path), colors=self.colors), path)]
        return self.raw(i), labels, self.name(i)

    def hash_labels(self) -> int:
        colors = [] if self.colors is None else [np.array(self.colors).tobytes()]
        return hash_bytes(self._indices.tobytes(), *colors, map_images(self._hash_label_map, len(self)).tobytes())

    def _hash_label_map(self, i: int) -> int:
        path = self._label_path(i)
        try:
            return retried(lambda: hash_file(path))
        except OSError:  # the data loaders report it
            return hash_bytes(os.fsencode(path.name))

    def select(self, keep: npt.NDArray[np.int64]) -> Self:
        subset = super().select(keep)
        subset._label_ids = self._label_ids[keep]
        if self._pixels is not None:
            subset._pixels = self._pixels[keep]
        return subset

    def count_pixels(self) -> npt.NDArray[np.int64]:
        """Labeled pixels of each class in each image (N, K); of binary masks (N, 2), background and object.

        All label maps are read, once; one that cannot be read has no pixels: the data loaders report it.
        """
        if self._pixels is None:
            log.info("%s: counting the pixels of each class in %s label maps", self.where, f"{len(self):,}")
            with ThreadPoolExecutor(COUNTING_THREADS) as pool:
                histograms = list(pool.map(self._histogram, range(len(self))))
            counts = np.array(histograms, dtype=np.int64).reshape(len(self), 256)
            self._pixels = counts[:, : 2 if self.binary else len(self.classes)]
        return self._pixels

    def _histogram(self, i: int) -> list[int]:
        try:
            return Image.fromarray(self.read(i)[1]).histogram()
        except UnreadableImage:
            return [0] * 256

    def presence(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """See the base class; of binary masks, only the object is a class. All label maps are read, once."""
        pixels = self.count_pixels()[:, -len(self.classes) :]
        label, image = np.nonzero(pixels.T)
        return image, label

    def relabel(self, classes: Sequence[str], indices: Sequence[int]) -> Self:
        relabeled = copy.copy(self)
        relabeled._indices = np.full(256, IGNORE_INDEX, dtype=np.uint8)
        relabeled._indices[: len(indices)] = indices
        relabeled._pixels = None
        relabeled.classes = tuple(classes)
        return relabeled

    def check(self, count: int = CHECKED) -> None:
        """Read up to ``count`` images and label maps, evenly spaced over the dataset.

        Unreadable images are not reported here; the data loaders count and skip them.

        Warnings are logged for classes that occur in none of these label maps, masks without an object although they
        are not black, and label maps in a lossy format.

        Raises:
            ValueError: Label maps cannot be read, differ in size from their image, contain invalid labels, or contain
                nothing to learn: no object, or only 0 and the ignored 255 in a dataset of two classes.
        """
        report = ValidationReport(self.where)
        rows = np.unique(np.linspace(0, len(self) - 1, count).astype(int)).tolist()
        found: set[int] = set()
        faint: list[str] = []
        for i in rows:
            try:
                raw, labels, name = self.read(i)
                if size := _image_size(raw, name):
                    check_size(size, labels, name)
            except UnreadableImage as error:
                report.error(f"of {len(rows)} checked pairs are invalid", str(error), "fix them")
                continue
            found.update(np.unique(labels).tolist())
            path = self._label_path(i)
            if self.binary and not labels.any() and (level := decode_mask(path, name=str(path)).max(initial=0)):
                faint.append(f"{path} (at most {level})")
            if not self.binary and Image.registered_extensions().get(path.suffix.lower()) in LOSSY:
                kind = f"of {len(rows)} checked label maps are in a format of lossy compression"
                report.warning(kind, str(path), "it changes labels, so save them as PNG")
        report.raise_errors()
        maps = f"{len(rows)} {'masks' if self.binary else 'label maps'}"
        maps += f" checked of {len(self)}" if len(rows) < len(self) else ""
        self._check_objects(faint, 1 in found, maps) if self.binary else self._check_classes(found, maps)

    def _check_objects(self, faint: list[str], any_object: bool, maps: str) -> None:
        """Check that masks contain objects; ``faint`` masks have gray levels, but none that is an object."""
        report = ValidationReport(self.where)
        kind = f"of {maps} have gray levels, but none above {OBJECT_ABOVE}"
        for case in faint:
            if any_object:
                report.warning(kind, case, "they are used as masks without an object")
            else:
                report.error(f"{kind}, and the others no object either", case, "save objects as 1 or 255")
        report.raise_errors()
        if not any_object:
            log.warning("%s: there is no object in the %s", self.where, maps)

    def _check_classes(self, found: set[int], maps: str) -> None:
        """Check the labels that were found in label maps."""
        if found == {IGNORE_INDEX}:
            raise ValueError(
                f"{self.where}: every pixel of the {maps} is ignored; expected labels {int(self.zero_is_ignored)} to "
                f"{len(self.classes) - 1 + int(self.zero_is_ignored)} (set --segment.kind binary for object masks)"
            )
        assumed = self.ignore_is_assumed and not self.zero_is_ignored
        if assumed and len(self.classes) == 2 and found == {0, IGNORE_INDEX}:
            raise ValueError(
                f"{self.where}: the only labels in the {maps} are 0 and {IGNORE_INDEX}, which is ignored, so class "
                f"{self.classes[1]} does not occur; set --segment.kind binary for object masks, or save label 1 "
                f'instead of {IGNORE_INDEX} (if it is to be ignored, write "ignore_index": {IGNORE_INDEX} into '
                "classes.json)"
            )
        report = ValidationReport(self.where)
        for k, name in enumerate(self.classes):
            if k not in found:
                kind = f"of {len(self.classes)} classes occur in none of the {maps}"
                report.warning(kind, name, "check that the labels are indices of the classes")
        report.raise_errors()

    def _label_path(self, i: int) -> Path:
        return self.labels / os.fsdecode(bytes(self._label_ids[i]))

    def describe(self) -> str:
        """Number of images and classes."""
        kind = "binary masks" if self.binary else f"label maps of {len(self.classes)} classes"
        return f"{len(self)} images with {kind}"

    def _classes(self, stored: npt.NDArray[np.integer], path: Path) -> Labels:
        ignored = stored == self.ignore
        labels = stored.astype(np.int64)
        if self.zero_is_ignored:
            ignored |= labels == 0
            labels = labels - 1
        labels[ignored] = IGNORE_INDEX
        invalid = np.unique(labels[~ignored & ((labels < 0) | (labels >= self._num_labels))])
        if len(invalid):
            first = int(self.zero_is_ignored)
            values = ", ".join(str(value + first) for value in invalid[:10]) + (" ..." if len(invalid) > 10 else "")
            raise UnreadableImage(
                f"{path}: labels {values}, expected {first} to {self._num_labels - 1 + first} for "
                f"{self._num_labels} classes, or {self.ignore} for ignored pixels (set --segment.zero_is_ignored if "
                "classes are numbered from 1, --segment.kind binary for object masks, ignore_index in classes.json if "
                "another label is ignored)"
            )
        return labels.astype(np.uint8)


def check_size(size: tuple[int, int], labels: Labels, name: str) -> None:
    """Check that a label map has its image's (width, height).

    Raises:
        UnreadableImage: The sizes differ.
    """
    height, width = labels.shape
    if size != (width, height):
        raise UnreadableImage(
            f"{name}: {size[0]} x {size[1]} pixels, but its label map has {width} x {height}; correct one of them "
            "(EXIF orientation is applied to both)"
        )


def _image_size(image: Path, name: str) -> tuple[int, int] | None:
    """Width and height of an image; ``None`` if it cannot be read."""
    try:
        return decode(image, 3, name=name).size
    except UnreadableImage:
        return None
