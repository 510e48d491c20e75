"""Segmentation metrics. Every state is a sum, so results are exact for any number of processes.

Shapes: K classes, images of H x W pixels.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...extras import require
from ..samples import with_float64
from .config import IGNORE_INDEX

BINARY_METRICS = {  # by name: how it is displayed
    "s_measure": "S-measure",
    "weighted_f": "weighted F",
    "mean_e": "mean E",
    "max_e": "max E",
    "adaptive_e": "adaptive E",
    "mean_f": "mean F",
    "max_f": "max F",
    "adaptive_f": "adaptive F",
    "mae": "MAE",
}
MEANS = ("mae", "weighted_f", "s_measure", "adaptive_e", "adaptive_f")  # metrics that are means over images
CURVES = ("e", "f", "precision", "recall")  # by threshold, averaged over images
LEVELS = 256  # thresholds
PIXELS = 1 << 22  # counted at a time, which limits the memory
AllReduce = Callable[[Tensor], Tensor]


class SegmentationMetrics:
    """IoU and accuracy of label maps, computed over the pixels of all images.

    Args:
        num_classes: Number of classes K.
        device: Device of the sums.

    Attributes:
        image_values: Of the image that was added last, what :meth:`primary_metric` needs: the pixels of each class in
            the intersection of label and prediction, and in their union (2 K,).
    """

    image_values: Tensor

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        # (K * K + 1,): pixels by true and predicted class, then number of images; float64 is exact up to 2**53.
        self._sums = torch.zeros(num_classes**2 + 1, dtype=torch.float64, device=with_float64(device))

    def update(self, prediction: Tensor, label: Tensor) -> float:
        """Add an image.

        Args:
            prediction: ``(H, W)`` class indices.
            label: ``(H, W)`` class indices, or 255 for ignored pixels.

        Returns:
            Fraction of the labeled pixels that are wrong; 0 if no pixel is labeled.

        Raises:
            ValueError: The shapes differ, or a label is neither a class index nor 255.
        """
        _check_shapes(prediction, label)
        rows = max(1, PIXELS // label.shape[1])
        parts = zip(prediction.split(rows), label.split(rows), strict=True)
        counts = torch.stack([self._count(*part) for part in parts]).sum(0)
        self._sums[:-1] += counts.to(self._sums)
        self._sums[-1] += 1
        matrix = counts.view(self.num_classes, -1).double().cpu()
        correct = matrix.diagonal()
        self.image_values = torch.cat([correct, matrix.sum(0) + matrix.sum(1) - correct])
        total = int(counts.sum())
        return 1 - float(counts[:: self.num_classes + 1].sum()) / total if total else 0.0

    def _count(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Pixels (K * K,) by true and predicted class."""
        label = label.to(prediction.device, torch.long)
        counted = label != IGNORE_INDEX
        k = self.num_classes
        pairs = label[counted] * k + prediction[counted]
        if len(pairs) and not (pairs.min() >= 0 and pairs.max() < k * k):
            invalid = sorted(set(label[counted].unique().tolist()) - set(range(k)))
            raise ValueError(
                f"invalid labels {invalid[:5]}: expected 0 to {k - 1}, or {IGNORE_INDEX} for ignored pixels"
            )
        return pairs.bincount(minlength=k * k)

    @staticmethod
    def primary_metric(values: np.ndarray, images: int) -> np.ndarray:
        """mIoU (R,) in percent from sums of ``image_values`` (R, 2 K), over the classes that occur."""
        intersection, union = np.split(values, 2, axis=1)
        iou = np.divide(intersection, union, out=np.full_like(union, np.nan), where=union > 0)
        return 100 * np.nanmean(iou, axis=1)

    def reduce(self, all_reduce_sum: AllReduce) -> None:
        """Sum the state over all processes; call it once, after the last image."""
        self._sums.copy_(all_reduce_sum(self._sums.clone()))

    def compute(self) -> dict[str, Any]:
        """The metrics of all images added so far.

        Returns:
            In percent: ``miou``, over classes that occur in labels or predictions; ``pixel_accuracy``;
            ``mean_class_accuracy``, over classes that occur in labels. ``count``: number of images. ``per_class``: a
            list of ``{"class": index, "pixels": labeled pixels, "iou": percent or None, "accuracy": percent or None}``.
            ``confusion``: ``(K, K)`` int64 pixel counts, one row per true class.

        Raises:
            ValueError: No labeled pixel was added.
        """
        confusion = self._sums[:-1].view(self.num_classes, -1).cpu()
        pixels, predicted, correct = confusion.sum(dim=1), confusion.sum(dim=0), confusion.diagonal()
        if not pixels.any():
            raise ValueError("no pixel was evaluated: the validation set, or this process's part of it, has no labels")
        iou = 100 * correct / (pixels + predicted - correct)  # NaN for a class in neither labels nor predictions
        accuracy = 100 * correct / pixels
        rows = zip(pixels.tolist(), iou.tolist(), accuracy.tolist(), strict=True)
        return {
            "miou": float(iou.nanmean()),
            "pixel_accuracy": 100 * float(correct.sum() / pixels.sum()),
            "mean_class_accuracy": float(accuracy.nanmean()),
            "count": int(self._sums[-1]),
            "per_class": [
                {"class": i, "pixels": int(n), "iou": _nan_to_none(class_iou), "accuracy": _nan_to_none(class_accuracy)}
                for i, (n, class_iou, class_accuracy) in enumerate(rows)
            ],
            "confusion": confusion.long(),
        }


