"""Inspection of classification datasets."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np

from ...data.dataset import RawDataset, Split
from ..inspection import Counts, Labels, Options, TaskInspection, class_rows
from .config import ClassificationInput, ClassifyConfig, LabelsConfig
from .data.sources import open_dataset

SPLITS: tuple[Split, ...] = ("train", "val")


class ClassificationInspection(TaskInspection[Any]):
    """Images per class."""

    options: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "input": ("val_fraction", "allow_damaged", "channels", "max_value"),
        "classify": ("multi_label",),
        "labels": tuple(field.name for field in fields(LabelsConfig)),
    }
    draws_labels = False

    def recognizes(self, data: str) -> bool:
        return True

    def open(self, data: str, seed: int, options: Options) -> dict[str, RawDataset[Any]]:
        input = self.input(options)
        return {
            split: open_dataset(
                data,
                split,
                val_fraction=input.val_fraction,
                seed=seed,
                allow_damaged=input.allow_damaged,
                labels=LabelsConfig(**options.get("labels", {})),
                multi_label=ClassifyConfig(**options.get("classify", {})).multi_label,
            )
            for split in SPLITS
        }

    def input(self, options: Options) -> ClassificationInput:
        return ClassificationInput(**options.get("input", {}))

    def labels(self, images: RawDataset[Any], rows: Counts, measured: Counts) -> Labels:
        image, label = images.presence()
        return Labels(class_rows(images, np.bincount(label, minlength=len(images.classes))), image, label)


INSPECTION = ClassificationInspection()
