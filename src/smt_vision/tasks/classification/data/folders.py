"""Datasets of class folders, on disk or in a tar."""

import logging
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from ....data.archive import TarIndex, open_tar
from ....data.dataset import Split
from ....data.files import (
    TEST_NAMES,
    TRAIN_NAMES,
    VAL_NAMES,
    Listing,
    describe_suffixes,
    list_files,
    sort_names,
    split_in_name,
    warn_if_test,
    warn_ignored,
)
from ....data.subset import held_out
from ....data.validation import SHOWN, ValidationReport, first_few
from ....text import get_logger
from .dataset import ImageDataset

log = get_logger(__name__)
SPLIT_NAMES = TRAIN_NAMES + VAL_NAMES
# Arguments: rows of the images, classes, targets, root.
Build = Callable[[list[int], Sequence[str], Sequence[int], str], ImageDataset]


class FolderDataset(ImageDataset):
    """Image files in a directory tree."""

    def __init__(self, root: Path, classes: Sequence[str], targets: Sequence[int], ids: Sequence[str]) -> None:
        super().__init__(classes, targets, ids, f"{root}{os.sep}")
        self.root = root

    def _read(self, row: int, name: str) -> Path:
        return self.root / name


class TarDataset(ImageDataset):
    """Image files in one or several tars; ``members`` holds (tar index, file index in it) for each image."""

    def __init__(
        self,
        tars: Sequence[TarIndex],
        members: Sequence[tuple[int, int]] | npt.NDArray[np.int64],
        classes: Sequence[str],
        targets: Sequence[int],
        ids: Sequence[str],
        where: str,
    ) -> None:
        super().__init__(classes, targets, ids, where)
        self.tars = tuple(tars)
        self._members = np.asarray(members, dtype=np.int64).reshape(-1, 2)

    def tar_of(self) -> npt.NDArray[np.int64]:
        """Index of the tar of each image, (N,)."""
        return self._members[self._rows, 0]

    def _read(self, row: int, name: str) -> bytes:
        tar, member = self._members[row]
        return self.tars[tar].read(int(member))

    def _hash_content(self, i: int) -> int:
        tar, member = self._members[self._rows[i]]
        return self.tars[tar].fingerprint(int(member))


class NoClassFolders(ValueError):
    """The images of a folder or an archive are not in one folder per class, or in those of two or more classes."""


def natural_order(name: str) -> str:
    """Sort key of class names and image ids: timm's natural order, for equal class indices.

    It ignores case, so the name itself decides if only the case differs. Numbers are compared by their length and then
    as text; they are read as hexadecimal, which keeps their order, because Python limits the length of decimal ones
    only. A single text takes a third of the memory and time of a list of texts and numbers.
    """
    text, *rest = re.split(r"(\d+)", name.lower())
    parts = [text, "\0"]  # below all characters: a name comes before those that it is the beginning of
    for digits, text in zip(rest[::2], rest[1::2], strict=True):
        number = f"{int(digits, 16):x}"
        parts += (chr(1 + len(number)), number, text, "\0")
    return "".join((*parts, "\0", name))


def open_folder(root: Path, split: Split, val_fraction: float, seed: int) -> ImageDataset:
    """Open class folders in train/ and val/ (or another of ``VAL_NAMES``), or class folders without a split."""
    listing = list_files(root)
    names = listing.images

    def build(rows: list[int], classes: Sequence[str], targets: Sequence[int], top: str) -> ImageDataset:
        return FolderDataset(root / top, classes, targets, [names[row].removeprefix(top) for row in rows])

    return _class_folders(listing, split, val_fraction, seed, str(root), build)


