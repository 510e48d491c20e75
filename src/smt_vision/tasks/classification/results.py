"""A classifier's results, and as files."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..results import Source, decode_source
from .pictures import GRID, LabeledImage, predictions


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


def write_predictions(results: Iterable[Prediction], folder: Path) -> list[Path]:
    """See :meth:`smt_vision.tasks.classification.predictor.Classifier.save`."""
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
