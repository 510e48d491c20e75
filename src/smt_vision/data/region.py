"""Crop, resize and flip of an image, together with its boxes, polygons and label map.

A sequence of crops and resizes is combined into a single region: pixels are filtered once, boxes and polygons are
transformed with the same six numbers, and masks are rasterized at their final size.

Shapes: an image of H x W pixels becomes h x w.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from .decode import LargeJpeg, OpenedImage
from .resample import resize, resize_bands

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Region:
    """A crop of an image in integer pixels, resized and optionally flipped.

    Args:
        left: First column of the crop.
        top: First row of the crop.
        right: Column after the last one of the crop.
        bottom: Row after the last one of the crop.
        width: Output width in pixels.
        height: Output height in pixels.
        hflip: Whether to flip the output left to right.
        vflip: Whether to flip the output top to bottom.
    """

    left: int
    top: int
    right: int
    bottom: int
    width: int
    height: int
    hflip: bool = False
    vflip: bool = False

    def image(self, image: OpenedImage, interpolation: str, exact: bool) -> Image.Image | Tensor:
        """Crop, resize and flip an image, or one of bands (C, H, W); see :func:`smt_vision.data.resample.resize`."""
        if isinstance(image, Tensor):
            return self._bands(image, interpolation)
        box = (self.left, self.top, self.right, self.bottom)
        if isinstance(image, LargeJpeg):
            image = image.crop(box).reduced(self.width, self.height)
        elif box != (0, 0, *image.size):
            image = image.crop(box)
        if image.size != (self.width, self.height):
            image = resize(image, self.width, self.height, interpolation, exact)
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.hflip else image
        return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if self.vflip else image

    def _bands(self, image: Tensor, interpolation: str) -> Tensor:
        image = image[:, self.top : self.bottom, self.left : self.right]
        if image.shape[1:] != (self.height, self.width):
            image = resize_bands(image, self.width, self.height, interpolation)
        flipped = [axis for axis, flip in ((2, self.hflip), (1, self.vflip)) if flip]
        return image.flip(flipped) if flipped else image

    def pixels(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Image rows (h,) and columns (w,) that contain the centers of the output pixels."""
        rows = self.top + _nearest(self.bottom - self.top, self.height, self.vflip)
        return rows, self.left + _nearest(self.right - self.left, self.width, self.hflip)

    def labels(self, labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Transform a label map (H, W) to (h, w) by nearest-neighbor sampling."""
        rows, columns = self.pixels()
        return labels[rows[:, None], columns]

    def points(self, xy: Floats) -> Floats:
        """Transform points (N, 2), x and y in image pixels from the top left corner; not clipped."""
        scale = self.width / (self.right - self.left), self.height / (self.bottom - self.top)
        out = (xy - (self.left, self.top)) * scale
        if self.hflip:
            out[:, 0] = self.width - out[:, 0]
        if self.vflip:
            out[:, 1] = self.height - out[:, 1]
        return out

    def boxes(self, boxes: Floats) -> Floats:
        """Transform and clip boxes (N, 4), x0 y0 x1 y1 in image pixels; boxes outside the region get zero area."""
        corners = self.points(boxes.reshape(-1, 2)).reshape(-1, 2, 2)
        corners = corners.clip(0, (self.width, self.height))
        return np.concatenate([corners.min(1), corners.max(1)], axis=1)

    def cuts(self, boxes: Floats) -> npt.NDArray[np.bool_]:
        """Which boxes (N, 4) extend beyond the crop (N,)."""
        before, behind = boxes[:, :2] < (self.left, self.top), boxes[:, 2:] > (self.right, self.bottom)
        return np.any(before | behind, axis=1)


def fit_size(width: int, height: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Scale a size to ``short_side``, or to ``long_side`` if the long side would exceed it; returns width, height."""
    scale = min(short_side / min(width, height), long_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _nearest(crop_size: int, size: int, flip: bool) -> npt.NDArray[np.int64]:
    """Source indices (size,) of nearest-neighbor resizing along one axis."""
    index = ((np.arange(size) + 0.5) * crop_size / size).astype(np.int64)
    return index[::-1] if flip else index
