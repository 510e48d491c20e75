"""Export of segmenters."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop

from ...data.padding import padded
from ...data.transforms import square_transform
from ...deploy.exported import ExportedModel
from ...deploy.logits import LogitsExport
from ...deploy.programs import ONE_SHAPE
from ...spec import ModelSpec
from .data.transforms import segmentation_eval_transform


class SegmenterExport(LogitsExport):
    """Export of a segmenter, traced at the shorter side of the training crop.

    Segmentation needs images of any size, so the exported program must have a dynamic image size, except in formats
    that have none.
    """

    @property
    def size(self) -> int:
        return padded(min(self.spec.head.crop))

    @property
    def transform(self) -> Callable[[Image.Image], Tensor]:
        return square_transform(self.spec.input, self.size)

    @property
    def calibration_transform(self) -> Callable[[Any], Tensor]:
        """As in prediction, at its scale; of the image, the center of the size of a training crop."""
        prepare = segmentation_eval_transform(self.spec.input, self.spec.head)
        size = [padded(side) for side in self.spec.head.crop]
        return lambda image: center_crop(prepare(image), size)

    def logits_shape(self, image: Tensor) -> tuple[int, ...]:
        channels = 1 if self.spec.head.is_binary else len(self.spec.classes)
        return (len(image), channels, *image.shape[2:])

    def trace(self, samples: Sequence[Path | Image.Image], format: str) -> None:
        super().trace(samples, format)
        if not self.dynamic_image_size and format not in ONE_SHAPE:
            raise ValueError(
                f"{self.name} takes images of one size only, but segmentation needs any size; use another backbone"
            )

    @classmethod
    def as_model(cls, program: ExportedModel, exported: ModelSpec, spec: ModelSpec, folder: Path) -> nn.Module:
        if not program.manifest.dynamic_image_size:
            side = padded(min(exported.head.crop))
            raise ValueError(
                f"{folder}: a segmenter in format {program.manifest.format!r} takes images of {side} x {side} pixels "
                "only, but prediction and evaluation need any size; export it to 'onnx' or 'openvino' for these"
            )
        return program
