"""Temperature scaling (Guo et al., ICML 2017): one number that divides the logits, so that scores are calibrated.

Shapes: N images, K classes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..samples import gather_rows, with_float64
from ..task import Batch
from .config import TEMPERATURES, ClassifyConfig
from .metrics import ClassificationMetrics, MultiLabelMetrics
from .task import ClassificationEvaluation

LOGITS_LIMIT = 1 << 27  # N x K logits that are kept, 512 MB
STEPS = 60  # of the bisection, which halves the interval each time
CHUNK = 1 << 22  # logits at a time, which limits the memory


class CalibrationEvaluation(ClassificationEvaluation):
    """An evaluation whose metric fits the temperature; see :class:`CalibrationMetric`.

    Args:
        evaluation: The images and what the outputs mean.

    Raises:
        ValueError: There are too many images to keep their logits.
    """

    def __init__(self, evaluation: ClassificationEvaluation) -> None:
        super().__init__(evaluation.classes, evaluation.val_set, evaluation.config)
        images, k = len(self.val_set), len(self.classes)
        if images * k > LOGITS_LIMIT:
            raise ValueError(
                f"{self.val_set.where}: {images} images of a model with {k} classes; expected at most "
                f"{LOGITS_LIMIT // k} to fit a temperature on, so choose fewer images (--data)"
            )

    def metric(self, device: torch.device, resamples: int = 0) -> "CalibrationMetric":  # type: ignore[override]
        return CalibrationMetric(len(self.classes), self.config, device)


class CalibrationMetric:
    """The temperature with the lowest loss on a dataset, and the metrics before and after.

    Args:
        num_classes: Number of classes K.
        config: What the outputs mean, with the temperature before.
        device: Device of the logits that are kept.
    """

    def __init__(self, num_classes: int, config: ClassifyConfig, device: torch.device) -> None:
        self.num_classes, self.config, self.device = num_classes, config, with_float64(device)
        shape = (0, num_classes) if config.multi_label else (0,)
        self._index = [torch.zeros(0, dtype=torch.int64, device=self.device)]
        self._logits = [torch.zeros(0, num_classes, device=self.device)]
        self._target = [torch.zeros(shape, dtype=torch.int64, device=self.device)]

    def update(self, output: Tensor, batch: Batch) -> None:
        """Add a batch: logits (B, K), ``target`` and ``index``; see :class:`.evaluation.ClassificationMetric`."""
        self._index.append(batch["index"].to(self.device, torch.int64))
        self._logits.append(output.to(self.device, torch.float32))
        self._target.append(batch["target"].to(self.device, torch.int64))

    def reduce(self, all_reduce: Callable[[Tensor], Tensor], all_gather: Callable[[Tensor], Tensor]) -> None:
        parts = self._index, self._logits, self._target
        index, logits, target = (gather_rows(torch.cat(part), all_gather) for part in parts)
        order = index.argsort()  # so that nothing depends on the number of processes
        self._index, self._logits, self._target = [index[order]], [logits[order]], [target[order]]

    def compute(self) -> dict[str, Any]:
        """``temperature``; ``before`` and ``after``, the ``loss`` in nats, ``ece`` in percent and, unless images have
        several labels, ``top1`` in percent; and ``count``, the number of images."""
        logits, target = torch.cat(self._logits), torch.cat(self._target)
        temperature = fit_temperature(logits, target)
        before, after = (self._measure(logits / t, target) for t in (self.config.temperature, temperature))
        return {"temperature": temperature, "before": before, "after": after, "count": len(logits)}

    def _measure(self, logits: Tensor, target: Tensor) -> dict[str, float]:
        metrics: Any = (
            MultiLabelMetrics(self.num_classes, self.config.threshold, self.device)
            if self.config.multi_label
            else ClassificationMetrics(self.num_classes, self.device)
        )
        metrics.update(logits, target)
        found = metrics.compute()
        return {name: found[name] for name in ("top1", "loss", "ece") if name in found}


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """The temperature with the lowest cross-entropy, by bisection: the loss is convex in the inverse temperature.

    Args:
        logits: Logits (N, K).
        target: Class indices (N,); for multi-label classification, 0 and 1 (N, K), whose scores are sigmoids.

    Raises:
        ValueError: A logit is not finite, or no temperature from 0.01 to 100 has the lowest loss.
    """
    if not logits.isfinite().all():
        raise ValueError("the model's outputs are not finite numbers for some images; a temperature cannot be fitted")
    lowest, highest = (1 / t for t in TEMPERATURES[::-1])
    count = len(logits)
    if _slope(logits, target, highest) <= 0:
        raise ValueError(
            f"no temperature fits: too few of the {count} images are classified incorrectly, so that any increase in "
            "confidence decreases the loss; use more images (--data)"
        )
    if _slope(logits, target, lowest) >= 0:
        raise ValueError(
            f"no temperature fits: on the {count} images, the model is not better than chance; train it first, or use "
            "images of its classes (--data)"
        )
    for _ in range(STEPS):
        middle = (lowest * highest) ** 0.5
        if _slope(logits, target, middle) > 0:
            highest = middle
        else:
            lowest = middle
    return 1 / (lowest * highest) ** 0.5


def _slope(logits: Tensor, target: Tensor, beta: float) -> float:
    """Derivative of the summed loss with respect to the inverse temperature, which increases with it."""
    total = 0.0
    rows = max(1, CHUNK // logits.shape[1])
    for z, y in zip(logits.split(rows), target.split(rows), strict=True):
        z = z.double()
        if y.ndim == 2:
            total += float((((beta * z).sigmoid() - y) * z).sum())
        else:
            total += float(((beta * z).softmax(-1) * z).sum() - z.gather(1, y[:, None]).sum())
    return total
