"""What a model costs and how fast it is: counted (``cost``), timed (``speed``, ``compare``, ``cliffs``), weighed."""

from .cost import ModelInfo, StageInfo, describe

__all__ = ["ModelInfo", "StageInfo", "describe"]
