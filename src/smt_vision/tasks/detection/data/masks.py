"""Rasterization of COCO segmentations by faster-coco-eval (the extra ``detect``)."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ....data.region import Region
from ....extras import require
from .dataset import Segmentation


def rasterize_masks(
    segmentations: Sequence[Segmentation], region: Region, height: int, width: int
) -> npt.NDArray[np.uint8]:
    """Rasterize object masks in a region of their image.

    Polygons are transformed and then rasterized at the region's output size. RLE masks are decoded one at a time, so
    that apart from the result at most one mask of the image's size is in memory.

    Args:
        segmentations: n segmentations: polygons ``[[x, y, ...], ...]`` or RLE masks ``{"size": ..., "counts": ...}``.
        region: Region of the image.
        height: Image height in pixels.
        width: Image width in pixels.

    Returns:
        Masks (n, h, w) of the region's output size, 0 or 1.

    Raises:
        ValueError: An RLE mask is invalid.
    """
    coco_mask = require("faster_coco_eval.core.mask", "detect")
    out = np.zeros((len(segmentations), region.height, region.width), dtype=np.uint8)
    rows, columns = region.pixels()
    for i, segmentation in enumerate(segmentations):
        if isinstance(segmentation, dict):
            rle = coco_mask.segmToRle(segmentation, width, height)
            box_x, box_y, box_width, box_height = coco_mask.toBbox(rle)
            # Only the mask's bounding box is resampled, for images with hundreds of small objects.
            y, x = _slice_within(rows, box_y, box_height), _slice_within(columns, box_x, box_width)
            out[i, y, x] = coco_mask.decode(rle)[rows[y, None], columns[x]]
            continue
        points = [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation if len(polygon) >= 6]
        polygons = [region.points(xy).ravel().tolist() for xy in points]
        if polygons:
            out[i] = coco_mask.decode(coco_mask.segmToRle(polygons, region.width, region.height))
    return out


def _slice_within(pixels: npt.NDArray[np.int64], start: float, length: float) -> slice:
    """The slice of ascending or descending pixel indices that lie in ``[start, start + length)``."""
    inside = np.flatnonzero((pixels >= start) & (pixels < start + length))
    return slice(inside[0], inside[-1] + 1) if len(inside) else slice(0)
