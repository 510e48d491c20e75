"""Segmentation datasets from folders of images and label maps."""

import json
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, cast

from ....data.dataset import Split
from ....data.files import (
    TEST_NAMES,
    TRAIN_NAMES,
    VAL_NAMES,
    describe_suffixes,
    find_images,
    first_existing,
    is_hidden,
    list_files,
    warn_if_test,
    warn_ignored,
)
from ....data.subset import hold_some_out
from ....data.validation import ValidationReport, first_few
from ....text import get_logger
from ..config import IGNORE_INDEX, SegmentConfig
from .dataset import SegmentationDataset
from .voc import CLASSES as VOC_CLASSES
from .voc import LABEL_MAP, VocSplit, find_voc, read_label_map
from .voc import LAYOUT as VOC_LAYOUT

log = get_logger(__name__)

# Compared with the last word of a folder name in lower case, or with all of it: DUTS-TR-Image and Imgs are both image
# folders, and of COD10K's GT_Object, GT_Instance and GT_Edge, only the first has masks.
IMAGES = ("images", "image", "imgs", "img", "im", "rgb", "leftimg8bit")
LABELS = (
    "labels", "label", "annotations", "annotation", "masks", "mask", "gt", "groundtruth", "truth", "gt_object",
    "gtfine",
)  # fmt: skip
# Of Cityscapes: what follows the common part of the names of an image and its label map, and label maps not used.
CITYSCAPES_ENDS = re.compile(r"_(leftImg8bit|gtFine_labelTrainIds)$")
CITYSCAPES_OTHERS = re.compile(r"_gtFine_(color|instanceIds|labelIds)\.png$")
CITYSCAPES_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
SPLITS: Mapping[Split, tuple[str, ...]] = {"train": (*TRAIN_NAMES, "tr"), "val": (*VAL_NAMES, "te")}
SegmentationSplit = Literal["train", "val", "test"]
WORDS: Mapping[SegmentationSplit, tuple[str, ...]] = {
    "train": SPLITS["train"],
    "val": SPLITS["val"],
    "test": TEST_NAMES,
}
LAYOUT = (
    "images/train/NAME.jpg and labels/train/NAME.png, images/val/ and labels/val/ (or annotations/ or masks/, "
    "training/ and validation/), or labels/ without subfolders, or train/images/ and train/masks/ (or Imgs/ and GT/); "
    f"or only Imgs/ and GT/ with all files; or Pascal VOC's: {VOC_LAYOUT}"
)


class _Folders(NamedTuple):
    """The folders of a split.

    Args:
        images: Folder of the images.
        labels: Folder of the label maps.
        others: Folders of images of other splits that have the same folder of label maps.
        whole: Whether they are all of a dataset without splits.
    """

    images: Path
    labels: Path
    others: Sequence[Path] = ()
    whole: bool = False


class _Names(NamedTuple):
    """Class names, the stored label of ignored pixels if it is given, and the colors of the classes if it is they."""

    classes: list[str]
    ignore: int | None
    colors: list[tuple[int, int, int]] | None = None


def find_splits(data: str) -> list[Split]:
    """The splits that a folder of images and label maps has; ``val`` of one without splits."""
    root = Path(data).expanduser()
    found: list[Split] = []
    for split in SPLITS if root.is_dir() else ():
        with suppress(ValueError):
            if _find(root, split) is not None:
                found.append(split)
    return found


