"""Conversion of images and objects to tensors: crops, resize, flips, color jitter."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms.v2 import ColorJitter, RandomIoUCrop
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

from ....data.decode import OpenedImage, UnreadableImage
from ....data.region import Region, fit_size
from ....data.resample import image_size
from ....data.transforms import RegionPixels
from ....recipe import Input
from ..config import DetectConfig, DetectionAugment
from .dataset import DetectionDataset, DetectionTarget
from .masks import fit_boxes, has_min_side, rasterize_masks

# The crop branch has the values of DETR, as published with the 3x schedule.
BRANCH_SHORT_SIDES = (400, 500, 600)  # short sides in pixels before the crop
BRANCH_CROP = (384, 600)  # smallest and largest side of the crop in pixels
IOU_CROP_SCALE = 0.3  # smallest side of an IoU crop, as a share of the image's
IOU_CROP_MIN = 8  # sides in pixels of a smaller image are not cropped: torchvision's crop would be empty
Crop = tuple[int, int, int, int]  # left, top, right, bottom


def eval_region(width: int, height: int, detect: DetectConfig) -> Region:
    """The full image at evaluation size."""
    return Region(0, 0, width, height, *fit_size(width, height, detect.short_side, detect.long_side))


def train_region(
    width: int, height: int, detect: DetectConfig, augment: DetectionAugment, crop: Crop | None = None
) -> Region:
    """A random region for training, of the crop if one is given; sampled with Python's ``random``."""
    if crop is None:
        crop = (0, 0, width, height)
        if detect.crop_branch and random.random() < 0.5:
            crop = _random_crop(width, height, detect.long_side)
    factor = 1.0 if augment.scale_jitter == (1.0, 1.0) else random.uniform(*augment.scale_jitter)
    crop = _random_part(crop, factor) if factor > 1 else crop
    left, top, right, bottom = crop
    size = fit_size(right - left, bottom - top, random.choice(detect.train_short_sides), detect.long_side)
    if factor < 1:
        size = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
    hflip, vflip = random.random() < augment.hflip, random.random() < augment.vflip
    return Region(*crop, *size, hflip=hflip, vflip=vflip)


def check_training_sizes(images: DetectionDataset, detect: DetectConfig, augment: DetectionAugment) -> None:
    """Check how many objects are smaller than ``min_box`` even at the largest training size.

    Raises:
        ValueError: All are; training would see no object.
    """
    short_side = max(detect.train_short_sides)
    resized = [fit_size(width, height, short_side, detect.long_side) for height, width in images.sizes.tolist()]
    scales = np.array(resized) / images.sizes[:, ::-1]
    if detect.crop_branch:  # a crop is enlarged to the same short side
        scales *= max(BRANCH_SHORT_SIDES) / min(BRANCH_CROP)
    scales *= augment.scale_jitter[1] / (IOU_CROP_SCALE if augment.iou_crop else 1)
    images.check_sides(scales, detect.min_box, f"at a short side of {short_side}")


def _random_part(crop: Crop, factor: float) -> Crop:
    """A random part of a crop, with 1 / factor of its sides."""
    left, top, right, bottom = crop
    width, height = (max(1, round(side / factor)) for side in (right - left, bottom - top))
    left, top = random.randint(left, right - width), random.randint(top, bottom - height)
    return left, top, left + width, top + height


def _random_crop(width: int, height: int, long_side: int) -> Crop:
    """A crop of 384 to 600 pixels per side after a resize to a short side of 400, 500 or 600, in original pixels."""
    scale = min(random.choice(BRANCH_SHORT_SIDES) / min(width, height), long_side / max(width, height))
    smallest, largest = BRANCH_CROP
    sides = []
    for side in (width, height):
        resized = round(side * scale)
        crop = random.randint(min(resized, smallest), min(resized, largest))
        sides.append(min(side, max(1, round(crop / scale))))
    left, top = random.randint(0, width - sides[0]), random.randint(0, height - sides[1])
    return left, top, left + sides[0], top + sides[1]


def detection_eval_transform(input: Input, detect: DetectConfig) -> Callable[[Any], torch.Tensor]:
    """The preprocessing of evaluation and prediction: an image, or its bands, to ``(C, h, w)``."""
    to_pixels = RegionPixels(input)
    return lambda image: to_pixels(image, eval_region(*image_size(image), detect))


def check_size(image: OpenedImage, target: DetectionTarget, name: str) -> None:
    """Raise an UnreadableImage if the size of a decoded image differs from its annotations."""
    columns, rows = image_size(image)
    if (rows, columns) != target["size"]:
        height, width = target["size"]
        raise UnreadableImage(
            f"{name}: {columns} x {rows} pixels, but the annotations have {width} x {height}; fix "
            "one of them (the EXIF orientation is applied)"
        )


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
        self.iou_crop = RandomIoUCrop(min_scale=IOU_CROP_SCALE)

    def __call__(self, image: OpenedImage, target: DetectionTarget, name: str) -> dict[str, Any]:
        """``image`` (C, h, w), ``original`` (H, W), and in training ``target``: boxes, labels and optional masks.

        Raises:
            UnreadableImage: The image size differs from the annotations, or a mask is invalid.
        """
        check_size(image, target, name)
        if self.augment is None:
            region = eval_region(*image_size(image), self.detect)
            return {"image": self.pixels(image, region), "original": target["size"]}
        crop, used = None, ~target["crowd"]
        if self.augment.iou_crop and random.random() < self.augment.iou_crop:
            crop, used = self._sample_iou_crop(image, target)
        region = train_region(*image_size(image), self.detect, self.augment, crop)
        sample = {"image": self.pixels(image, region, self.color), "original": target["size"]}
        return sample | {"target": self._objects(target, used, region, name)}

    def _sample_iou_crop(
        self, image: OpenedImage, target: DetectionTarget
    ) -> tuple[Crop | None, npt.NDArray[np.bool_]]:
        """A crop, and which objects are used, without crowds: those whose center is inside."""
        used = ~target["crowd"]
        if not used.any() or min(image_size(image)) < IOU_CROP_MIN:
            return None, used
        boxes = BoundingBoxes(
            torch.from_numpy(target["boxes"][used]), format=BoundingBoxFormat.XYXY, canvas_size=target["size"]
        )
        found = self.iou_crop.make_params([boxes])
        if not found:  # one of torchvision's options is not to crop
            return None, used
        used[used] = found["is_within_crop_area"].numpy()
        left, top = found["left"], found["top"]
        return (left, top, left + found["width"], top + found["height"]), used

    def _objects(
        self, target: DetectionTarget, used: npt.NDArray[np.bool_], region: Region, name: str
    ) -> dict[str, torch.Tensor]:
        """The training objects of the region, of those used, without boxes smaller than ``min_box``.

        With masks, the boxes of objects that the region cuts are those of what is left of their masks.
        """
        boxes = region.boxes(target["boxes"].astype(float))
        sides = boxes[:, 2:] - boxes[:, :2]
        keep = ((sides > 0) & (sides >= self.detect.min_box)).all(1) & used
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
        visible = torch.from_numpy(masks.any((1, 2)))  # a crop may contain part of a box, but nothing of its object
        cut = torch.from_numpy(region.cuts(target["boxes"].astype(float))[keep])
        out["boxes"] = fit_boxes(out["boxes"], out["masks"], cut & visible)
        visible &= has_min_side(out["boxes"], self.detect.min_box) | ~cut
        return out if visible.all() else {key: value[visible] for key, value in out.items()}
