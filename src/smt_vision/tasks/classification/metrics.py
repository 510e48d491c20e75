"""What evaluation counts: exact on any number of processes, because every state is a sum.

Shapes: B images, K classes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CALIBRATION_BINS = 15
CONFUSION_LIMIT = 1000  # classes; K x K counts of more would be of no use to a reader


class ClassificationMetrics:
    """Accuracy, loss and calibration of a classifier, from batches in any order and of any size.

    All state is one flat vector of sums, so that the states of two processes add up to the state over both their
    images: ``reduce`` needs one call of the all-reduce. float64 counts exactly up to 2**53 images.

    An image whose logits hold NaN is counted, and wrong: it makes the loss NaN, and is in no cell of the confusion
    matrix, because nothing was predicted.

    Args:
        num_classes: K.
        device: where the sums are kept; that of the logits, to evaluate without a copy to the host.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}: there must be at least 1")
        device = torch.device(device)
        if device.type == "mps":  # has no float64
            device = torch.device("cpu")
        self.num_classes = num_classes
        # a confidence of exactly 1.0 has a bin of its own, as in torchmetrics
        bins = CALIBRATION_BINS + 1
        cells = num_classes**2 if num_classes <= CONFUSION_LIMIT else 0
        sizes = [2, num_classes, num_classes, bins, bins, bins, cells]
        self._sums = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        parts = self._sums.split(sizes)  # views: what is added to a part is added to the sums
        self._totals, self._class_count, self._class_correct = parts[:3]  # totals: top-5 hits, loss
        self._bin_count, self._bin_correct, self._bin_confidence, self._confusion = parts[3:]
        self._edges = torch.linspace(0, 1, bins, device=device)

    @torch.no_grad()
    def update(self, logits: Tensor, target: Tensor) -> None:
        """Counts a batch.

        Args:
            logits: (B, K), of any floating type; taken as float32.
            target: (B,), the true classes, in [0, K).

        Raises:
            ValueError: the shapes are not (B, K) and (B,).
        """
        if logits.ndim != 2 or logits.shape[1] != self.num_classes or target.shape != logits.shape[:1]:
            raise ValueError(
                f"logits are {tuple(logits.shape)} and targets {tuple(target.shape)}: "
                f"expected (B, {self.num_classes}) and (B,)"
            )
        logits = logits.to(self._sums.device, torch.float32)
        target = target.to(self._sums.device, torch.int64)
        valid = ~logits.isnan().any(dim=1)  # masked by multiplying: indexing with it would wait for the GPU
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
        """The state: a flat float64 vector; those of two processes are added to get that of both."""
        return self._sums

    def reduce(self, all_reduce_sum: Callable[[Tensor], Tensor]) -> None:
        """Makes this the state over all processes; call it once, after the last batch.

        Args:
            all_reduce_sum: returns the sum of its argument over the processes.
        """
        self._sums.copy_(all_reduce_sum(self._sums.clone()))

    def compute(self) -> dict[str, Any]:
        """The metrics of all images counted so far.

        Returns:
            ``top1``, ``top5`` (the best K, where K < 5) and ``mean_class_accuracy`` (over classes with images) in
            percent; ``loss``, the mean cross-entropy in nats; ``ece``, the expected calibration error in percent (15
            bins of equal width, L1); ``count`` of images; ``per_class``, a list of ``{"class": index, "count": images,
            "accuracy": percent or None}``; ``confusion``, (K, K) int64 counts with true classes as rows, or ``None``
            above 1000 classes.

        Raises:
            ValueError: no image was counted.
        """
        count = int(self._class_count.sum())
        if count == 0:
            raise ValueError("no image was evaluated: the evaluation set, or this process's share of it, is empty")
        top5, loss = (self._totals / count).tolist()
        accuracy = 100 * self._class_correct / self._class_count  # NaN for a class without images
        gaps = (self._bin_correct - self._bin_confidence).abs()  # count * |accuracy - confidence| of each bin
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
