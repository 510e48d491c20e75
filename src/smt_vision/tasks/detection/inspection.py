"""Inspection of detection datasets.

Shapes: M objects.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
from PIL import Image

from ...data.dataset import RawDataset
from ..inspection import Counts, Labels, Options, TaskInspection, class_rows
from .config import DetectionInput
from .data.dataset import DetectionDataset, DetectionTarget
from .data.sources import find_splits, open_detection
from .data.transforms import check_size
from .pictures import draw_detections

SMALL, MEDIUM = 32**2, 96**2  # COCO's bounds of the area of small and medium objects in square pixels
GRID = 16  # cells per side of the map of centers


class DetectionInspection(TaskInspection[DetectionTarget]):
    """Images and objects per class, and the size and place of the boxes."""

    options: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "input": ("val_fraction", "clip_boxes", "channels", "max_value")
    }

    def recognizes(self, data: str) -> bool:
        return bool(find_splits(Path(data).expanduser()))

    def open(self, data: str, seed: int, options: Options) -> dict[str, RawDataset[DetectionTarget]]:
        input = self.input(options)
        found = find_splits(Path(data).expanduser()) or ("train",)
        splits = dict.fromkeys(("train", "val", *found) if "train" in found else found)
        return {split: open_detection(data, split, input.val_fraction, seed, input.clip_boxes) for split in splits}

    def input(self, options: Options) -> DetectionInput:
        return DetectionInput(**options.get("input", {}))

    def measure(self, image: Image.Image, target: DetectionTarget, name: str) -> None:
        check_size(image, target, name)

    def labels(self, images: RawDataset[DetectionTarget], rows: Counts, measured: Counts) -> Labels:
        dataset = cast(DetectionDataset, images)
        image, label = dataset.presence()
        objects = dataset.objects()
        boxes, areas = objects["boxes"], objects["areas"]
        per_class = np.bincount(objects["labels"], minlength=len(dataset.classes))
        per_image = np.bincount(objects["image"], minlength=len(dataset))
        sides = dataset.sizes[objects["image"], ::-1]
        centers = ((boxes[:, :2] + boxes[:, 2:] / 2) / sides).clip(0, 1)
        grid = np.histogram2d(centers[:, 1], centers[:, 0], bins=GRID, range=((0, 1), (0, 1)))[0].astype(int)
        facts = {
            "objects": len(boxes),
            "crowds": int(dataset.crowds().sum()),
            "images_without_objects": int((per_image == 0).sum()),
            "objects_per_image": {"mean": float(per_image.mean()), "max": int(per_image.max(initial=0))},
            "object_sizes": {
                "small": int((areas < SMALL).sum()),
                "medium": int(((areas >= SMALL) & (areas < MEDIUM)).sum()),
                "large": int((areas >= MEDIUM).sum()),
            },
            "centers": grid.tolist(),
        }
        arrays = {"object_side": np.sqrt(areas), "objects_per_image": per_image}
        rows_of_classes = class_rows(
            images, np.bincount(label, minlength=len(dataset.classes)), objects=per_class.tolist()
        )
        return Labels(rows_of_classes, image, label, facts, arrays)

    def panel(self, image: Image.Image, target: DetectionTarget, classes: tuple[str, ...], side: int) -> Image.Image:
        return draw_detections(image, target["boxes"], target["labels"], classes=classes, legend=False, side=side)


INSPECTION = DetectionInspection()
