"""Class weights of the classification losses of detectors.

A weight multiplies the terms in which its class is the target: those of the regions, anchors, cells or queries that
belong to an object of the class. Background has a weight of 1.

Shapes: K classes, P predictions that belong to an object.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import sigmoid_focal_loss

from ...processes import mean_count


class WeightsClasses(nn.Module):
    """A module whose loss can weight the classes.

    Attributes:
        class_weights: Weights (K,), or ``None``; no part of the state dict.
    """

    class_weights: Tensor | None

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("class_weights", None, persistent=False)


def set_class_weights(detector: nn.Module, weights: Tensor | None) -> None:
    """Weight the classes (K,) in the losses of a detector; ``None`` for no weights."""
    for module in detector.modules():
        if isinstance(module, WeightsClasses):
            module.class_weights = weights


def weighted_focal_terms(logits: Tensor, labels: Tensor, weights: Tensor, alpha: float = 0.25) -> Tensor:
    """What weights add to a sum of focal losses: (weight - 1) times the term of each object's class.

    Args:
        logits: Class logits (P, K).
        labels: Classes of the objects (P,).
        weights: Weights of the classes (K,).
        alpha: Alpha of the focal loss.
    """
    own = logits.gather(1, labels[:, None])[:, 0]
    return ((weights[labels] - 1) * sigmoid_focal_loss(own, torch.ones_like(own), alpha)).sum()


def region_class_loss(scores: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Mean cross-entropy of regions.

    Args:
        scores: Class logits (R, K + 1), background first.
        labels: Classes of the regions (R,), 0 for background.
        weights: Weights of the classes without background (K,), or ``None``.
    """
    if weights is None:
        return F.cross_entropy(scores, labels)
    terms = F.cross_entropy(scores, labels, reduction="none")
    return (F.pad(weights, (1, 0), value=1.0)[labels] * terms).mean()


class AnchorHead(WeightsClasses, RetinaNetHead):
    """torchvision's head of RetinaNet, with class weights."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        if self.class_weights is None:
            return losses
        added = []
        for target, logits, matched in zip(targets, head_outputs["cls_logits"], matched_idxs, strict=True):
            found = matched >= 0
            labels = target["labels"][matched[found]]
            added.append(weighted_focal_terms(logits[found], labels, self.class_weights) / max(1, len(labels)))
        return {**losses, "classification": losses["classification"] + torch.stack(added).mean()}


class CellHead(WeightsClasses, FCOSHead):
    """torchvision's head of FCOS, with class weights, and losses that are divided by the number of positive points of
    all processes, as published (Tian et al., ICCV 2019)."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        found = [matched >= 0 for matched in matched_idxs]
        count = torch.stack(found).sum()
        if self.class_weights is not None:
            pairs = zip(targets, matched_idxs, found, strict=True)
            labels = torch.cat([target["labels"][matched[own]] for target, matched, own in pairs])
            terms = weighted_focal_terms(head_outputs["cls_logits"][torch.stack(found)], labels, self.class_weights)
            losses = {**losses, "classification": losses["classification"] + terms / count.clamp(min=1)}
        factor = count.clamp(min=1) / mean_count(count)  # torchvision's are divided by those of this process
        return {name: loss * factor for name, loss in losses.items()}
