"""Images with a label for each pixel: folders of images and folders of label maps.

Shapes: an image and its label map are H x W pixels.
"""

import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...recipes import IGNORED, Segment
from ..decode import BrokenImage, decode, decode_labels
from ..findings import Findings
from ..folders import TRAIN_NAMES, VAL_NAMES, is_hidden, is_image
from ..image_set import RawSet, Split

log = logging.getLogger(__name__)
CHECKED = 64  # pairs read when a set is opened: what is wrong with all of them is found before a run starts
OBJECT = 128  # a binary mask's grey value above which a pixel is of the object, as its published metrics have it
Labels = npt.NDArray[np.uint8]

# The last word of a folder's name, in small letters: DUTS-TR-Image and Imgs are both images.
IMAGES = ("images", "image", "imgs", "img")
LABELS = ("labels", "label", "annotations", "annotation", "masks", "mask", "gt")
SPLITS = {"train": (*TRAIN_NAMES, "tr"), "val": (*VAL_NAMES, "te")}
LAYOUT = (
    "images/train/NAME.jpg and labels/train/NAME.png, images/val/ and labels/val/ (or annotations/ or masks/, "
    "training/ and validation/), or train/images/ and train/masks/ (or Imgs/ and GT/)"
)


class _Names(NamedTuple):
    """Names of the classes, and the stored label of pixels to ignore."""

    classes: list[str]
    ignore: int


class SegmentationSet(RawSet[Labels]):
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
        config: Segment,
        ignore: int = IGNORED,
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
            BrokenImage: the label map cannot be read, or has labels that are no class.
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
        findings = Findings(self.where)
        for i in np.unique(np.linspace(0, len(self) - 1, count).astype(int)).tolist():
            try:
                raw, labels, name = self.read(i)
                if size := _size(raw, name):
                    check_size(size, labels, name)
            except BrokenImage as error:
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
        labels[ignored] = IGNORED
        wrong = np.unique(labels[~ignored & ((labels < 0) | (labels >= len(self.classes)))])
        if len(wrong):
            first = int(self.zero_is_ignored)
            values = ", ".join(str(value + first) for value in wrong[:10]) + (" ..." if len(wrong) > 10 else "")
            raise BrokenImage(
                f"{path}: labels {values}, expected {first} to {len(self.classes) - 1 + first} for {len(self.classes)} "
                f"classes, and {self.ignore} for pixels to ignore (--segment.zero_is_ignored where classes count from "
                "one, --segment.kind binary for masks of one kind of object)"
            )
        return labels.astype(np.uint8)


def check_size(size: tuple[int, int], labels: Labels, name: str) -> None:
    """An image's (width, height) against its label map.

    Raises:
        BrokenImage: they differ.
    """
    height, width = labels.shape
    if size != (width, height):
        raise BrokenImage(
            f"{name}: {size[0]} x {size[1]} pixels, its label map {width} x {height}; mend either (a photograph's EXIF "
            "orientation counts)"
        )


def _size(image: Path, name: str) -> tuple[int, int] | None:
    """Width and height of an image; ``None`` if it cannot be read."""
    try:
        return decode(image, 3, name=name).size
    except BrokenImage:
        return None


def open_segmentation(data: str, split: Split, config: Segment) -> SegmentationSet:
    """Open one split of a set of images with label maps, and check that each image has one.

    Args:
        data: a folder; images and label maps are in folders of it that are called so, and have the same names but for
            the ending. Classes are named in ``classes.json`` (a list, or ``{"classes": [...], "ignore_index": 255}``)
            or ADE20K's ``objectInfo150.txt``; binary masks need no names.
        split: ``train`` or ``val``.
        config: ``kind`` and ``zero_is_ignored``.

    Returns:
        The images, not decoded. Some of the pairs, evenly spaced, have been read; labels out of range in others are
        found as they are read, and count as unreadable images.

    Raises:
        ValueError: the folder has no such form, or label maps are missing or of no use; the message names the first
            few.
    """
    root = Path(data).expanduser()
    if not root.is_dir():
        raise ValueError(f"data {data!r} is no folder; expected {LAYOUT} (on the command line: --data)")
    images, labels = _folders(root, split)
    names = _Names(["object"], IGNORED) if config.kind == "binary" else _class_names(root)
    pairs = _pairs(images, labels)
    found = SegmentationSet(
        images, labels, list(pairs), list(pairs.values()), names.classes, config, ignore=names.ignore
    )
    found.check()
    log.info("%s: %s", found.where, found.describe())
    return found


