"""Pictures: of a run, of what a model says of images, and of models side by side."""

from .classification import Mistake, Prediction, confusion, mistakes, predictions
from .dense import class_colour, draw_detections, draw_label_map, sample_grid
from .speed import SpeedPoint, accuracy_and_throughput, frontier
from .training import curves

__all__ = [
    "Mistake",
    "Prediction",
    "SpeedPoint",
    "accuracy_and_throughput",
    "class_colour",
    "confusion",
    "curves",
    "draw_detections",
    "draw_label_map",
    "frontier",
    "mistakes",
    "predictions",
    "sample_grid",
]
