"""Classification metrics, exact on any number of processes because all state is sums.

Shapes: B images, K classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..samples import with_float64

CALIBRATION_BINS = 15
CONFUSION_LIMIT = 1000  # classes; a larger K x K matrix would not be readable
NO_IMAGES = "no image was evaluated: the validation set, or this rank's part of it, is empty"


class _Sums:
    """Sums in one flat float64 vector, so that the states of several processes are combined with one all-reduce.

    float64 counts exactly up to 2**53 images.

    Args:
        sizes: Lengths of the parts of the vector; after them come those of the calibration bins.
        device: Device of the sums. With the device of the logits, evaluation needs no copy to the host.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device | str) -> None:
        # A confidence of exactly 1.0 has its own bin, as in torchmetrics.
        bins = CALIBRATION_BINS + 1
        sizes = [*sizes, bins, bins, bins]
        self._sums = torch.zeros(sum(sizes), dtype=torch.float64, device=with_float64(device))
        parts = self._sums.split(sizes)  # views of the sums, updated in-place
        self._parts = parts[:-3]
        self._bin_count, self._bin_correct, self._bin_confidence = parts[-3:]
        self._edges = torch.linspace(0, 1, bins, device=self._sums.device)

    def _update_bins(self, confidence: Tensor, correct: Tensor) -> None:
        """Add confidences (n,) in [0, 1] and whether they were right (n,), as float64."""
        bins = torch.bucketize(confidence, self._edges, right=True) - 1
        self._bin_count.index_add_(0, bins, torch.ones_like(correct))
        self._bin_correct.index_add_(0, bins, correct)
        self._bin_confidence.index_add_(0, bins, confidence.double())

    def sums(self) -> Tensor:
        """State as a flat float64 vector; the states of several processes are combined by adding them."""
        return self._sums

    def reduce(self, all_reduce_sum: Callable[[Tensor], Tensor]) -> None:
        """Combine the states of all processes; to be called once, after the last batch.

        Args:
            all_reduce_sum: Function that returns the sum of a tensor over all processes.
        """
        self._sums.copy_(all_reduce_sum(self._sums.clone()))

    def _calibration(self) -> dict[str, Any]:
        """``ece``, and ``calibration``, the bins that are not empty."""
        gaps = (self._bin_correct - self._bin_confidence).abs()  # per bin: count * |accuracy - confidence|
        bins = zip(self._bin_count.tolist(), self._bin_confidence.tolist(), self._bin_correct.tolist(), strict=True)
        return {
            "ece": 100 * float(gaps.sum()) / float(self._bin_count.sum()),
            "calibration": [
                {"count": int(n), "confidence": 100 * confidence / n, "accuracy": 100 * correct / n}
                for n, confidence, correct in bins
                if n
            ],
        }


