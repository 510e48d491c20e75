"""Class folders, on disk or in a tar."""

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
Build = Callable[
    [list[int], Sequence[str], Sequence[int], str], ImageDataset
]  # (rows of names, classes, targets, root)


class FolderDataset(ImageDataset):
    """Image files under a folder."""

    def __init__(self, root: Path, classes: Sequence[str], targets: Sequence[int], ids: Sequence[str]) -> None:
        super().__init__(classes, targets, ids, f"{root}{os.sep}")
        self.root = root

    def _read(self, row: int, name: str) -> Path:
        return self.root / name


class TarDataset(ImageDataset):
    """Image files in one tar or several; ``members`` holds (tar, file in it) for each image."""

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
        """(N,) which of the tars holds each image."""
        return self._members[self._rows, 0]

    def _read(self, row: int, name: str) -> bytes:
        tar, member = self._members[row]
        return self.tars[tar].read(int(member))


def _order(name: str) -> tuple[list[str | int], str]:
    # timm's order, so that class numbers agree; it ignores case, so names that differ in case alone need the rest.
    return natural_key(name), name


def open_folder(root: Path, split: Split, val_fraction: float, seed: int) -> ImageDataset:
    """Class folders under train/ and val/ (or valid/, validation/, test/), or class folders that are split here."""
    names: list[str] = []
    folders: list[str] = []
    for parent, subfolders, files in os.walk(root, followlinks=True):
        relative = PurePosixPath(Path(parent).relative_to(root).as_posix())
        folders += [(relative / folder).as_posix() for folder in subfolders]
        names += [(relative / file).as_posix() for file in files if is_image(file)]

    def build(rows: list[int], classes: Sequence[str], targets: Sequence[int], top: str) -> ImageDataset:
        return FolderDataset(root / top, classes, targets, [names[row].removeprefix(top) for row in rows])

    return _class_folders(names, folders, split, val_fraction, seed, str(root), build)


def open_tar_of_folders(path: Path, split: Split, val_fraction: float, seed: int) -> ImageDataset:
    """The same layouts in a tar."""
    tar = open_tar(path)
    files = [row for row, name in enumerate(tar.names) if is_image(name)]
    names = [tar.names[row] for row in files]
    holding = {PurePosixPath(folder) for folder in map(os.path.dirname, names)}
    # Not every tar has an entry for each folder.
    implied = {folder.as_posix() for leaf in holding for folder in (leaf, *leaf.parents)}

    def build(rows: list[int], classes: Sequence[str], targets: Sequence[int], top: str) -> ImageDataset:
        members = [(0, files[row]) for row in rows]
        ids = [names[row].removeprefix(top) for row in rows]
        return TarDataset([tar], members, classes, targets, ids, f"{path}:{top}")

    folders = sorted((implied | set(tar.folders)) - {".", ""})
    return _class_folders(names, folders, split, val_fraction, seed, str(path), build)


def _class_folders(
    names: list[str], folders: list[str], split: Split, val_fraction: float, seed: int, where: str, build: Build
) -> ImageDataset:
    """One split of the images ``names`` in ``folders``, both paths under one root with ``/`` between their parts."""
    names_by_row = {row: name for row, name in enumerate(names) if not is_hidden(name)}
    folders = [folder for folder in folders if not is_hidden(folder)]
    if not names_by_row:
        raise ValueError(
            f"{where}: no images (files that end in {', '.join(get_img_extensions())}); expected class folders, as "
            "train/cat/1.jpg and val/cat/2.jpg, or cat/1.jpg to be split here"
        )
    root = _common_root(folders, names_by_row.values())
    tops = {folder.removeprefix(root).partition("/")[0] for folder in folders if folder.startswith(root)}
    train = next((f"{root}{name}/" for name in TRAIN_NAMES if name in tops), None)
    val = next((f"{root}{name}/" for name in VAL_NAMES if name in tops), None)
    if val and not train and split == "train":
        raise ValueError(f"{where}: has {val} but no train/; add the images to train on, as train/CLASS/IMAGE")
    sides = {side: _by_class(names_by_row, folders, side, where) for side in (train, val) if side}
    if train and val:
        _check_same_classes(sides, train, val, where)
    own = train if split == "train" else val
    by_class = sides[own or train or ""] if sides else _by_class(names_by_row, folders, root, where)
    classes = sorted(by_class, key=_order)
    if len(classes) < 2:
        raise ValueError(
            f"{where}: {f'only one class ({classes[0]})' if classes else 'no class folders'}; expected images in two "
            "or more class folders, as train/cat/1.jpg and train/dog/1.jpg"
        )
    labelled = [(row, target) for target, name in enumerate(classes) for row in by_class[name]]
    labelled.sort(key=lambda pair: _order(names[pair[0]]))
    images = build([row for row, _ in labelled], classes, [target for _, target in labelled], own or train or root)
    if own and val:
        return images
    return held_out(images, split, val_fraction=val_fraction, seed=seed)


def _common_root(folders: list[str], names: Collection[str]) -> str:
    """The folder that everything lies in, as ``cifar10/`` of a tar of one folder; empty where there is none."""
    root = ""
    while True:
        below = [folder.removeprefix(root) for folder in folders if folder.startswith(root)]
        tops = {folder.partition("/")[0] for folder in below}
        images_here = any("/" not in name.removeprefix(root) for name in names)
        if len(tops) != 1 or images_here or not any("/" in folder for folder in below):
            return root
        (top,) = tops
        if top in TRAIN_NAMES + VAL_NAMES:
            return root
        root += top + "/"


def _by_class(names: dict[int, str], folders: list[str], root: str, where: str) -> dict[str, list[int]]:
    """Rows of the images of each class under ``root``: as timm has it, the folder that holds an image is its class."""
    by_class: dict[str, list[int]] = defaultdict(list)
    filled = set()
    loose = 0
    for row, name in names.items():
        if not name.startswith(root):
            continue
        folder = os.path.dirname(name)
        if len(folder) < max(len(root), 1):
            loose += 1
            continue
        filled.add(folder)
        by_class[os.path.basename(folder)].append(row)
    if loose:
        log.warning("%s: %d images outside of any class folder are left out", where, loose)
    inner = {os.path.dirname(folder) for folder in folders}
    empty = sorted(folder for folder in folders if folder.startswith(root) and folder not in filled | inner)
    if empty:
        shown = ", ".join(empty[:10]) + (" ..." if len(empty) > 10 else "")
        raise ValueError(
            f"{where}: {len(empty)} class folders hold no image (files that end in {', '.join(get_img_extensions())}): "
            f"{shown}; fill or remove them"
        )
    return by_class


def _check_same_classes(sides: dict[str, dict[str, list[int]]], train: str, val: str, where: str) -> None:
    odd = sorted(set(sides[train]) ^ set(sides[val]), key=_order)
    if odd:
        shown = ", ".join(f"{name} (only in {train if name in sides[train] else val})" for name in odd[:10])
        raise ValueError(
            f"{where}: {train} and {val} must hold the same class folders, but {len(odd)} are in one alone: {shown}"
            f"{' ...' if len(odd) > 10 else ''}; add or remove these"
        )
