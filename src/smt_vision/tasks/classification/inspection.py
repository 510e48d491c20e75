"""Inspection of classification datasets."""

from typing import Any

import numpy as np

from ...data.dataset import RawDataset
from ..inspection import Counts, Labels, TaskInspection, class_rows
from .data.sources import open_dataset


class ClassificationInspection(TaskInspection[Any]):
    """Images per class."""

    options = ("val_fraction", "allow_damaged")
    draws_labels = False

    def recognizes(self, data: str) -> bool:
        return True

    def open(self, data: str, seed: int, **options: Any) -> dict[str, RawDataset[Any]]:
        return {split: open_dataset(data, split, seed=seed, **options) for split in ("train", "val")}

    def labels(self, images: RawDataset[Any], rows: Counts, measured: Counts) -> Labels:
        image, label = images.presence()
        return Labels(class_rows(images, np.bincount(label, minlength=len(images.classes))), image, label)


INSPECTION = ClassificationInspection()