def _folders(root: Path, split: Split) -> tuple[Path, Path]:
    """The split's folder of images and its folder of label maps."""
    images, labels = _child(root, IMAGES), _child(root, LABELS)
    if images and labels:
        sides = _child(images, SPLITS[split]), _child(labels, SPLITS[split])
    else:
        side = _child(root, SPLITS[split])
        sides = (_child(side, IMAGES), _child(side, LABELS)) if side else (None, None)
    if sides[0] is None or sides[1] is None:
        raise ValueError(f"{root}: no folders of images and label maps for {split}; expected {LAYOUT}")
    return sides[0], sides[1]


def _child(folder: Path, words: Sequence[str]) -> Path | None:
    """The folder in a folder whose name ends in one of some words, the first word that any ends in."""
    by_word = {
        re.split(r"[-_ ]", child.name.lower())[-1].removesuffix("dataset"): child
        for child in sorted(folder.iterdir(), reverse=True)
        if child.is_dir() and not is_hidden(child.name)
    }
    return next((by_word[word] for word in words if word in by_word), None)


def _pairs(images: Path, labels: Path) -> dict[str, str]:
    """Image files and their label maps, in the order of the images' names."""
    findings = Findings(str(images))
    by_stem: dict[str, str] = {}
    for name in _files(labels):
        other = by_stem.setdefault(os.path.splitext(name)[0], name)
        if other != name:
            findings.error("label maps with a twin of another ending", f"{labels / name}", "keep one of each")
    pairs: dict[str, str] = {}
    for name in _files(images):
        label = by_stem.pop(os.path.splitext(name)[0], None)
        if label is None:
            findings.error(f"images without a label map of their own in {labels}", name, "add or remove them")
        else:
            pairs[name] = label
    for name in by_stem.values():
        findings.warning(f"label maps in {labels} without an image", name, "left out")
    findings.tell()
    if not pairs:
        raise ValueError(f"{images}: no images; expected {LAYOUT}")
    return pairs


def _files(folder: Path) -> list[str]:
    names = (
        (Path(parent) / file).relative_to(folder).as_posix()
        for parent, _, files in os.walk(folder, followlinks=True)
        for file in files
    )
    return sorted(name for name in names if is_image(name) and not is_hidden(name))


def _class_names(root: Path) -> _Names:
    json_file, ade20k = root / "classes.json", root / "objectInfo150.txt"
    if json_file.is_file():
        try:
            content = json.loads(json_file.read_bytes())
        except ValueError as error:
            raise ValueError(f"{json_file}: not JSON ({error}); expected a list of names") from error
        described = content if isinstance(content, dict) else {"classes": content}
        classes, ignore = described.get("classes"), described.get("ignore_index", IGNORED)
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ValueError(
                f"{json_file}: no list of names; expected one, or {{'classes': [...], 'ignore_index': 255}}"
            )
    elif ade20k.is_file():  # a table: the last column has a class's names, of which the first will do
        rows = [line.split("\t") for line in ade20k.read_text(encoding="utf-8").splitlines()[1:] if line.strip()]
        classes, ignore = [row[-1].split(",")[0].strip() for row in rows], IGNORED
    else:
        raise ValueError(
            f"{root}: the names of the classes are not known; write them into classes.json, a list in the order of "
            "their labels (binary masks need none: --segment.kind binary)"
        )
    if not 2 <= len(classes) <= IGNORED or len(set(classes)) < len(classes):
        raise ValueError(
            f"{root}: {len(classes)} classes, {len(set(classes))} different names; expected 2 to {IGNORED}, each once"
        )
    return _Names(classes, ignore)
