"""A trained model in use: load it from wherever it is, ask it about images.

model = load("runs/finetune")          # or a checkpoint, an export, or a timm name
model(["cat.jpg"])[0].label            # of a classifier; a detector gives boxes, a segmenter a label map
"""

from .classify import Classifier, Prediction
from .detect import Detections, Detector
from .images import find_images
from .load import Changes, load
from .predictor import Predictor
from .segment import Segmented, Segmenter

__all__ = [
    "Changes",
    "Classifier",
    "Detections",
    "Detector",
    "Prediction",
    "Predictor",
    "Segmented",
    "Segmenter",
    "find_images",
    "load",
]
