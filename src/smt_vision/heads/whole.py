"""A detector as one program, an image in and its detections out: what an export has, and how an export is used.

Shapes: an image of H x W pixels, N detections of it.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..data import padded
from ..recipes import Detect

OUTPUTS = ("boxes", "scores", "labels", "masks")  # in the order of a program's outputs; masks where it has them


class Whole(nn.Module):
    """A :class:`~smt_vision.heads.detectors.Detector` for one image of any size, in plain operators.

    Shape: ``(1, C, H, W)``, normalised and not padded, to ``boxes`` (N, 4) in pixels of that image, ``scores`` (N,) and
        ``labels`` (N,), best first, and ``masks`` (N, 28, 28), probabilities inside the box, of a detector with masks.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector: Any = detector

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        height, width = image.shape[-2:]
        image = F.pad(image, (0, padded(width) - width, 0, padded(height) - height))
        (found,) = self.detector.find(image, [(height, width)])
        return tuple(found[name] for name in OUTPUTS if name in found)


class DetectorOf(nn.Module):
    """A :class:`~smt_vision.heads.detectors.Detector` whose work another runtime does; for evaluation alone.

    Args:
        program: computes :class:`Whole`.
        config: of the thresholds those at least as strict as the program's own.
    """

    def __init__(self, program: Callable[[Tensor], tuple[Tensor, ...]], config: Detect) -> None:
        super().__init__()
        self.program = program
        self.config = config

    def forward(self, image: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        return [self._find(image[i : i + 1, :, :h, :w]) for i, (h, w) in enumerate(sizes.tolist())]

    def _find(self, image: Tensor) -> dict[str, Tensor]:
        found = dict(zip(OUTPUTS, self.program(image), strict=False))
        wanted = (found["scores"] > self.config.score_threshold).nonzero()[: self.config.max_detections, 0]
        return {name: values[wanted] for name, values in found.items()}
