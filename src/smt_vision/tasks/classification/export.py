"""Classifiers on their way to another runtime."""

from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import Tensor

from ...deploy.logits import LogitsExport
from .data.transforms import eval_transform


class ClassifierExport(LogitsExport):
    """At the classifier's own input size, and at others where it takes them."""

    @property
    def size(self) -> int:
        input: Any = self.spec.input
        return int(input.size)

    @property
    def transform(self) -> Callable[[Image.Image], Tensor]:
        input: Any = self.spec.input
        return eval_transform(input)

    def logits_shape(self, image: Tensor) -> tuple[int, ...]:
        return (len(image), len(self.spec.classes))
