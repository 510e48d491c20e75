"""WebDataset shards: tars of samples; a sample is a group of files with one stem, e.g. 17.jpg and 17.cls."""

import glob
import itertools
import json
import os
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from ....data.archive import TarIndex, is_tar, open_tar
from ....data.dataset import Split
from ....data.files import (
    TRAIN_NAMES,
    VAL_NAMES,
    describe_suffixes,
    first_existing,
    is_hidden,
    is_image,
    list_files,
    split_in_name,
    warn_ignored,
)
from ....data.subset import held_out
from ....data.validation import first_few
from ....text import get_logger
from .dataset import MAX_CLASSES, ImageDataset
from .folders import TarDataset

log = get_logger(__name__)
_TARGET_FILES = ("cls", "json")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}", re.ASCII)
MAX_SHARDS, MAX_DIGITS = 1_000_000, 18
MAX_TARGET_BYTES = 1 << 24  # of a .cls or .json file


def expand_shards(pattern: str) -> list[Path]:
    """List the files of a pattern such as ``set/train-{000..003}.tar`` or ``set/train-*.tar``, in order.

    Raises:
        ValueError: A range of numbers is invalid, or the ranges stand for more than ``MAX_SHARDS`` files.
    """
    texts = _RANGE.split(pattern)  # text, first, last, text, ..., text
    count = 1
    for first, last in zip(texts[1::3], texts[2::3], strict=True):
        if max(len(first), len(last)) > MAX_DIGITS or int(first) > int(last):
            raise ValueError(
                f"{pattern}: invalid range {{{first}..{last}}}: expected ascending numbers of at most {MAX_DIGITS} "
                "digits, e.g. {000..003}"
            )
        count *= int(last) - int(first) + 1
    if count > MAX_SHARDS:
        raise ValueError(f"{pattern}: the ranges stand for more than {MAX_SHARDS} files; list fewer")
    parts: list[list[str]] = [texts[:1]]
    for first, last, text in zip(texts[1::3], texts[2::3], texts[3::3], strict=True):
        parts.append([f"{number:0{len(first)}d}{text}" for number in range(int(first), int(last) + 1)])
    names = ["".join(name) for name in itertools.product(*parts)]
    return [
        path
        for name in names
        for path in (map(Path, sorted(glob.glob(name))) if glob.has_magic(name) else [Path(name)])
    ]


def list_shards(root: Path) -> list[Path]:
    """List the shards in train/ and val/ of a directory, or those in the directory itself.

    Tars next to class folders are not shards. Hidden files and directories do not count.

    Returns:
        Paths of the tars; empty for a directory that is not a dataset of shards.
    """
    splits = sorted(path for path in root.iterdir() if path.name.lower() in TRAIN_NAMES + VAL_NAMES)
    return [path for folder in splits for path in _tars(folder)] or _tars(root)


def _tars(folder: Path) -> list[Path]:
    """The tars in a directory without class folders."""
    tars = sorted(path for path in folder.glob("*") if is_tar(path.name) and not is_hidden(path.name))
    return [] if tars and any("/" in name for name in list_files(folder).images) else tars


def open_shards(
    shards: list[Path], where: str, split: Split, val_fraction: float, seed: int, allow_damaged: bool
) -> ImageDataset:
    """Open one split of a list of shards.

    The split of a shard is the name of its directory, if they are in directories of several splits; else a word in its
    file name, e.g. ``set-val-0.tar``, of several such words the last, or the name of its directory.
    If there are no validation shards, a part of the images is held out. Of several validation splits, e.g. val and
    test, the first of ``VAL_NAMES`` is used.
    """
    missing = [str(path) for path in shards if not path.is_file()]
    if missing or not shards:
        raise ValueError(f"{where}: no such shards: {', '.join(missing[:3]) or where}; expected .tar files")
    images = _index_samples(shards, where, allow_damaged)
    folders = [path.parent.name.lower() for path in shards]
    in_folders = len({folder for folder in folders if folder in TRAIN_NAMES + VAL_NAMES}) > 1
    names = [
        folder if in_folders else split_in_name(path.name) or folder
        for path, folder in zip(shards, folders, strict=True)
    ]
    val = first_existing(VAL_NAMES, names, where)
    if val is None:
        return held_out(images, split, val_fraction=val_fraction, seed=seed)
    wanted = [name == val if split == "val" else name not in VAL_NAMES for name in names]
    subset = images.select(np.flatnonzero(np.array(wanted)[images.tar_of()]))
    if not len(subset):
        raise ValueError(f"{where}: no {split} images; expected shards of both splits, e.g. set-{split}-000.tar")
    return subset


