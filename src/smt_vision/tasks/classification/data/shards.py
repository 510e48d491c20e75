"""Webdataset shards: tars of samples, each some files of one name, as 17.jpg and 17.cls."""

import glob
import json
import os
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from timm.data.readers.img_extensions import get_img_extensions

from ....data.archive import TarIndex, open_tar
from ....data.dataset import Split
from ....data.files import TRAIN_NAMES, VAL_NAMES, is_hidden, is_image
from .dataset import ImageDataset, held_out
from .folders import TarDataset


def expand_shards(pattern: str) -> list[Path]:
    """The files of a pattern such as ``set/train-{000..003}.tar`` or ``set/train-*.tar``, in order."""
    if match := re.search(r"\{(\d+)\.\.(\d+)\}", pattern):
        first, last = match.groups()
        numbers = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
        head, tail = pattern[: match.start()], pattern[match.end() :]
        return [path for number in numbers for path in expand_shards(head + number + tail)]
    return [Path(path) for path in sorted(glob.glob(pattern))] if glob.has_magic(pattern) else [Path(pattern)]


def folder_of_shards(root: Path) -> list[Path]:
    """The .tar files in a folder's train/ and val/, or in a folder without others; none in one of another kind."""
    below = [path for name in TRAIN_NAMES + VAL_NAMES for path in sorted((root / name).glob("*.tar"))]
    if below or any(path.is_dir() for path in root.iterdir()):
        return below
    return sorted(root.glob("*.tar"))


def open_shards(shards: list[Path], where: str, split: Split, val_fraction: float, seed: int) -> ImageDataset:
    """One split of some shards, told by a word of a shard's name or folder: ``train/0.tar``, ``set-val-0.tar``.

    Where no name says validation, a part is held out.
    """
    missing = [str(path) for path in shards if not path.is_file()]
    if missing or not shards:
        raise ValueError(f"{where}: no such shards: {', '.join(missing[:3]) or where}; expected .tar files")
    images = _samples(shards, where)
    in_val = np.array([_word(path) in VAL_NAMES for path in shards])[images.tar_of()]
    if not in_val.any():
        return held_out(images, split, val_fraction=val_fraction, seed=seed)
    part = images.select(np.flatnonzero(in_val if split == "val" else ~in_val))
    if not len(part):
        raise ValueError(f"{where}: only validation shards; expected others to train on, as set-train-000.tar")
    return part


def _word(path: Path) -> str:
    words = [path.parent.name, *re.split(r"[-_.]", path.stem)]
    return next((word for word in words if word in TRAIN_NAMES + VAL_NAMES), "")


def _samples(shards: list[Path], where: str) -> TarDataset:
    tars = [open_tar(path) for path in shards]
    root = os.path.commonpath([path.parent for path in shards])
    members: list[tuple[int, int]] = []
    targets: list[int] = []
    ids: list[str] = []
    for number, tar in enumerate(tars):
        shard = shards[number].relative_to(root).as_posix()
        samples: dict[str, dict[str, int]] = defaultdict(dict)
        for row, name in enumerate(tar.names):
            folder, base = os.path.split(name)
            stem, _, ending = base.partition(".")
            if not is_hidden(name):
                samples[os.path.join(folder, stem)][ending.lower()] = row
        for key, parts in samples.items():
            image = next((row for ending, row in parts.items() if is_image(f"_.{ending}")), None)
            if image is not None:
                members.append((number, image))
                targets.append(_label(tar, parts, f"{tar.path}:{key}"))
                ids.append(f"{shard}:{key}")
    if not targets:
        raise ValueError(
            f"{where}: no sample has an image ({', '.join(get_img_extensions())}) in {len(shards)} shard(s); expected "
            "files as 17.jpg with 17.cls"
        )
    classes = _classes(shards[0], max(targets))
    if len(classes) < 2:
        raise ValueError(f"{where}: only one class ({classes[0]}); expected two or more")
    return TarDataset(tars, members, classes, targets, ids, f"{root}{os.sep}")


def _label(tar: TarIndex, parts: dict[str, int], name: str) -> int:
    text = ""
    if "cls" in parts:
        text = tar.read(parts["cls"]).decode(errors="replace").strip()
    elif "json" in parts:
        try:
            values = json.loads(tar.read(parts["json"]))
        except ValueError as error:
            raise ValueError(f"{name}.json: not JSON ({error}); pack the shard again") from error
        if isinstance(values, dict):
            text = str(values.get("label", values.get("cls", "")))
    if not text.isdecimal():
        raise ValueError(
            f"{name}: no class number ({text!r}); expected a .cls of a whole number, or a .json with 'label' or 'cls'"
        )
    return int(text)


def _classes(shard: Path, largest: int) -> list[str]:
    for folder in (shard.parent, shard.parent.parent):
        path = folder / "classes.txt"
        if path.is_file():
            classes = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            if largest >= len(classes):
                raise ValueError(
                    f"{path}: names {len(classes)} classes, but the shards hold class {largest}; "
                    f"expected {largest + 1} lines or more"
                )
            return classes
    return [str(number) for number in range(largest + 1)]
