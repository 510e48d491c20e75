"""Folders of images and of label maps."""

import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ....data.dataset import Split
from ....data.files import TRAIN_NAMES, VAL_NAMES, is_hidden, is_image
from ....data.validation import ValidationReport
from ..config import IGNORE_INDEX, SegmentConfig
from .dataset import SegmentationDataset

log = logging.getLogger(__name__)


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


def open_segmentation(data: str, split: Split, config: SegmentConfig) -> SegmentationDataset:
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
    names = _Names(["object"], IGNORE_INDEX) if config.kind == "binary" else _class_names(root)
    pairs = _pairs(images, labels)
    found = SegmentationDataset(
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
    findings = ValidationReport(str(images))
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
        classes, ignore = described.get("classes"), described.get("ignore_index", IGNORE_INDEX)
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ValueError(
                f"{json_file}: no list of names; expected one, or {{'classes': [...], 'ignore_index': 255}}"
            )
    elif ade20k.is_file():  # a table: the last column has a class's names, of which the first will do
        rows = [line.split("\t") for line in ade20k.read_text(encoding="utf-8").splitlines()[1:] if line.strip()]
        classes, ignore = [row[-1].split(",")[0].strip() for row in rows], IGNORE_INDEX
    else:
        raise ValueError(
            f"{root}: the names of the classes are not known; write them into classes.json, a list in the order of "
            "their labels (binary masks need none: --segment.kind binary)"
        )
    if not 2 <= len(classes) <= IGNORE_INDEX or len(set(classes)) < len(classes):
        raise ValueError(
            f"{root}: {len(classes)} classes, {len(set(classes))} different names; expected 2 to {IGNORE_INDEX}, each once"
        )
    return _Names(classes, ignore)
