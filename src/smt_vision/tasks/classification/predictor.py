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
from ..classes import label_separator
from ..predictor import Predictor, PreparedImage, not_finite
from ..results import Source, decode_source
from .data.transforms import eval_transform
from .results import Prediction, write_predictions

TOP_K = 5


class Classifier(Predictor[Prediction]):
    """Predicts the class, or the classes, of images. The model returns (B, K) logits."""

    kind = "a classifier"
    batch_size = 32
    eval_batch_size = 64
    options = frozenset({"top_k"})

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("labels", "next") if self.config.multi_label else ("label", "score", "next")

    @property
    def input_description(self) -> str:
        input = self.input
        return f"{input.size} px, crop {input.crop_pct:.3g} {input.crop_mode}, {input.interpolation}"

    def save(self, results: Iterable[Prediction], folder: str | Path, **options: Any) -> list[Path]:
        """Write ``predictions.csv`` and ``predictions.png``, a contact sheet of the first 25 images.

        The CSV of a multi-label classifier is a label file: its columns ``image`` and ``labels`` can be trained on.
        Labels are joined by ``|``, or by ``;`` or ``,`` if a class name contains ``|``.

        Args:
            results: Predictions of this classifier.
            folder: Output folder; created if necessary.
            options: Unused.
        """
        separator = label_separator(self.classes) if self.config.multi_label else None
        return write_predictions(results, Path(folder), self.input, separator)

    def draw(self, result: Prediction, **options: Any) -> Image.Image:
        """The image with its class, or its classes."""
        name, *more = self.row(result)
        caption = name if self.config.multi_label else f"{short(name)} {more[0]}"
        return with_caption(decode_source(result.source, self.input), caption)

    def row(self, result: Prediction, **options: Any) -> tuple[str, ...]:
        if self.config.multi_label:
            labels = result.labels or ()
            others = [pair for pair in result.top if pair not in labels]
            return _listed(labels) or "none", _listed(others)
        return result.label or "", f"{100 * result.score:.1f} %", _listed(result.top[1:])

    def to_dict(self, result: Prediction, **options: Any) -> dict[str, Any]:
        return {
            "id": result.id,
            "label": result.label,
            "class_id": result.class_id,
            "score": result.score,
            "top": [list(pair) for pair in result.top],
            "error": result.error,
            **({"labels": [list(pair) for pair in result.labels or ()]} if self.config.multi_label else {}),
        }

    def scores(self, logits: Tensor) -> Tensor:
        """Calibrated scores (B, K) in [0, 1] from logits (B, K): softmax, or a sigmoid per class if multi-label."""
        logits = logits.float() / self.config.temperature
        return logits.sigmoid() if self.config.multi_label else logits.softmax(-1)

    def _make_transform(self) -> Callable[[Any], Tensor]:
        return eval_transform(self.input)

    @torch.inference_mode()
    @checked
    def _predict_batch(self, batch: list[PreparedImage], top_k: Count = TOP_K, **options: Any) -> Sequence[Prediction]:
        logits = self.model(torch.stack([image.pixels for image in batch]).to(self.device))
        all_scores = self.scores(logits).cpu()
        values, indices = all_scores.topk(min(top_k, len(self.classes)))
        out = []
        for i, image in enumerate(batch):
            if not all_scores[i].isfinite().all():
                out.append(self._unreadable(image.source, image.id, not_finite(image.id)))
                continue
            top = self._named(indices[i], values[i])
            labels = None
            if self.config.multi_label:
                ranked = all_scores[i].sort(descending=True, stable=True)
                count = int((ranked.values >= self.config.threshold).sum())
                labels = self._named(ranked.indices[:count], ranked.values[:count])
            out.append(Prediction(image.source, image.id, top[0][0], int(indices[i, 0]), top[0][1], top, None, labels))
        return out

    def _named(self, indices: Tensor, scores: Tensor) -> tuple[tuple[str, float], ...]:
        return tuple((self.classes[i], score) for i, score in zip(indices.tolist(), scores.tolist(), strict=True))

    def _unreadable(self, source: Source, id: str, error: str) -> Prediction:
        return Prediction(source, id, None, None, 0.0, (), error)


def _listed(pairs: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{label} {100 * score:.1f} %" for label, score in pairs)
