"""Losses of segmentation. Shapes: B images of H x W pixels, K classes."""

import torch.nn.functional as F
from torch import Tensor

from .config import IGNORE_INDEX
from .heads.upernet import resize


def class_losses(logits: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Mean cross-entropy of the pixels that have a class; 0 where none has.

    Args:
        logits: (B, K, h, w), resized to the labels.
        label: (B, H, W), 0 to K - 1, or 255.
    """
    logits = resize(logits.float(), label.shape[-2:])
    total = F.cross_entropy(logits, label, ignore_index=IGNORE_INDEX, reduction="sum")
    return {"cross_entropy": total / (label != IGNORE_INDEX).sum().clamp(min=1)}


def binary_losses(logits: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Binary cross-entropy of the pixels, and of each image 1 - IoU of the probabilities; both means.

    The pair is the common one for salient objects since BASNet (Qin et al., CVPR 2019). An image that is all
    background has an IoU of 1 once nothing is predicted: 1 pixel is added to intersection and union.

    Args:
        logits: (B, 1, h, w), resized to the labels.
        label: (B, H, W), 1 on objects, 0 off them, or 255, which does not count.
    """
    logits = resize(logits.float(), label.shape[-2:])[:, 0]
    known = (label != IGNORE_INDEX).float()
    target = (label == 1).float()
    bce = F.binary_cross_entropy_with_logits(logits, target, weight=known, reduction="sum")
    probability = logits.sigmoid() * known
    both = (probability * target).sum(dim=(1, 2))
    either = (probability + target - probability * target).sum(dim=(1, 2))
    return {"bce": bce / known.sum().clamp(min=1), "iou": (1 - (both + 1) / (either + 1)).mean()}
