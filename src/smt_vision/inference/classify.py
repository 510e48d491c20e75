"""A classifier in use."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..data import eval_transform
from ..recipes import Input, Recipe
from .predictor import Predictor, Seen

TOP = 5  # classes told an image


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of an image.

    Args:
        id: the image's path, or its place in the list given.
        label: the likeliest class.
        probability: its probability, 0 to 1.
        top: the likeliest classes with their probabilities, best first.
        error: why the image could not be read; then there is no label.
    """

    id: str
    label: str | None
    probability: float
    top: tuple[tuple[str, float], ...]
    error: str | None = None


class Classifier(Predictor[Prediction]):
    """A classifier with its classes and the way images must be prepared for it.

    Args:
        model: gives ``(B, len(classes))`` logits.
        classes: names, by output.
        input: how images become tensors.
        name: what to call it.
        device: where it runs.
        recipe: what it was trained by, where that is known.
    """

    kind = "a classifier"
    batch_size = 32

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[str],
        input: Input,
        name: str,
        device: str | torch.device = "cpu",
        recipe: Recipe | None = None,
    ) -> None:
        super().__init__(model, classes, input, eval_transform(input), name, device, recipe)

    @property
    def card(self) -> dict[str, Any]:
        return {"task": "classify", "classes": list(self.classes), "input": asdict(self.input)}

    @property
    def countable(self) -> tuple[nn.Module, tuple[int, int, int]]:
        return self.model, (self.input.channels, self.input.size, self.input.size)

    def __call__(
        self, images: Iterable[str | Path | Image.Image], batch_size: int | None = None, top_k: int = TOP
    ) -> list[Prediction]:
        """What the model says of each image; see :meth:`stream`."""
        return list(self.stream(images, batch_size, top_k))

    def stream(
        self, images: Iterable[str | Path | Image.Image], batch_size: int | None = None, top_k: int = TOP
    ) -> Iterator[Prediction]:
        """As :meth:`Predictor.stream`, with ``top_k`` classes told an image."""
        return self._stream(images, batch_size, partial(self._say, top_k=top_k))

    @torch.inference_mode()
    def _say(self, batch: list[Seen], top_k: int = TOP) -> list[Prediction]:
        logits = self.model(torch.stack([image.pixels for image in batch]).to(self.device))
        values, indices = logits.float().softmax(-1).cpu().topk(min(top_k, len(self.classes)))
        out = []
        for image, value, index in zip(batch, values.tolist(), indices.tolist(), strict=True):
            top = tuple((self.classes[i], v) for i, v in zip(index, value, strict=True))
            out.append(Prediction(image.id, top[0][0], top[0][1], top))
        return out

    def _unreadable(self, id: str, error: str) -> Prediction:
        return Prediction(id, None, 0.0, (), error)
