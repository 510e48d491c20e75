"""Pictures: of a run, and of what a model says of images."""

from .classification import Mistake, Prediction, confusion, mistakes, predictions
from .dense import class_colour, draw_detections, draw_label_map, sample_grid
from .training import curves

__all__ = [
    "Mistake",
    "Prediction",
    "class_colour",
    "confusion",
    "curves",
    "draw_detections",
    "draw_label_map",
    "mistakes",
    "predictions",
    "sample_grid",
]
