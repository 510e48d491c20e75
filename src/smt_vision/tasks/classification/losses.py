"""Classification losses. Shapes: B images, K classes.

Targets are class indices (B,), soft targets (B, K) of mixup and CutMix, or, for images with any number of classes,
multi-hot or soft targets (B, K).
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

from ...text import get_logger
from ..class_weights import class_weights
from .config import ClassificationLoss

log = get_logger(__name__)
Criterion = Callable[[Tensor, Tensor], Tensor]  # (logits (B, K), target) to the loss, a scalar
TINY = 1e-8  # smallest base of a power, whose gradient at 0 may be infinite


def classification_loss(
    loss: ClassificationLoss,
    classes: Sequence[str],
    counts: npt.NDArray[np.int64],
    *,
    multi_label: bool = False,
    label_smoothing: float = 0.0,
) -> Criterion:
    """The loss of a recipe as a function of logits (B, K) and targets.

    All are means over the images, ``bce``, ``asymmetric`` and the sigmoid form of ``focal`` over the classes too, as
    PyTorch's and torchvision's are. See :mod:`smt_vision.tasks.class_weights` on the class weights.

    Label smoothing e makes targets t (1 - e) + e / K; with ``multi_label``, where each class is a target of its own,
    t (1 - e) + e / 2. Class weights are those of t: a large weight of a rare class does not multiply its share of the
    smoothing, which every image has, and which may be more than the image's own class would then have. ``focal`` and
    ``asymmetric`` take t itself: focusing moves the minimum of smoothed targets, with ``multi_label`` and e = 0.1 to
    scores of 0.25 and 0.42 for the classes that an image does not have.

    Args:
        loss: The recipe's fields.
        classes: K class names.
        counts: Number of training images of each class (K,).
        multi_label: Images have any number of classes: targets are (B, K), and scores are sigmoids.
        label_smoothing: Fraction of the target that is spread over all classes, by ``cross_entropy`` and ``bce`` only.

    Returns:
        ``(logits, target) -> loss``; logits of any floating-point type, converted to float32.

    Raises:
        ValueError: The loss is ``cross_entropy`` with ``multi_label``, or the recipe gives another number of weights
            than there are classes.
    """
    name = loss.name if loss.name != "auto" else "bce" if multi_label else "cross_entropy"
    if multi_label and name == "cross_entropy":
        raise ValueError("invalid loss.name=cross_entropy for images with any number of classes: expected bce")
    weights = class_weights(loss, classes, counts)
    if label_smoothing and name in ("focal", "asymmetric"):
        log.info("loss.name=%s: augment.label_smoothing=%g is not applied", name, label_smoothing)
        label_smoothing = 0.0
    smoothed = label_smoothing / (2 if multi_label else len(classes))

    def criterion(logits: Tensor, target: Tensor) -> Tensor:
        logits = logits.float()
        if name == "cross_entropy" and weights is None:
            return F.cross_entropy(logits, target, label_smoothing=label_smoothing)
        hard = (F.one_hot(target, len(classes)) if target.ndim == 1 else target).float()
        target = hard * (1 - label_smoothing) + smoothed
        weight = None if weights is None else weights.to(logits.device, non_blocking=True)
        if name == "cross_entropy" or (name == "focal" and not multi_label):
            terms = softmax_focal(logits, target, loss.gamma if name == "focal" else 0.0)
            return (terms if weight is None else terms * (hard @ weight)).mean()
        positive = target if weight is None else target + (weight - 1) * (1 - label_smoothing) * hard
        if name == "asymmetric":
            exponents = loss.gamma_positive, loss.gamma_negative, loss.clip
        else:
            exponents = (loss.gamma, loss.gamma, 0.0) if name == "focal" else (0.0, 0.0, 0.0)
        return one_vs_all(logits, positive, 1 - target, *exponents).mean()

    return criterion


def softmax_focal(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Focal loss of the softmax (B,): sum over the classes of -target (1 - p)^gamma log(p).

    Lin et al. (Focal Loss for Dense Object Detection, ICCV 2017) define it for two classes; this is its form for K
    classes, of which cross-entropy is the case gamma = 0.

    Args:
        logits: (B, K) float32.
        target: (B, K), which sum to 1.
        gamma: Exponent.
    """
    log_p = logits.log_softmax(dim=1)
    return (target * focus(-log_p.expm1(), gamma) * -log_p).sum(dim=1)


def one_vs_all(
    logits: Tensor, positive: Tensor, negative: Tensor, gamma_positive: float, gamma_negative: float, clip: float
) -> Tensor:
    """Asymmetric loss (B, K) of Ridnik et al., Asymmetric Loss For Multi-Label Classification, ICCV 2021.

    With p the sigmoid of the logit and q = max(p - clip, 0), the sum of -positive (1 - p)^gamma_positive log(p) and
    -negative q^gamma_negative log(1 - q). Without exponents and clipping it is binary cross-entropy, with equal
    exponents and no clipping the focal loss of Lin et al. (ICCV 2017). For targets of 0 and 1 it equals the functions
    of PyTorch, torchvision and timm; these treat soft targets in different ways, or have no class weights.

    Args:
        logits: (B, K) float32.
        positive: Coefficients of the positive terms (B, K): the target, times the weight of its class (``pos_weight``
            of PyTorch).
        negative: Coefficients of the negative terms (B, K): 1 - target.
        gamma_positive: Exponent of the positive terms.
        gamma_negative: Exponent of the negative terms.
        clip: Probability up to which negative terms are 0.
    """
    of_positive = -F.logsigmoid(logits) * focus((-logits).sigmoid(), gamma_positive)
    if clip == 0:
        of_negative = -F.logsigmoid(-logits) * focus(logits.sigmoid(), gamma_negative)
    else:
        q = (logits.sigmoid() - clip).clamp(min=0)
        of_negative = -(-q).log1p() * focus(q, gamma_negative)
    return positive * of_positive + negative * of_negative


def focus(error: Tensor, gamma: float) -> Tensor | float:
    """error^gamma, with a finite gradient also at an error of 0; 1 for gamma = 0."""
    return error.clamp(min=TINY) ** gamma if gamma else 1.0