def _index_samples(shards: list[Path], where: str, allow_damaged: bool) -> TarDataset:
    tars = [open_tar(path, allow_damaged=allow_damaged) for path in shards]
    root = os.path.commonpath([path.parent for path in shards])
    members: list[tuple[int, int]] = []
    targets: list[int] = []
    ids: list[str] = []
    unused: list[str] = []
    without_image: list[str] = []  # files of samples without an image
    cut_off: list[str] = []  # images whose class is behind the end of a damaged tar
    for tar_index, tar in enumerate(tars):
        shard = shards[tar_index].relative_to(root).as_posix()
        samples: dict[str, dict[str, int]] = defaultdict(dict)
        for row, name in enumerate(tar.names):
            folder, base = os.path.split(name)
            stem, _, extension = base.partition(".")
            if not is_hidden(name):
                files = samples[os.path.join(folder, stem)]
                if (earlier := files.get(extension.lower())) is not None:  # 17.jpg beside 17.JPG
                    unused.append(tar.names[earlier])
                files[extension.lower()] = row
        for key, files in samples.items():
            # 17.jpg takes precedence over 17.mask.png.
            images = sorted((ext.count("."), row) for ext, row in files.items() if is_image(f"_.{ext}"))
            unused += [tar.names[row] for _, row in images[1:]]
            if images and tar.damaged and len(tar) - 1 in files.values() and files.keys().isdisjoint(_TARGET_FILES):
                cut_off.append(tar.names[images[0][1]])
            elif images:
                members.append((tar_index, images[0][1]))
                targets.append(_read_target(tar, files, f"{shards[tar_index]}:{key}"))
                ids.append(f"{shard}:{key}")
            else:
                without_image += [tar.names[row] for row in files.values()]
    if not targets:
        raise ValueError(
            f"{where}: no images in {len(shards)} shard(s) ({describe_suffixes(without_image)}); expected samples such "
            "as 17.jpg and 17.cls"
        )
    warn_ignored(where, without_image)
    if cut_off:
        log.warning("%s: ignored %d images without a class at the end of damaged shards", where, len(cut_off))
    if unused:
        log.warning("%s: one image per sample is used; ignored %d others, e.g. %s", where, len(unused), unused[0])
    classes = _read_classes(shards[0], max(targets))
    return TarDataset(tars, members, classes, targets, ids, f"{root}{os.sep}")


def _read_target(tar: TarIndex, files: dict[str, int], name: str) -> int:
    text = ""
    extension = next((extension for extension in _TARGET_FILES if extension in files), None)
    if extension and (size := tar.size(files[extension])) > MAX_TARGET_BYTES:
        raise ValueError(f"{name}.{extension}: {size} bytes; expected at most {MAX_TARGET_BYTES}; pack the shard again")
    if extension == "cls":
        text = tar.read(files["cls"]).decode(errors="replace").strip()
    elif extension == "json":
        try:
            values = json.loads(tar.read(files["json"]))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}.json: invalid JSON ({error}); pack the shard again") from error
        if isinstance(values, dict):
            text = str(values.get("label", values.get("cls", "")))
    if not text.isdecimal() or len(text) > 20 or int(text) >= MAX_CLASSES:
        raise ValueError(
            f"{name}: invalid class index {text[:100]!r}: expected an integer from 0 to {MAX_CLASSES - 1} in .cls, or "
            f"in .json as 'label' or 'cls'; the sample has {first_few([f'.{extension}' for extension in files])}"
        )
    return int(text)


def _read_classes(shard: Path, max_target: int) -> list[str]:
    for folder in (shard.parent, shard.parent.parent):
        path = folder / "classes.txt"
        if path.is_file():
            # Editors of Windows write a byte order mark.
            try:
                text = path.read_text(encoding="utf-8-sig")
            except ValueError as error:
                raise ValueError(f"{path}: not text in UTF-8 ({error}); save it as UTF-8") from error
            classes = [line.strip() for line in text.rstrip().splitlines()]
            if "" in classes:
                raise ValueError(
                    f"{path}: line {classes.index('') + 1} is empty; expected one class name per line, in the order of "
                    "the class indices"
                )
            if max_target >= len(classes):
                raise ValueError(
                    f"{path}: has {len(classes)} class names, but the shards contain class index {max_target}; "
                    f"expected {max_target + 1} lines or more"
                )
            return classes
    return [str(class_id) for class_id in range(max_target + 1)]
