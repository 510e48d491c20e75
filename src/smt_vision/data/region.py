"""What training and evaluation see of an image: a window of it, resized once, and perhaps mirrored.

Crops and resizes that are published one after the other are one window and one size here: pixels are filtered once,
boxes and outlines move by the same six numbers, and a mask is made at its final size.

Shapes: an image of H x W pixels gives h x w.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from .resample import resize

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Region:
    """A window of an image, in pixels of the image, at another size.

    Args:
        left: the window's first column.
        top: its first row.
        right: the column after its last.
        bottom: the row after its last.
        width: of the result.
        height: of the result.
        hflip: mirror the result left to right.
        vflip: mirror the result top to bottom.
    """

    left: int
    top: int
    right: int
    bottom: int
    width: int
    height: int
    hflip: bool = False
    vflip: bool = False

    def image(self, image: Image.Image, interpolation: str, exact: bool) -> Image.Image:
        """The view of an image; the filter as in :func:`smt_vision.data.resample.resize`."""
        window = (self.left, self.top, self.right, self.bottom)
        if window != (0, 0, *image.size):
            image = image.crop(window)
        if image.size != (self.width, self.height):
            image = resize(image, self.width, self.height, interpolation, exact)
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.hflip else image
        return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if self.vflip else image

    def pixels(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(h,) and (w,): the row and the column of the image's pixel in which each pixel of the view has its centre."""
        rows = self.top + _centres(self.bottom - self.top, self.height, self.vflip)
        return rows, self.left + _centres(self.right - self.left, self.width, self.hflip)

    def labels(self, labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The view of a label map (H, W), of the nearest labels: (h, w)."""
        rows, columns = self.pixels()
        return labels[rows[:, None], columns]

    def points(self, xy: Floats) -> Floats:
        """Points (N, 2), x and y in pixels from the image's corner, as the view has them; not clipped."""
        scale = self.width / (self.right - self.left), self.height / (self.bottom - self.top)
        out = (xy - (self.left, self.top)) * scale
        if self.hflip:
            out[:, 0] = self.width - out[:, 0]
        if self.vflip:
            out[:, 1] = self.height - out[:, 1]
        return out

    def boxes(self, boxes: Floats) -> Floats:
        """Boxes (N, 4), x0 y0 x1 y1, as the view has them, clipped to it; those outside come out without area."""
        corners = self.points(boxes.reshape(-1, 2)).reshape(-1, 2, 2)
        corners = corners.clip(0, (self.width, self.height))
        return np.concatenate([corners.min(1), corners.max(1)], axis=1)


def fit_size(width: int, height: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Width and height of an image resized to a short side, or to a long side where it would pass that."""
    scale = min(short_side / min(width, height), long_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _centres(window: int, size: int, flip: bool) -> npt.NDArray[np.int64]:
    """(size,) the pixel of a window in which each pixel of the resized window has its centre."""
    index = ((np.arange(size) + 0.5) * window / size).astype(np.int64)
    return index[::-1] if flip else index
