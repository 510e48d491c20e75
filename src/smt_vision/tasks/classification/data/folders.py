"""Datasets of class folders, on disk or in a tar."""

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from timm.data.readers.img_extensions import get_img_extensions
from timm.utils.misc import natural_key

from ....data.archive import TarIndex, open_tar
from ....data.dataset import Split
from ....data.files import TRAIN_NAMES, VAL_NAMES, is_hidden, is_image
from .dataset import ImageDataset, held_out

log = logging.getLogger(__name__)
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
        members: Sequence[tuple[int, int]],
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

    def _fingerprint(self, i: int) -> int:
        tar, member = self._members[self._rows[i]]
        return self.tars[tar].fingerprint(int(member))


def _sort_key(name: str) -> tuple[list[str | int], str]:
    # timm's order, for equal class indices. It ignores case, so the name itself decides if only the case differs.
    return natural_key(name), name


def open_folder(root: Path, split: Split, val_fraction: float, seed: int) -> ImageDataset:
    """Open class folders in train/ and val/ (or valid/, validation/, test/), or class folders without a split."""
    names: list[str] = []
    folders: list[str] = []
    for parent, subfolders, files in os.walk(root, followlinks=True):
        relative = PurePosixPath(Path(parent).relative_to(root).as_posix())
        folders += [(relative / folder).as_posix() for folder in subfolders]
        names += [(relative / file).as_posix() for file in files if is_image(file)]

    def build(rows: list[int], classes: Sequence[str], targets: Sequence[int], top: str) -> ImageDataset:
        return FolderDataset(root / top, classes, targets, [names[row].removeprefix(top) for row in rows])

    return _class_folders(names, folders, split, val_fraction, seed, str(root), build)


def open_tar_of_folders(path: Path, split: Split, val_fraction: float, seed: int, allow_damaged: bool) -> ImageDataset:
    """Open a tar with one of the layouts of :func:`open_folder`."""
    tar = open_tar(path, allow_damaged=allow_damaged)
    files = [row for row, name in enumerate(tar.names) if is_image(name)]
    names = [tar.names[row] for row in files]
    if names and all("\\" in name and "/" not in name for name in names):
        raise ValueError(f"{path}: names with backslashes instead of slashes, e.g. {names[0]}; pack the folder again")
    # Not every tar has an entry for each folder.
    leaves = {PurePosixPath(folder) for folder in map(os.path.dirname, names)}
    implied = {folder.as_posix() for leaf in leaves for folder in (leaf, *leaf.parents)}

    def build(rows: list[int], classes: Sequence[str], targets: Sequence[int], top: str) -> ImageDataset:
        members = [(0, files[row]) for row in rows]
        ids = [names[row].removeprefix(top) for row in rows]
        return TarDataset([tar], members, classes, targets, ids, f"{path}:{top}")

    folders = sorted((implied | set(tar.folders)) - {".", ""})
    return _class_folders(names, folders, split, val_fraction, seed, str(path), build)


def _class_folders(
    names: list[str], folders: list[str], split: Split, val_fraction: float, seed: int, where: str, build: Build
) -> ImageDataset:
    """Build one split of the images ``names`` in ``folders``, both POSIX paths relative to one root."""
    names_by_row = {row: name for row, name in enumerate(names) if not is_hidden(name)}
    folders = [folder for folder in folders if not is_hidden(folder)]
    if not names_by_row:
        raise ValueError(
            f"{where}: no images (file extensions {', '.join(get_img_extensions())}); expected class folders, e.g. "
            "train/cat/1.jpg and val/cat/2.jpg, or cat/1.jpg for an automatic split"
        )
    root = _common_root(folders, names_by_row.values())
    tops = {folder.removeprefix(root).partition("/")[0] for folder in folders if folder.startswith(root)}
    train = next((f"{root}{name}/" for name in TRAIN_NAMES if name in tops), None)
    val = next((f"{root}{name}/" for name in VAL_NAMES if name in tops), None)
    if val and not train and split == "train":
        raise ValueError(f"{where}: has {val} but no train/; add the training images as train/CLASS/IMAGE")
    splits = {folder: _group_by_class(names_by_row, folders, folder, where) for folder in (train, val) if folder}
    if train and val:
        _check_same_classes(splits, train, val, where)
    split_folder = train if split == "train" else val
    if splits:
        by_class = splits[split_folder or train or ""]
    else:
        by_class = _group_by_class(names_by_row, folders, root, where)
    classes = sorted(by_class, key=_sort_key)
    if len(classes) < 2:
        raise ValueError(
            f"{where}: {f'only one class ({classes[0]})' if classes else 'no class folders'}; expected images in two "
            "or more class folders, e.g. train/cat/1.jpg and train/dog/1.jpg"
        )
    labeled = [(row, target) for target, name in enumerate(classes) for row in by_class[name]]
    labeled.sort(key=lambda pair: _sort_key(names[pair[0]]))
    rows, targets = [row for row, _ in labeled], [target for _, target in labeled]
    images = build(rows, classes, targets, split_folder or train or root)
    if split_folder and val:
        return images
    return held_out(images, split, val_fraction=val_fraction, seed=seed)


def _common_root(folders: list[str], names: Collection[str]) -> str:
    """Common parent folder of everything, e.g. ``cifar10/`` in a tar of one folder; empty if there is none."""
    root = ""
    while True:
        subfolders = [folder.removeprefix(root) for folder in folders if folder.startswith(root)]
        tops = {folder.partition("/")[0] for folder in subfolders}
        has_images = any("/" not in name.removeprefix(root) for name in names)
        if len(tops) != 1 or has_images or not any("/" in folder for folder in subfolders):
            return root
        (top,) = tops
        if top in TRAIN_NAMES + VAL_NAMES:
            return root
        root += top + "/"


def _group_by_class(names: dict[int, str], folders: list[str], root: str, where: str) -> dict[str, list[int]]:
    """Rows of the images of each class in ``root``; as in timm, the parent folder of an image is its class."""
    by_class: dict[str, list[int]] = defaultdict(list)
    non_empty = set()
    unlabeled = 0
    for row, name in names.items():
        if not name.startswith(root):
            continue
        folder = os.path.dirname(name)
        if len(folder) < max(len(root), 1):
            unlabeled += 1
            continue
        non_empty.add(folder)
        by_class[os.path.basename(folder)].append(row)
    if unlabeled:
        log.warning("%s: ignored %d images outside of class folders", where, unlabeled)
    parents = {os.path.dirname(folder) for folder in folders}
    empty = sorted(folder for folder in folders if folder.startswith(root) and folder not in non_empty | parents)
    if empty:
        examples = ", ".join(empty[:10]) + (" ..." if len(empty) > 10 else "")
        raise ValueError(
            f"{where}: {len(empty)} class folders without images (file extensions {', '.join(get_img_extensions())}): "
            f"{examples}; add images or remove these folders"
        )
    return by_class


def _check_same_classes(splits: dict[str, dict[str, list[int]]], train: str, val: str, where: str) -> None:
    unmatched = sorted(set(splits[train]) ^ set(splits[val]), key=_sort_key)
    if unmatched:
        examples = ", ".join(f"{name} (only in {train if name in splits[train] else val})" for name in unmatched[:10])
        raise ValueError(
            f"{where}: {train} and {val} must have the same class folders, but {len(unmatched)} are in only one of "
            f"them: {examples}{' ...' if len(unmatched) > 10 else ''}; add or remove these"
        )
