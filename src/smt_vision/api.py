"""One-call forms of what predictors do."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from .deploy.exported import Manifest
from .tasks.load import Overrides, load
from .tasks.results import Source


def predict(
    source: str | Path,
    images: Iterable[Source],
    *,
    device: str | torch.device = "cpu",
    overrides: Overrides | None = None,
    **options: Any,
) -> list[Any]:
    """Load a model and predict images; to predict more than once, keep what :func:`smt_vision.load` returns.

    Args:
        source: The model, as :func:`smt_vision.load` takes it.
        images: Paths or PIL images.
        device: Device to run on.
        overrides: Fields that differ from training.
        options: Options of the task's predictor, e.g. ``top_k``.

    Returns:
        A :class:`smt_vision.Prediction`, :class:`smt_vision.Detections` or :class:`smt_vision.SegmentationResult` per
        image.
    """
    return load(source, device, overrides)(images, **options)


def export(
    source: str | Path, folder: str | Path, format: str, *, overrides: Overrides | None = None, **options: Any
) -> Manifest:
    """Load a model and export it.

    Args:
        source: The model, as :func:`smt_vision.load` takes it.
        folder: Output folder.
        format: ``onnx``, ``openvino``, ``torch``, ``executorch`` or ``coreml``.
        overrides: Fields that differ from training.
        options: Further arguments of :meth:`smt_vision.tasks.predictor.Predictor.export`, e.g. ``images``.

    Returns:
        The export's manifest.
    """
    return load(source, overrides=overrides).export(folder, format, **options)
