"""Pooled features of images.

Shapes: ``N`` images with ``D`` features each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ..analysis.neighbors import Floats, batch_features
from ..analysis.subject import Subject
from ..bounds import Count, checked
from ..data.ahead import image_threads, map_ahead
from ..data.dataset import Raw, RawDataset
from ..data.decode import UnreadableImage, count_pixels
from ..data.fingerprint import hash_pixels
from ..extras import require
from ..files import write_atomic
from ..recipe import Input
from ..tasks.classes import label_separator
from ..tasks.classification.config import LabelsConfig
from ..tasks.load import Overrides, load
from .sources import open_splits

SUFFIXES = (".npz", ".parquet")


@dataclass(frozen=True)
class Embeddings:
    """Features of images, in the order of their splits.

    Args:
        model: Display name of the model.
        ids: Id of each image, unique within its split: its path, or its number in a dataset without files.
        splits: Split of each image; ``all`` for images without splits.
        labels: Class name of each image; several names are joined by ``|``, or by ``;`` or ``,`` if a class name
            contains ``|``. Empty if unknown.
        features: ``(N, D)`` float32.
        fingerprints: ``(N,)`` int64 hashes of the content of files, or of the pixels of images that are not files;
            equal for copies.
        unreadable: Messages about images that could not be read; these images are left out.
        datasets: The images by split.
        indices: ``(N,)`` index of each image in the dataset of its split.
        input: How the images are decoded.
    """

    model: str
    ids: tuple[str, ...]
    splits: tuple[str, ...]
    labels: tuple[str, ...]
    features: Floats
    fingerprints: npt.NDArray[np.int64]
    unreadable: tuple[str, ...]
    datasets: Mapping[str, RawDataset[Any]]
    indices: npt.NDArray[np.int64]
    input: Input | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def raw(self, i: int) -> Raw:
        """Image ``i`` as stored."""
        return self.datasets[self.splits[i]].raw(int(self.indices[i]))

    def save(self, path: str | Path) -> Path:
        """Write ``ids``, ``splits``, ``labels`` and ``features`` to an .npz or .parquet file, atomically.

        Raises:
            ValueError: The file has another suffix.
            ImportError: pyarrow, which writes Parquet, is not installed.
        """
        path = check_output(path)
        texts = {"ids": self.ids, "splits": self.splits, "labels": self.labels}
        if path.suffix == ".npz":
            arrays: dict[str, Any] = {name: np.array(values, dtype=np.str_) for name, values in texts.items()}
            write_atomic(path, lambda temporary: np.savez(temporary, features=self.features, **arrays))
            return path
        arrow, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
        rows = arrow.FixedSizeListArray.from_arrays(arrow.array(self.features.ravel()), self.features.shape[1])
        columns = {name: list(map(_utf8, values)) for name, values in texts.items()}
        write_atomic(path, lambda temporary: parquet.write_table(arrow.table({**columns, "features": rows}), temporary))
        return path


def _utf8(text: str) -> str:
    """Text that can be encoded: bytes of a file name that are not UTF-8 become escape sequences."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def check_output(path: str | Path) -> Path:
    """The path of a file of features.

    Raises:
        ValueError: It does not end in one of :data:`SUFFIXES`.
        ImportError: pyarrow, which writes Parquet, is not installed.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{path}: cannot write features to a {path.suffix or 'nameless'} file; expected .npz or .parquet"
        )
    if path.suffix == ".parquet":
        require("pyarrow", "data")
    return path


@checked
def embed(
    source: str | Path,
    data: str | Path | Sequence[str | Path],
    *,
    device: str | torch.device = "cpu",
    batch_size: Count = 32,
    overrides: Overrides | None = None,
    labels: LabelsConfig | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Embeddings:
    """Pooled features of images: what a classifier's last layer reads, or a backbone's last feature map, averaged.

    Images are read by threads, a few ahead of the model; only the features are kept. Images of a detector or segmenter
    are batched with those of the same size that follow them.

    Args:
        source: The model, as :func:`smt_vision.load` takes it, also without a classifier, but not an export.
        data: A dataset of any task, with its splits and class names, or images and folders; see
            :func:`smt_vision.embedding.sources.open_splits`.
        device: Device to run on.
        batch_size: Images per forward pass.
        overrides: Fields that differ from training, e.g. ``{"input": {"size": 128}}``.
        labels: How a label file is read; ``None``: as in the model's training, or by default.
        on_progress: Called with the number of images done and the total.

    Returns:
        The features; unreadable images are listed, and left out.

    Raises:
        ValueError: The model or the data is invalid, the model has no feature map, or no image is readable.
        FileNotFoundError: A path does not exist.
    """
    subject = Subject(load(source, device, overrides, require_classes=False), str(source))
    datasets = open_splits([data] if isinstance(data, str | Path) else list(data), subject.predictor, labels)
    total = sum(map(len, datasets.values()))
    features: Floats | None = None
    kept: list[tuple[str, int]] = []
    unreadable: list[str] = []
    pixel_hashes: dict[tuple[str, int], int] = {}
    items = ((split, i) for split, dataset in datasets.items() for i in range(len(dataset)))

    def read(item: tuple[str, int]) -> tuple[tuple[str, int], Tensor | UnreadableImage]:
        split, i = item
        try:
            raw = _raw(datasets[split], i)
            if isinstance(raw, Image.Image):  # not a file
                pixel_hashes[item] = hash_pixels(raw)
            return item, subject.pixels(raw, datasets[split].name(i))[0]
        except UnreadableImage as error:
            return item, error

    def pixels(item: tuple[str, int]) -> int:
        split, i = item
        return count_pixels(Path(datasets[split].name(i)))  # of files; those in archives are small

    device = subject.predictor.device

    def prepared() -> Iterator[tuple[tuple[str, int], Tensor]]:
        for done, (item, found) in enumerate(
            map_ahead(read, items, pixels=pixels, threads=image_threads(device), ahead=2 * batch_size)
        ):
            on_progress(done, total)
            if isinstance(found, Tensor):
                yield item, found
            else:
                unreadable.append(str(found))

    for keys, rows in batch_features(subject.network, prepared(), batch_size, device):
        if features is None:
            features = np.empty((total, rows.shape[1]), dtype=np.float32)
        features[len(kept) : len(kept) + len(rows)] = rows
        kept += keys
    on_progress(total, total)
    if features is None:
        raise ValueError(f"none of the {total} images can be read, e.g. {unreadable[0]}" if unreadable else "no images")
    names = {split: _labels(dataset) for split, dataset in datasets.items()}
    hashes = {split: dataset.fingerprints() for split, dataset in datasets.items()}
    return Embeddings(
        subject.predictor.name,
        tuple(datasets[split].id(i) for split, i in kept),
        tuple(split for split, _ in kept),
        tuple(names[split][i] for split, i in kept),
        features[: len(kept)],
        np.array([pixel_hashes.get((split, i), hashes[split][i]) for split, i in kept], dtype=np.int64),
        tuple(unreadable),
        datasets,
        np.array([i for _, i in kept], dtype=np.int64),
        subject.predictor.input,
    )


def _raw(dataset: RawDataset[Any], i: int) -> Raw:
    try:
        return dataset.raw(i)
    except (OSError, ValueError) as error:
        raise UnreadableImage(f"{dataset.name(i)}: {error}") from error


def _labels(dataset: RawDataset[Any]) -> list[str]:
    """Class names of each image; empty for label maps, which would have to be read."""
    labels: list[list[str]] = [[] for _ in range(len(dataset))]
    for image, class_id in zip(*dataset.presence(), strict=True):
        labels[image].append(dataset.classes[class_id])
    separator = label_separator(dataset.classes)
    return [separator.join(names) for names in labels]
