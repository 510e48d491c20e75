"""The reference implementation (``tests/literal.py``) and the package's model, with the same weights."""

import sys
from pathlib import Path

import timm
import torch
from torch import nn

from smt_vision.model.official import to_official
from smt_vision.registry import VARIANTS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from literal import LiteralSMT


def reference_and_ours(variant: str) -> tuple[nn.Module, nn.Module]:
    """The reference and ours, with the same random weights."""
    torch.manual_seed(0)
    ours = timm.create_model(variant)
    reference = LiteralSMT(**VARIANTS[variant])
    reference.load_state_dict(to_official(ours.state_dict()))
    return reference, ours
