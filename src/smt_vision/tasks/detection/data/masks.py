"""Segmentations as COCO stores them, to masks, by faster-coco-eval (the extra ``detect``)."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ....data.region import Region
from ....extras import require
from .dataset import Segmentation


def rasterize_masks(
    segmentations: Sequence[Segmentation], view: Region, height: int, width: int
) -> npt.NDArray[np.uint8]:
    """Masks of objects as a view of their image has them.

    Polygons are moved and then drawn at the view's size. Run lengths are decoded one at a time, so that beyond the
    result no more than one mask of the image's size is in memory.

    Args:
        segmentations: n, of polygons ``[[x, y, ...], ...]`` or run lengths ``{"size": ..., "counts": ...}``.
        view: of the image.
        height: of the image, in pixels.
        width: of the image.

    Returns:
        (n, h, w), 0 or 1, of the view's size.

    Raises:
        ValueError: run lengths that are none.
    """
    mask = require("faster_coco_eval.core.mask", "detect")
    out = np.zeros((len(segmentations), view.height, view.width), dtype=np.uint8)
    rows, columns = view.pixels()
    for i, segmentation in enumerate(segmentations):
        if isinstance(segmentation, dict):
            lengths = mask.segmToRle(segmentation, width, height)
            left, top, across, down = mask.toBbox(lengths)
            # Elsewhere it is zero: hundreds of small objects would each be looked for in the whole image.
            y, x = _within(rows, top, down), _within(columns, left, across)
            out[i, y, x] = mask.decode(lengths)[rows[y, None], columns[x]]
            continue
        outlines = [np.array(polygon, dtype=np.float64) for polygon in segmentation if len(polygon) >= 6]
        moved = [view.points(outline.reshape(-1, 2)).ravel().tolist() for outline in outlines]
        if moved:
            out[i] = mask.decode(mask.segmToRle(moved, view.width, view.height))
    return out


def _within(pixels: npt.NDArray[np.int64], first: float, length: float) -> slice:
    """Where ascending or descending numbers are those of a box's side."""
    inside = np.flatnonzero((pixels >= first) & (pixels < first + length))
    return slice(inside[0], inside[-1] + 1) if len(inside) else slice(0)
