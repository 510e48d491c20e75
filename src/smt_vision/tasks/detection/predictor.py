"""Detectors in use. Shapes: N detections of an image of H x W pixels, K classes."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...data.padding import pad_together
from ..predictor import Predictor, PreparedImage
from ..results import Source
from .config import DRAWN_SCORE
from .data.transforms import detection_eval_transform
from .heads.detectors import run_detector, to_original
from .results import Detections, write_detections


class Detector(Predictor[Detections]):
    """A detector, ready for use. Its model is a :class:`smt_vision.tasks.detection.heads.detectors.Detector`."""

    kind = "a detector"
    columns = ("objects",)
    options = frozenset({"score", "annotations"})

    @property
    def category_ids(self) -> tuple[int, ...]:
        """COCO's category ids by class index; 1 to K if the dataset had none."""
        return tuple(self.spec.category_ids or range(1, len(self.classes) + 1))

    @property
    def input_description(self) -> str:
        return f"short side {self.config.short_side} px, at most {self.config.long_side}, {self.input.interpolation}"

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

    def _make_transform(self) -> Callable[[Image.Image], Tensor]:
        return detection_eval_transform(self.input, self.config)

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
