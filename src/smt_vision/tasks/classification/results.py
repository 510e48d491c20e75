"""Classification results and the files that hold them."""

import csv
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...files import write_atomic
from ...recipe import Input
from ..results import Source, decode_source, image_names, kept_when_interrupted


@dataclass(frozen=True)
class Prediction:
    """Predicted classes of an image.

    Args:
        source: Image as passed by the caller.
        id: Path of the image, or its index among the passed images.
        label: Name of the most probable class.
        class_id: Index of the most probable class.
        score: Probability of the most probable class in [0, 1].
        top: Names and probabilities of the most probable classes, best first.
        error: Reason why the image could not be read; ``label`` and ``class_id`` are then ``None``.
        labels: For a multi-label classifier, names and scores of all classes whose score is at least
            ``classify.threshold``, best first; may be empty. ``None`` for any other classifier.
    """

    source: Source
    id: str
    label: str | None
    class_id: int | None
    score: float
    top: tuple[tuple[str, float], ...]
    error: str | None = None
    labels: tuple[tuple[str, float], ...] | None = None


def write_predictions(
    results: Iterable[Prediction], folder: Path, input: Input | None = None, separator: str | None = None
) -> list[Path]:
    """Write ``predictions.csv`` and ``predictions.png``; see
    :meth:`smt_vision.tasks.classification.predictor.Classifier.save`.

    Args:
        results: Predictions of one classifier.
        folder: Output folder; created if necessary.
        input: Input of the classifier, for images of bands.
        separator: What joins the labels of an image, of a multi-label classifier; ``None`` for any other.
    """
    # Imported late: most predictions are not written, and this imports matplotlib.
    from .pictures import GRID, LabeledImage, predictions, thumbnail

    folder.mkdir(parents=True, exist_ok=True)
    table, sheet = folder / "predictions.csv", folder / "predictions.png"
    shown: list[tuple[Prediction, Image.Image]] = []

    def write(path: Path) -> None:
        written = 0

        def save(partial: Path) -> bool:
            if written:
                file.flush()
                write_atomic(partial, lambda copy: shutil.copyfile(path, copy))
            return bool(written)

        with (
            open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
            kept_when_interrupted(table, save),
        ):
            writer = csv.writer(file)
            label_columns = ["labels", "scores"] if separator else ["label", "class_id", "score", "others"]
            writer.writerow(["image", *label_columns, "error"])
            for result in results:
                writer.writerow([result.id, *_cells(result, separator), result.error or ""])
                written += 1
                if result.label is not None and len(shown) < GRID:
                    shown.append((result, thumbnail(decode_source(result.source, input))))

    write_atomic(table, write)
    names = image_names([result.source for result, _ in shown])
    items = [
        LabeledImage(
            image,
            result.label or "",
            result.score,
            result.id if isinstance(result.source, Image.Image) else name,
            result.labels,
        )
        for (result, image), name in zip(shown, names, strict=True)
    ]
    predictions(items, sheet)
    return [table, sheet]


def _cells(result: Prediction, separator: str | None) -> list[str]:
    if separator:  # as a label file has them
        labels = result.labels or ()
        return [separator.join(label for label, _ in labels), separator.join(f"{score:.6f}" for _, score in labels)]
    if result.label is None:
        return [""] * 4
    others = "; ".join(f"{label} {score:.4f}" for label, score in result.top[1:])
    return [result.label, str(result.class_id), f"{result.score:.6f}", others]
