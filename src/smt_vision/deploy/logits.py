"""Export form of models that return logits: classifiers and segmenters."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .exported import Program
from .form import ExportForm
from .parity import logits_parity
from .programs import ONE_SHAPE, program_metadata, trace, trace_one_shape, write
from .quantize import AccuracyControl
from .samples import image_to_tensor


class LogitsExport(ExportForm):
    """Traced and compared on square images, and on images of other sizes if the model takes them."""

    outputs = "logits"

    @property
    @abstractmethod
    def size(self) -> int:
        """Side of the square images in pixels."""

    @property
    @abstractmethod
    def transform(self) -> Callable[[Image.Image], Tensor]:
        """Preprocessing to square images."""

    @property
    def calibration_transform(self) -> Callable[[Any], Tensor]:
        """Preprocessing of the images that quantization is calibrated on; all have one size."""
        return self.transform

    @abstractmethod
    def logits_shape(self, image: Tensor) -> tuple[int, ...]:
        """Expected shape of the model's output for a batch."""

    @property
    def dynamic_image_size(self) -> bool:
        return self._dynamic

    def trace(self, samples: Sequence[Path | Image.Image], format: str) -> None:
        preprocess = partial(image_to_tensor, input=self.spec.input, transform=self.transform)
        self.batch = torch.stack([preprocess(image) for image in samples])
        self._check_output(self.batch[:1])
        if format in ONE_SHAPE:
            self.program, self._dynamic = trace_one_shape(self.model, self.batch[:1]), False
        else:
            self.program, self._dynamic = trace(self.model, self.spec.input.channels, self.size, format)

    def write(
        self, folder: Path, format: str, calibrate: Sequence[Path], control: AccuracyControl | None = None
    ) -> dict[str, str]:
        preprocess = partial(image_to_tensor, input=self.spec.input, transform=self.calibration_transform)
        return write(self.program, folder, format, calibrate, preprocess, control, program_metadata(self.spec))

    def compare(self, program: Program, exact: bool = True) -> Mapping[str, Any]:
        return logits_parity(self.model, program, self.batch, self._dynamic)

    def _check_output(self, image: Tensor) -> None:
        logits, expected = self.model(image), self.logits_shape(image)
        if not isinstance(logits, Tensor) or logits.shape != expected:
            actual = f"a tensor {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise ValueError(
                f"the model's output for an image is {actual}, expected logits {expected} for task {self.spec.task!r}; "
                f"create it with num_classes={len(self.spec.classes)}, without features_only"
            )
