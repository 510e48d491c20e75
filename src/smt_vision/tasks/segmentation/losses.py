"""Segmentation losses. Shapes: B images of H x W pixels, K classes.

Pixels may be weighted by their class, and with an exponent gamma the focal loss (Lin et al., ICCV 2017) replaces
cross-entropy: each pixel's term is multiplied by (1 - p)^gamma, p being the probability of its label. Means are plain
means over the labeled pixels, see :mod:`smt_vision.tasks.class_weights`; 0 without any.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ...extras import require
from ..processes import mean_count
from .config import IGNORE_INDEX
from .heads.upernet import resize

TINY = 1e-8  # smallest base of a power, whose gradient at 0 may be infinite


def class_losses(
    logits: Tensor, label: Tensor, gamma: float | None = None, weight: Tensor | None = None
) -> dict[str, Tensor]:
    """Mean ``cross_entropy`` or ``focal`` loss over the labeled pixels.

    Args:
        logits: ``(B, K, h, w)``; they are resized to the label maps.
        label: ``(B, H, W)``, 0 to K - 1, or 255 for ignored pixels.
        gamma: Exponent of the focal loss; ``None`` for cross-entropy.
        weight: Weight of each class ``(K,)``.
    """
    logits = resize(logits.float(), label.shape[-2:])
    count = mean_count((label != IGNORE_INDEX).sum())
    if gamma is None:
        total = F.cross_entropy(logits, label, weight, ignore_index=IGNORE_INDEX, reduction="sum")
        return {"cross_entropy": total / count}
    terms = _focal(F.cross_entropy(logits, label, ignore_index=IGNORE_INDEX, reduction="none"), gamma)
    if weight is not None:
        terms = terms * weight[label.where(label != IGNORE_INDEX, 0)]
    return {"focal": terms.sum() / count}


def binary_losses(
    logits: Tensor, label: Tensor, gamma: float | None = None, weight: Tensor | None = None
) -> dict[str, Tensor]:
    """Mean ``bce`` (binary cross-entropy) or ``focal`` loss over the pixels, and mean of 1 - soft IoU over the images.

    This combination is common for salient objects since BASNet (Qin et al., CVPR 2019). One pixel is added to
    intersection and union, so that the IoU is 1 if an image has no object and none is predicted.

    Args:
        logits: ``(B, 1, h, w)``; they are resized to the label maps.
        label: ``(B, H, W)``, 1 for objects, 0 for background, or 255 for ignored pixels.
        gamma: Exponent of the focal loss; ``None`` for binary cross-entropy.
        weight: Weights of background and object ``(2,)``; the IoU has none.
    """
    logits = resize(logits.float(), label.shape[-2:])[:, 0]
    known = (label != IGNORE_INDEX).float()
    target = (label == 1).float()
    scale = known if weight is None else known * weight[target.long()]
    if gamma is None:
        name, total = "bce", F.binary_cross_entropy_with_logits(logits, target, weight=scale, reduction="sum")
    else:
        terms = _focal(F.binary_cross_entropy_with_logits(logits, target, reduction="none"), gamma)
        name, total = "focal", (terms * scale).sum()
    probability = logits.sigmoid() * known
    intersection = (probability * target).sum(dim=(1, 2))
    union = (probability + target - probability * target).sum(dim=(1, 2))
    return {name: total / mean_count(known.sum()), "iou": (1 - (intersection + 1) / (union + 1)).mean()}


def dice_loss(binary: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """Mean over the classes of 1 - soft Dice coefficient of a batch, by segmentation_models.pytorch.

    A class without a pixel in the batch counts as 0.

    Args:
        binary: Whether there is one class, the object. The loss has the arguments of :func:`binary_losses`, otherwise
            those of :func:`class_losses`.

    Returns:
        ``(logits, label) -> loss``.

    Raises:
        ImportError: segmentation_models.pytorch is not installed.
    """
    module = require("segmentation_models_pytorch.losses", "segment")
    compute = module.DiceLoss("binary" if binary else "multiclass", ignore_index=IGNORE_INDEX)
    return lambda logits, label: compute(resize(logits.float(), label.shape[-2:]), label)


def _focal(cross_entropy: Tensor, gamma: float) -> Tensor:
    """Focal loss of each pixel from its cross-entropy -log(p)."""
    return (-(-cross_entropy).expm1()).clamp(min=TINY) ** gamma * cross_entropy
