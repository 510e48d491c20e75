"""Images and objects to tensors: resize, the two-branch crop of the 3x schedule, flips, color."""

import random
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.v2 import ColorJitter

from ....data.decode import UnreadableImage
from ....data.region import Region, fit_size
from ....data.transforms import RegionPixels
from ....recipe import Input
from ..config import DetectConfig, DetectionAugment
from .dataset import DetectionTarget
from .masks import rasterize_masks

BRANCH_SHORT_SIDES = (400, 500, 600)  # of an image before it is cropped, and
BRANCH_CROP = (384, 600)  # shortest and longest side of the crop: DETR's numbers, as published with the 3x schedule
Draw = Callable[[int, int], Region]  # (width, height) of an image to what is seen of it


def eval_region(width: int, height: int, detect: DetectConfig) -> Region:
    """The whole image at evaluation's size."""
    return Region(0, 0, width, height, *fit_size(width, height, detect.short_side, detect.long_side))


def train_region(width: int, height: int, detect: DetectConfig, augment: DetectionAugment) -> Region:
    """What training sees of an image; draws from Python's generator."""
    window = (0, 0, width, height)
    if detect.crop_branch and random.random() < 0.5:
        window = _drawn_window(width, height)
    left, top, right, bottom = window
    size = fit_size(right - left, bottom - top, random.choice(detect.train_short_sides), detect.long_side)
    hflip, vflip = random.random() < augment.hflip, random.random() < augment.vflip
    return Region(*window, *size, hflip=hflip, vflip=vflip)


def _drawn_window(width: int, height: int) -> tuple[int, int, int, int]:
    """A crop of 384 to 600 pixels a side out of the image at a short side of 400, 500 or 600, in its own pixels."""
    scale = random.choice(BRANCH_SHORT_SIDES) / min(width, height)
    least, most = BRANCH_CROP
    sides = []
    for side in (width, height):
        resized = round(side * scale)
        crop = random.randint(min(resized, least), min(resized, most))
        sides.append(min(side, max(1, round(crop / scale))))
    left, top = random.randint(0, width - sides[0]), random.randint(0, height - sides[1])
    return left, top, left + sides[0], top + sides[1]


def detection_eval_transform(input: Input, detect: DetectConfig) -> Callable[[Image.Image], torch.Tensor]:
    """The preprocessing of evaluation and prediction: ``PIL.Image`` -> float tensor ``(C, h, w)``, whole."""
    pixels = RegionPixels(input)
    return lambda image: pixels(image, eval_region(*image.size, detect))


class DetectionTransform:
    """An image and its objects to a sample.

    Args:
        input: filter, mean and standard deviation.
        detect: sizes, and whether there are masks.
        augment: what training does, of it ``hflip``, ``vflip`` and ``color_jitter``; ``None`` for evaluation.
    """

    def __init__(self, input: Input, detect: DetectConfig, augment: DetectionAugment | None) -> None:
        self.detect = detect
        self.augment = augment
        self.pixels = RegionPixels(input)
        strength = augment.color_jitter if augment else 0.0
        self.color = ColorJitter(strength, strength, strength) if strength else None

    def __call__(self, image: Image.Image, target: DetectionTarget, name: str) -> dict[str, Any]:
        """``image`` (C, h, w), ``original`` (H, W), and in training ``target``: boxes, labels, perhaps masks.

        Raises:
            UnreadableImage: the image or a mask is not what the annotations say.
        """
        if (image.height, image.width) != target["size"]:
            height, width = target["size"]
            raise UnreadableImage(
                f"{name}: {image.width} x {image.height} pixels, the annotations say {width} x {height}; mend either "
                "(a photograph's EXIF orientation counts)"
            )
        if self.augment is None:
            view = eval_region(*image.size, self.detect)
        else:
            view = train_region(*image.size, self.detect, self.augment)
        sample = {"image": self.pixels(image, view, self.color), "original": target["size"]}
        return sample if self.augment is None else sample | {"target": self._objects(target, view, name)}

    def _objects(self, target: DetectionTarget, view: Region, name: str) -> dict[str, torch.Tensor]:
        """Those to learn from that the view has enough of."""
        boxes = view.boxes(target["boxes"].astype(float))
        sides = boxes[:, 2:] - boxes[:, :2]
        keep = ((sides > 0) & (sides >= self.detect.min_box)).all(1) & ~target["crowd"]
        out = {
            "boxes": torch.from_numpy(boxes[keep]).float(),
            "labels": torch.from_numpy(target["labels"][keep]),
        }
        if not self.detect.has_masks:
            return out
        stored = target["masks"] or []  # an image without objects may be all that a set without masks is
        try:
            masks = rasterize_masks([stored[i] for i in keep.nonzero()[0]], view, *target["size"])
        except ValueError as error:
            raise UnreadableImage(
                f"{name}: a mask among annotations {target['ids'][keep].tolist()}: {error}"
            ) from error
        out["masks"] = torch.from_numpy(masks)
        drawn = masks.any((1, 2))  # a box may reach into a crop where its object does not
        return out if drawn.all() else {key: value[torch.from_numpy(drawn)] for key, value in out.items()}
