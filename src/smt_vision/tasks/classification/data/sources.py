"""Opening a classification dataset by name or path."""

from pathlib import Path

from ....data.archive import TAR_SUFFIXES, is_tar
from ....data.dataset import Split
from ....data.tables import SUFFIXES
from ....text import printable
from ..config import LabelsConfig
from .dataset import ImageDataset
from .folders import NoClassFolders, open_folder, open_tar_of_folders
from .hub import open_digits, open_hub, open_torchvision
from .label_files import find_label_files, is_label_file, open_label_files
from .shards import expand_shards, list_shards, open_shards


def open_dataset(
    source: str,
    split: Split,
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
    download: bool = True,
    allow_damaged: bool = False,
    labels: LabelsConfig | None = None,
    multi_label: bool = False,
    one_class: bool = False,
) -> ImageDataset:
    """Open one split of a labeled image dataset.

    Args:
        source: Location of the images, one of:

            - A directory, or a tar of one: class folders in train/ and in one of val/, valid/, validation/, test/,
              testing/, or only class folders, which are then split automatically. Class indices follow timm's natural
              order. The folder that an image is in is its class; a folder called e.g. train that has images is a class.
              Hidden files are passed over, and other files that are not images are counted in a warning.
              A compressed tar (gzip, bzip2 or xz) is unpacked once, to ``$SMT_CACHE_DIR`` or ``~/.cache/smt-vision``.
            - A label file: a CSV, TSV, Parquet or JSON lines file with a path and labels per image; or a directory with
              train.csv and val.csv, or with metadata.csv or labels.csv, there or in train/ and val/. These take
              precedence over class folders. A column ``split`` or the names of the files give the splits; else images
              are held out.
            - ``wds/PATTERN``, a path with braces, or a directory of .tar files: WebDataset shards, with targets in
              .cls or .json files and optional class names in classes.txt next to the shards.
            - ``torch/NAME``: A torchvision dataset, e.g. ``torch/cifar10``.
            - ``hfds/NAME``: A dataset of the Hugging Face Hub, or a local directory in the same format; with several
              configurations ``hfds/NAME:CONFIGURATION``.
            - ``auto``: 5,000 handwritten digits, available offline.
        split: ``train`` or ``val``.
        val_fraction: Fraction of images to hold out, stratified, if the source has no validation split; 1 for all.
        seed: Random seed of the held-out selection.
        download: Whether ``torch/NAME`` may be downloaded.
        allow_damaged: Use a damaged tar or shard up to the damage, with a warning, instead of raising an error.
        labels: How a label file is read; ``None`` for the default.
        multi_label: Whether an image may have any number of classes; needs a label file.
        one_class: Whether images of a single class are enough, e.g. to evaluate a model on some of its classes.

    Returns:
        The dataset of undecoded images.

    Raises:
        ValueError: If the source does not exist, has an unexpected layout, e.g. a class in several folders, or is a
            damaged tar.
        ImportError: If a package of an optional extra is missing.
    """
    if split not in ("train", "val"):
        raise ValueError(f"invalid split={split!r}: expected 'train' or 'val'")
    images = _open(source, split, val_fraction, seed, download, allow_damaged, labels or LabelsConfig(), multi_label)
    if multi_label and not images.multi_label:
        raise ValueError(
            f"{source}: each image has one class, but classify.multi_label is true; set it to false, or pass a label "
            f"file ({', '.join(SUFFIXES)}) or a folder with one"
        )
    if len(images.classes) < 2 and not one_class:
        raise NoClassFolders(
            f"{source}: only one class ({printable(images.classes[0])}); expected images of two or more classes, e.g. "
            "train/cat/1.jpg and train/dog/1.jpg"
        )
    return images


def _open(
    source: str,
    split: Split,
    val_fraction: float,
    seed: int,
    download: bool,
    allow_damaged: bool,
    labels: LabelsConfig,
    multi_label: bool,
) -> ImageDataset:
    kind, _, name = source.partition("/")
    if source == "auto":
        return open_digits(split, val_fraction, seed)
    if kind == "torch" and name:
        return open_torchvision(name, split, val_fraction, download)
    if kind == "hfds" and name:
        return open_hub(name, split, val_fraction, seed)
    if kind == "wds" and name:
        root = Path(name).expanduser()
        shards = list_shards(root) if root.is_dir() else expand_shards(str(root))
        return open_shards(shards, source, split, val_fraction, seed, allow_damaged)
    if "{" in source and is_tar(source):
        return open_shards(
            expand_shards(str(Path(source).expanduser())), source, split, val_fraction, seed, allow_damaged
        )
    path = Path(source).expanduser()
    if path.is_file() and is_label_file(path.name):
        files = {"": path}
    else:
        files = find_label_files(path, labels) if path.is_dir() else {}
    if files:
        return open_label_files(files, split, labels, multi_label=multi_label, val_fraction=val_fraction, seed=seed)
    if path.is_dir():
        if shards := list_shards(path):
            return open_shards(shards, source, split, val_fraction, seed, allow_damaged)
        return open_folder(path, split, val_fraction, seed)
    if path.is_file() and is_tar(path.name):
        return open_tar_of_folders(path, split, val_fraction, seed, allow_damaged)
    problem = "is not a supported file (unpack any other archive)" if path.exists() else "does not exist"
    raise ValueError(
        f"data {source!r} {problem}; expected a directory of class folders, a tar of one ({', '.join(TAR_SUFFIXES)}), "
        f"a label file ({', '.join(SUFFIXES)}), wds/PATTERN, torch/NAME, hfds/NAME or auto (command line: --data)"
    )
