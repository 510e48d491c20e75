"""WebDataset shards: tars of samples; a sample is a group of files with one stem, e.g. 17.jpg and 17.cls."""

import glob
import itertools
import json
import os
import re
import zipfile
import zlib
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ....data.ahead import map_ahead
from ....data.archive import TarIndex, cache_dir, cache_name, is_tar, open_tar
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
    warn_if_test,
    warn_ignored,
)
from ....data.subset import held_out
from ....data.validation import first_few
from ....files import write_atomic
from ....text import get_logger
from .dataset import MAX_CLASSES, ImageDataset
from .folders import TarDataset

log = get_logger(__name__)
_TARGET_FILES = ("cls", "json")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}", re.ASCII)
MAX_SHARDS, MAX_DIGITS = 1_000_000, 18
THREADS = 16  # that read shards: they wait for the storage
MIN_INDEXED = 1000  # samples of a shard whose index is worth a file in the cache
INDEX_FORMAT = 1
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
    if split == "val" and val_fraction < 1:
        warn_if_test(val, where)
    return subset


@dataclass
class _Shard:
    """The samples of a shard.

    Args:
        tar: The shard.
        keys: Name of each sample.
        rows: File of each sample's image in ``tar``.
        targets: Class index of each sample.
        unused: Images beside the one of their sample.
        without_image: Files of samples without an image.
        cut_off: Images whose class is behind the end of a damaged tar.
    """

    tar: TarIndex
    keys: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    without_image: list[str] = field(default_factory=list)
    cut_off: list[str] = field(default_factory=list)


def _index_samples(paths: list[Path], where: str, allow_damaged: bool) -> TarDataset:
    shards = list(map_ahead(lambda path: _open_shard(path, allow_damaged), paths, threads=THREADS))
    root = os.path.commonpath([path.parent for path in paths])
    names = [path.relative_to(root).as_posix() for path in paths]
    without_image = [name for shard in shards for name in shard.without_image]
    targets = [target for shard in shards for target in shard.targets]
    if not targets:
        raise ValueError(
            f"{where}: no images in {len(shards)} shard(s) ({describe_suffixes(without_image)}); expected samples such "
            "as 17.jpg and 17.cls"
        )
    warn_ignored(where, without_image)
    if cut_off := sum(len(shard.cut_off) for shard in shards):
        log.warning("%s: ignored %d images without a class at the end of damaged shards", where, cut_off)
    if unused := [name for shard in shards for name in shard.unused]:
        log.warning("%s: one image per sample is used; ignored %d others, e.g. %s", where, len(unused), unused[0])
    members = np.empty((len(targets), 2), dtype=np.int64)
    members[:, 0] = np.repeat(np.arange(len(shards)), [len(shard.rows) for shard in shards])
    members[:, 1] = np.concatenate([shard.rows for shard in shards])
    ids = [f"{name}:{key}" for name, shard in zip(names, shards, strict=True) for key in shard.keys]
    classes = _read_classes(paths[0], max(targets))
    return TarDataset([shard.tar for shard in shards], members, classes, targets, ids, f"{root}{os.sep}")


def _open_shard(path: Path, allow_damaged: bool) -> _Shard:
    """The samples of a shard: from the cache if they have been read before, since a header per file takes long."""
    stat = path.stat()
    version = stat.st_size, stat.st_mtime_ns
    # A corrected label may change neither, where the time of modification is copied with the file.
    name = cache_name(path, ".npz", *version, stat.st_ctime_ns, INDEX_FORMAT)
    try:
        cached = cache_dir() / "shards" / name
    except RuntimeError:  # there is no home directory
        return _read_samples(path, allow_damaged)
    if (shard := _read_index(cached, path, version)) is not None:
        return shard
    shard = _read_samples(path, allow_damaged)
    # Another one is read again, for its warnings; a compressed one has been unpacked to a file that may be removed.
    is_usual = not (shard.unused or shard.without_image or shard.tar.has_warnings) and shard.tar.path == path
    if is_usual and len(shard.rows) >= MIN_INDEXED:
        with suppress(OSError):  # a cache that is read-only or full
            _write_index(cached, shard)
    return shard


def _read_index(file: Path, path: Path, version: tuple[int, int]) -> _Shard | None:
    """A shard from the cache; ``None`` if it is not there, or damaged."""
    try:
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            keys = arrays["keys"].tobytes().decode("utf-8", "surrogateescape").split("\0")
            targets, offsets, sizes = (arrays[name].astype(np.int64) for name in ("targets", "offsets", "sizes"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    if not len(keys) == len(targets) == len(offsets) == len(sizes):
        return None
    tar = TarIndex.of_files(path, version, offsets, sizes)
    return _Shard(tar, keys, list(range(len(keys))), targets.tolist())


def _write_index(file: Path, shard: _Shard) -> None:
    offsets, sizes = shard.tar.positions(shard.rows)
    keys = np.frombuffer("\0".join(shard.keys).encode("utf-8", "surrogateescape"), dtype=np.uint8)
    targets = np.array(shard.targets)

    def write(path: Path) -> None:
        np.savez_compressed(path, keys=keys, targets=targets, offsets=offsets, sizes=sizes)

    write_atomic(file, write)


def _read_samples(path: Path, allow_damaged: bool) -> _Shard:
    tar = open_tar(path, allow_damaged=allow_damaged)
    shard = _Shard(tar)
    samples: dict[str, dict[str, int]] = defaultdict(dict)
    for row, name in enumerate(tar.names):
        folder, base = os.path.split(name)
        stem, _, extension = base.partition(".")
        if not is_hidden(name):
            files = samples[os.path.join(folder, stem)]
            if (earlier := files.get(extension.lower())) is not None:  # 17.jpg beside 17.JPG
                shard.unused.append(tar.names[earlier])
            files[extension.lower()] = row
    for key, files in samples.items():
        # 17.jpg takes precedence over 17.mask.png.
        images = sorted((ext.count("."), row) for ext, row in files.items() if is_image(f"_.{ext}"))
        shard.unused += [tar.names[row] for _, row in images[1:]]
        if images and tar.damaged and len(tar) - 1 in files.values() and files.keys().isdisjoint(_TARGET_FILES):
            shard.cut_off.append(tar.names[images[0][1]])
        elif images:
            shard.rows.append(images[0][1])
            shard.targets.append(_read_target(tar, files, f"{path}:{key}"))
            shard.keys.append(key)
        else:
            shard.without_image += [tar.names[row] for row in files.values()]
    return shard


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
