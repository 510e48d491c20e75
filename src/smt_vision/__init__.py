"""SMT Vision: the Scale-Aware Modulation Transformer, its training and its use.

Importing the package registers its models with timm: ``timm.create_model("smt_tiny", features_only=True)``.
"""

from ._version import __version__
from .deploy.fuse import fuse
from .model.attention import MSA
from .model.modulation import MHMC, SAA, SAM
from .model.smt import SMT
from .model.variants import VARIANTS

__all__ = ["MHMC", "MSA", "SAA", "SAM", "SMT", "VARIANTS", "__version__", "fuse"]
