"""Classifiers in use."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ...recipe import Recipe
from ...spec import ModelSpec
from ..predictor import Predictor, PreparedImage, Source
from ..results import decode_source
from .config import ClassificationInput
from .data.transforms import eval_transform
from .pictures import GRID, LabeledImage, predictions

TOP_K = 5


@dataclass(frozen=True)
class Prediction:
    """The classes of an image.

    Args:
        source: The image as given.
        id: The image's path, or its index among the images given.
        label: Name of the most probable class.
        class_id: Its index.
        score: Its probability in [0, 1].
        top: Names and probabilities of the most probable classes, best first.
        error: Why the image could not be read; there is no label then.
    """

    source: Source
    id: str
    label: str | None
    class_id: int | None
    score: float
    top: tuple[tuple[str, float], ...]
    error: str | None = None


class Classifier(Predictor[Prediction]):
    """A classifier, ready for use.

    Args:
        model: Gives ``(B, K)`` logits.
        spec: Classes and preprocessing.
        name: Display name.
        device: Where it runs.
        recipe: The recipe that it was trained with, where that is known.
    """

    kind = "a classifier"
    batch_size = 32
    eval_batch_size = 64
    columns = ("label", "score", "next")
    options = frozenset({"top_k"})

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        name: str = "classifier",
        device: str | torch.device = "cpu",
        recipe: Recipe | None = None,
    ) -> None:
        self.input: ClassificationInput = spec.input  # type: ignore[assignment]
        super().__init__(model, spec, eval_transform(self.input), name, device, recipe)

    @property
    def input_description(self) -> str:
        input = self.input
        return f"{input.size} px, crop {input.crop_pct:.3g} {input.crop_mode}, {input.interpolation}"

    def save(self, results: Iterable[Prediction], folder: str | Path, **options: Any) -> list[Path]:
        """Write ``predictions.csv`` and ``predictions.png``, a contact sheet of the first 25 images.

        Args:
            results: What the classifier returned.
            folder: Created if necessary.
            options: No option matters here.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        table, sheet = folder / "predictions.csv", folder / "predictions.png"
        shown: list[LabeledImage] = []
        with open(table, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "label", "class_id", "score", "others", "error"])
            for result in results:
                others = "; ".join(f"{label} {score:.4f}" for label, score in result.top[1:])
                known = result.label is not None
                writer.writerow(
                    [result.id, result.label or "", result.class_id if known else "",
                     f"{result.score:.6f}" if known else "", others, result.error or ""]
                )  # fmt: skip
                if result.label is not None and len(shown) < GRID:
                    image = decode_source(result.source)
                    shown.append(LabeledImage(image, result.label, result.score, Path(result.id).name))
        predictions(shown, sheet)
        return [table, sheet]

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

    @torch.inference_mode()
    def _predict_batch(self, batch: list[PreparedImage], top_k: int = TOP_K, **options: Any) -> Sequence[Prediction]:
        logits = self.model(torch.stack([image.pixels for image in batch]).to(self.device))
        values, indices = logits.float().softmax(-1).cpu().topk(min(top_k, len(self.classes)))
        out = []
        for image, scores, class_ids in zip(batch, values.tolist(), indices.tolist(), strict=True):
            top = tuple((self.classes[i], score) for i, score in zip(class_ids, scores, strict=True))
            out.append(Prediction(image.source, image.id, top[0][0], class_ids[0], top[0][1], top))
        return out

    def _unreadable(self, source: str | Path | Image.Image, id: str, error: str) -> Prediction:
        return Prediction(source, id, None, None, 0.0, (), error)
