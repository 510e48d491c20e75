"""What evaluation counts, exact on any number of processes."""

from .classification import ClassificationMetrics
from .segmentation import BinaryMetrics, SegmentationMetrics

__all__ = ["BinaryMetrics", "ClassificationMetrics", "SegmentationMetrics"]
