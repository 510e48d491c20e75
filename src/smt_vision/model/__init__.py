"""The network. Importing registers the variants with timm."""

from .attention import MSA
from .modulation import MHMC, SAA, SAM
from .smt import SMT
from .variants import VARIANTS

__all__ = ["MHMC", "MSA", "SAA", "SAM", "SMT", "VARIANTS"]
