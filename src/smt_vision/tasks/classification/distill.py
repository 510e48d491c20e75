"""Learning from the scores of a teacher. Shapes: B images, K classes."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..classes import match_classes
from ..predictor import Predictor
from .config import ClassificationRecipe
from .published import class_synonyms


class SoftTargets:
    """The loss between the scores of a classifier and of its teacher.

    Args:
        recipe: Recipe of the run.
        classes: The K classes; each must be among the teacher's, which may have more.
        teacher: The teacher.

    Raises:
        ValueError: The teacher is not a classifier, its scores have another meaning, or it has other classes.
    """

    def __init__(self, recipe: ClassificationRecipe, classes: Sequence[str], teacher: Predictor[Any]) -> None:
        name, multi_label = recipe.distill.teacher, recipe.classify.multi_label
        remedy = "learn from its feature maps only: --distill.alpha 0 --distill.features 1"
        if teacher.spec.task != "classify" or not teacher.classes:
            raise ValueError(f"distill.teacher={name} gives no scores of classes; {remedy}")
        if teacher.config.multi_label != multi_label:
            raise ValueError(
                f"distill.teacher={name} has classify.multi_label={str(not multi_label).lower()}, the recipe "
                f"{str(multi_label).lower()}; use a teacher with the same, or {remedy}"
            )
        try:
            columns = match_classes(
                classes,
                teacher.classes,
                recipe.data,
                class_synonyms(len(teacher.classes)),
                owner="the teacher",
                by_index=False,
            )
        except ValueError as error:
            raise ValueError(f"distill.teacher={name}: {error}; or {remedy}") from error
        self._columns = None if columns == list(range(len(teacher.classes))) else columns
        self._loss = sigmoid_divergence if multi_label else softmax_divergence
        self._temperature = recipe.distill.temperature

    def __call__(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """The loss, a scalar, from logits of the classifier (B, K) and of the teacher."""
        if self._columns is not None:
            teacher = teacher[:, self._columns]
        return self._loss(logits.float(), teacher.float(), self._temperature)


def softmax_divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the softmax with temperature T, the mean over the images.

    Hinton et al., Distilling the Knowledge in a Neural Network, 2015: the factor keeps the gradients' size for any T.

    Args:
        logits: (B, K) float32.
        teacher: (B, K) float32.
        temperature: T.
    """
    ours, theirs = ((values / temperature).log_softmax(dim=1) for values in (logits, teacher))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def sigmoid_divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """:func:`softmax_divergence` of the sigmoid of each class, the mean over images and classes."""
    p = (teacher / temperature).sigmoid()
    present = F.logsigmoid(teacher / temperature) - F.logsigmoid(logits / temperature)
    absent = F.logsigmoid(-teacher / temperature) - F.logsigmoid(-logits / temperature)
    return temperature**2 * (p * present + (1 - p) * absent).mean()
