"""Training images composed of several: mosaic and copy-paste, on transformed images with their objects.

Shapes: an image of H x W pixels, n objects; boxes ``(x1, y1, x2, y2)`` in pixels.
"""

import random
from collections.abc import Callable

import torch
from torch import Tensor

from ....data.loaders import Item
from ..config import DetectConfig, DetectionAugment
from .masks import fit_boxes, has_min_side

MIN_VISIBLE = 0.1  # share of a box's area in its part of a mosaic below which the object is dropped
PASTED = 0.5  # probability of an object of the other image to be pasted
Target = dict[str, Tensor]


class DetectionMix:
    """Compose an item with those of other images; sampled with Python's ``random`` and torch's generator.

    Args:
        augment: Probabilities of mosaic and copy-paste.
        detect: ``min_box`` and whether there are masks.
        epochs: Epochs of the run, the last of which have no mosaic; ``None``: all have.
    """

    def __init__(self, augment: DetectionAugment, detect: DetectConfig, epochs: int | None) -> None:
        self.augment = augment
        self.min_box = detect.min_box
        self.mosaic_epochs = None if epochs is None else epochs - augment.close_mosaic

    def __call__(self, item: Item, another: Callable[[], Item], epoch: int) -> Item:
        has_mosaic = self.mosaic_epochs is None or epoch < self.mosaic_epochs
        if has_mosaic and random.random() < self.augment.mosaic:
            item = mosaic(item, another, self.min_box)
        if random.random() < self.augment.copy_paste:
            item = copy_paste(item, another(), self.min_box)
        return item


def mosaic(first: Item, another: Callable[[], Item], min_box: float) -> Item:
    """Four images that meet at a random point of the first one's size, each a random part at its own scale.

    Where an image is smaller than its quadrant, the rest is zero, like the padding of a batch.

    Args:
        first: Item with ``image`` (C, H, W) and ``target``.
        another: Function that returns the item of another image.
        min_box: Shortest side in pixels of an object that is kept.
    """
    channels, height, width = first["image"].shape
    x, y = random.randint(width // 4, width - width // 4), random.randint(height // 4, height - height // 4)
    image, targets = first["image"].new_zeros(channels, height, width), []
    quadrants = [(right, lower) for right in (False, True) for lower in (False, True)]
    random.shuffle(quadrants)  # the first image may be in any
    for k, (right, lower) in enumerate(quadrants):
        item = another() if k else first
        h, w = item["image"].shape[-2:]
        part_h, part_w = min(h, height - y if lower else y), min(w, width - x if right else x)
        top, left = random.randint(0, h - part_h), random.randint(0, w - part_w)
        to_top, to_left = y if lower else y - part_h, x if right else x - part_w
        image[:, to_top : to_top + part_h, to_left : to_left + part_w] = item["image"][
            :, top : top + part_h, left : left + part_w
        ]
        targets.append(_moved(item["target"], (left, top, part_w, part_h), (to_left, to_top), (height, width), min_box))
    return {**first, "image": image, "target": {key: torch.cat([t[key] for t in targets]) for key in targets[0]}}


def _moved(
    target: Target, part: tuple[int, int, int, int], to: tuple[int, int], size: tuple[int, int], min_box: float
) -> Target:
    """The objects in a part of an image (left, top, width, height), moved to a position in an image of another size."""
    left, top, width, height = part
    corners = target["boxes"] - torch.tensor([left, top, left, top])
    clipped = corners.clamp(min=torch.zeros(4), max=torch.tensor([width, height, width, height]).float())
    area, visible_area = ((box[:, 2:] - box[:, :2]).prod(1) for box in (corners, clipped))
    keep = has_min_side(clipped, min_box) & (visible_area >= MIN_VISIBLE * area)
    shift = torch.tensor([*to, *to])
    if "masks" not in target:
        return {"boxes": clipped[keep] + shift, "labels": target["labels"][keep]}
    masks = target["masks"][:, top : top + height, left : left + width]
    keep &= masks.any(dim=(1, 2)).bool()
    boxes = fit_boxes(clipped[keep], masks[keep], (clipped != corners).any(1)[keep])
    kept = keep.nonzero()[:, 0][large := has_min_side(boxes, min_box)]
    out = {"boxes": boxes[large] + shift, "labels": target["labels"][kept], "masks": masks.new_zeros(len(kept), *size)}
    out["masks"][:, to[1] : to[1] + height, to[0] : to[0] + width] = masks[kept]
    return out


def copy_paste(item: Item, other: Item, min_box: float) -> Item:
    """Paste a random half of the objects of another image, cut out with their masks, at their places there.

    Objects below lose the pixels that are covered; their boxes are those of the rest of their masks (Ghiasi et al.,
    CVPR 2021, section 3).

    Args:
        item: Item with ``image`` (C, H, W) and ``target`` with masks.
        other: The item whose objects are pasted; of any size.
        min_box: Shortest side in pixels of an object that is kept.
    """
    target, source = item["target"], other["target"]
    height, width = item["image"].shape[-2:]
    h, w = min(height, other["image"].shape[-2]), min(width, other["image"].shape[-1])
    chosen = torch.rand(len(source["labels"])) < PASTED
    cut = source["masks"][:, :h, :w]
    chosen &= cut.any(dim=(1, 2)).bool()
    boxes, cut = source["boxes"][chosen], cut[chosen]
    clipped = boxes.clamp(max=torch.tensor([w, h, w, h]).float())
    clipped = fit_boxes(clipped, cut, (clipped != boxes).any(1))
    large = has_min_side(clipped, min_box)  # a part that is too small for an object is not pasted
    pasted = {
        "boxes": clipped[large],
        "labels": source["labels"][chosen][large],
        "masks": cut.new_zeros(int(large.sum()), height, width),
    }
    pasted["masks"][:, :h, :w] = cut[large]
    covered = pasted["masks"].any(dim=0).bool()
    image = item["image"].clone()
    image[:, :h, :w] = torch.where(covered[:h, :w], other["image"][:, :h, :w], image[:, :h, :w])

    masks = target["masks"] * ~covered
    changed = (masks != target["masks"]).any(dim=(1, 2))
    boxes = fit_boxes(target["boxes"], masks, changed & masks.any(dim=(1, 2)).bool())
    below = {**target, "boxes": boxes, "masks": masks}
    out = {key: torch.cat([below[key], pasted[key]]) for key in target}
    keep = has_min_side(out["boxes"], min_box) & out["masks"].any(dim=(1, 2)).bool()
    return {**item, "image": image, "target": {key: value[keep] for key, value in out.items()}}
