"""Images with a label for each pixel: folders of images and folders of label maps.

Shapes: an image and its label map are H x W pixels.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ....data.dataset import RawDataset
from ....data.decode import UnreadableImage, decode, decode_labels
from ....data.validation import ValidationReport
from ..config import IGNORE_INDEX, SegmentConfig

log = logging.getLogger(__name__)
CHECKED = 64  # pairs read when a set is opened: what is wrong with all of them is found before a run starts
OBJECT = 128  # a binary mask's grey value above which a pixel is of the object, as its published metrics have it
Labels = npt.NDArray[np.uint8]


class SegmentationDataset(RawDataset[Labels]):
    """Images by index, not decoded, with their label maps, which are decoded as they are read.

    Args:
        images: their folder.
        labels: the folder of the label maps.
        ids: N paths in the first.
        label_ids: N paths in the second.
        classes: K names; for binary masks one.
        config: of it, ``kind`` and ``zero_is_ignored``.
        ignore: the stored label of pixels to ignore.
    """

    def __init__(
        self,
        images: Path,
        labels: Path,
        ids: Sequence[str],
        label_ids: Sequence[str],
        classes: Sequence[str],
        config: SegmentConfig,
        ignore: int = IGNORE_INDEX,
    ) -> None:
        super().__init__(classes, ids, f"{images}/")
        self.images = images
        self.labels = labels
        self.binary = config.kind == "binary"
        self.zero_is_ignored = config.zero_is_ignored
        self.ignore = ignore
        self._label_ids = np.array([os.fsencode(name) for name in label_ids], dtype=np.bytes_)

    def read(self, i: int) -> tuple[Path, Labels, str]:
        """Image ``i`` as a path, its labels (H, W) uint8, 0 to K - 1 or 255 to ignore, and its name for messages.

        Of binary masks, 1 is the object and 0 all else.

        Raises:
            UnreadableImage: the label map cannot be read, or has labels that are no class.
        """
        path = self.labels / os.fsdecode(bytes(self._label_ids[i]))
        stored = decode_labels(path, name=str(path))
        labels = self._objects(stored) if self.binary else self._classes(stored, path)
        return self.images / self.id(i), labels, self.name(i)

    def check(self, count: int = CHECKED) -> None:
        """Read images and label maps, evenly spaced over the set.

        Images that cannot be read are left to the loaders, which count them.

        Raises:
            ValueError: label maps cannot be read, differ from their image in size, or have labels that are no class.
        """
        findings = ValidationReport(self.where)
        for i in np.unique(np.linspace(0, len(self) - 1, count).astype(int)).tolist():
            try:
                raw, labels, name = self.read(i)
                if size := _size(raw, name):
                    check_size(size, labels, name)
            except UnreadableImage as error:
                findings.error(f"of {min(count, len(self))} pairs looked at are of no use", str(error), "mend these")
        findings.tell()

    def describe(self) -> str:
        """Images and classes."""
        kind = "binary masks" if self.binary else f"label maps of {len(self.classes)} classes"
        return f"{len(self)} images with {kind}"

    def _objects(self, stored: npt.NDArray[np.integer]) -> Labels:
        # Masks of zeros and ones are as common as those of 0 and 255.
        return (stored > (0 if stored.max(initial=0) <= 1 else OBJECT)).astype(np.uint8)

    def _classes(self, stored: npt.NDArray[np.integer], path: Path) -> Labels:
        ignored = stored == self.ignore
        labels = stored.astype(np.int64)
        if self.zero_is_ignored:
            ignored |= labels == 0
            labels = labels - 1
        labels[ignored] = IGNORE_INDEX
        wrong = np.unique(labels[~ignored & ((labels < 0) | (labels >= len(self.classes)))])
        if len(wrong):
            first = int(self.zero_is_ignored)
            values = ", ".join(str(value + first) for value in wrong[:10]) + (" ..." if len(wrong) > 10 else "")
            raise UnreadableImage(
                f"{path}: labels {values}, expected {first} to {len(self.classes) - 1 + first} for {len(self.classes)} "
                f"classes, and {self.ignore} for pixels to ignore (--segment.zero_is_ignored where classes count from "
                "one, --segment.kind binary for masks of one kind of object)"
            )
        return labels.astype(np.uint8)


def check_size(size: tuple[int, int], labels: Labels, name: str) -> None:
    """An image's (width, height) against its label map.

    Raises:
        UnreadableImage: they differ.
    """
    height, width = labels.shape
    if size != (width, height):
        raise UnreadableImage(
            f"{name}: {size[0]} x {size[1]} pixels, its label map {width} x {height}; mend either (a photograph's EXIF "
            "orientation counts)"
        )


def _size(image: Path, name: str) -> tuple[int, int] | None:
    """Width and height of an image; ``None`` if it cannot be read."""
    try:
        return decode(image, 3, name=name).size
    except UnreadableImage:
        return None
