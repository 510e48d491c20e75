"""Label files: a table with a path and labels per image, as CSV, TSV, Parquet or JSON lines."""

import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ....bounds import short
from ....data.dataset import Split
from ....data.files import (
    TRAIN_NAMES,
    VAL_NAMES,
    files_in,
    first_existing,
    list_files,
    split_in_name,
    warn_if_test,
)
from ....data.subset import held_out
from ....data.tables import SUFFIXES, Cell, open_table
from ....data.validation import ValidationReport, first_few
from ....text import get_logger
from ...classes import LABEL_SEPARATORS
from ..config import LabelsConfig
from .dataset import MAX_CLASSES, ImageDataset
from .folders import FolderDataset, natural_order

log = get_logger(__name__)
FILE_NAMES = ("metadata", "labels")  # of label files of both splits, in a folder of images
PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_name")
LABEL_COLUMNS = ("label", "labels", "class", "classes", "target", "targets", "category", "tags")
NO_SPLIT = "none"  # labels.split for no column
FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
LISTED_FROM = 100  # rows of a folder from which it is listed
MAX_CELLS = 1 << 32  # of the table of images and classes, one byte each


class Columns(NamedTuple):
    """Indices of the columns that are used.

    Args:
        path: Path of the image.
        labels: Column of class names, or one column of 0 and 1 per class.
        split: Split of the image, if the file has such a column.
        per_class: Whether there is a column per class.
    """

    path: int
    labels: tuple[int, ...]
    split: int | None
    per_class: bool


class Entry(NamedTuple):
    """An image and its labels; ``row`` is where they are in the file."""

    id: str
    labels: tuple[str, ...]
    split: str
    row: str


class LabelFile(NamedTuple):
    """A label file that has been read.

    Args:
        path: The file.
        root: Folder that the ids of the entries are relative to.
        entries: Images with their labels.
        classes: Class names in order where the file defines the order by its columns.
    """

    path: Path
    root: Path
    entries: list[Entry]
    classes: list[str] | None


class LabeledFiles(FolderDataset):
    """Images of a label file; an id may be an absolute path."""

    def name(self, i: int) -> str:
        return str(self.root / self.id(i))


def is_label_file(name: str) -> bool:
    """Whether a file name has the suffix of a label file."""
    return name.lower().endswith(SUFFIXES)


