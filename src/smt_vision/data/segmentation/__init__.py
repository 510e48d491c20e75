"""Images with a label for each pixel: sources, transforms, loaders."""

from .label_maps import IGNORE, SegmentationSet, open_segmentation
from .loaders import SegmentationBatch, segmentation_eval_loader, segmentation_train_loader

__all__ = [
    "IGNORE",
    "SegmentationBatch",
    "SegmentationSet",
    "open_segmentation",
    "segmentation_eval_loader",
    "segmentation_train_loader",
]
