"""Class weights of losses, from the frequencies of the classes in the training images. Shapes: K classes.

A weight multiplies the loss of the images or pixels of its class; in one-vs-all losses, the term of the class that an
image has. An image whose labels are mixed has the mean of their weights, and label smoothing does not change a weight.
The loss stays the plain mean over images or pixels: it never depends on which classes a batch or a process happens to
have, and the mean over processes is the loss of the global batch. Batches that are accumulated count equally, however
many labeled pixels they have.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..recipe import Loss
from ..text import get_logger, printable
from .classes import some_names

log = get_logger(__name__)
LISTED = 20  # classes whose weights are logged


def class_weights(
    loss: Loss,
    classes: Sequence[str],
    counts: npt.NDArray[np.int64],
    samples: npt.NDArray[np.int64] | None = None,
) -> Tensor | None:
    """Weights of the classes (K,) float32; ``None`` without weights.

    Computed weights are 1 / n (``balanced``) or (1 - beta) / (1 - beta^n) (``effective``, Cui et al., CVPR 2019),
    multiplied such that their mean over all labels of the training images is 1. A class without any has a weight of 1.

    Args:
        loss: ``class_weights`` and ``beta`` are used.
        classes: Class names.
        counts: Number of training labels of each class (K,), images or pixels: n of ``balanced``.
        samples: Number of independent samples of each class (K,), n of ``effective``; ``None``: the labels.

    Raises:
        ValueError: The recipe gives another number of weights than there are classes.
    """
    kind = loss.class_weights
    if kind == "none":
        return None
    if not isinstance(kind, str):
        if len(kind) != len(classes):
            raise ValueError(
                f"loss.class_weights has {len(kind)} values for {len(classes)} classes ({some_names(classes)}); give "
                "one per class, in this order"
            )
        return torch.tensor(kind, dtype=torch.float32)
    weights, found = np.ones(len(classes)), counts > 0
    if found.any():
        n = counts if kind == "balanced" or samples is None else samples
        inverse = 1 / n[found] if kind == "balanced" else (1 - loss.beta) / (1 - loss.beta ** n[found])
        weights[found] = inverse * (counts.sum() / (counts[found] @ inverse))
    shown = np.argsort(-weights, kind="stable")
    listed = shown if len(shown) <= LISTED else np.concatenate([shown[: LISTED // 2], shown[-LISTED // 2 :]])
    text = ", ".join(f"{weights[k]:.4g} ({printable(classes[k])})" for k in listed)
    log.info("loss.class_weights=%s%s: %s", kind, "" if listed is shown else ", largest and smallest", text)
    return torch.from_numpy(weights).float()
