"""Images with classes, objects or label maps: sources, decoding, transforms, loaders."""

from .datasets import open_dataset
from .decode import BrokenImage, decode
from .detection import (
    DetectionBatch,
    DetectionSet,
    DetectionTarget,
    detection_eval_loader,
    detection_eval_transform,
    detection_train_loader,
    draw_masks,
    open_detection,
)
from .image_set import ImageSet, RawSet
from .loaders import Batch, EvalLoader, TrainLoader, channels_of, eval_loader, train_loader
from .padding import pad_together, padded
from .segmentation import (
    SegmentationBatch,
    SegmentationSet,
    open_segmentation,
    segmentation_eval_loader,
    segmentation_eval_transform,
    segmentation_train_loader,
)
from .transforms import eval_transform, input_from_model, train_transform

__all__ = [
    "Batch",
    "BrokenImage",
    "DetectionBatch",
    "DetectionSet",
    "DetectionTarget",
    "EvalLoader",
    "ImageSet",
    "RawSet",
    "SegmentationBatch",
    "SegmentationSet",
    "TrainLoader",
    "channels_of",
    "decode",
    "detection_eval_loader",
    "detection_eval_transform",
    "detection_train_loader",
    "draw_masks",
    "eval_loader",
    "eval_transform",
    "input_from_model",
    "open_dataset",
    "open_detection",
    "open_segmentation",
    "pad_together",
    "padded",
    "segmentation_eval_loader",
    "segmentation_eval_transform",
    "segmentation_train_loader",
    "train_loader",
    "train_transform",
]
