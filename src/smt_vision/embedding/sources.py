"""The images to embed: datasets of every task, and folders of images."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dataset import RawDataset, Split
from ..data.files import find_images, is_image, list_files
from ..data.images import ImageFiles
from ..tasks.classification.config import LabelsConfig
from ..tasks.classification.task import open_labeled, same_source
from ..tasks.detection.data.sources import find_splits, open_detection
from ..tasks.predictor import Predictor
from ..tasks.segmentation.data.sources import split_images
from ..tasks.splits import held_out_fold
from ..text import get_logger

log = get_logger(__name__)
SPLITS: tuple[Split, ...] = ("train", "val")


def open_splits(
    sources: Sequence[str | Path], model: Predictor[Any] | None = None, labels: LabelsConfig | None = None
) -> dict[str, RawDataset[Any]]:
    """Open the images to embed, by split; the only split of images that have none is called ``all``.

    Args:
        sources: Either one dataset, in a layout that detectors, segmenters or classifiers are trained on, e.g. class
            folders or ``torch/cifar10``; or images and folders, which are searched recursively. Of several folders,
            each is a split.
        model: The model; of the dataset that it was trained on, its validation images are the validation split.
        labels: How a label file is read; ``None``: as in the model's training, or by default if other data cannot be
            read so.

    Raises:
        ValueError: The dataset is invalid, or its name is unknown.
        FileNotFoundError: A path does not exist, or a folder has no images.
    """
    if len(sources) == 1:
        return _one(str(sources[0]), model, labels)
    paths = [Path(source).expanduser() for source in sources]
    folders = [path for path in paths if path.is_dir()]
    if len(folders) < 2:
        return {"all": ImageFiles(find_images(paths))}
    if files := [path for path in paths if not path.is_dir()]:
        raise ValueError(f"{files[0]} is not a folder: several folders are splits, so expected only folders")
    return {str(folder): ImageFiles(find_images([folder])) for folder in folders}


def _one(source: str, model: Predictor[Any] | None, labels: LabelsConfig | None) -> dict[str, RawDataset[Any]]:
    path = Path(source).expanduser()
    recipe = None if model is None else model.recipe
    fraction, seed = 0.1, 0
    own = recipe is not None and same_source(source, recipe.data)
    clip = getattr(getattr(recipe, "input", None), "clip_boxes", False)
    if recipe is not None and own:
        fraction, seed = getattr(recipe.input, "val_fraction", fraction), recipe.seed_of_split
    if found := find_splits(path):
        if "train" in found and "val" not in found:
            found = [*found, "val"]
        return _of_fold(model, lambda s, fraction: open_detection(source, s, fraction, seed, clip), found, fraction)
    if images := {s: files for s in SPLITS if (files := split_images(path, s))}:  # without the label maps
        return {s: ImageFiles(files) for s, files in images.items()}
    listing = list_files(path) if path.is_dir() else None
    if (path.is_file() and is_image(path.name)) or (
        listing and listing.images and not any("/" in name for name in listing.images)
    ):  # one image, or images without subfolders
        return {"all": ImageFiles(find_images([path]))}
    try:
        return _of_fold(
            model,
            lambda s, fraction: open_labeled(source, s, fraction, seed, recipe, labels, own=own),
            SPLITS,
            fraction,
        )
    except ValueError as reason:
        if listing is None or not listing.images or labels is not None:
            raise
        log.warning("%s: embedded as images without labels and splits, since it is not a dataset: %s", source, reason)
        return {"all": ImageFiles(find_images([path]))}


def _of_fold(
    model: Predictor[Any] | None,
    open_split: Callable[[Any, float], RawDataset[Any]],
    splits: Iterable[str],
    fraction: float,
) -> dict[str, RawDataset[Any]]:
    """The splits of a dataset; of a model's fold, its validation images and the others.

    A validation split of the dataset, beside that of the fold, is called ``val of the dataset``.
    """
    held_out: Any = None if model is None else held_out_fold(model, lambda: open_split("train", 0.0))
    if held_out is None:
        return {split: open_split(split, fraction) for split in splits}
    images: Any = open_split("train", 0.0)
    others = ~np.isin(images.identities(), held_out.identities())
    out = {"train": images.select(np.flatnonzero(others)), "val": held_out}
    for split in splits:
        with suppress(ValueError):  # there is none
            if split != "train" and len(rest := open_split(split, 0.0)):
                out["val of the dataset" if split == "val" else split] = rest
    return out
