"""Which images of a set are shown."""

import numpy as np
from torch import Tensor

SAMPLES = 4  # images in the picture of an epoch


def samples(length: int) -> list[int]:
    """The images of an epoch's picture: from all over a set of so many, the same each time."""
    return np.linspace(0, length - 1, min(SAMPLES, length)).astype(int).tolist()


def worst(rows: Tensor, count: int) -> Tensor:
    """The ``count`` rows that score highest, best first: (n, 2 or more), the score, the image's index, the rest.

    Ties go to the lower index, so that the result does not hang on the order.
    """
    rows = rows[rows[:, 1].argsort(stable=True)]
    return rows[rows[:, 0].argsort(descending=True, stable=True)][:count]
