"""The network as the paper describes it. Depends on torch and timm only."""

from .attention import MSA
from .modulation import MHMC, SAA, SAM
from .smt import SMT

__all__ = ["MHMC", "MSA", "SAA", "SAM", "SMT"]
