"""Objects that are boxes or polygons, one per line or element of a file."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ....data.validation import ValidationReport
from .dataset import Objects, check_boxes
from .segmentations import check_segmentations


class Shape(NamedTuple):
    """An object.

    Args:
        image: Index of its image.
        label: Class index.
        box: x, y, width and height in pixels; ``None`` for a polygon.
        polygons: The parts, each x, y, x, y, ... in pixels; ``None`` for a box.
    """

    image: int
    label: int
    box: Sequence[float] | None
    polygons: list[list[float]] | None


def check_shapes(
    report: ValidationReport,
    shapes: Sequence[Shape],
    sizes: npt.NDArray[np.int64],
    case: Callable[[int], str],
    clip_boxes: bool = False,
) -> Objects:
    """Check objects, and convert them to columns; the box of polygons is their extent, ids count from 1.

    Args:
        report: Report to add to.
        shapes: M objects.
        sizes: Height and width of the N images (N, 2).
        case: Function from an object to its name in messages.
        clip_boxes: See :func:`check_boxes`.
    """
    image = np.array([shape.image for shape in shapes], dtype=np.int64)
    measured = check_segmentations(report, [shape.polygons for shape in shapes], sizes[image], case)
    corners = measured.boxes
    extents = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    own = np.array([shape.box or (np.nan,) * 4 for shape in shapes], dtype=np.float64).reshape(-1, 4)
    is_box = np.array([shape.polygons is None for shape in shapes], dtype=bool)
    boxes = np.where(is_box[:, None], own, extents)
    check_boxes(report, boxes, sizes[image], case, clip_boxes)
    return Objects(
        image=image,
        boxes=boxes,
        labels=np.array([shape.label for shape in shapes], dtype=np.int64),
        crowd=np.zeros(len(shapes), dtype=bool),
        areas=np.where(is_box, boxes[:, 2:].prod(1), measured.areas),
        ids=np.arange(1, len(shapes) + 1),
        segmentations=measured.values,
    )
