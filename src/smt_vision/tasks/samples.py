"""Helpers that the evaluations of all tasks share."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..text import get_logger

log = get_logger(__name__)
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


def gather_rows(local: Tensor, all_gather: Callable[[Tensor], Tensor]) -> Tensor:
    """Concatenate tensors of different lengths from all processes: gather the shapes, then the padded tensors.

    Rows have the same shape on all processes; one without rows may have others, e.g. (0, 0).
    """
    shapes = all_gather(torch.tensor(local.shape, device=local.device)).reshape(-1, local.ndim)
    padded = local.new_zeros(*shapes.amax(dim=0).tolist())
    padded[tuple(map(slice, local.shape))] = local
    gathered = all_gather(padded).reshape(len(shapes), *padded.shape)
    return torch.cat([part[:length] for part, length in zip(gathered, shapes[:, 0].tolist(), strict=True)])


def with_float64(device: torch.device | str) -> torch.device:
    """The device of a metric's state, which needs float64: MPS does not support it."""
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


def warn_not_finite(images: int, counted: str) -> None:
    """Log that the outputs for some evaluated images are infinite or not a number, and how the images are counted."""
    if images:
        log.warning("the model's outputs for %d images are not finite, and %s; its weights may be damaged, or its "
                    "precision too low (--engine.precision)", images, counted)  # fmt: skip
