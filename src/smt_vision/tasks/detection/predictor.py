"""Detectors in use. Shapes: N detections of an image of H x W pixels, K classes."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...data.padding import pad_together
from ...extras import require
from ...recipe import Recipe
from ...spec import ModelSpec
from ..predictor import Predictor, PreparedImage, Source
from .config import DRAWN_SCORE, DetectConfig
from .data.transforms import detection_eval_transform
from .heads.detectors import run_detector, to_original
from .results import write_detections


@dataclass(frozen=True)
class Detections:
    """The objects detected in an image, best first; on the CPU.

    Args:
        source: The image as given.
        id: The image's path, or its index among the images given.
        size: H and W as stored.
        boxes: (N, 4) float32, ``(x1, y1, x2, y2)`` in pixels of the image as stored.
        scores: (N,) float32 in [0, 1].
        class_ids: (N,) int64, 0 to K - 1.
        masks: (N, H, W) bool, or ``None`` for a detector without masks.
        labels: Names of the N classes.
        error: Why the image could not be read; N is 0 then.
    """

    source: Source
    id: str
    size: tuple[int, int]
    boxes: Tensor
    scores: Tensor
    class_ids: Tensor
    masks: Tensor | None
    labels: tuple[str, ...]
    error: str | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def above(self, score: float) -> "Detections":
        """The detections with at least this score."""
        keep = self.scores >= score
        return replace(
            self,
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            class_ids=self.class_ids[keep],
            masks=None if self.masks is None else self.masks[keep],
            labels=tuple(label for label, kept in zip(self.labels, keep.tolist(), strict=True) if kept),
        )

    def to_torchvision(self) -> dict[str, Tensor]:
        """The dict of torchvision's detection models: ``boxes``, ``labels`` (class indices from 0), ``scores`` and,
        with masks, ``masks`` (N, 1, H, W) float32."""
        out = {"boxes": self.boxes, "labels": self.class_ids, "scores": self.scores}
        return out if self.masks is None else out | {"masks": self.masks[:, None].float()}

    def to_supervision(self) -> Any:
        """A ``supervision.Detections``, with the class names as ``data["class_name"]``.

        Raises:
            ImportError: supervision is not installed.
        """
        import numpy as np

        supervision = require("supervision")
        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            mask=None if self.masks is None else self.masks.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.class_ids.numpy(),
            data={"class_name": np.array(self.labels, dtype=str)},
        )


class Detector(Predictor[Detections]):
    """A detector, ready for use.

    Args:
        model: A :class:`smt_vision.tasks.detection.heads.detectors.Detector`.
        spec: Classes, category ids, preprocessing and the head's thresholds.
        name: Display name.
        device: Where it runs.
        recipe: The recipe that it was trained with, where that is known.
    """

    kind = "a detector"
    columns = ("objects",)
    options = frozenset({"score", "annotations"})

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        name: str = "detector",
        device: str | torch.device = "cpu",
        recipe: Recipe | None = None,
    ) -> None:
        self.config: DetectConfig = spec.head
        super().__init__(model, spec, detection_eval_transform(spec.input, self.config), name, device, recipe)
        self.category_ids = tuple(spec.category_ids or range(1, len(spec.classes) + 1))

    @property
    def input_description(self) -> str:
        config, input = self.config, self.spec.input
        return f"short side {config.short_side} px, at most {config.long_side}, {input.interpolation}"

    def save(
        self,
        results: Iterable[Detections],
        folder: str | Path,
        *,
        images: Sequence[Source] | None = None,
        score: float = DRAWN_SCORE,
        annotations: str | Path | None = None,
        **options: Any,
    ) -> list[Path]:
        """Write ``detections.json``, COCO's results format with every detection, and drawn copies into ``drawn/``.

        Args:
            results: What the detector returned, or an iterator over it.
            folder: Created if necessary.
            images: The images that ``results`` belong to, in order, for an iterator: names are then checked first.
            score: Detections with a lower score are not drawn.
            annotations: A COCO annotation file to take the images' ids from; by default they are numbered from 1.
            options: No other option matters here.

        Raises:
            ValueError: Two images share a name, or the annotations do not name an image.
        """
        return write_detections(
            results, images, Path(folder), classes=self.classes, category_ids=self.category_ids, score=score,
            annotations=None if annotations is None else Path(annotations),
        )  # fmt: skip

    def row(self, result: Detections, score: float = DRAWN_SCORE, **options: Any) -> tuple[str, ...]:
        counts = Counter(result.above(score).labels)
        return (", ".join(f"{n} {label}" for label, n in counts.most_common()) or "none",)

    def to_dict(self, result: Detections, score: float = DRAWN_SCORE, **options: Any) -> dict[str, Any]:
        kept = result.above(score)
        objects = [
            {"label": label, "class_id": class_id, "score": value, "box": box}
            for label, class_id, value, box in zip(
                kept.labels, kept.class_ids.tolist(), kept.scores.tolist(), kept.boxes.tolist(), strict=True
            )
        ]
        return {"id": result.id, "objects": objects, "error": result.error}

    @torch.inference_mode()
    def _predict_batch(self, batch: list[PreparedImage], **options: Any) -> Sequence[Detections]:
        pixels, sizes = pad_together([image.pixels for image in batch])
        outputs = run_detector(self.model, pixels.to(self.device), sizes)
        out = []
        for image, size, found in zip(batch, sizes, outputs, strict=True):
            (own,) = to_original([{k: v.cpu() for k, v in found.items()}], size[None], torch.tensor([image.size]))
            labels = tuple(self.classes[k] for k in own["labels"].tolist())
            out.append(
                Detections(
                    image.source,
                    image.id,
                    image.size,
                    own["boxes"],
                    own["scores"],
                    own["labels"],
                    own.get("masks"),
                    labels,
                )
            )
        return out

    def _unreadable(self, source: Source, id: str, error: str) -> Detections:
        return Detections(
            source, id, (0, 0), torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), None, (), error
        )