class ClassificationMetrics(_Sums):
    """Accuracy, loss and calibration of a classifier, accumulated over batches of any order and size.

    An image with NaN logits counts as incorrect. It makes the loss NaN and is not in the confusion matrix, because
    there is no prediction.

    Args:
        num_classes: Number of classes K.
        device: Device of the sums. With the device of the logits, evaluation needs no copy to the host.
        top_k: The k of the top-k accuracy.

    Raises:
        ValueError: If ``num_classes`` is less than 1.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu", top_k: int = 5) -> None:
        if num_classes < 1:
            raise ValueError(f"invalid num_classes={num_classes}: expected at least 1")
        self.num_classes, self.top_k = num_classes, top_k
        cells = num_classes**2 if num_classes <= CONFUSION_LIMIT else 0
        super().__init__([2, num_classes, num_classes, num_classes, cells], device)
        self._totals, self._class_count, self._class_correct = self._parts[:3]  # totals: top-k hits, loss
        self._class_predicted, self._confusion = self._parts[3:]

    @torch.no_grad()
    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            logits: Logits (B, K) of any floating-point type; converted to float32.
            target: True class indices (B,), in [0, K).

        Raises:
            ValueError: If the shapes are not (B, K) and (B,).
        """
        if logits.ndim != 2 or logits.shape[1] != self.num_classes or target.shape != logits.shape[:1]:
            raise ValueError(
                f"logits are {tuple(logits.shape)} and targets {tuple(target.shape)}: "
                f"expected (B, {self.num_classes}) and (B,)"
            )
        logits = logits.to(self._sums.device, torch.float32)
        target = target.to(self._sums.device, torch.int64)
        valid = ~logits.isnan().any(dim=1)  # used as a factor: boolean indexing would synchronize with the GPU
        ranked = logits.topk(min(self.top_k, self.num_classes), dim=1).indices  # ties as in timm.utils.accuracy
        hits = ranked.eq(target[:, None]) & valid[:, None]  # (B, top_k)
        prediction, correct = ranked[:, 0], hits[:, 0].double()
        loss = -logits.log_softmax(dim=1).gather(1, target[:, None])[:, 0]
        confidence = logits.softmax(dim=1).amax(dim=1).nan_to_num(0.0)

        self._totals += torch.stack([hits.any(dim=1).sum(dtype=torch.float64), loss.sum(dtype=torch.float64)])
        self._class_count.index_add_(0, target, torch.ones_like(correct))
        self._class_correct.index_add_(0, target, correct)
        self._class_predicted.index_add_(0, prediction, valid.double())
        self._update_bins(confidence, correct)
        if len(self._confusion):
            self._confusion.index_add_(0, target * self.num_classes + prediction, valid.double())

    def compute(self) -> dict[str, Any]:
        """Compute the metrics of all images added so far.

        Returns:
            ``top1``, ``top5`` (of another ``top_k``, its number; top-K if there are fewer classes) and
            ``mean_class_accuracy`` (balanced accuracy: over classes with images) in percent; the averages of
            :func:`class_averages`; ``kappa``, Cohen's kappa from -1 to 1, or ``None`` if a single class occurs;
            ``loss``, the mean cross-entropy in nats; ``ece``, the expected calibration error in percent (15 bins of
            equal width, L1), and ``calibration``, these bins; ``count``, the number of images; ``per_class``, a list of
            ``{"class": class index, "count": number of images, "accuracy": percent or None}`` with the columns of
            :func:`class_rows`; ``confusion``, (K, K) int64 counts with true classes as rows, or ``None`` above 1000
            classes.

        Raises:
            ValueError: If no image was added.
        """
        count = int(self._class_count.sum())
        if count == 0:
            raise ValueError(NO_IMAGES)
        hits, loss = (self._totals / count).tolist()
        accuracy = 100 * self._class_correct / self._class_count  # NaN for a class without images
        agreement = float(self._class_correct.sum()) / count
        chance = float(self._class_count @ self._class_predicted) / count**2
        counts = [part.cpu().numpy() for part in (self._class_correct, self._class_predicted, self._class_count)]
        k = self.num_classes
        return {
            "top1": 100 * agreement,
            f"top{self.top_k}": 100 * hits,
            "loss": loss,
            "mean_class_accuracy": float(accuracy.nanmean()),
            **class_averages(*counts),
            "kappa": (agreement - chance) / (1 - chance) if chance < 1 else None,
            **self._calibration(),
            "count": count,
            "per_class": [
                {**row, "accuracy": percent if row["count"] else None}
                for row, percent in zip(class_rows(*counts), accuracy.tolist(), strict=True)
            ],
            "confusion": self._confusion.view(k, k).to("cpu", torch.int64) if len(self._confusion) else None,
        }


