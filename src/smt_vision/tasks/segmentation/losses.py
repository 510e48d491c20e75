"""Segmentation losses. Shapes: B images of H x W pixels, K classes."""

import torch.nn.functional as F
from torch import Tensor

from .config import IGNORE_INDEX
from .heads.upernet import resize


def class_losses(logits: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Mean cross-entropy over the labeled pixels; 0 without labeled pixels.

    Args:
        logits: ``(B, K, h, w)``; they are resized to the label maps.
        label: ``(B, H, W)``, 0 to K - 1, or 255 for ignored pixels.
    """
    logits = resize(logits.float(), label.shape[-2:])
    total = F.cross_entropy(logits, label, ignore_index=IGNORE_INDEX, reduction="sum")
    return {"cross_entropy": total / (label != IGNORE_INDEX).sum().clamp(min=1)}


def binary_losses(logits: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Mean binary cross-entropy over the pixels, and mean of 1 - soft IoU over the images.

    This combination is common for salient objects since BASNet (Qin et al., CVPR 2019). One pixel is added to
    intersection and union, so that the IoU is 1 if an image has no object and none is predicted.

    Args:
        logits: ``(B, 1, h, w)``; they are resized to the label maps.
        label: ``(B, H, W)``, 1 for objects, 0 for background, or 255 for ignored pixels.
    """
    logits = resize(logits.float(), label.shape[-2:])[:, 0]
    known = (label != IGNORE_INDEX).float()
    target = (label == 1).float()
    bce = F.binary_cross_entropy_with_logits(logits, target, weight=known, reduction="sum")
    probability = logits.sigmoid() * known
    intersection = (probability * target).sum(dim=(1, 2))
    union = (probability + target - probability * target).sum(dim=(1, 2))
    return {"bce": bce / known.sum().clamp(min=1), "iou": (1 - (intersection + 1) / (union + 1)).mean()}
