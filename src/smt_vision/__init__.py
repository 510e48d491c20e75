"""SMT Vision: the Scale-Aware Modulation Transformer, its training and its use.

Importing the package registers its models with timm: ``timm.create_model("smt_tiny", features_only=True)``.
"""

from ._version import __version__
from .forms.inference import fuse
from .model import MHMC, MSA, SAA, SAM, SMT
from .registry import VARIANTS

__all__ = ["MHMC", "MSA", "SAA", "SAM", "SMT", "VARIANTS", "__version__", "fuse"]
