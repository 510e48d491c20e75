"""Conversion of images and objects to tensors: resize, two-branch crop of the 3x schedule, flips, color jitter."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import ColorJitter

from ....data.decode import UnreadableImage
from ....data.region import Region, fit_size
from ....data.transforms import RegionPixels
from ....recipe import Input
from ..config import DetectConfig, DetectionAugment
from .dataset import DetectionDataset, DetectionTarget
from .masks import rasterize_masks

# The crop branch has the values of DETR, as published with the 3x schedule.
BRANCH_SHORT_SIDES = (400, 500, 600)  # short sides in pixels before the crop
BRANCH_CROP = (384, 600)  # smallest and largest side of the crop in pixels


def eval_region(width: int, height: int, detect: DetectConfig) -> Region:
    """The full image at evaluation size."""
    return Region(0, 0, width, height, *fit_size(width, height, detect.short_side, detect.long_side))


def train_region(width: int, height: int, detect: DetectConfig, augment: DetectionAugment) -> Region:
    """A random region for training, sampled with Python's ``random``."""
    crop = (0, 0, width, height)
    if detect.crop_branch and random.random() < 0.5:
        crop = _random_crop(width, height)
    left, top, right, bottom = crop
    size = fit_size(right - left, bottom - top, random.choice(detect.train_short_sides), detect.long_side)
    hflip, vflip = random.random() < augment.hflip, random.random() < augment.vflip
    return Region(*crop, *size, hflip=hflip, vflip=vflip)


def check_training_sizes(images: DetectionDataset, detect: DetectConfig) -> None:
    """Check how many objects are smaller than ``min_box`` even at the largest training size.

    Raises:
        ValueError: All are; training would see no object.
    """
    short_side = max(detect.train_short_sides)
    resized = [fit_size(width, height, short_side, detect.long_side) for height, width in images.sizes.tolist()]
    scales = np.array(resized) / images.sizes[:, ::-1]
    if detect.crop_branch:  # a crop is enlarged to the same short side
        scales *= max(BRANCH_SHORT_SIDES) / min(BRANCH_CROP)
    images.check_sides(scales, detect.min_box, f"at a short side of {short_side}")


def _random_crop(width: int, height: int) -> tuple[int, int, int, int]:
    """A crop of 384 to 600 pixels per side after a resize to a short side of 400, 500 or 600, in original pixels."""
    scale = random.choice(BRANCH_SHORT_SIDES) / min(width, height)
    smallest, largest = BRANCH_CROP
    sides = []
    for side in (width, height):
        resized = round(side * scale)
        crop = random.randint(min(resized, smallest), min(resized, largest))
        sides.append(min(side, max(1, round(crop / scale))))
    left, top = random.randint(0, width - sides[0]), random.randint(0, height - sides[1])
    return left, top, left + sides[0], top + sides[1]


def detection_eval_transform(input: Input, detect: DetectConfig) -> Callable[[Image.Image], torch.Tensor]:
    """The preprocessing of evaluation and prediction: ``PIL.Image`` -> float tensor ``(C, h, w)``."""
    to_pixels = RegionPixels(input)
    return lambda image: to_pixels(image, eval_region(*image.size, detect))


class DetectionTransform:
    """Convert an image and its objects to a sample.

    Args:
        input: Interpolation, mean and standard deviation.
        detect: Image sizes, and the head, which decides whether there are masks.
        augment: Augmentation for training; ``None`` for evaluation.
    """

    def __init__(self, input: Input, detect: DetectConfig, augment: DetectionAugment | None) -> None:
        self.detect = detect
        self.augment = augment
        self.pixels = RegionPixels(input)
        strength = augment.color_jitter if augment else 0.0
        self.color = ColorJitter(strength, strength, strength) if strength else None

    def __call__(self, image: Image.Image, target: DetectionTarget, name: str) -> dict[str, Any]:
        """``image`` (C, h, w), ``original`` (H, W), and in training ``target``: boxes, labels and optional masks.

        Raises:
            UnreadableImage: The image size differs from the annotations, or a mask is invalid.
        """
        if (image.height, image.width) != target["size"]:
            height, width = target["size"]
            raise UnreadableImage(
                f"{name}: {image.width} x {image.height} pixels, but the annotations have {width} x {height}; fix "
                "one of them (the EXIF orientation is applied)"
            )
        if self.augment is None:
            region = eval_region(*image.size, self.detect)
        else:
            region = train_region(*image.size, self.detect, self.augment)
        sample = {"image": self.pixels(image, region, self.color), "original": target["size"]}
        return sample if self.augment is None else sample | {"target": self._objects(target, region, name)}

    def _objects(self, target: DetectionTarget, region: Region, name: str) -> dict[str, torch.Tensor]:
        """The training objects of the region, without crowds and boxes smaller than ``min_box``."""
        boxes = region.boxes(target["boxes"].astype(float))
        sides = boxes[:, 2:] - boxes[:, :2]
        keep = ((sides > 0) & (sides >= self.detect.min_box)).all(1) & ~target["crowd"]
        out = {
            "boxes": torch.from_numpy(boxes[keep]).float(),
            "labels": torch.from_numpy(target["labels"][keep]),
        }
        if not self.detect.has_masks:
            return out
        stored = target["masks"] or []  # None for a dataset without masks, whose images then have no objects
        try:
            masks = rasterize_masks([stored[i] for i in keep.nonzero()[0]], region, *target["size"])
        except ValueError as error:
            raise UnreadableImage(
                f"{name}: invalid mask among annotations {target['ids'][keep].tolist()}: {error}"
            ) from error
        out["masks"] = torch.from_numpy(masks)
        visible = masks.any((1, 2))  # a crop may contain part of a box, but nothing of its object
        return out if visible.all() else {key: value[torch.from_numpy(visible)] for key, value in out.items()}
