"""The images to embed: datasets of every task, and folders of images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.dataset import RawDataset, Split
from ..data.files import find_images, is_image, list_files
from ..data.images import ImageFiles
from ..recipe import Recipe
from ..tasks.classification.data.sources import open_dataset
from ..tasks.detection.data.sources import find_splits, open_detection
from ..tasks.segmentation.data.sources import image_folder
from ..text import get_logger

log = get_logger(__name__)
SPLITS: tuple[Split, ...] = ("train", "val")


def open_splits(sources: Sequence[str | Path], recipe: Recipe | None = None) -> dict[str, RawDataset[Any]]:
    """Open the images to embed, by split; the only split of images that have none is called ``all``.

    Args:
        sources: Either one dataset, in a layout that detectors, segmenters or classifiers are trained on, e.g. class
            folders or ``torch/cifar10``; or images and folders, which are searched recursively. Of several folders,
            each is a split.
        recipe: Recipe of the model; the images that it held out of this dataset, if any, are the validation split.

    Raises:
        ValueError: The dataset is invalid, or its name is unknown.
        FileNotFoundError: A path does not exist, or a folder has no images.
    """
    if len(sources) == 1:
        return _one(str(sources[0]), recipe)
    paths = [Path(source).expanduser() for source in sources]
    folders = [path for path in paths if path.is_dir()]
    if len(folders) < 2:
        return {"all": ImageFiles(find_images(paths))}
    if files := [path for path in paths if not path.is_dir()]:
        raise ValueError(f"{files[0]} is not a folder: several folders are splits, so expected only folders")
    return {str(folder): ImageFiles(find_images([folder])) for folder in folders}


def _one(source: str, recipe: Recipe | None) -> dict[str, RawDataset[Any]]:
    path = Path(source).expanduser()
    fraction, seed = 0.1, 0
    if recipe is not None and recipe.data == source:
        fraction, seed = getattr(recipe.input, "val_fraction", fraction), recipe.seed
    if found := find_splits(path):
        if "train" in found and "val" not in found:
            found = [*found, "val"]
        return {s: open_detection(source, s, fraction, seed) for s in found}
    images = {s: folder for s in SPLITS if (folder := image_folder(path, s))}
    if images:
        return {s: ImageFiles(find_images([folder])) for s, folder in images.items()}
    listing = list_files(path) if path.is_dir() else None
    if (path.is_file() and is_image(path.name)) or (
        listing and listing.images and not any("/" in name for name in listing.images)
    ):  # one image, or images without subfolders
        return {"all": ImageFiles(find_images([path]))}
    try:
        return {s: open_dataset(source, s, val_fraction=fraction, seed=seed) for s in SPLITS}
    except ValueError as reason:
        if listing is None or not listing.images:
            raise
        log.warning("%s: embedded as images without labels and splits, since it is no dataset: %s", source, reason)
        return {"all": ImageFiles(find_images([path]))}
