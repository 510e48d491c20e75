"""What segmentation counts: exact on any number of processes, because every state is a sum.

Shapes: K classes, H x W pixels of an image.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...extras import require
from .config import IGNORE_INDEX

AllReduce = Callable[[Tensor], Tensor]


class SegmentationMetrics:
    """IoU and accuracy of label maps, over the pixels of all images at once.

    Args:
        num_classes: K.
        device: where the sums are kept.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        # (K * K + 1,): pixels by true and predicted class, then images; float64 counts exactly up to 2**53
        self._sums = torch.zeros(num_classes**2 + 1, dtype=torch.float64, device=_with_float64(device))

    def update(self, prediction: Tensor, label: Tensor) -> float:
        """Counts an image.

        Args:
            prediction: (H, W), classes in [0, K).
            label: (H, W), classes in [0, K), or 255 where nothing counts.

        Returns:
            The share of the counted pixels that are wrong; 0 where none counts.

        Raises:
            ValueError: the shapes differ, or a label is neither a class nor 255.
        """
        _check_shapes(prediction, label)
        label = label.to(prediction.device, torch.long)
        counted = label != IGNORE_INDEX
        k = self.num_classes
        pairs = label[counted] * k + prediction[counted]
        if len(pairs) and not (pairs.min() >= 0 and pairs.max() < k * k):
            wrong = sorted(set(label[counted].unique().tolist()) - set(range(k)))
            raise ValueError(
                f"labels {wrong[:5]} are no classes: expected 0 to {k - 1}, or {IGNORE_INDEX} to leave out"
            )
        counts = pairs.bincount(minlength=k * k)
        self._sums[:-1] += counts.to(self._sums)
        self._sums[-1] += 1
        return 1 - float(counts[:: k + 1].sum()) / len(pairs) if len(pairs) else 0.0

    def reduce(self, all_reduce_sum: AllReduce) -> None:
        """Makes this the state over all processes; call it once, after the last image."""
        self._sums.copy_(all_reduce_sum(self._sums.clone()))

    def compute(self) -> dict[str, Any]:
        """The metrics of all images counted so far.

        Returns:
            In percent: ``miou``, over classes that are in the labels or the predictions; ``pixel_accuracy``;
            ``mean_class_accuracy``, over classes in the labels. ``count`` of images. ``per_class``, a list of
            ``{"class": index, "pixels": labelled so, "iou": percent or None, "accuracy": percent or None}``.
            ``confusion``, (K, K) int64 counts of pixels with true classes as rows.

        Raises:
            ValueError: no pixel was counted.
        """
        confusion = self._sums[:-1].view(self.num_classes, -1).cpu()
        pixels, predicted, right = confusion.sum(dim=1), confusion.sum(dim=0), confusion.diagonal()
        if not pixels.any():
            raise ValueError("no pixel was evaluated: the evaluation set, or this process's share of it, has no labels")
        iou = 100 * right / (pixels + predicted - right)  # NaN for a class in neither
        accuracy = 100 * right / pixels
        rows = zip(pixels.tolist(), iou.tolist(), accuracy.tolist(), strict=True)
        return {
            "miou": float(iou.nanmean()),
            "pixel_accuracy": 100 * float(right.sum() / pixels.sum()),
            "mean_class_accuracy": float(accuracy.nanmean()),
            "count": int(self._sums[-1]),
            "per_class": [
                {"class": i, "pixels": int(n), "iou": _or_none(share), "accuracy": _or_none(found)}
                for i, (n, share, found) in enumerate(rows)
            ],
            "confusion": confusion.long(),
        }


class BinaryMetrics:
    """How well maps of objects fit their masks: each measured by image, then averaged.

    Measured by PySODMetrics as for the published tables: maps have 256 levels, and each is stretched to reach from 0
    to 1.

    Args:
        device: where the sums are kept.

    Raises:
        ImportError: PySODMetrics is not installed.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._library = require("py_sod_metrics", "segment")
        # mean absolute error, weighted F, S-measure; images
        self._sums = torch.zeros(4, dtype=torch.float64, device=_with_float64(device))

    def update(self, probability: Tensor, label: Tensor) -> float:
        """Measures an image.

        Args:
            probability: (H, W), that a pixel is of an object, in [0, 1].
            label: (H, W), 1 on objects; 255, as 0, is none.

        Returns:
            The image's mean absolute error, in [0, 1].

        Raises:
            ValueError: the shapes differ.
        """
        _check_shapes(probability, label)
        levels = (255 * probability.float()).round().to("cpu", torch.uint8).numpy()
        mask = (255 * (label == 1)).to("cpu", torch.uint8).numpy()
        error, weighted_f, structure = self._library.MAE(), self._library.WeightedFmeasure(), self._library.Smeasure()
        for measure in (error, weighted_f, structure):
            measure.step(pred=levels, gt=mask)
        values = [
            float(error.get_results()["mae"]),
            float(weighted_f.get_results()["wfm"]),
            float(structure.get_results()["sm"]),
        ]
        self._sums += torch.tensor([*values, 1.0], dtype=torch.float64).to(self._sums)
        return values[0]

    def reduce(self, all_reduce_sum: AllReduce) -> None:
        """Makes this the state over all processes; call it once, after the last image."""
        self._sums.copy_(all_reduce_sum(self._sums.clone()))

    def compute(self) -> dict[str, Any]:
        """``s_measure`` (Fan et al., ICCV 2017), ``weighted_f`` (Margolin et al., CVPR 2014) and ``mae``, in percent
        (lower is better for ``mae`` alone), and ``count`` of images.

        Raises:
            ValueError: no image was measured.
        """
        *sums, count = self._sums.tolist()
        if count == 0:
            raise ValueError("no image was evaluated: the evaluation set, or this process's share of it, is empty")
        mae, weighted_f, structure = (100 * value / count for value in sums)
        return {"s_measure": structure, "weighted_f": weighted_f, "mae": mae, "count": int(count)}


def _check_shapes(prediction: Tensor, label: Tensor) -> None:
    if prediction.ndim != 2 or prediction.shape != label.shape:
        raise ValueError(
            f"the prediction is {tuple(prediction.shape)} and the label {tuple(label.shape)}: expected (H, W) of both, "
            "at the image's original size"
        )


def _with_float64(device: torch.device | str) -> torch.device:
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device  # which has none


def _or_none(value: float) -> float | None:
    return None if value != value else value