def open_segmentation(
    data: str,
    split: SegmentationSplit,
    config: SegmentConfig,
    val_fraction: float | None = None,
    seed: int = 0,
    *,
    check: bool = True,
) -> SegmentationDataset:
    """Open one split of a dataset of images and label maps, and check that each image has a label map.

    Args:
        data: Folder with subfolders of images and of label maps; see ``LAYOUT``. An image and its label map have the
            same file name apart from the suffix. Class names are read from ``classes.json`` (a list, or
            ``{"classes": [...], "ignore_index": 255}``) or ADE20K's ``objectInfo150.txt``; binary masks need none.
        split: ``train``, ``val``, or ``test``, a test split beside the validation split.
        config: ``kind`` and ``zero_is_ignored`` are used.
        val_fraction: Fraction of the training images, or of all images of a dataset without splits, that is held out if
            there is no validation split; with 1, all are for validation. ``None``: a dataset without splits can only
            be opened as ``val``, which is all of it.
        seed: Random seed of the held-out images.
        check: Read pairs evenly spaced over the dataset, to find systematic errors.

    Returns:
        The dataset; images are not decoded. Invalid labels in pairs that were not checked are found when they are
        read, and count as unreadable images.

    Raises:
        ValueError: The folder has another layout, or label maps are missing or invalid; the message names the first
            few.
    """
    root = Path(data).expanduser()
    if not root.is_dir():
        raise ValueError(f"data {data!r} is not a directory; expected {LAYOUT}; set --data")
    found = _find(root, split)
    holds_out = False
    if val_fraction is not None and split != "test":
        val = found if split == "val" else _find(root, "val")
        holds_out = (val is None and not _has_val_folder(root)) or (val is not None and val.whole)
        if holds_out:
            found = val or _find(root, "train")
        elif split == "val" and val_fraction < 1:
            with suppress(ValueError):  # a test split that cannot be opened, e.g. without label maps, is not used
                if val == _find(root, "test"):
                    warn_if_test("test", root)
    if found is None:
        raise ValueError(
            f"{root}: no folders of images and label maps for {split}; expected {LAYOUT}{_hint(root, split)}"
        )
    pairs = found.pairs if isinstance(found, VocSplit) else _pairs(*found[:3])
    is_voc = isinstance(found, VocSplit)
    names = _Names(["object"], None) if config.is_binary else _class_names(root, is_voc=is_voc)
    if config.zero_is_ignored and len(names.classes) >= IGNORE_INDEX:
        raise ValueError(
            f"{root}: {len(names.classes)} classes with zero_is_ignored, the last of which would be stored as "
            f"{IGNORE_INDEX}, the label of ignored pixels; expected at most {IGNORE_INDEX - 1}"
        )
    dataset = SegmentationDataset(
        found.images, found.labels, list(pairs), list(pairs.values()), names.classes, config, names.ignore, names.colors
    )
    if holds_out:
        dataset = hold_some_out(dataset, cast(Split, split), val_fraction=cast(float, val_fraction), seed=seed)
    if check:
        dataset.check()
    log.info("%s: %s", dataset.where, dataset.describe())
    return dataset


def split_images(root: Path, split: Split) -> list[Path]:
    """The images of a split; empty if the folder is not a dataset of images and label maps, or lacks the split."""
    if not root.is_dir():
        return []
    try:
        found = _find(root, split)
        if isinstance(found, VocSplit):
            return [found.images / name for name in found.pairs]
        return [] if found is None else find_images([found.images])
    except (ValueError, FileNotFoundError):
        return []


def _find(root: Path, split: SegmentationSplit) -> VocSplit | _Folders | None:
    """A split; ``None`` if the folder lacks it. A dataset without splits is found as ``val``."""
    voc = find_voc(root, WORDS[split], whole=split == "val")
    return voc or _folders(root, split)


def _has_val_folder(root: Path) -> bool:
    """Whether there is a folder for validation, not for testing, in which images or label maps are missing."""
    parents = [root, *filter(None, [_child(root, IMAGES), _child(root, LABELS)])]
    return any(word in _children(parent) for parent in parents for word in VAL_NAMES if word not in TEST_NAMES)