def find_label_files(root: Path, config: LabelsConfig, *, labeled: bool = True) -> dict[str, Path]:
    """The label files of a folder of images.

    Args:
        root: The folder.
        config: Columns and their meaning.
        labeled: Whether they need labels, and not only paths.

    Returns:
        By split (``train``, ``val``) the files of one, e.g. ``train.csv``, ``train/metadata.csv`` or
        ``train/labels.csv``; under an empty name that of all images, ``metadata.*`` or ``labels.*``; empty if there is
        none. Files without a path column are left out with a warning.

    Raises:
        ValueError: There are several for one split, or there is one for the training split only although another
            folder has validation images.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(root.iterdir()):
        stem, suffix = path.stem.lower(), path.suffix.lower()
        if path.is_dir() and path.name.lower() in TRAIN_NAMES + VAL_NAMES:
            inside = [path / f"{name}{suffix}" for name in FILE_NAMES for suffix in SUFFIXES]
            found.setdefault(path.name.lower(), []).extend(file for file in inside if file.is_file())
        elif suffix in SUFFIXES and path.is_file() and stem in TRAIN_NAMES + VAL_NAMES + FILE_NAMES:
            found.setdefault("" if stem in FILE_NAMES else stem, []).append(path)
    usable: dict[str, list[Path]] = {}
    for name, paths in found.items():
        for path in paths:
            header = open_table(path).header
            columns = _find_columns(header, config, labeled)
            if isinstance(columns, Columns):
                usable.setdefault(name, []).append(path)
            elif _path_column(header, config) is not None or config.path is not None:
                if name in TRAIN_NAMES or name == "":
                    raise ValueError(f"{path}: {columns}; if it is not a label file, move it elsewhere")
                log.warning("%s: ignored: %s", path, columns)
            else:
                log.warning("%s: ignored: it has no path column; name the column (labels.path)", path)
    for name, paths in usable.items():
        if len(paths) > 1:
            listed = " and ".join(map(str, paths))
            raise ValueError(f"{root}: several label files of {name or 'all images'}: {listed}; keep one of them")
    if "" in usable and len(usable) > 1:
        raise ValueError(
            f"{root}: {usable[''][0]} beside {first_few([str(p) for n, [p] in usable.items() if n])}; keep either one "
            "label file of all images or one per split, or pass one of them as data"
        )
    if not usable:
        return {}
    names = {name: paths[0] for name, paths in usable.items()}
    if "" in names:
        return names
    train = first_existing(TRAIN_NAMES, names, root)
    val = first_existing(VAL_NAMES, names, root)
    if train is not None and val is None:
        _require_no_validation_images(root, names[train])
    return {split: names[name] for split, name in (("train", train), ("val", val)) if name is not None}


def _require_no_validation_images(root: Path, labels: Path) -> None:
    """Raise if a folder of a dataset whose only labels are those of training images has validation images."""
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name.lower() in VAL_NAMES):
        if count := len(list_files(folder).images):
            raise ValueError(
                f"{root}: {labels} has the labels of training images, but the {count} images in {folder}/ have none; "
                f"expected {folder / 'labels.csv'}; to hold out a part of the training images instead, pass {labels} "
                "as data"
            )


def open_label_files(
    files: dict[str, Path],
    split: Split,
    config: LabelsConfig,
    *,
    multi_label: bool,
    val_fraction: float,
    seed: int,
    labeled: bool = True,
) -> ImageDataset:
    """Open one split of the images of label files.

    Args:
        files: Label files by split, or one of all images under an empty name; see :func:`find_label_files`.
        split: The split to return.
        config: Columns and their meaning.
        multi_label: Whether an image may have any number of labels.
        val_fraction: Fraction of images to hold out if the files define no validation split.
        seed: Random seed of the held-out selection.
        labeled: Whether labels are read; without them, all images have a single class.

    Raises:
        ValueError: A file cannot be read, or rows of it are invalid; the message has the file and the first rows.
    """
    where = ", ".join(dict.fromkeys(map(str, files.values())))
    if "" in files:
        read = _read(files[""], config, multi_label, labeled)
        named = {name for entry in read.entries if (name := entry.split)}
        train, val = (first_existing(names, named, where) for names in (TRAIN_NAMES, VAL_NAMES))
        val_name = val
        parts = {
            part: read._replace(entries=[entry for entry in read.entries if entry.split == name])
            for part, name in (("train", train if named else ""), ("val", val))
            if name is not None
        }
    else:
        parts = {part: _read(path, config, multi_label, labeled) for part, path in files.items()}
        val_name = split_in_name("/".join(files["val"].parts[-2:])) if "val" in files else None
    if split == "train" and "train" not in parts:
        raise ValueError(f"{where}: no training images; expected train.csv beside it, or train in the split column")
    classes = _classes(parts, config, multi_label) if labeled else ["image"]
    if split == "train" and labeled:
        _check_kind([entry for part in parts.values() for entry in part.entries], where, multi_label)
    part = parts[split] if split in parts else parts["train"]
    entries = sorted(part.entries, key=lambda entry: natural_order(entry.id))
    index = {name: i for i, name in enumerate(classes)}
    targets = _targets(entries, index, multi_label, where) if labeled else [0] * len(entries)
    images: ImageDataset = LabeledFiles(part.root, classes, targets, [entry.id for entry in entries])
    if "val" not in parts:
        return held_out(images, split, val_fraction=val_fraction, seed=seed)
    if split == "val" and val_fraction < 1:
        warn_if_test(val_name, where)
    return images


def _targets(entries: Sequence[Entry], index: dict[str, int], multi_label: bool, where: str) -> Any:
    """Class indices (N,), or which classes each image has, (N, K)."""
    if not multi_label:
        return [index[entry.labels[0]] for entry in entries]
    if len(entries) * len(index) > MAX_CELLS:
        raise ValueError(f"{where}: {len(entries)} images x {len(index)} classes; expected at most {MAX_CELLS} cells")
    targets = np.zeros((len(entries), len(index)), dtype=np.bool_)
    for row, entry in enumerate(entries):
        targets[row, [index[label] for label in entry.labels]] = True
    return targets


def _classes(parts: dict[str, LabelFile], config: LabelsConfig, multi_label: bool) -> list[str]:
    """Class names in order: as configured, as the columns are, or in natural order."""
    first = parts.get("train") or parts["val"]
    classes = list(map(_name, config.classes)) or first.classes
    if classes is None:
        classes = sorted({label for entry in first.entries for label in entry.labels}, key=natural_order)
    known = set(classes)
    for part in parts.values():
        report = ValidationReport(str(part.path))
        for entry in part.entries:
            for label in entry.labels:
                if label not in known:
                    source = "labels.classes" if config.classes else f"the training images of {first.path}"
                    fix = f"expected the classes of {source}: {first_few(classes)}"
                    report.error("labels that are unknown classes", f"{short(label)} ({entry.row})", fix)
        if part.classes is not None and set(part.classes) != known:
            fix = f"expected a column for each of {first_few(classes)}"
            report.error("lists of classes in the columns that differ", first_few(part.classes), fix)
        report.raise_errors()
    if len(classes) > MAX_CLASSES:
        raise ValueError(f"{first.path}: {len(classes)} classes; expected at most {MAX_CLASSES}")
    if not classes:
        raise ValueError(f"{first.path}: no labels; expected images of two or more classes")
    return classes


def _check_kind(entries: Sequence[Entry], where: str, multi_label: bool) -> None:
    """Raise a ValueError for a multi-label run on a file with one label per image."""
    if multi_label and all(len(entry.labels) == 1 for entry in entries):
        raise ValueError(
            f"{where}: every image has exactly one label, e.g. {short(entries[0].labels[0])} ({entries[0].row}), but "
            "classify.multi_label is true; set it to false, or labels.separator to the text between two labels"
        )


def _read(path: Path, config: LabelsConfig, multi_label: bool, labeled: bool) -> LabelFile:
    """Read and check a label file.

    Raises:
        ValueError: It cannot be read, a column is missing, or rows are invalid.
    """
    table = open_table(path)
    columns = _find_columns(table.header, config, labeled)
    if not isinstance(columns, Columns):
        raise ValueError(f"{path}: {columns}")
    root = path.parent / config.folder
    reader = _RowReader(path, root, table.header, columns, config, multi_label or not labeled)
    used = [i for i in (columns.path, columns.split, *columns.labels) if i is not None]
    entries = [entry for row, cells in table.rows(used) if (entry := reader.entry(row, cells)) is not None]
    reader.finish(entries)
    classes = [_name(table.header[column]) for column in columns.labels] if columns.per_class else None
    return LabelFile(path, root, entries, classes)


class _RowReader:
    """Checks rows, and turns them into entries; all problems of a file are reported together."""

    def __init__(
        self, path: Path, root: Path, header: list[str], columns: Columns, config: LabelsConfig, multi_label: bool
    ) -> None:
        self.root, self.header, self.columns, self.config = root, header, columns, config
        self.multi_label = multi_label
        self.separator = config.separator or LABEL_SEPARATORS[0]
        self.report = ValidationReport(str(path))
        self.where = str(path)
        self._absolute = os.path.abspath(root)
        self._seen: dict[tuple[str, str], tuple[tuple[str, ...], str]] = {}
        self._repeated: list[str] = []
        self._asked: Counter[str] = Counter()  # rows of each folder so far
        self._files: dict[str, frozenset[str]] = {}  # names of the files in folders of many rows

    def entry(self, row: str, cells: Mapping[int, Cell]) -> Entry | None:
        """The entry of a row; ``None`` if it is invalid, which is reported, or repeats an earlier one."""
        path, labels, split = self._path(row, cells), self._labels(row, cells), self._split(row, cells)
        if path is None or labels is None or split is None:
            return None
        earlier = self._seen.setdefault((split, path), (labels, row))
        if earlier[1] == row:
            return Entry(path, labels, split, row)
        if set(earlier[0]) != set(labels):
            fix = "keep one row per image" + ("; join its labels with labels.separator" if self.multi_label else "")
            self.report.error("images with different labels in several rows", f"{path} ({earlier[1]}, {row})", fix)
        else:
            self._repeated.append(f"{path} ({earlier[1]}, {row})")
        return None

    def finish(self, entries: Sequence[Entry]) -> None:
        """Raise all errors.

        Raises:
            ValueError: There are invalid rows, or no valid ones.
        """
        if not self.columns.per_class and self.config.separator is None:
            self._check_separator(entries)
        self.report.raise_errors()
        if not entries:
            raise ValueError(f"{self.where}: no rows; expected a header and one row per image")
        if self._repeated:
            log.warning("%s: %d rows repeat an earlier one: %s", self.where, len(self._repeated),
                        first_few(self._repeated))  # fmt: skip

    def _path(self, row: str, cells: Mapping[int, Cell]) -> str | None:
        text = cells[self.columns.path]
        if not isinstance(text, str) or not text.strip():
            self.report.error("rows without a path", row, "every row needs the path of its image")
            return None
        name = text.strip() + self.config.suffix
        path = os.path.normpath(os.path.join(self._absolute, name))
        if not self._exists(path):
            self.report.error(
                "files that do not exist", f"{_shown(name)} ({row})",
                f"paths are relative to {self.root} and end with the suffix; see labels.folder and labels.suffix"
                f"{' (and use / instead of the backslash)' if chr(92) in name else ''}",
            )  # fmt: skip
            return None
        # Independent of where the dataset is stored, if it is inside of the folder.
        return path.removeprefix(os.path.join(self._absolute, ""))

    def _exists(self, path: str) -> bool:
        """Whether a file exists.

        A folder of many images is listed, once, since a question per file takes long on network storage.
        """
        folder, name = os.path.split(path)
        self._asked[folder] += 1
        if self._asked[folder] == LISTED_FROM:
            with suppress(OSError):  # files can be opened in directories that cannot be listed
                self._files[folder] = frozenset(files_in(folder))
        # Not all that can be opened is listed: case and Unicode forms may not matter.
        return name in self._files.get(folder, ()) or os.path.isfile(path)

    def _split(self, row: str, cells: Mapping[int, Cell]) -> str | None:
        if self.columns.split is None:
            return ""
        cell = cells[self.columns.split]
        name = cell.strip().lower() if isinstance(cell, str) else ""
        if name in TRAIN_NAMES + VAL_NAMES:
            return name
        fix = (
            f"expected one of {', '.join(TRAIN_NAMES + VAL_NAMES)} in column {self.header[self.columns.split]!r}; if "
            f"it has something else, set labels.split to {NO_SPLIT}"
        )
        self.report.error("invalid splits", f"{_shown(cell)} ({row})", fix)
        return None

    def _labels(self, row: str, cells: Mapping[int, Cell]) -> tuple[str, ...] | None:
        labels = self._flags(row, cells) if self.columns.per_class else self._names(row, cells[self.columns.labels[0]])
        if labels is None or self.multi_label or len(labels) == 1:
            return labels
        if not labels and not self.columns.per_class:
            fix = "every image needs a class; images without one need classify.multi_label=true"
            self.report.error("empty labels", row, fix)
        else:
            fix = (
                "classify.multi_label is false, so every image must have one class; set it to true, or, if this is the "
                "name of one class, labels.separator to a text that does not occur"
            )
            self.report.error(f"rows with {'several' if labels else 'no'} labels", f"{_shown(labels)} ({row})", fix)
        return None

    def _flags(self, row: str, cells: Mapping[int, Cell]) -> tuple[str, ...] | None:
        labels = []
        for column in self.columns.labels:
            cell = cells[column]
            flag = FLAGS.get(cell.strip().lower()) if isinstance(cell, str) else None
            if flag is None:
                fix = (
                    f"expected 0 or 1 in each of the {len(self.columns.labels)} columns of the classes; name the label "
                    "column or columns with labels.label if these are others"
                )
                case = f"{_shown(cell)} in column {self.header[column]!r} ({row})"
                self.report.error("values that are not 0 or 1", case, fix)
                return None
            if flag:
                labels.append(_name(self.header[column]))
        return tuple(labels)

    def _names(self, row: str, cell: Cell) -> tuple[str, ...] | None:
        if isinstance(cell, str) and cell.strip().startswith("[") and cell.strip().endswith("]"):
            fix = f"join the labels of an image with {self.separator!r} (labels.separator), without brackets"
            self.report.error("lists as text", f"{_shown(cell)} ({row})", fix)
            return None
        # Only a separator that is set is looked for in single labels; the default one is, too, as a sign of several.
        parts = cell if isinstance(cell, list) else self._parts(cell)
        labels = tuple(dict.fromkeys(map(_name, parts)))
        if "" in labels:
            self.report.error("empty labels", f"{_shown(cell)} ({row})", "remove what is between the separators")
            return None
        return labels

    def _parts(self, cell: str) -> list[str]:
        if not cell.strip():
            return []
        return cell.split() if self.separator == " " else cell.split(self.separator)

    def _check_separator(self, entries: Sequence[Entry]) -> None:
        """Find labels that are several labels with another separator, e.g. ``cat,dog`` beside ``cat`` and ``dog``."""
        names = {label: entry for entry in entries for label in entry.labels}
        for separator in LABEL_SEPARATORS:
            for label, entry in names.items():
                parts = [_name(part) for part in label.split(separator)]
                if len(parts) > 1 and all(part in names for part in parts):
                    fix = (
                        f"set labels.separator to {separator!r}{'' if self.multi_label else ' and classify.multi_label to true'}"  # noqa: E501
                        "; if each is the name of one class, set labels.separator to a text that does not occur"
                    )
                    self.report.error("labels that join other labels", f"{_shown(label)} ({entry.row})", fix)


def _name(text: str) -> str:
    """Class name of a label: without spaces around it, and in composed Unicode, as the names of class folders."""
    return unicodedata.normalize("NFC", text.strip())


def _shown(cell: Any) -> str:
    return short(", ".join(cell) if isinstance(cell, list | tuple) else cell)


def _path_column(header: list[str], config: LabelsConfig) -> int | str | None:
    """Index of the path column; a text that says why it is not clear; ``None`` if there is none."""
    return _column(header, config.path, PATH_COLUMNS, "labels.path")


def _column(header: list[str], given: str | None, names: Sequence[str], field: str) -> int | str | None:
    if given is not None:
        found = [i for i, name in enumerate(header) if name == given]
        problem = f"{'several columns are' if found else 'no column is'} called {given!r} ({field})"
    else:
        found = [i for i, name in enumerate(header) if name.lower() in names]
        problem = f"several columns could be meant: {first_few([header[i] for i in found])}; choose one with {field}"
        if not found:
            return None
    return found[0] if len(found) == 1 else f"{problem}; it has {first_few(header)}"


def _find_columns(header: list[str], config: LabelsConfig, labeled: bool) -> Columns | str:
    """The columns that are used, those of labels only if ``labeled``, or a text that says which is missing."""
    path = _path_column(header, config)
    if path is None:
        return (
            f"no path column: expected one called {', '.join(PATH_COLUMNS)}, or labels.path to name it, and a header "
            f"in the first line; it has {first_few(header)}"
        )
    ignored = config.split == NO_SPLIT and NO_SPLIT not in header
    split = None if ignored else _column(header, config.split, ("split",), "labels.split")
    given = config.label if isinstance(config.label, tuple) else ()
    label: int | str | None = None
    if not given and labeled:
        label = _column(header, config.label if isinstance(config.label, str) else None, LABEL_COLUMNS, "labels.label")
    for problem in (path, split, label):
        if isinstance(problem, str):
            return problem
    assert isinstance(path, int)
    assert split is None or isinstance(split, int)
    if not labeled:
        return Columns(path, (), split, per_class=True)
    if isinstance(label, int):
        return Columns(path, (label,), split, per_class=False)
    if given:
        if missing := [name for name in given if header.count(name) != 1]:
            return f"no column, or several, called {missing[0]!r} (labels.label); it has {first_few(header)}"
        return Columns(path, tuple(header.index(name) for name in given), split, per_class=True)
    # pandas writes its index as a column without a name.
    rest = tuple(i for i, name in enumerate(header) if i not in (path, split) and name)
    names = [_name(header[i]) for i in rest]
    if len(rest) < 2 or len(set(names)) < len(names):
        return (
            f"no label column: expected one called {', '.join(LABEL_COLUMNS)}, labels.label to name it, or a column of "
            f"0 and 1 per class; it has {first_few(header)}"
        )
    return Columns(path, rest, split, per_class=True)
