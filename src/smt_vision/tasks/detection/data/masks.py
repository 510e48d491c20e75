"""Masks of objects: rasterization of COCO segmentations by faster-coco-eval (the extra ``detect``), and their boxes."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from ....data.region import Floats, Region
from ....extras import require
from .dataset import Segmentation

FAR = 16  # sides of the picture by which a polygon may extend outside of it before it is clipped


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
        polygons = [clip_polygon(region.points(xy), region.width, region.height).ravel().tolist() for xy in points]
        polygons = [polygon for polygon in polygons if polygon]
        if polygons:
            out[i] = coco_mask.decode(coco_mask.segmToRle(polygons, region.width, region.height))
    return out


def fit_boxes(boxes: Tensor, masks: Tensor, cut: Tensor) -> Tensor:
    """Boxes (n, 4) of objects of which part was cut off, fitted to what is left of their masks; the others as given.

    Args:
        boxes: Boxes ``(x1, y1, x2, y2)`` in pixels.
        masks: Masks (n, H, W), 0 or 1; those of objects that were cut have a pixel at least.
        cut: Which objects were cut (n,).
    """
    out = boxes.clone()
    # masks_to_boxes gives the last pixel, a box ends behind it.
    out[cut] = masks_to_boxes(masks[cut]).to(boxes) + torch.tensor([0, 0, 1, 1])
    return out


def has_min_side(boxes: Tensor, min_box: float) -> Tensor:
    """Which boxes (n, 4) have an area, and no side shorter than ``min_box`` pixels (n,)."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return ((sides > 0) & (sides >= min_box)).all(1)


def clip_polygon(points: Floats, width: int, height: int) -> Floats:
    """Clip a polygon that extends far outside of the picture: rasterizing takes memory for the length of its edges.

    Args:
        points: Corners (n, 2), x and y in pixels.
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.

    Returns:
        The corners as they are, if they extend by at most ``FAR`` sides of the picture; otherwise those of a polygon
        that covers the same part of the picture, or none.
    """
    for axis, side in enumerate((width, height)):
        for sign, limit in ((1, (1 + FAR) * side), (-1, FAR * side)):
            values = sign * points[:, axis]
            inside = values <= limit
            if inside.all():
                continue
            # The cut of each edge from a corner to the next one that crosses the limit, after its corner.
            following, next_values = np.roll(points, -1, axis=0), np.roll(values, -1)
            crosses = inside != np.roll(inside, -1)
            cuts = points.copy()
            share = (limit - values[crosses]) / (next_values[crosses] - values[crosses])
            cuts[crosses] += share[:, None] * (following[crosses] - points[crosses])
            cuts[crosses, axis] = sign * limit
            both = np.stack([points, cuts], axis=1).reshape(-1, 2)
            points = both[np.stack([inside, crosses], axis=1).ravel()]
    return points


def _slice_within(pixels: npt.NDArray[np.int64], start: float, length: float) -> slice:
    """The slice of ascending or descending pixel indices that lie in ``[start, start + length)``."""
    inside = np.flatnonzero((pixels >= start) & (pixels < start + length))
    return slice(inside[0], inside[-1] + 1) if len(inside) else slice(0)
