"""Images with a label for each pixel: sources, transforms, loaders."""

from .label_maps import SegmentationSet, open_segmentation
from .loaders import SegmentationBatch, segmentation_eval_loader, segmentation_train_loader
from .transforms import segmentation_eval_transform

__all__ = [
    "SegmentationBatch",
    "SegmentationSet",
    "open_segmentation",
    "segmentation_eval_loader",
    "segmentation_eval_transform",
    "segmentation_train_loader",
]
