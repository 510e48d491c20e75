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
    """Load a model and predict images; to predict more than once, use :func:`smt_vision.load` instead.

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
    source: str | Path,
    folder: str | Path,
    format: str,
    *,
    overrides: Overrides | None = None,
    max_drop: float | None = None,
    data: str | Path | None = None,
    **options: Any,
) -> Manifest:
    """Load a model and export it.

    Args:
        source: The model, as :func:`smt_vision.load` takes it.
        folder: Output folder.
        format: ``onnx``, ``openvino``, ``torch``, ``executorch`` or ``coreml``.
        overrides: Fields that differ from training.
        max_drop: Largest loss of accuracy by quantization (``calibrate``), in percentage points of the primary metric:
            layers return to floating point until it is met. ``None``: all layers are quantized.
        data: Labeled images to measure the accuracy on, as :func:`smt_vision.evaluate` takes them; ``None`` for those
            that a run held out.
        options: Further arguments of :meth:`smt_vision.tasks.predictor.Predictor.export`, e.g. ``images``.

    Returns:
        The export's manifest.
    """
    model = load(source, overrides=overrides)
    if max_drop is None and data is not None:
        raise ValueError(f"data={str(data)!r} is what max_drop is measured on: pass max_drop too, or omit data")
    if max_drop is None:
        return model.export(folder, format, **options)
    from .engine.evaluation import accuracy_control

    with accuracy_control(model, max_drop, data, on_status=options.get("on_status", lambda text: None)) as control:
        return model.export(folder, format, control=control, **options)
