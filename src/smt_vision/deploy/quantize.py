"""Post-training 8-bit quantization of OpenVINO models with NNCF."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..extras import require
from .samples import evenly_spaced

CALIBRATION_IMAGES = 300


def quantize(
    model: Any, samples: Sequence[Any], batch_of: Callable[[Any], np.ndarray], ignored: Sequence[str] = ()
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

    Returns:
        The quantized OpenVINO model.
    """
    nncf = require("nncf", "export")
    selected = evenly_spaced(samples, CALIBRATION_IMAGES)
    settings = nncf.AdvancedQuantizationParameters(
        activations_quantization_params=nncf.quantization.advanced_parameters.QuantizationParameters(per_channel=False)
    )
    # NNCF prints progress bars to stdout, which may be JSON.
    with errors_only("nncf"), contextlib.redirect_stdout(sys.stderr):
        return nncf.quantize(
            model,
            nncf.Dataset(selected, batch_of),
            subset_size=len(selected),
            ignored_scope=nncf.IgnoredScope(patterns=list(ignored), validate=False) if ignored else None,
            advanced_parameters=settings,
        )


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