def open_tar_of_folders(path: Path, split: Split, val_fraction: float, seed: int, allow_damaged: bool) -> ImageDataset:
    """Open a tar with one of the layouts of :func:`open_folder`."""
    tar = open_tar(path, allow_damaged=allow_damaged)
    listing = sort_names(tar.names, tar.folders)
    names = listing.images
    if names and all("\\" in name and "/" not in name for name in names):
        raise ValueError(f"{path}: names with backslashes instead of slashes, e.g. {names[0]}; pack the folder again")
    member_of = {name: row for row, name in enumerate(tar.names)}

    def build(rows: list[int], classes: Sequence[str], targets: Sequence[int], top: str) -> ImageDataset:
        members = [(0, member_of[names[row]]) for row in rows]
        ids = [names[row].removeprefix(top) for row in rows]
        return TarDataset([tar], members, classes, targets, ids, f"{path}:{top}")

    return _class_folders(listing, split, val_fraction, seed, str(path), build)


def _class_folders(
    listing: Listing, split: Split, val_fraction: float, seed: int, where: str, build: Build
) -> ImageDataset:
    """Build one split of the images of a directory or an archive."""
    if not listing.images:
        raise ValueError(
            f"{where}: no images ({describe_suffixes(listing.others)}); expected class folders, e.g. train/cat/1.jpg "
            "and val/cat/2.jpg, or cat/1.jpg for an automatic split"
        )
    root = _common_root(listing)
    train, val = _split_folders(listing, root, where)
    if val and not train and split == "train":
        raise ValueError(f"{where}: has {val} but no train/; add the training images as train/CLASS/IMAGE")
    top = (train if split == "train" else val) or train or root
    groups: dict[str, dict[str, list[int]]] = {}
    for folder in dict.fromkeys([train, val, top]):
        if folder is not None:
            known = groups[train].keys() if train in groups and folder == val else ()
            groups[folder] = _group_by_class(listing, folder, where, known)
    if train and val:
        _check_classes(groups, train, val, where)
    by_class = groups[top]
    classes = sorted(groups[train] if train and val else by_class, key=natural_order)
    if not classes:
        raise NoClassFolders(
            f"{where}: no class folders; expected images in class folders, e.g. train/cat/1.jpg and train/dog/1.jpg"
        )
    hints = [split_in_name(name) for name in classes]
    if top == root and None not in hints and len({hint in TRAIN_NAMES for hint in hints}) == 2:
        raise NoClassFolders(
            f"{where}: images directly in {first_few([f'{name}/' for name in classes])}, which are named like splits, "
            "not classes; expected class folders in them, e.g. train/cat/1.jpg and val/cat/2.jpg"
        )
    _warn_passed_over(listing, root, train, val, top, where)
    names = listing.images
    labeled = [(row, target) for target, name in enumerate(classes) for row in by_class.get(name, ())]
    labeled.sort(key=lambda pair: natural_order(names[pair[0]]))
    rows, targets = [row for row, _ in labeled], [target for _, target in labeled]
    images = build(rows, classes, targets, top)
    if val and top in (train, val):
        if split == "val" and val_fraction < 1:
            warn_if_test(val.removeprefix(root).rstrip("/").lower(), where)
        return images
    return held_out(images, split, val_fraction=val_fraction, seed=seed)


def _common_root(listing: Listing) -> str:
    """Common parent folder of all images, e.g. ``food-101/images/`` beside ``food-101/meta/``; empty if there is none.

    The folder that holds the splits, and that of a single class, are not passed.
    """
    root = ""
    with_images = {os.path.dirname(name) for name in listing.images}
    while True:
        inside = [folder.removeprefix(root) for folder in with_images]
        tops = {folder.partition("/")[0] for folder in inside}
        has_split = any(f.removeprefix(root).lower() in SPLIT_NAMES for f in listing.folders if f.startswith(root))
        if len(tops) != 1 or "" in inside or has_split or not any("/" in folder for folder in inside):
            return root
        root += tops.pop() + "/"