def _folders(root: Path, split: SegmentationSplit) -> _Folders | None:
    images, labels = _child(root, IMAGES), _child(root, LABELS)
    others: list[Path] = []
    whole = False
    if images and labels:  # images/train, or images of a test set
        folders = _same_split(images, labels, split)
        images_are_split, labels_are_split = (
            any(_child(folder, words) for words in SPLITS.values()) for folder in (images, labels)
        )
        if folders[0] and not labels_are_split:  # CAMO
            folders = folders[0], labels
            others = [child for child in images.iterdir() if child.is_dir() and child != folders[0]]
        elif split == "val" and not images_are_split and not labels_are_split:
            folders, whole = (images, labels), True
    else:  # train/images
        parent = _child(root, WORDS[split])
        folders = (_child(parent, IMAGES), _child(parent, LABELS)) if parent else (None, None)
    return None if folders[0] is None or folders[1] is None else _Folders(folders[0], folders[1], others, whole)


def _same_split(images: Path, labels: Path, split: SegmentationSplit) -> tuple[Path | None, Path | None]:
    """A split's subfolders of images and of label maps, of the same name if both have one.

    Raises:
        ValueError: One has a folder for validation, and the other one for testing.
    """
    of_images, of_labels = ([word for word in WORDS[split] if word in _children(folder)] for folder in (images, labels))
    if common := [word for word in of_images if word in of_labels]:
        of_images = of_labels = common
    elif of_images and of_labels and (of_images[0] in TEST_NAMES) != (of_labels[0] in TEST_NAMES):
        raise ValueError(
            f"{images.parent}: {images.name}/ has {', '.join(of_images)}, {labels.name}/ has {', '.join(of_labels)}; "
            "these are different splits: give both folders the same name"
        )
    return _child(images, of_images), _child(labels, of_labels)


def _hint(root: Path, split: SegmentationSplit) -> str:
    """The test sets in a folder, or in its folder of a split, which are datasets of their own."""
    parents = [root, *filter(None, [_child(root, WORDS[split])])]
    found = [
        str(folder)
        for parent in parents
        for folder in sorted(parent.iterdir())
        if folder.is_dir() and _child(folder, IMAGES) and _child(folder, LABELS)
    ]
    return f". Folders with images and label maps are {first_few(found)}: set --data to one of them" if found else ""


def _children(folder: Path) -> dict[str, list[Path]]:
    """The subfolders by their names in lower case, and by the words that these end in."""
    by_word: dict[str, list[Path]] = defaultdict(list)
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not is_hidden(child.name):
            name = child.name.lower()
            for word in dict.fromkeys((name, re.split(r"[-_ ]", name)[-1].removesuffix("dataset"))):
                by_word[word].append(child)
    return by_word


def _child(folder: Path, words: Sequence[str]) -> Path | None:
    """The subfolder whose name is, or ends in, one of the words; an earlier word is preferred, and then a whole name.

    Raises:
        ValueError: Several names end in this word.
    """
    by_word = _children(folder)
    word = first_existing(words, by_word, folder)
    if word is None:
        return None
    found = [child for child in by_word[word] if child.name.lower() == word] or by_word[word]
    if len(found) > 1:
        names = ", ".join(child.name for child in found)
        raise ValueError(f"{folder}: several folders for {word}: {names}; keep one of them, or name it {word}")
    return found[0]


