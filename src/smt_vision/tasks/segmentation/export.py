"""Export of segmenters."""

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from ...data.padding import padded
from ...data.transforms import square_transform
from ...deploy.logits import LogitsExport


class SegmenterExport(LogitsExport):
    """Export of a segmenter, traced at the shorter side of the training crop.

    Segmentation needs images of any size, so the exported program must have a dynamic image size.
    """

    @property
    def size(self) -> int:
        return padded(min(self.spec.head.crop))

    @property
    def transform(self) -> Callable[[Image.Image], Tensor]:
        return square_transform(self.spec.input, self.size)

    def logits_shape(self, image: Tensor) -> tuple[int, ...]:
        channels = 1 if self.spec.head.is_binary else len(self.spec.classes)
        return (len(image), channels, *image.shape[2:])

    def trace(self, samples: Sequence[Path | Image.Image]) -> None:
        super().trace(samples)
        if not self.dynamic_image_size:
            raise ValueError(
                f"{self.name} takes images of one size only, but segmentation needs any size; use another backbone"
            )
