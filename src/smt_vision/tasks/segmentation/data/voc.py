"""Pascal VOC's layout of semantic segmentation, which CVAT's "Segmentation mask" has, too.

``ImageSets/Segmentation/train.txt`` and the like list the images in ``JPEGImages/``, whose label maps are in
``SegmentationClass/``. With ``labelmap.txt``, as of CVAT, these have a color per class. With the annotations of SBD,
the training images are those of ``trainaug.txt``, and their label maps in ``SegmentationClassAug/``.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ....data.files import first_existing, list_files
from ....data.validation import ValidationReport
from ....text import get_logger

log = get_logger(__name__)
LISTS, IMAGES, LABELS, LABEL_MAP = "ImageSets/Segmentation", "JPEGImages", "SegmentationClass", "labelmap.txt"
AUGMENTED_LIST, AUGMENTED_LABELS = "trainaug", "SegmentationClassAug"
LAYOUT = f"{IMAGES}/, {LABELS}/, and {LISTS}/train.txt and val.txt"
CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_CLASS = re.compile(r"(?P<name>[^:]+):(?P<red>\d{1,3}),(?P<green>\d{1,3}),(?P<blue>\d{1,3})(:.*)?")


class VocSplit(NamedTuple):
    """One split of a dataset.

    Args:
        images: Folder of the images.
        labels: Folder of the label maps.
        pairs: Label map by image, both relative to their folder.
        whole: Whether it is all of a dataset without splits.
    """

    images: Path
    labels: Path
    pairs: dict[str, str]
    whole: bool = False


def find_voc(root: Path, words: Sequence[str], *, whole: bool) -> VocSplit | None:
    """Find a split; ``None`` if the folder has another layout or lacks the split.

    Args:
        root: Folder of the dataset.
        words: Names of the split; the first that exists is used.
        whole: Whether a set without splits, as CVAT calls ``default``, counts as this split.

    Raises:
        ValueError: Images or label maps of the list are missing; the message names the first few.
    """
    folder = root / LISTS
    if not folder.is_dir() or not (root / IMAGES).is_dir() or not (root / LABELS).is_dir():
        return None
    lists = {file.stem.lower(): file for file in sorted(folder.glob("*.txt"))}
    if "train" in words and AUGMENTED_LIST in lists:
        if (root / AUGMENTED_LABELS).is_dir():
            log.info("%s: trains on %s.txt and %s/", root, AUGMENTED_LIST, AUGMENTED_LABELS)
            pairs = _pairs(root, lists[AUGMENTED_LIST], AUGMENTED_LABELS)
            return VocSplit(root / IMAGES, root / AUGMENTED_LABELS, pairs)
        log.warning("%s: %s.txt is not used, because there is no %s/", root, AUGMENTED_LIST, AUGMENTED_LABELS)
    name = first_existing(words, lists, folder)
    is_whole = name is None and whole and "default" in lists
    if is_whole:
        name = "default"
    return None if name is None else VocSplit(root / IMAGES, root / LABELS, _pairs(root, lists[name]), is_whole)


def _pairs(root: Path, file: Path, label_folder: str = LABELS) -> dict[str, str]:
    folders = (IMAGES, label_folder)
    images, labels = (
        {os.path.splitext(name)[0]: name for name in list_files(root / folder).images} for folder in folders
    )
    report = ValidationReport(str(file))
    pairs: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if not (stem := line.strip()):
            continue
        for found, folder in zip((images, labels), folders, strict=True):
            if stem not in found:
                report.error(f"files are not in {folder}/", stem, "add them, or remove the lines from the list")
        if stem in images and stem in labels:
            pairs[images[stem]] = labels[stem]
    report.raise_errors()
    if not pairs:
        raise ValueError(f"{file}: no lines; expected the name of an image without suffix in each")
    return dict(sorted(pairs.items()))


def read_label_map(root: Path) -> Mapping[str, tuple[int, int, int]] | None:
    """The color of each class in ``labelmap.txt``, in order; ``None`` if there is none.

    Raises:
        ValueError: A line is not a class with its color, or two classes have one color.
    """
    file = root / LABEL_MAP
    if not file.is_file():
        return None
    colors: dict[str, tuple[int, int, int]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _CLASS.fullmatch(line.strip())
        color = tuple(int(match[channel]) for channel in ("red", "green", "blue")) if match else ()
        if match is None or max(color) > 255:
            raise ValueError(f"{file}, line {number}: found {line.strip()!r}; expected a class, e.g. cat:128,0,0::")
        if (other := next((name for name, known in colors.items() if known == color), None)) is not None:
            raise ValueError(f"{file}, line {number}: {match['name']} and {other} have the same color {color}")
        colors[match["name"].strip()] = (color[0], color[1], color[2])
    return colors
