"""A segmenter in use.

Shapes: an image of H x W pixels, K classes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data import pad_together, segmentation_eval_transform
from ..heads.sliding import label_map, segment
from ..heads.upernet import resize
from ..recipes import Input, Recipe, Segment
from .predictor import Predictor, Seen


@dataclass(frozen=True)
class Segmented:
    """What a segmenter says of an image's pixels; on the CPU.

    Args:
        id: the image's path, or its place in the list given.
        size: H and W, as stored.
        label: (H, W) int64, 0 to K - 1; ``None`` of a binary segmenter.
        probability: of a binary segmenter, (H, W) float32 of an object, 0 to 1.
        error: why the image could not be read; then there is neither.
    """

    id: str
    size: tuple[int, int]
    label: Tensor | None
    probability: Tensor | None
    error: str | None = None


class Segmenter(Predictor[Segmented]):
    """A segmenter with its classes and the way images must be prepared for it.

    Args:
        model: ``(B, C, H, W)`` to ``(B, K, H, W)`` logits, for H and W that are multiples of 32.
        classes: K names, by label; of a binary one, that of the objects.
        input: how images become tensors.
        config: sizes, and how it is tested: whole or in windows, at which scales, mirrored or not.
        name: what to call it.
        device: where it runs.
        recipe: what it was trained by, where that is known.
    """

    kind = "a segmenter"
    batch_size = 4

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[str],
        input: Input,
        config: Segment,
        name: str,
        device: str | torch.device = "cpu",
        recipe: Recipe | None = None,
    ) -> None:
        super().__init__(model, classes, input, segmentation_eval_transform(input, config), name, device, recipe)
        self.config = config

    @property
    def card(self) -> dict[str, Any]:
        return {
            "task": "segment",
            "classes": list(self.classes),
            "input": asdict(self.input),
            "segment": asdict(self.config),
        }

    @property
    def countable(self) -> tuple[nn.Module, tuple[int, int, int]]:
        return self.model, (self.input.channels, *self.config.crop)

    @torch.inference_mode()
    def _say(self, batch: list[Seen]) -> list[Segmented]:
        image, sizes = pad_together([seen.pixels for seen in batch])
        found = segment(self.model, image.to(self.device), sizes, self.config)
        out = []
        for seen, own in zip(batch, found, strict=True):
            if self.config.kind == "binary":
                out.append(Segmented(seen.id, seen.size, None, resize(own[None], seen.size)[0, 0].cpu()))
            else:
                out.append(Segmented(seen.id, seen.size, label_map(own, seen.size).cpu(), None))
        return out

    def _unreadable(self, id: str, error: str) -> Segmented:
        return Segmented(id, (0, 0), None, None, error)
