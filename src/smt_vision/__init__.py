"""SMT Vision: the Scale-Aware Modulation Transformer, its training and its use.

Importing the package registers its models with timm, before or after timm is imported:
``timm.create_model("smt_tiny", features_only=True)``. Everything else is imported when it is first used::

    predictor = smt_vision.load("runs/finetune")  # or a checkpoint, an export, or a timm name
    predictor(["cat.jpg"])[0].label
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import _interrupt as _interrupt_first  # noqa: F401  before anything that takes seconds
from ._registration import register as _register
from ._version import __version__

if TYPE_CHECKING:
    from .api import export, predict
    from .embedding.embeddings import Embeddings, embed
    from .engine.calibration import calibrate
    from .engine.evaluation import evaluate
    from .engine.folds import CrossValidation, cross_validate
    from .engine.loop import train
    from .engine.lr_finder import find_lr
    from .forms.inference import fuse
    from .inspection.inspect import inspect
    from .model import SMT
    from .recipe import Recipe
    from .registry import backbone
    from .tasks import RECIPES
    from .tasks.classification.predictor import Classifier
    from .tasks.classification.results import Prediction
    from .tasks.detection.predictor import Detector
    from .tasks.detection.results import Detections
    from .tasks.load import load
    from .tasks.segmentation.predictor import Segmenter
    from .tasks.segmentation.results import SegmentationResult
    from .tasks.video import predict_video

_LAZY = {
    "SMT": ".model",
    "backbone": ".registry",
    "load": ".tasks.load",
    "train": ".engine.loop",
    "find_lr": ".engine.lr_finder",
    "cross_validate": ".engine.folds",
    "CrossValidation": ".engine.folds",
    "evaluate": ".engine.evaluation",
    "calibrate": ".engine.calibration",
    "predict": ".api",
    "predict_video": ".tasks.video",
    "export": ".api",
    "embed": ".embedding.embeddings",
    "Embeddings": ".embedding.embeddings",
    "fuse": ".forms.inference",
    "inspect": ".inspection.inspect",
    "Recipe": ".recipe",
    "RECIPES": ".tasks",
    "Classifier": ".tasks.classification.predictor",
    "Prediction": ".tasks.classification.results",
    "Detector": ".tasks.detection.predictor",
    "Detections": ".tasks.detection.results",
    "Segmenter": ".tasks.segmentation.predictor",
    "SegmentationResult": ".tasks.segmentation.results",
}

__all__ = [
    "RECIPES",
    "SMT",
    "Classifier",
    "CrossValidation",
    "Detections",
    "Detector",
    "Embeddings",
    "Prediction",
    "Recipe",
    "SegmentationResult",
    "Segmenter",
    "__version__",
    "backbone",
    "calibrate",
    "cross_validate",
    "embed",
    "evaluate",
    "export",
    "find_lr",
    "fuse",
    "inspect",
    "load",
    "predict",
    "predict_video",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


_register()
