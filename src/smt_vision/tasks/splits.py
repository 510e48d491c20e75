"""The training and validation images of a run: a dataset's own splits, or a fold of a cross-validation."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from ..data.dataset import RawDataset, Split
from ..data.stratify import split_fold
from ..data.subset import take_fraction
from ..recipe import Recipe
from ..text import get_logger
from .predictor import Predictor

log = get_logger(__name__)
Images = TypeVar("Images", bound=RawDataset[Any])


def open_splits(recipe: Recipe, open_split: Callable[[Split], Images]) -> tuple[Images, Images]:
    """Open the training and the validation images of a run.

    Args:
        recipe: The run; its ``folds``, ``fold``, ``split_seed`` and ``train_fraction`` are used.
        open_split: Opens a split of its data. With ``folds``, the training split has all images of which none are held
            out for validation otherwise.

    Raises:
        ValueError: The recipe is a cross-validation of which no fold is chosen.
    """
    if recipe.folds is None:
        train = open_split("train")
        val, train.counterpart = train.counterpart, None  # data loaders would pickle it with the training images
        return take_fraction(train, recipe.train_fraction), open_split("val") if val is None else val
    if recipe.fold is None:
        raise ValueError(
            f"folds={recipe.folds} without a fold: choose one, e.g. fold=1, or train all with "
            "smt_vision.cross_validate (smt train --folds)"
        )
    train, val = split_fold(open_split("train"), recipe.fold, recipe.folds, recipe.seed_of_split)
    return take_fraction(train, recipe.train_fraction), val


def held_out_fold(model: Predictor[Any], open_all: Callable[[], Images]) -> Images | None:
    """The validation images of the fold that a model was trained on; ``None`` if the data are others.

    Args:
        model: The model.
        open_all: Opens the images that the folds divide.
    """
    if model.recipe is None or model.recipe.folds is None or model.used_images is None:
        return None
    try:
        images = open_all()
    except ValueError:  # e.g. data with a validation split only
        return None
    rows = np.flatnonzero(np.isin(images.identities(), model.used_images.val))
    missing = len(model.used_images.val) - len(rows)
    if len(rows) <= missing:
        return None
    log.info(
        "%s: evaluating the %d images of fold %s of %d", images.where, len(rows), model.recipe.fold, model.recipe.folds
    )
    if missing:
        log.warning("%s: %d of the fold's %d images are missing", images.where, missing, len(rows) + missing)
    return images.select(rows)