class MultiLabelMetrics(_Sums):
    """F1, loss and calibration of a multi-label classifier, accumulated over batches of any order and size.

    An image with NaN logits has no predicted class. It makes the loss NaN.

    Args:
        num_classes: Number of classes K.
        threshold: Score from which an image has a class.
        device: Device of the sums.
    """

    def __init__(self, num_classes: int, threshold: float = 0.5, device: torch.device | str = "cpu") -> None:
        super().__init__([3, num_classes, num_classes, num_classes], device)
        self.num_classes, self.threshold = num_classes, threshold
        # totals: images, images whose classes are all right, loss
        self._totals, self._class_correct, self._class_predicted, self._class_count = self._parts

    @torch.no_grad()
    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            logits: Logits (B, K) of any floating-point type; converted to float32.
            target: (B, K), 1 for the classes of an image and 0 for all others.

        Raises:
            ValueError: If the shapes are not (B, K).
        """
        if logits.ndim != 2 or logits.shape[1] != self.num_classes or target.shape != logits.shape:
            raise ValueError(
                f"logits are {tuple(logits.shape)} and targets {tuple(target.shape)}: expected both to be "
                f"(B, {self.num_classes})"
            )
        logits = logits.to(self._sums.device, torch.float32)
        truth = target.to(self._sums.device) > 0.5
        scores = logits.sigmoid().nan_to_num(0.0)
        predicted = (scores >= self.threshold) & ~logits.isnan()
        exact = (predicted == truth).all(dim=1).sum()
        loss = F.binary_cross_entropy_with_logits(logits, truth.float(), reduction="none").double()
        self._totals += torch.stack(
            [exact.new_tensor(len(logits)).double(), exact.double(), loss.sum() / self.num_classes]
        )
        self._class_correct += (predicted & truth).sum(0)
        self._class_predicted += predicted.sum(0)
        self._class_count += truth.sum(0)
        self._update_bins(scores.flatten(), truth.flatten().double())

    def compute(self) -> dict[str, Any]:
        """Compute the metrics of all images added so far.

        Returns:
            In percent, at the threshold: the averages of :func:`class_averages`; ``subset_accuracy``, images whose
            classes are all right; ``hamming_loss``, wrong decisions among all of images and classes. ``loss``, the mean
            binary cross-entropy in nats; ``ece``, the expected calibration error of all scores in percent, and
            ``calibration``, its bins; ``count``, the number of images; ``per_class``, the rows of :func:`class_rows`.

        Raises:
            ValueError: If no image was added, or none has a class.
        """
        count, exact, loss = self._totals.tolist()
        if count == 0:
            raise ValueError(NO_IMAGES)
        if not self._class_count.any():
            raise ValueError(f"none of the {int(count)} evaluated images has a class; use images with labels")
        counts = [part.cpu().numpy() for part in (self._class_correct, self._class_predicted, self._class_count)]
        correct, predicted, positive = counts
        wrong = float((predicted + positive - 2 * correct).sum())
        return {
            **class_averages(*counts),
            "subset_accuracy": 100 * exact / count,
            "hamming_loss": 100 * wrong / (count * self.num_classes),
            "loss": loss / count,
            **self._calibration(),
            "count": int(count),
            "per_class": class_rows(*counts),
        }


def class_rows(correct: np.ndarray, predicted: np.ndarray, count: np.ndarray) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each class in percent.

    Args:
        correct: Images of each class that are predicted as it (K,).
        predicted: Images that are predicted as each class (K,).
        count: Images of each class (K,).

    Returns:
        ``{"class": class index, "count": images, "precision", "recall", "f1"}``. A metric without any image in its
        denominator is 0, as in torchmetrics and scikit-learn, and ``None`` for a class that is neither true nor
        predicted anywhere.
    """
    values = zip(*_scores(correct, predicted, count), strict=True)
    return [
        {"class": k, "count": int(count[k])}
        | dict(zip(("precision", "recall", "f1"), row if count[k] or predicted[k] else (None,) * 3, strict=True))
        for k, row in enumerate([tuple(map(float, row)) for row in values])
    ]


def class_averages(correct: np.ndarray, predicted: np.ndarray, count: np.ndarray) -> dict[str, float]:
    """Averages of :func:`class_rows`: ``precision_macro``, ``recall_macro``, ``f1_macro`` and so on.

    ``macro`` is the mean over the classes that are true or predicted anywhere, ``weighted`` weights each class with its
    images, and ``micro`` counts the decisions of all classes together.
    """
    scores = _scores(correct, predicted, count)
    micro = _scores(correct.sum(keepdims=True), predicted.sum(keepdims=True), count.sum(keepdims=True))
    occurs = (count + predicted) > 0
    averages: dict[str, float] = {}
    for name, values, total in zip(("precision", "recall", "f1"), scores, micro, strict=True):
        averages |= {
            f"{name}_macro": float(values[occurs].mean()),
            f"{name}_micro": float(total[0]),
            f"{name}_weighted": float(values @ count / count.sum()),
        }
    return averages


def _scores(correct: np.ndarray, predicted: np.ndarray, count: np.ndarray) -> list[np.ndarray]:
    """Precision, recall and F1 in percent; 0 where undefined."""
    pairs = (correct, predicted), (correct, count), (2 * correct, predicted + count)
    return [100 * np.divide(a, b, out=np.zeros(len(b)), where=b > 0) for a, b in pairs]
