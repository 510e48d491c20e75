"""Images without labels, and their views.

Shapes: B images of C channels, S x S pixels; batches have two views of each, (2 B, C, S, S), the first views first.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision import transforms as T

from ...data.dataset import Split
from ...data.decode import OpenedImage
from ...data.files import describe_suffixes, list_files
from ...data.loaders import EvalLoader, Item, TrainLoader, eval_loader, train_loader
from ...data.resample import RandomCrop, ResizeTo
from ...data.subset import held_out
from ...data.transforms import ToNormalized, channel_statistics
from ...text import get_logger
from ..classification.config import ClassificationInput
from ..classification.data.dataset import ImageDataset
from ..classification.data.folders import FolderDataset, NoClassFolders
from ..classification.data.label_files import find_label_files, is_label_file, open_label_files
from ..classification.data.sources import open_dataset
from ..classification.data.transforms import Transform, eval_transform
from ..splits import open_splits
from .config import PretrainingAugment, PretrainingRecipe

log = get_logger(__name__)
RATIO = (3 / 4, 4 / 3)  # aspect ratios of the random resized crop
JITTER = (0.8, 0.8, 0.8, 0.2)  # of brightness, contrast, saturation and hue at strength 1: SimCLR's
JITTER_PROB = 0.8
SIGMA = (0.1, 2.0)  # of the Gaussian blur in pixels, with a kernel of a tenth of the image


def open_images(recipe: PretrainingRecipe) -> tuple[ImageDataset, ImageDataset]:
    """Open the training and the validation images.

    A folder whose images are not in class folders is one of images without labels: all images in it and its subfolders,
    of which ``input.val_fraction`` are held out. Of label files whose labels are not one class per image, the paths are
    used. Such images have a single class.

    Raises:
        ValueError: There are no images, or the data can be read neither way.
    """
    input, seed = recipe.input, recipe.seed_of_split
    fraction = input.val_fraction if recipe.folds is None else 0.0

    def labeled(split: Split) -> ImageDataset:
        return open_dataset(
            recipe.data,
            split,
            val_fraction=fraction,
            seed=seed,
            allow_damaged=input.allow_damaged,
            labels=recipe.labels,
        )

    def unlabeled(split: Split) -> ImageDataset:
        return held_out(images, split, val_fraction=fraction, seed=seed)

    def listed(split: Split) -> ImageDataset:
        return open_label_files(
            files, split, recipe.labels, multi_label=False, val_fraction=fraction, seed=seed, labeled=False
        )

    try:
        return open_splits(recipe, labeled)
    except ValueError as error:
        path = Path(recipe.data).expanduser()
        if path.is_file() and is_label_file(path.name):
            files = {"": path}
        else:
            files = find_label_files(path, recipe.labels, labeled=False) if path.is_dir() else {}
        if not files and not (isinstance(error, NoClassFolders) and path.is_dir()):
            raise
        if not files:
            images = _all_images(path)
        opened = open_splits(recipe, listed if files else unlabeled)
        log.warning("%s: %d images without labels, because it is not a set of images with one class each: %s", path,
                    sum(map(len, opened)), error)  # fmt: skip
        return opened


def _all_images(folder: Path) -> ImageDataset:
    listing = list_files(folder)
    if not listing.images:
        raise ValueError(f"{folder}: no images ({describe_suffixes(listing.others)}); expected a folder of images")
    return FolderDataset(folder, ("image",), [0] * len(listing.images), listing.images)


def view_transform(input: ClassificationInput, augment: PretrainingAugment) -> T.Compose:
    """Augmentation of a view, from an image to a float32 tensor (C, S, S)."""
    steps: list[Any] = [
        RandomCrop(augment.scale, RATIO),
        ResizeTo(input.size, input.interpolation, square=True, exact=input.exact),
        T.RandomHorizontalFlip(augment.hflip),
        T.RandomVerticalFlip(augment.vflip),
    ]
    if augment.color_jitter:
        steps.append(T.RandomApply([T.ColorJitter(*(augment.color_jitter * value for value in JITTER))], JITTER_PROB))
    if augment.grayscale:
        steps.append(T.RandomGrayscale(augment.grayscale))
    if augment.blur:
        steps.append(T.RandomApply([T.GaussianBlur(2 * (input.size // 20) + 1, SIGMA)], augment.blur))
    return T.Compose([*steps, ToNormalized(*channel_statistics(input))])


@dataclass(frozen=True)
class _Views:
    """Two views of an image."""

    first: Transform
    second: Transform

    def __call__(self, image: OpenedImage, target: Any, name: str) -> Item:
        return {"image": (self.first(image), self.second(image)), "target": target}


def _stack(items: list[Item]) -> dict[str, Any]:
    views = [item["image"][i] for i in range(2) for item in items]
    return {"image": torch.stack(views), "target": torch.tensor([int(item["target"]) for item in items])}


def pretraining_train_loader(
    images: ImageDataset, recipe: PretrainingRecipe, input: ClassificationInput, rank: int, world: int
) -> TrainLoader[Any]:
    """Shuffled batches of two augmented views of each image."""
    view = view_transform(input, recipe.augment)
    return train_loader(
        images, _Views(view, view), _stack, input, recipe.batch_size, recipe.seed, rank, world, sampling=recipe.sampling
    )


def pretraining_eval_loader(
    images: ImageDataset, recipe: PretrainingRecipe, input: ClassificationInput, rank: int, world: int
) -> EvalLoader[Any]:
    """Batches of each image as it is, and a view of it that is always the same."""
    transform = _Views(eval_transform(input), view_transform(input, recipe.augment))
    return eval_loader(images, transform, _stack, input, recipe.batch_size, rank, world)
