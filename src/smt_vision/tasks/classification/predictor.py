"""Prediction with classifiers."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...bounds import Count, checked
from ...pictures.drawing import with_caption
from ...pictures.style import short
from ..predictor import Predictor, PreparedImage
from ..results import Source, decode_source
from .data.transforms import eval_transform
from .results import Prediction, write_predictions

TOP_K = 5


class Classifier(Predictor[Prediction]):
    """Predicts the class of images. The model returns (B, K) logits."""

    kind = "a classifier"
    batch_size = 32
    eval_batch_size = 64
    columns = ("label", "score", "next")
    options = frozenset({"top_k"})

    @property
    def input_description(self) -> str:
        input = self.input
        return f"{input.size} px, crop {input.crop_pct:.3g} {input.crop_mode}, {input.interpolation}"

    def save(self, results: Iterable[Prediction], folder: str | Path, **options: Any) -> list[Path]:
        """Write ``predictions.csv`` and ``predictions.png``, a contact sheet of the first 25 images.

        Args:
            results: Predictions of this classifier.
            folder: Output folder; created if necessary.
            options: Unused.
        """
        return write_predictions(results, Path(folder))

    def draw(self, result: Prediction, **options: Any) -> Image.Image:
        return with_caption(decode_source(result.source), f"{short(result.label or '')} {100 * result.score:.0f} %")

    def row(self, result: Prediction, **options: Any) -> tuple[str, ...]:
        others = ", ".join(f"{label} {100 * score:.1f} %" for label, score in result.top[1:])
        return result.label or "", f"{100 * result.score:.1f} %", others

    def to_dict(self, result: Prediction, **options: Any) -> dict[str, Any]:
        return {
            "id": result.id,
            "label": result.label,
            "class_id": result.class_id,
            "score": result.score,
            "top": [list(pair) for pair in result.top],
            "error": result.error,
        }

    def scores(self, logits: Tensor) -> Tensor:
        """Calibrated scores (B, K) in [0, 1] from logits (B, K): of all classes together, or of each by itself."""
        logits = logits.float() / self.config.temperature
        return logits.sigmoid() if self.config.multi_label else logits.softmax(-1)

    def _make_transform(self) -> Callable[[Image.Image], Tensor]:
        return eval_transform(self.input)

    @torch.inference_mode()
    @checked
    def _predict_batch(self, batch: list[PreparedImage], top_k: Count = TOP_K, **options: Any) -> Sequence[Prediction]:
        logits = self.model(torch.stack([image.pixels for image in batch]).to(self.device))
        values, indices = self.scores(logits).cpu().topk(min(top_k, len(self.classes)))
        out = []
        for image, scores, class_ids in zip(batch, values.tolist(), indices.tolist(), strict=True):
            top = tuple((self.classes[i], score) for i, score in zip(class_ids, scores, strict=True))
            out.append(Prediction(image.source, image.id, top[0][0], class_ids[0], top[0][1], top))
        return out

    def _unreadable(self, source: Source, id: str, error: str) -> Prediction:
        return Prediction(source, id, None, None, 0.0, (), error)
