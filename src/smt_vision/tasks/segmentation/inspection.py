"""Inspection of datasets of label maps.

Shapes: n images, K classes; of binary masks the classes are background and object.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
from PIL import Image

from ...data.dataset import RawDataset, Split
from ...pictures.drawing import resize_long_side
from ..inspection import Counts, Labels, Options, TaskInspection, class_rows
from .config import IGNORE_INDEX, SegmentationInput, SegmentConfig
from .data.dataset import Labels as LabelMap
from .data.dataset import SegmentationDataset, check_size
from .data.sources import find_splits, open_segmentation
from .pictures import draw_label_map


class SegmentationInspection(TaskInspection[LabelMap]):
    """Pixels per class."""

    options: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "input": ("channels", "max_value"), "segment": ("kind", "zero_is_ignored")
    }  # fmt: skip

    def recognizes(self, data: str) -> bool:
        return bool(find_splits(data))

    def open(self, data: str, seed: int, options: Options) -> dict[str, RawDataset[LabelMap]]:
        # Invalid label maps are listed like unreadable images.
        config = SegmentConfig(**options.get("segment", {}))
        splits: Sequence[Split] = find_splits(data) or ("train",)
        return {split: open_segmentation(data, split, config, check=False) for split in splits}

    def input(self, options: Options) -> SegmentationInput:
        return SegmentationInput(**options.get("input", {}))

    def measure(self, image: Image.Image, target: LabelMap, name: str) -> Counts:
        check_size(image.size, target, name)
        return np.array(Image.fromarray(target).histogram(), dtype=np.int64)

    def labels(self, images: RawDataset[LabelMap], rows: Counts, measured: Counts) -> Labels:
        binary = cast(SegmentationDataset, images).binary
        pixels = measured.reshape(-1, 256)
        counts = pixels[:, : len(images.classes) + binary]
        label, position = np.nonzero(counts[:, binary:].T)
        labeled = max(int(counts.sum()), 1)
        shares = (100 * counts.sum(axis=0) / labeled).tolist()
        ignored = 100 * int(pixels[:, IGNORE_INDEX].sum()) / max(int(pixels.sum()), 1)
        # Classes are counted in the label maps that were read, which may be a sample.
        facts: dict[str, Any] = {"label_maps": len(rows), "ignored_pixels": ignored}
        if binary:
            facts["background_pixels"] = shares[0]
        classes = class_rows(
            images, np.bincount(label, minlength=len(images.classes)), pixels=shares[1:] if binary else shares
        )
        return Labels(classes, rows[position], label, facts)

    def panel(self, image: Image.Image, target: LabelMap, classes: tuple[str, ...], side: int) -> Image.Image:
        small, _ = resize_long_side(image, side)
        labels = np.asarray(Image.fromarray(target).resize(small.size, Image.Resampling.NEAREST))
        if len(classes) == 1:  # a mask, whose background is 0
            labels = np.where(labels == 1, 0, IGNORE_INDEX).astype(np.uint8)
        return draw_label_map(small, labels, classes, legend=False)


INSPECTION = SegmentationInspection()
