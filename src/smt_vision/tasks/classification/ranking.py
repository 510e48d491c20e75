"""Metrics of how well scores rank the images of each class before all others: average precision, AUROC, their curves.

Shapes: B images per batch, N images in all, K classes.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..bootstrap import percentile_interval, resampled_counts
from ..samples import gather_rows, with_float64

SCORES_LIMIT = 1 << 26  # N x K scores that are kept, 256 MB; more are counted at thresholds
THRESHOLDS = 200  # evenly spaced in the logit of the score, where those of many classes differ
MAX_LOGIT = 16.0
CHUNK = 1 << 24  # comparisons of scores with thresholds at a time, which limits the memory
CURVES = 10  # classes of which the curves are returned: those with the lowest average precision
GRID = np.linspace(0, 1, 101)  # recalls and false positive rates of the curves


class RankingMetrics:
    """Average precision and AUROC of each class against the rest, by torchmetrics; exact on any number of processes.

    Up to 2**26 scores (N x K) are kept and ranked exactly. Of more, the numbers of scores above 200 thresholds are
    counted instead, which approximates the metrics.

    Args:
        num_classes: Number of classes K.
        images: Number of images to be evaluated on all processes, N.
        multi_label: Whether an image may have any number of classes.
        device: Device of the state.
    """

    def __init__(self, num_classes: int, images: int, multi_label: bool, device: torch.device | str = "cpu") -> None:
        self.num_classes, self.multi_label, self.device = num_classes, multi_label, with_float64(device)
        self.is_exact = images * num_classes <= SCORES_LIMIT
        # In the memory of the host, which has more of it than a GPU that trains.
        self._index = [torch.zeros(0, dtype=torch.int64)]
        self._scores = [torch.zeros(0, num_classes)]
        self._target = [
            torch.zeros(0, num_classes, dtype=torch.uint8) if multi_label else torch.zeros(0, dtype=torch.int32)
        ]
        if not self.is_exact:
            # Imported here: predictions do not need it, and it is slow to import.
            from torchmetrics.classification import MulticlassROC, MultilabelROC

            inner = torch.linspace(-MAX_LOGIT, MAX_LOGIT, THRESHOLDS - 2).sigmoid()
            # All scores are above the first threshold, none is above the last one.
            thresholds = torch.cat([torch.zeros(1), inner, torch.tensor([1.1])])
            metric: Any = MultilabelROC if multi_label else MulticlassROC
            self._roc = metric(num_classes, thresholds=thresholds, validate_args=False).to(self.device)

    @torch.no_grad()
    def update(self, logits: Tensor, target: Tensor, index: Tensor) -> None:
        """Add a batch.

        Args:
            logits: Logits (B, K); NaN ranks last.
            target: Class indices (B,); for multi-label classification, (B, K) with 1 for the classes of an image.
            index: Image indices (B,) in the dataset.
        """
        # In float64: in float32, the scores of equal logits may differ by their place in the batch.
        logits = logits.to(self.device, torch.float64)
        if self.is_exact:
            # In the order of the scores, which would be rounded to 1 where a model is confident.
            keys = logits if self.multi_label else _log_odds(logits)
            self._index.append(index.to("cpu", torch.int64))
            self._scores.append(keys.float().nan_to_num(-torch.inf, torch.inf, -torch.inf).cpu())
            self._target.append(target.to("cpu", self._target[0].dtype))
            return
        scores = (logits.sigmoid() if self.multi_label else logits.softmax(-1)).float().nan_to_num(0.0)
        rows = max(1, CHUNK // (self.num_classes * THRESHOLDS)) if self.multi_label else len(scores)
        for part, truth in zip(scores.split(rows), target.to(self.device, torch.int64).split(rows), strict=True):
            self._roc.update(part, truth)

    def reduce(self, all_reduce_sum: Callable[[Tensor], Tensor], all_gather: Callable[[Tensor], Tensor]) -> None:
        """Combine the state of all processes; call it once, after the last batch."""
        if not self.is_exact:
            self._roc.confmat = all_reduce_sum(self._roc.confmat.clone())
            return
        index, scores, target = (
            gather_rows(torch.cat(parts).to(self.device), all_gather).cpu()
            for parts in (self._index, self._scores, self._target)
        )
        order = index.argsort()  # so that nothing depends on the number of processes
        self._index, self._scores, self._target = [index[order]], [scores[order]], [target[order]]

    def compute(self) -> dict[str, Any]:
        """The metrics of all images added so far.

        Returns:
            ``ap`` and ``auroc``, K values in percent, or ``None`` where undefined: AP needs images of the class, AUROC
            also others; ``map`` and ``auroc_macro``, their means over the classes that have them. ``score_thresholds``:
            number of thresholds, or ``None`` for exact metrics. ``curves``: ``grid``, 101 numbers from 0 to 1; and for
            the mean over classes (``macro``) and the ten classes with the lowest AP (``classes``, with their index as
            ``class``) the ``precision`` at each recall of the grid and the true positive rate (``tpr``) at each false
            positive rate.
        """
        positives, negatives = self._counts()
        ap: list[float | None] = []
        auroc: list[float | None] = []
        precisions, rates = {}, {}
        for k, (n_pos, n_neg, (fpr, tpr)) in enumerate(zip(positives, negatives, self._rates(), strict=True)):
            area = float(torch.trapezoid(tpr.double(), fpr.double()))
            x, y = fpr.double().cpu().numpy(), tpr.double().cpu().numpy()
            tp, predicted = n_pos * y, n_pos * y + n_neg * x
            ap.append(100 * float(average_precision(tp, predicted)) if n_pos else None)
            auroc.append(100 * area if n_pos and n_neg else None)
            if n_pos and n_neg:
                at = np.searchsorted(y, (GRID - 1e-6).clip(1e-9))  # the first threshold with this recall, above 0
                precisions[k] = tp[at] / predicted[at]
                rates[k] = np.interp(GRID, x, y)
        shown = sorted(precisions, key=lambda k: (ap[k], k))[:CURVES]
        curve: dict[str, Any] = {"classes": [{"class": k, **_curve(precisions[k], rates[k])} for k in sorted(shown)]}
        if precisions:
            means = (np.mean(list(values.values()), axis=0) for values in (precisions, rates))
            curve |= {"grid": _rounded(GRID), "macro": _curve(*means)}
        return {
            "map": _mean(ap),
            "auroc_macro": _mean(auroc),
            "ap": ap,
            "auroc": auroc,
            "score_thresholds": None if self.is_exact else THRESHOLDS,
            "curves": curve if precisions else None,
        }

    def map_interval(self, resamples: int) -> tuple[float, float]:
        """Bootstrap interval of ``map``, by resampling the images.

        The scores must have been kept, see ``is_exact``.
        """
        scores, target = (torch.cat(parts).numpy() for parts in (self._scores, self._target))
        order = np.argsort(-scores, axis=0, kind="stable")
        found = []
        for weights in resampled_counts(len(scores), resamples):  # (R, N)
            by_class = []
            for k in np.flatnonzero(target.any(axis=0)):
                ranked = weights[:, order[:, k]]
                ranked_scores = scores[order[:, k], k]
                ends = np.flatnonzero(np.append(ranked_scores[1:] != ranked_scores[:-1], True))  # tied scores are one
                tp = np.cumsum(ranked * target[order[:, k], k], axis=1)[:, ends]
                by_class.append(average_precision(tp, np.cumsum(ranked, axis=1)[:, ends]))
            found.append(np.nanmean(by_class, axis=0))
        return percentile_interval(100 * np.concatenate(found))

    def _rates(self) -> Iterator[tuple[Tensor, Tensor]]:
        """False and true positive rates of each class, from the highest threshold to the lowest."""
        from torchmetrics.functional.classification import binary_roc

        if not self.is_exact:
            fpr, tpr, _ = self._roc.compute()
            yield from zip(fpr, tpr, strict=True)
            return
        scores, target = torch.cat(self._scores), torch.cat(self._target)
        for k in range(self.num_classes):
            truth = target[:, k] if self.multi_label else (target == k).int()
            if int(truth.sum()) in (0, len(truth)):  # torchmetrics warns: one of the rates is undefined
                yield torch.tensor([0.0, 0.0]), torch.tensor([0.0, 1.0])
            else:
                rank = scores[:, k].unique(return_inverse=True)[1].double()  # in [0, 1], as torchmetrics needs it
                yield binary_roc(rank / len(rank), truth, validate_args=False)[:2]

    def _counts(self) -> tuple[list[int], list[int]]:
        """Images with and without each class."""
        if not self.is_exact:
            confmat = self._roc.confmat[0].sum(-1)  # (K, 2): by target
            return confmat[:, 1].tolist(), confmat[:, 0].tolist()
        target = torch.cat(self._target)
        positives = (
            target.sum(0, dtype=torch.int64) if self.multi_label else target.bincount(minlength=self.num_classes)
        )
        return positives.tolist(), (len(target) - positives).tolist()


def _log_odds(logits: Tensor) -> Tensor:
    """``log(p / (1 - p))`` of the softmax scores p (B, K), also where p is rounded to 1."""
    log_p = logits.log_softmax(-1)
    odds = log_p - torch.log1p(-log_p.exp())
    top = logits.argmax(-1, keepdim=True)
    others = logits.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True)
    return odds.scatter(-1, top, logits.gather(-1, top) - others)


def average_precision(tp: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Average precision: the precision at each threshold, weighted by the increase in recall.

    Args:
        tp: True positives at each threshold, from the highest to the lowest (last dimension).
        predicted: Predicted positives.

    Returns:
        AP in [0, 1], of all other dimensions; NaN without positives.
    """
    precision = tp / np.maximum(predicted, 1e-9)
    found = np.sum(np.diff(tp, axis=-1, prepend=0) * precision, axis=-1)
    return np.divide(found, tp[..., -1], out=np.full_like(found, np.nan, dtype=np.float64), where=tp[..., -1] > 0)


def _curve(precision: np.ndarray, rate: np.ndarray) -> dict[str, list[float]]:
    return {"precision": _rounded(precision), "tpr": _rounded(rate)}


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
