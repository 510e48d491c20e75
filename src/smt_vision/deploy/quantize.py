"""Post-training quantisation to 8-bit integers, of OpenVINO models, by NNCF."""

import contextlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..extras import require
from .samples import evenly_spaced

CALIBRATION_IMAGES = 300


def quantize(
    model: Any, images: Sequence[Path], preprocess: Callable[[Path], Tensor], ignored: Sequence[str] = ()
) -> Any:
    """An OpenVINO model whose products and convolutions compute in 8-bit integers.

    A range for each output channel of a weight, and one for each activation: the one seen on the images. By itself NNCF
    would give the input of a depthwise convolution a range a channel, but it takes the second axis for the channels,
    which here are the last: that would be a range for each row of the image, and an image of another height an error.

    Args:
        model: with one input ``(B, C, H, W)``.
        images: to calibrate on; at most 300 of them are taken, evenly spaced.
        preprocess: an image's file to ``(C, H, W)``.
        ignored: regular expressions for names of operations that are left as they are, where there are any such.
    """
    nncf = require("nncf", "export")
    nncf.set_log_level(logging.ERROR)
    chosen = evenly_spaced(images, CALIBRATION_IMAGES)

    def sample(path: Path) -> Any:
        return preprocess(path)[None].numpy()

    settings = nncf.AdvancedQuantizationParameters(
        activations_quantization_params=nncf.quantization.advanced_parameters.QuantizationParameters(per_channel=False)
    )
    with contextlib.redirect_stdout(sys.stderr):  # where its progress bars belong
        return nncf.quantize(
            model,
            nncf.Dataset(chosen, sample),
            subset_size=len(chosen),
            ignored_scope=nncf.IgnoredScope(patterns=list(ignored), validate=False) if ignored else None,
            advanced_parameters=settings,
        )
