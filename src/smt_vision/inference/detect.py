"""A detector in use.

Shapes: N detections of an image of H x W pixels, K classes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data import detection_eval_transform, pad_together
from ..heads.detectors import counted, detect, to_original
from ..recipes import Detect, Input, Recipe
from .predictor import Predictor, Seen


@dataclass(frozen=True)
class Detections:
    """What a detector finds in an image, best first; on the CPU.

    Args:
        id: the image's path, or its place in the list given.
        size: H and W, as stored.
        boxes: (N, 4) float32, ``(x1, y1, x2, y2)`` in pixels of the image as stored.
        scores: (N,) float32, 0 to 1.
        labels: (N,) int64, 0 to K - 1.
        masks: (N, H, W) bool, or ``None`` of a detector without masks.
        names: the N classes in words.
        error: why the image could not be read; then N is 0.
    """

    id: str
    size: tuple[int, int]
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None
    names: tuple[str, ...]
    error: str | None = None


class Detector(Predictor[Detections]):
    """A detector with its classes and the way images must be prepared for it.

    Args:
        model: a :class:`smt_vision.heads.detectors.Detector`.
        classes: K names, by label.
        category_ids: K numbers by which COCO's files name the classes.
        input: how images become tensors.
        config: sizes and thresholds.
        name: what to call it.
        device: where it runs.
        recipe: what it was trained by, where that is known.
    """

    kind = "a detector"
    batch_size = 4

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[str],
        category_ids: Sequence[int],
        input: Input,
        config: Detect,
        name: str,
        device: str | torch.device = "cpu",
        recipe: Recipe | None = None,
    ) -> None:
        super().__init__(model, classes, input, detection_eval_transform(input, config), name, device, recipe)
        self.category_ids = tuple(category_ids)
        self.config = config

    @property
    def card(self) -> dict[str, Any]:
        return {
            "task": "detect",
            "classes": list(self.classes),
            "category_ids": list(self.category_ids),
            "input": asdict(self.input),
            "detect": asdict(self.config),
        }

    @property
    def countable(self) -> tuple[nn.Module, tuple[int, int, int]]:
        return counted(self.model, self.input.channels, self.config)

    @torch.inference_mode()
    def _say(self, batch: list[Seen]) -> list[Detections]:
        image, sizes = pad_together([seen.pixels for seen in batch])
        found = detect(self.model, image.to(self.device), sizes)
        out = []
        for seen, size, own in zip(batch, sizes, found, strict=True):
            (own,) = to_original([{k: v.cpu() for k, v in own.items()}], size[None], torch.tensor([seen.size]))
            names = tuple(self.classes[k] for k in own["labels"].tolist())
            out.append(
                Detections(seen.id, seen.size, own["boxes"], own["scores"], own["labels"], own.get("masks"), names)
            )
        return out

    def _unreadable(self, id: str, error: str) -> Detections:
        return Detections(
            id, (0, 0), torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), None, (), error
        )