def _split_folders(listing: Listing, root: str, where: str) -> tuple[str | None, str | None]:
    """Folders of the training and the validation split in ``root``; ``None`` for one that does not exist.

    The content decides whether a folder called e.g. ``train`` is a split or a class: a split has class folders, a class
    has images.

    Raises:
        ValueError: If the folders can be read both ways, or neither way.
    """
    flat: set[str] = set()  # folders in root with images directly in them
    deep: set[str] = set()  # those with images in their subfolders
    for name in listing.images:
        top, *below = name.removeprefix(root).split("/")
        if below:
            (flat if len(below) == 1 else deep).add(top)
    inside = [folder.removeprefix(root).partition("/") for folder in listing.folders if folder.startswith(root)]
    named = {top.lower(): top for top in sorted({top for top, _, _ in inside}) if top.lower() in SPLIT_NAMES}
    others = sorted((flat | deep) - set(named.values()))
    deep |= {top for top, _, below in inside if below} - flat  # class folders without images, an error further on
    splits = [top for top in named.values() if top in deep]
    if not splits and (others or not named):
        return None, None
    train, val = (next((named[name] for name in names if name in named), None) for names in (TRAIN_NAMES, VAL_NAMES))
    without_classes = [top for top in (train, val) if top and top not in splits]
    # Classes that are in both folders show that these are splits; other folders are then ignored, with a warning.
    are_splits = train and val and _classes_in(listing, f"{root}{train}/") & _classes_in(listing, f"{root}{val}/")
    if without_classes or (others and not are_splits):
        lacking, more = (first_few([f"{root}{top}/" for top in tops]) for tops in (without_classes, others))
        top = (without_classes or splits)[0]
        problem = f"no class folders in {lacking}" if lacking else f"class folders in {root}{top}/, but also {more}"
        raise NoClassFolders(
            f"{where}: {problem}. If {top} is a split, expected class folders in it, e.g. {top}/cat/1.jpg, and only "
            f"other splits ({', '.join(SPLIT_NAMES)}) next to it. If {top} is a class, put the folders of all classes "
            f"into a folder train, e.g. train/{top}/1.jpg"
        )
    return f"{root}{train}/" if train else None, f"{root}{val}/" if val else None


def _classes_in(listing: Listing, top: str) -> set[str]:
    folders = {os.path.dirname(name) for name in listing.images if name.startswith(top)}
    return {_class_of(folder) for folder in folders if len(folder) > len(top)}


def _class_of(folder: str) -> str:
    """Class name of a folder: macOS stores names in decomposed Unicode, other systems in composed Unicode."""
    return unicodedata.normalize("NFC", os.path.basename(folder))


def _group_by_class(listing: Listing, root: str, where: str, known: Collection[str] = ()) -> dict[str, list[int]]:
    """Rows of the images of each class in ``root``; as in timm, the parent folder of an image is its class.

    Args:
        listing: All files.
        root: A folder of class folders.
        where: The dataset, for messages.
        known: Classes whose folders may have no files.

    Raises:
        ValueError: If a class folder has no images, is in another one, or has the name of another one.
    """
    by_folder: dict[str, list[int]] = defaultdict(list)
    unlabeled = 0
    for row, name in enumerate(listing.images):
        if not name.startswith(root):
            continue
        folder = os.path.dirname(name)
        if len(folder) < max(len(root), 1):
            unlabeled += 1
        else:
            by_folder[folder].append(row)
    if unlabeled:
        log.warning("%s: ignored %d images outside of class folders", where, unlabeled)
    report = ValidationReport(where)
    _check_names(report, set(by_folder))
    parents = {os.path.dirname(folder) for folder in listing.folders}
    others: dict[str, list[str]] = defaultdict(list)
    for name in listing.others:
        others[os.path.dirname(name)].append(name)
    for folder in sorted(set(listing.folders) - by_folder.keys() - parents):
        if folder.startswith(root) and (others[folder] or _class_of(folder) not in known):
            case = f"{folder} ({describe_suffixes(others[folder])})"
            report.error(
                "class folders without images", case, "add images in a supported format, or remove these folders"
            )
    try:
        report.raise_errors()
    except ValueError as error:
        raise NoClassFolders(error) from error
    if len({os.path.dirname(folder) for folder in by_folder}) > 1:
        log.warning(
            "%s: the class folders are in several folders: %s; only the innermost folder is the class",
            where, first_few(sorted(by_folder)),
        )  # fmt: skip
    return {_class_of(folder): rows for folder, rows in by_folder.items()}


