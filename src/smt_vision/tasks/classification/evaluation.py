"""What an evaluation of a classifier accumulates, for images with one class each and for multi-label images."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..bootstrap import as_interval, bootstrap_generator, percentile_interval
from ..samples import top_rows, with_float64
from ..task import Batch
from .config import ClassifyConfig
from .metrics import ClassificationMetrics, MultiLabelMetrics
from .ranking import RankingMetrics

WORST = 25  # mistakes in the picture


class ClassificationMetric:
    """All metrics of a dataset, and the most confident mistakes; exact on any number of processes.

    Args:
        classes: Class names, in the order of class indices.
        device: Device of the accumulated state.
        config: What the outputs mean.
        images: Number of images to be evaluated on all processes.
        resamples: Resamples for the bootstrap interval of the primary metric; 0 for none.
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        device: torch.device,
        config: ClassifyConfig,
        images: int,
        resamples: int = 0,
    ) -> None:
        self.classes, self.config, self.resamples = classes, config, resamples
        self.sums: ClassificationMetrics | MultiLabelMetrics = (
            MultiLabelMetrics(len(classes), config.threshold, device)
            if config.multi_label
            else ClassificationMetrics(len(classes), device, config.top_k)
        )
        self.ranking = RankingMetrics(len(classes), images, config.multi_label, device)
        if resamples and config.multi_label and not self.ranking.is_exact:
            raise ValueError(
                f"the scores of {images} images x {len(classes)} classes are too many to keep, so that their mean "
                "average precision has no bootstrap interval; omit it, or evaluate fewer images"
            )
        # Rows of (score, image index, two columns of the mistake); unused rows are -1.
        self.worst = torch.full((WORST, 4), -1.0, dtype=torch.float64, device=with_float64(device))

    def update(self, output: Tensor, batch: Batch) -> None:
        """Add a batch: logits (B, K), ``target``, class indices (B,) or 0 and 1 of each class (B, K), and ``index``."""
        target, logits = batch["target"], output.float() / self.config.temperature
        self.sums.update(logits, target)
        scores = logits.sigmoid() if self.config.multi_label else logits.softmax(-1)
        self.ranking.update(logits, target, batch["index"])
        mistakes = self._wrong_classes(scores, target) if self.config.multi_label else _wrong(scores, target)
        columns = (mistakes[0], batch["index"], *mistakes[1:3])
        rows = torch.stack([column.to(self.worst.device, torch.float64) for column in columns], dim=-1)
        self.worst = top_rows(torch.cat([self.worst, rows[mistakes[3].to(rows.device)]]), WORST)

    def _wrong_classes(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Per image the most confident wrong decision: its confidence, the class, whether the image has it, and whether
        there is one."""
        truth = target > 0.5
        predicted = scores >= self.config.threshold
        confidence = torch.where(predicted, scores, 1 - scores).nan_to_num(0.0)
        highest, k = torch.where(predicted != truth, confidence, -1.0).max(-1)
        return highest, k, truth.gather(1, k[:, None])[:, 0], highest >= 0

    def reduce(self, all_reduce: Callable[[Tensor], Tensor], all_gather: Callable[[Tensor], Tensor]) -> None:
        self.sums.reduce(all_reduce)
        self.ranking.reduce(all_reduce, all_gather)
        self.worst = top_rows(all_gather(self.worst).reshape(-1, 4), WORST)

    def compute(self) -> dict[str, Any]:
        """The metrics of the sums and of the ranking; ``worst``, the mistakes; and ``interval`` if asked for."""
        out = self.sums.compute() | self.ranking.compute()
        if isinstance(out.get("confusion"), Tensor):
            out["confusion"] = out["confusion"].tolist()
        for row, name, ap, auroc in zip(out["per_class"], self.classes, out.pop("ap"), out.pop("auroc"), strict=True):
            row |= {"class": name, "ap": ap, "auroc": auroc}
        names = ("class", "present") if self.config.multi_label else ("target", "prediction")
        out["worst"] = [
            {"index": int(index), names[0]: int(first), names[1]: int(second), "score": score}
            for score, index, first, second in self.worst.tolist()
            if score >= 0
        ]
        if self.resamples:
            out["interval"] = self._interval(out)
        return out

    def _interval(self, out: dict[str, Any]) -> dict[str, Any]:
        if self.config.multi_label:
            return as_interval("map", self.ranking.map_interval(self.resamples), self.resamples)
        # Of correct and incorrect images, the numbers of correct ones in the resamples have a binomial distribution.
        drawn = bootstrap_generator().binomial(out["count"], min(out["top1"] / 100, 1.0), self.resamples)
        return as_interval("top1", percentile_interval(100 * np.asarray(drawn) / out["count"]), self.resamples)


def _wrong(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each image: the highest score, the true and the predicted class, and whether they differ."""
    score, prediction = scores.nan_to_num(0.0).max(-1)  # NaN would be sorted before every number
    return score, target, prediction, prediction != target