def _pairs(images: Path, labels: Path, others: Sequence[Path]) -> dict[str, str]:
    """Label map by image file, sorted by image file; ``others`` are folders of images with the same label maps."""
    report = ValidationReport(str(images))
    elsewhere = {_stem(name): other / name for other in others for name in list_files(other).images}
    by_stem: dict[str, str] = {}
    for name in _files(labels):
        other = by_stem.setdefault(_stem(name), name)
        if other != name:
            report.error("label maps exist with two suffixes", f"{labels / name}", "keep one of each")
    pairs: dict[str, str] = {}
    stems: dict[str, str] = {}
    for name in _files(images):
        stem = _stem(name)
        other = stems.setdefault(stem, name)
        label = by_stem.pop(stem, None)
        if other != name:
            report.error("images exist with two suffixes", f"{images / name}", "keep one of each")
        elif stem in elsewhere:
            kind = f"images have the same name as one of another split, and so the same label map in {labels}"
            report.error(kind, f"{name} and {elsewhere[stem]}", "rename them, or put label maps into folders of splits")
        elif label is None:
            fix = "add the label maps, with the names of the images apart from the suffix, or remove the images"
            report.error(f"images without a label map in {labels}", name, fix)
        else:
            pairs[name] = label
    for name in (name for stem, name in by_stem.items() if stem not in elsewhere):
        report.warning(f"label maps in {labels} without an image", name, "ignored")
    report.raise_errors()
    if not pairs:
        raise ValueError(f"{images}: no images ({describe_suffixes(list_files(images).others)}); expected {LAYOUT}")
    return pairs


def _stem(name: str) -> str:
    """What an image and its label map have in common: the path without suffix, in composed Unicode (macOS stores names
    in decomposed Unicode), and of Cityscapes without the kind of file."""
    return CITYSCAPES_ENDS.sub("", unicodedata.normalize("NFC", os.path.splitext(name)[0]))


def _files(folder: Path) -> list[str]:
    listing = list_files(folder)
    warn_ignored(folder, listing.others)
    return sorted(name for name in listing.images if not CITYSCAPES_OTHERS.search(name))


def _class_names(root: Path, *, is_voc: bool) -> _Names:
    json_file, ade20k = root / "classes.json", root / "objectInfo150.txt"
    if json_file.is_file():
        where, names = json_file, _read_classes_json(json_file)
    elif is_voc and (colors := read_label_map(root)) is not None:
        where, names = root / LABEL_MAP, _Names(list(colors), None, list(colors.values()))
    elif is_voc:
        where, names = root, _Names(list(VOC_CLASSES), IGNORE_INDEX)
    elif (root / "gtFine").is_dir():
        where, names = root, _Names(list(CITYSCAPES_CLASSES), IGNORE_INDEX)
    elif ade20k.is_file():  # tab-separated; the last column lists a class's names, of which the first is used
        try:
            lines = ade20k.read_text(encoding="utf-8").splitlines()[1:]
        except ValueError as error:
            raise ValueError(f"{ade20k}: not text in UTF-8 ({error}); download it again") from error
        rows = [line.split("\t") for line in lines if line.strip()]
        where, names = ade20k, _Names([row[-1].split(",")[0].strip() for row in rows], IGNORE_INDEX)
    else:
        raise ValueError(
            f"{root}: no class names; write them into classes.json as a list in the order of their labels (object "
            "masks need none: --segment.kind binary)"
        )
    stripped = [name.strip() for name in names.classes]
    repeated = sorted(name for name, count in Counter(stripped).items() if count > 1)
    if not 2 <= len(stripped) <= IGNORE_INDEX or repeated or "" in stripped:
        problem = f" (repeated: {first_few(repeated)})" if repeated else " (one is empty)" if "" in stripped else ""
        raise ValueError(
            f"{where}: {len(stripped)} classes with {len(set(stripped))} different names{problem}; expected 2 to "
            f"{IGNORE_INDEX} classes with unique names"
        )
    return names


def _read_classes_json(file: Path) -> _Names:
    form = "a list of names, or {'classes': [...], 'ignore_index': 255}"
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error}); expected {form}") from error
    fields = content if isinstance(content, dict) else {"classes": content}
    classes = fields.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"{file}: expected {form}, with names as text in the order of their labels")
    for field, value in fields.items():  # other fields may describe the dataset
        if "ignore" in field.lower() and (field != "ignore_index" or type(value) is not int):
            raise ValueError(
                f"{file}: invalid {field!r}: {json.dumps(value)}; expected 'ignore_index' with an integer, e.g. 255, "
                "which is its default"
            )
    return _Names(classes, fields.get("ignore_index"))
