"""Labelled images: sources, decoding, transforms, loaders."""

from .datasets import open_dataset
from .decode import BrokenImage, decode
from .image_set import ImageSet
from .loaders import Batch, EvalLoader, TrainLoader, eval_loader, train_loader
from .transforms import eval_transform, input_from_model, train_transform

__all__ = [
    "Batch",
    "BrokenImage",
    "EvalLoader",
    "ImageSet",
    "TrainLoader",
    "decode",
    "eval_loader",
    "eval_transform",
    "input_from_model",
    "open_dataset",
    "train_loader",
    "train_transform",
]
