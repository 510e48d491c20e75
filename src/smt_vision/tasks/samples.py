"""Which images of a dataset are shown, and whether a model fits it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..data.dataset import RawDataset

SAMPLES = 4  # images in the picture of an epoch


def sample_rows(length: int) -> list[int]:
    """Indices of the images in an epoch's picture, evenly spaced over a dataset of this length."""
    return np.linspace(0, length - 1, min(SAMPLES, length)).astype(int).tolist()


def top_rows(rows: Tensor, count: int) -> Tensor:
    """The ``count`` rows with the highest score, best first.

    Ties go to the lower index, so that the result does not depend on the order.

    Args:
        rows: (n, 2 or more): the score, the image's index, and anything else.
        count: Rows to keep.
    """
    rows = rows[rows[:, 1].argsort(stable=True)]
    return rows[rows[:, 0].argsort(descending=True, stable=True)][:count]


def check_classes(images: RawDataset[Any], classes: Sequence[str]) -> None:
    """Raise a ValueError where a dataset's classes are not the model's."""
    if images.classes != tuple(classes):
        raise ValueError(
            f"{images.where} has the classes {', '.join(images.classes)}, the model {', '.join(classes)}; evaluate a "
            "model trained on these classes, in this order"
        )
