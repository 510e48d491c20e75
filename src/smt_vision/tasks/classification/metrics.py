"""Classification metrics, exact on any number of processes because all state is sums.

Shapes: B images, K classes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CALIBRATION_BINS = 15
CONFUSION_LIMIT = 1000  # classes; a larger K x K matrix would not be readable


class ClassificationMetrics:
    """Accuracy, loss and calibration of a classifier, accumulated over batches of any order and size.

    All state is one flat vector of sums, so the states of several processes are combined with a single all-reduce.
    float64 counts exactly up to 2**53 images.

    An image with NaN logits counts as incorrect. It makes the loss NaN and is not in the confusion matrix, because
    there is no prediction.

    Args:
        num_classes: Number of classes K.
        device: Device of the sums. With the device of the logits, evaluation needs no copy to the host.

    Raises:
        ValueError: If ``num_classes`` is less than 1.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        if num_classes < 1:
            raise ValueError(f"invalid num_classes={num_classes}: expected at least 1")
        device = torch.device(device)
        if device.type == "mps":  # does not support float64
            device = torch.device("cpu")
        self.num_classes = num_classes
        # A confidence of exactly 1.0 has its own bin, as in torchmetrics.
        bins = CALIBRATION_BINS + 1
        cells = num_classes**2 if num_classes <= CONFUSION_LIMIT else 0
        sizes = [2, num_classes, num_classes, bins, bins, bins, cells]
        self._sums = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        parts = self._sums.split(sizes)  # views of the sums, updated in-place
        self._totals, self._class_count, self._class_correct = parts[:3]  # totals: top-5 hits, loss
        self._bin_count, self._bin_correct, self._bin_confidence, self._confusion = parts[3:]
        self._edges = torch.linspace(0, 1, bins, device=device)

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
        ranked = logits.topk(min(5, self.num_classes), dim=1).indices  # ties as in timm.utils.accuracy
        hits = ranked.eq(target[:, None]) & valid[:, None]  # (B, 5)
        prediction, correct = ranked[:, 0], hits[:, 0].double()
        log_probability = logits.log_softmax(dim=1)
        loss = -log_probability.gather(1, target[:, None])[:, 0]
        confidence = logits.softmax(dim=1).amax(dim=1).nan_to_num(0.0)
        bins = torch.bucketize(confidence, self._edges, right=True) - 1

        ones = torch.ones_like(correct)
        self._totals += torch.stack([hits.any(dim=1).sum(dtype=torch.float64), loss.sum(dtype=torch.float64)])
        self._class_count.index_add_(0, target, ones)
        self._class_correct.index_add_(0, target, correct)
        self._bin_count.index_add_(0, bins, ones)
        self._bin_correct.index_add_(0, bins, correct)
        self._bin_confidence.index_add_(0, bins, confidence.double())
        if len(self._confusion):
            self._confusion.index_add_(0, target * self.num_classes + prediction, valid.double())

    def sums(self) -> Tensor:
        """State as a flat float64 vector; the states of several processes are combined by adding them."""
        return self._sums

    def reduce(self, all_reduce_sum: Callable[[Tensor], Tensor]) -> None:
        """Combine the states of all processes; to be called once, after the last batch.

        Args:
            all_reduce_sum: Function that returns the sum of a tensor over all processes.
        """
        self._sums.copy_(all_reduce_sum(self._sums.clone()))

    def compute(self) -> dict[str, Any]:
        """Compute the metrics of all images added so far.

        Returns:
            ``top1``, ``top5`` (top-K if K < 5) and ``mean_class_accuracy`` (over classes with images) in percent;
            ``loss``, the mean cross-entropy in nats; ``ece``, the expected calibration error in percent (15 bins of
            equal width, L1); ``count``, the number of images; ``per_class``, a list of ``{"class": class index,
            "count": number of images, "accuracy": percent or None}``; ``confusion``, (K, K) int64 counts with true
            classes as rows, or ``None`` above 1000 classes.

        Raises:
            ValueError: If no image was added.
        """
        count = int(self._class_count.sum())
        if count == 0:
            raise ValueError("no image was evaluated: the validation set, or this rank's part of it, is empty")
        top5, loss = (self._totals / count).tolist()
        accuracy = 100 * self._class_correct / self._class_count  # NaN for a class without images
        gaps = (self._bin_correct - self._bin_confidence).abs()  # per bin: count * |accuracy - confidence|
        k = self.num_classes
        return {
            "top1": 100 * float(self._class_correct.sum()) / count,
            "top5": 100 * top5,
            "loss": loss,
            "ece": 100 * float(gaps.sum()) / count,
            "mean_class_accuracy": float(accuracy.nanmean()),
            "count": count,
            "per_class": [
                {"class": index, "count": int(images), "accuracy": percent if images else None}
                for index, (images, percent) in enumerate(
                    zip(self._class_count.tolist(), accuracy.tolist(), strict=True)
                )
            ],
            "confusion": self._confusion.view(k, k).to("cpu", torch.int64) if len(self._confusion) else None,
        }