def _check_names(report: ValidationReport, folders: set[str]) -> None:
    """Check that each class has one folder, and that no class folder is inside of another one."""
    by_class: dict[str, list[str]] = defaultdict(list)
    for folder in sorted(folders):
        by_class[_class_of(folder)].append(folder)
        outer = next((str(parent) for parent in PurePosixPath(folder).parents if str(parent) in folders), None)
        if outer:
            fix = "the folder that an image is in is its class; keep the images of a class in one folder"
            report.error("class folders inside of a class folder", f"{folder} in {outer}", fix)
    for name, same in by_class.items():
        if len(same) > 1:
            # Names that differ only in Unicode normalization look the same.
            alike = len({unicodedata.normalize("NFC", folder) for folder in same}) < len(same)
            shown = " and ".join(ascii(folder) if alike else folder for folder in same[:SHOWN])
            shown += " ..." if len(same) > SHOWN else ""
            fix = (
                "the folder that an image is in is its class; rename these folders, or use only one of their parent "
                "folders; if these are splits, name them train and val; if these are the classes, move the images up "
                "into them"
            )
            report.error("class names of several folders", f"{name} ({shown})", fix)


def _warn_passed_over(listing: Listing, root: str, train: str | None, val: str | None, top: str, where: str) -> None:
    """Log the images and folders outside of the splits, and files that are not images, except in the other split."""
    splits = tuple(folder for folder in (train, val) if folder)
    outside = Counter(
        os.path.dirname(name.removeprefix(root)).partition("/")[0]
        for name in listing.images
        if splits and not name.startswith(splits)
    )
    if outside:
        level = logging.WARNING if {folder.lower() for folder in outside} - set(TEST_NAMES) else logging.INFO
        counts = ", ".join(f"{count} in {folder or '.'}/" for folder, count in outside.items())
        log.log(level, "%s: ignored %d images outside of %s: %s", where, outside.total(), " and ".join(splits), counts)
    parents = {root[:end] for end in range(len(root)) if end == 0 or root[end - 1] == "/"}
    beside = [
        folder
        for folder in listing.folders
        if folder[: folder.rfind("/") + 1] in parents and not root.startswith(f"{folder}/")
    ]
    if beside:
        log.warning("%s: uses %s, ignores the folders without images %s", where, root, first_few(sorted(beside)))
    other = tuple(folder for folder in splits if folder != top)
    warn_ignored(where, [name for name in listing.others if not name.startswith(other)])


def _check_classes(splits: dict[str, dict[str, list[int]]], train: str, val: str, where: str) -> None:
    """Check that all classes with validation images have training images; those without are a warning.

    Raises:
        ValueError: There are classes with validation images only, or no validation images.
    """
    if not splits[val]:
        raise ValueError(f"{where}: no images in {val}; add some, or remove it to hold out images of {train}")
    absent = sorted(splits[train].keys() - splits[val].keys(), key=natural_order)
    unknown = sorted(splits[val].keys() - splits[train].keys(), key=natural_order)
    if unknown:
        examples = [f"{name} (only in {val})" for name in unknown] + [f"{name} (only in {train})" for name in absent]
        raise ValueError(
            f"{where}: class folders in {val} that are not in {train}: {first_few(examples)}; add images of these "
            "classes for training, or remove or rename the folders"
        )
    if absent:
        log.warning(
            "%s: %s has no images of %d of %d classes: %s",
            where, val, len(absent), len(splits[train]), first_few(absent),
        )  # fmt: skip
