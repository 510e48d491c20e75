"""Post-training 8-bit quantization of OpenVINO models with NNCF."""

import contextlib
import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from ..bounds import Points, check
from ..extras import require
from .errors import program_errors
from .exported import ProgramModule
from .openvino_core import openvino_core, signal_stack_restored
from .samples import evenly_spaced

CALIBRATION_IMAGES = 300


@dataclass(frozen=True)
class AccuracyControl:
    """A limit on the accuracy loss by quantization.

    Args:
        max_drop: Largest loss of the metric, in percentage points.
        metric: Name of the metric.
        measure: The metric, in percent, of a module in place of the source model. It is called for the source model,
            for the fully quantized program, for each one with a further layer in floating point, and for the result.
        baseline: The metric of the source model, once it has been measured.
    """

    max_drop: float
    metric: str
    measure: Callable[[nn.Module], float]
    baseline: float = math.nan

    def __post_init__(self) -> None:
        check("max_drop", self.max_drop, Points)

    def check(self, value: float) -> None:
        """Raise a RuntimeError if this value of the metric is a larger loss than it may be."""
        if value < self.baseline - self.max_drop:
            raise RuntimeError(
                f"8 bits cost {self.baseline - value:.2f} points of {self.metric} ({self.baseline:.2f} %), expected at "
                f"most max_drop={self.max_drop}; nothing was written. Use bfloat16, or calibrate on other images"
            )


def quantize(
    model: Any,
    samples: Sequence[Any],
    batch_of: Callable[[Any], np.ndarray],
    ignored: Sequence[str] = (),
    control: AccuracyControl | None = None,
) -> Any:
    """Quantize the matrix products and convolutions of an OpenVINO model to 8-bit integers.

    Weights have one range per output channel, activations one per tensor, calibrated on the images. NNCF's default is
    one range per channel for the inputs of depthwise convolutions, but it assumes that channels are the second axis,
    and here they are the last. It would calibrate one range per row of the image and fail on images of another height.

    Args:
        model: OpenVINO model with one input ``(B, C, H, W)``.
        samples: Calibration samples, e.g. image files; at most ``CALIBRATION_IMAGES`` are used, evenly spaced.
        batch_of: Function from a sample to the model's input.
        ignored: Regular expressions for names of operations that are not quantized; they need not match any.
        control: Return layers to floating point, those first whose quantization changes the outputs for the samples
            most, until the loss of accuracy is in this range; ``None``: quantize all. The model must have outputs of
            one shape for all samples.

    Returns:
        The quantized OpenVINO model.

    Raises:
        ProgramError: NNCF fails.
        RuntimeError: The loss of accuracy is larger than ``control`` allows, with whatever layers in floating point.
    """
    nncf = require("nncf", "export")
    model = _written_and_read(model)
    selected = evenly_spaced(samples, CALIBRATION_IMAGES)
    settings = nncf.AdvancedQuantizationParameters(
        activations_quantization_params=nncf.quantization.advanced_parameters.QuantizationParameters(per_channel=False)
    )
    dataset = nncf.Dataset(selected, batch_of)
    scope = nncf.IgnoredScope(patterns=list(ignored), validate=False) if ignored else None
    # NNCF prints progress bars to stdout, which may be JSON.
    failed = program_errors("quantization with NNCF failed", "calibrate on other images, or omit --int8")
    with failed, signal_stack_restored(), errors_only("nncf"), contextlib.redirect_stdout(sys.stderr):
        if control is None:
            return nncf.quantize(
                model, dataset, subset_size=len(selected), ignored_scope=scope, advanced_parameters=settings
            )
        validation = _Validation(control)
        quantized = nncf.quantize_with_accuracy_control(
            model,
            dataset,
            dataset,
            validation,
            max_drop=control.max_drop,
            drop_type=nncf.DropType.ABSOLUTE,
            subset_size=len(selected),
            ignored_scope=scope,
            advanced_quantization_parameters=settings,
        )
    control.check(validation.last)
    return quantized


def _written_and_read(model: Any) -> Any:
    """The model without nodes that no output depends on, as multi-stage detectors have them, and NNCF fails on them."""
    openvino = require("openvino", "export")
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # the model may keep its file open
        path = Path(folder) / "model.xml"
        openvino.save_model(model, path, compress_to_fp16=False)
        return openvino_core().read_model(path)


class _Validation:
    """NNCF's validation function, and the last value that it measured.

    NNCF first calls it for one sample, to find out whether it gives values per sample that layers could be ranked by;
    without a value they are ranked by the model's outputs. The second call is for the model before quantization, in the
    precision of OpenVINO's choice, and is answered by the metric of the source model.
    """

    def __init__(self, control: AccuracyControl) -> None:
        self.control = control
        self.last = control.baseline
        self._answers = iter((None, control.baseline))

    def __call__(self, compiled: Any, samples: Iterable[Any]) -> tuple[float | None, None]:
        try:
            return next(self._answers), None
        except StopIteration:
            program = ProgramModule(lambda images: torch.from_numpy(compiled(images.numpy())[0]))
            self.last = self.control.measure(program)
            return self.last, None


@contextlib.contextmanager
def errors_only(name: str) -> Iterator[None]:
    """Let a logger log errors only, for a while.

    A library's own function, e.g. ``nncf.set_log_level``, would change the application's handlers for good.
    """
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
