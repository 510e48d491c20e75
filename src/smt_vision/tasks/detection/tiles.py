"""Detection in an image as a whole, or in overlapping tiles for small objects.

Each object is found once, without merging parts. A tile reports the objects whose center is in its core, up to the
middle of each overlap, and which are smaller than the overlap: they lie completely in the tile. Larger objects are
found in the whole image. A part of an object is never reported: if it is small enough, its center is too close to the
border that cuts it. Non-maximum suppression only decides between complete detections of an object near a limit.
(supervision's ``InferenceSlicer`` decides by overlap only: it keeps the part of an object that has a higher score, or
unites objects that touch.)

Shapes: an image of H x W pixels, N detections, boxes ``(x1, y1, x2, y2)`` in pixels of the image.
"""

import itertools
import math
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou

from ...data.padding import pad_together
from ...data.region import Region, fit_size
from ...data.resample import image_size
from ...data.transforms import RegionPixels
from .config import DetectConfig
from .heads.detectors import is_finite, run_detector

TILES_AT_ONCE = 4
ROWS_AT_ONCE = 1024  # of the IoU of dropped and kept detections
# As shares of the overlap: the size up to which objects are taken from tiles, and how far a detection may be off
# without being lost. LARGEST + SIZE_SLACK + 2 * CENTER_SLACK is below 1, so that no part of an object is taken.
LARGEST = 0.8
SIZE_SLACK = CENTER_SLACK = 0.05


class Tile(NamedTuple):
    """A part of an image, and the detections that are taken from it.

    Args:
        box: Left, top, right and bottom in pixels.
        core: Detections with their center in here are taken.
        smallest: Longer side in pixels that a detection has at least.
        largest: Longer side in pixels that a detection has at most.
    """

    box: tuple[int, int, int, int]
    core: tuple[float, float, float, float]
    smallest: float
    largest: float


def plan_tiles(width: int, height: int, detect: DetectConfig) -> list[Tile]:
    """The whole image, and its tiles if it is larger than one."""
    everywhere = (-math.inf, -math.inf, math.inf, math.inf)
    whole = Tile((0, 0, width, height), everywhere, 0.0, math.inf)
    if not detect.tiles or max(width, height) <= detect.tiles:
        return [whole]
    overlap = round(detect.tiles * detect.tile_overlap)
    columns, rows = (_spans(side, detect.tiles, overlap) for side in (width, height))
    tiles = [
        Tile((left, top, right, bottom), (x1, y1, x2, y2), 0.0, (LARGEST + SIZE_SLACK) * overlap)
        for (top, bottom, y1, y2), (left, right, x1, x2) in itertools.product(rows, columns)
    ]
    return [whole._replace(smallest=(LARGEST - SIZE_SLACK) * overlap), *tiles]


def _spans(side: int, tile: int, overlap: int) -> list[tuple[int, int, float, float]]:
    """Start, end, and start and end of the core, of tiles along one side; evenly spaced."""
    count = 1 if side <= tile else math.ceil((side - overlap) / (tile - overlap))
    starts = [round(i * (side - tile) / (count - 1)) for i in range(count)] if count > 1 else [0]
    limits = [(start + before + tile) / 2 for before, start in itertools.pairwise(starts)]
    slack = CENTER_SLACK * overlap
    return [
        (start, min(start + tile, side), low - slack, high + slack)
        for start, low, high in zip(starts, [-math.inf, *limits], [*limits, math.inf], strict=True)
    ]


@torch.inference_mode()
def detect_image(
    model: nn.Module, image: Image.Image | Tensor, pixels: RegionPixels, detect: DetectConfig, device: torch.device
) -> dict[str, Tensor]:
    """Detections in an image, or in its tiles; a few tiles are in memory at a time.

    Args:
        model: :class:`smt_vision.tasks.detection.heads.detectors.Detector` in evaluation mode.
        image: Decoded image, or its bands (C, H, W).
        pixels: Preprocessing.
        detect: Image sizes, tiles and thresholds.
        device: Device of the model.

    Returns:
        ``boxes`` (N, 4) in pixels of the image, ``scores`` (N,) and ``labels`` (N,), best first, and with masks
        ``masks`` (N, 28, 28), probabilities inside the box. Outputs that are not finite: as of :func:`run_detector`.
    """
    tiles = plan_tiles(*image_size(image), detect)
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(tiles), TILES_AT_ONCE):
        chunk = tiles[start : start + TILES_AT_ONCE]
        batch, sizes = pad_together([pixels(image, _region(tile, detect)) for tile in chunk])
        found = run_detector(model, batch.to(device), sizes.to(device))
        for own in found:
            if not is_finite(own):
                return own
        parts += [_taken(own, tile, size) for own, tile, size in zip(found, chunk, sizes.tolist(), strict=True)]
    merged = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if len(tiles) == 1:
        return merged
    tile = torch.cat([torch.full_like(part["labels"], number) for number, part in enumerate(parts)])
    keep = _suppress(merged["boxes"].float(), merged["scores"].float(), merged["labels"], tile, detect.nms_threshold)
    return {name: values[keep[: detect.max_detections]] for name, values in merged.items()}


def _suppress(boxes: Tensor, scores: Tensor, labels: Tensor, tile: Tensor, threshold: float) -> Tensor:
    """Rows that non-maximum suppression between detections of different tiles keeps, best first.

    Those of a tile are its head's choice, which does not always depend on overlap (``dino``).
    """
    keep = batched_nms(boxes, scores, labels, threshold)
    dropped = torch.ones_like(labels, dtype=torch.bool)
    dropped[keep] = False
    restored = []
    for rows in dropped.nonzero()[:, 0].split(ROWS_AT_ONCE):
        overlap = box_iou(boxes[rows], boxes[keep]) > threshold
        rival = overlap & (labels[rows, None] == labels[keep]) & (tile[rows, None] != tile[keep])
        restored.append(rows[~rival.any(dim=1)])
    keep = torch.cat([keep, *restored])
    return keep[scores[keep].argsort(descending=True, stable=True)]


def _region(tile: Tile, detect: DetectConfig) -> Region:
    left, top, right, bottom = tile.box
    return Region(*tile.box, *fit_size(right - left, bottom - top, detect.short_side, detect.long_side))


def _taken(found: dict[str, Tensor], tile: Tile, size: list[int]) -> dict[str, Tensor]:
    """The detections that are taken from a tile of a resized height and width, in pixels of the image."""
    left, top, right, bottom = tile.box
    (h, w), boxes = size, found["boxes"]
    scale = boxes.new_tensor([(right - left) / w, (bottom - top) / h] * 2)
    boxes = boxes * scale + boxes.new_tensor([left, top, left, top])
    center, longest = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).amax(1)
    low, high = boxes.new_tensor(tile.core[:2]), boxes.new_tensor(tile.core[2:])
    keep = ((center >= low) & (center <= high)).all(1) & (longest >= tile.smallest) & (longest <= tile.largest)
    return {name: values[keep] for name, values in {**found, "boxes": boxes}.items()}
