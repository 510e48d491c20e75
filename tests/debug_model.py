"""A debug-size SMT and its inputs, for the tests."""

from typing import Any

import timm
import torch
from torch import Tensor

import smt_vision  # noqa: F401  registers the models with timm

# One size for the details, whatever the smallest variant's becomes.
DEBUG: dict[str, Any] = dict(embed_dims=(16, 32, 64, 128), depths=(1, 1, 2, 1), attn_heads=(1, 1, 2, 4))


def create(**kwargs: Any) -> Any:
    """A debug-size model, through timm."""
    return timm.create_model("smt_atto", **{**DEBUG, **kwargs})


def on_meta(name: str, **kwargs: Any) -> Any:
    """A model without memory: shapes are computed, numbers are not."""
    with torch.device("meta"):
        return timm.create_model(name, **kwargs).eval()


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
