"""Helpers that the evaluations of all tasks share."""

import numpy as np
from torch import Tensor

SAMPLES = 4  # images in the sample picture of an evaluation


def sample_rows(length: int) -> list[int]:
    """Indices of the images in the sample picture, evenly spaced over a dataset of this length."""
    return np.linspace(0, length - 1, min(SAMPLES, length)).astype(int).tolist()


def top_rows(rows: Tensor, count: int) -> Tensor:
    """The ``count`` rows with the highest score, in descending order.

    Ties are resolved by the lower image index, so that the result does not depend on the order of the rows.

    Args:
        rows: ``(n, m)``, where column 0 is the score and column 1 the image index.
        count: Number of rows to keep.
    """
    rows = rows[rows[:, 1].argsort(stable=True)]
    return rows[rows[:, 0].argsort(descending=True, stable=True)][:count]