class BinaryMetrics:
    """Metrics of salient and camouflaged objects, computed per image and averaged.

    They are computed by PySODMetrics as in the published tables: probability maps are quantized to 256 levels, and
    each is rescaled to span 0 to 1.

    Args:
        device: Device of the sums.

    Attributes:
        image_values: S-measure of the image that was added last (1,).

    Raises:
        ImportError: PySODMetrics is not installed.
    """

    image_values: Tensor

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._library = require("py_sod_metrics", "segment")
        # Sums of MEANS and of the CURVES at LEVELS thresholds, then number of images.
        length = len(MEANS) + len(CURVES) * LEVELS + 1
        self._sums = torch.zeros(length, dtype=torch.float64, device=with_float64(device))

    def update(self, probability: Tensor, label: Tensor) -> float:
        """Add an image.

        Args:
            probability: ``(H, W)`` object probabilities in [0, 1].
            label: ``(H, W)``, 1 for objects; both 0 and 255 count as background.

        Returns:
            Mean absolute error of the image in [0, 1].

        Raises:
            ValueError: The shapes differ.
        """
        _check_shapes(probability, label)
        levels = (255 * probability.float()).round().to("cpu", torch.uint8).numpy()
        mask = (255 * (label == 1)).to("cpu", torch.uint8).numpy()
        library = self._library
        handlers = {
            "f": library.FmeasureHandler(with_dynamic=True, with_adaptive=True),
            "precision": library.PrecisionHandler(with_dynamic=True, with_adaptive=False),
            "recall": library.RecallHandler(with_dynamic=True, with_adaptive=False),
        }
        metrics = (
            library.MAE(),
            library.WeightedFmeasure(),
            library.Smeasure(),
            library.Emeasure(),
            library.FmeasureV2(handlers),
        )
        for metric in metrics:
            metric.step(pred=levels, gt=mask)
        found = {name: value for metric in metrics for name, value in metric.get_results().items()}
        e, f = found["em"], found["f"]
        means = (found["mae"], found["wfm"], found["sm"], e["adp"], f["adaptive"])
        curves = [e["curve"], *(found[name]["dynamic"] for name in CURVES[1:])]
        sums = np.concatenate([means, *curves, [1.0]])
        self._sums += torch.from_numpy(sums).to(self._sums)
        self.image_values = torch.tensor([float(found["sm"])], dtype=torch.float64)
        return float(found["mae"])

    @staticmethod
    def primary_metric(values: np.ndarray, images: int) -> np.ndarray:
        """Mean S-measure (R,) in percent from sums of ``image_values`` (R, 1) over as many images."""
        return 100 * values[:, 0] / images

    def reduce(self, all_reduce_sum: AllReduce) -> None:
        """Sum the state over all processes; call it once, after the last image."""
        self._sums.copy_(all_reduce_sum(self._sums.clone()))

    def compute(self) -> dict[str, Any]:
        """The metrics of all images added so far.

        Returns:
            In percent: ``s_measure`` (Fan et al., ICCV 2017), ``weighted_f`` (Margolin et al., CVPR 2014), E-measure
            (Fan et al., IJCAI 2018) as ``mean_e``, ``max_e`` and ``adaptive_e``, F-measure with a squared beta of 0.3
            (Achanta et al., CVPR 2009) as ``mean_f``, ``max_f`` and ``adaptive_f``, and ``mae``, of which only ``mae``
            is better if lower. E and F are averaged over the images per threshold; ``mean`` and ``max`` are over the
            256 thresholds, ``adaptive`` uses twice the mean of each probability map. ``count``: number of images.
            ``curves``: ``e``, ``f``, ``precision`` and ``recall``, as fractions, at thresholds of 0, 1/255, ... 1.

        Raises:
            ValueError: No image was added.
        """
        count = int(self._sums[-1])
        if count == 0:
            raise ValueError("no image was evaluated: the validation set, or this process's part of it, is empty")
        averages = 100 * self._sums[:-1].cpu() / count
        found = dict(zip(MEANS, averages.tolist(), strict=False))
        by_threshold = dict(zip(CURVES, averages[len(MEANS) :].view(-1, LEVELS), strict=True))
        for name in ("e", "f"):
            curve = by_threshold[name]
            found |= {f"mean_{name}": float(curve.mean()), f"max_{name}": float(curve.max())}
        # The library begins with the highest threshold.
        curves = {name: (curve.flip(0) / 100).numpy().round(4).tolist() for name, curve in by_threshold.items()}
        return {**{name: found[name] for name in BINARY_METRICS}, "count": count, "curves": curves}


def _check_shapes(prediction: Tensor, label: Tensor) -> None:
    if prediction.ndim != 2 or prediction.shape != label.shape:
        raise ValueError(
            f"the prediction is {tuple(prediction.shape)} and the label {tuple(label.shape)}: both must be (H, W) "
            "at the original image size"
        )


def _nan_to_none(value: float) -> float | None:
    return None if value != value else value
