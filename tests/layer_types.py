"""The types in which a model computes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook


@contextmanager
def types_in_training(kind: type[nn.Module]) -> Iterator[set[torch.dtype]]:
    """The types of the outputs of all layers of a class, in models that train."""
    types: set[torch.dtype] = set()

    def record(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        if isinstance(layer, kind) and layer.training:
            types.add(output.dtype)

    hook = register_module_forward_hook(record)
    try:
        yield types
    finally:
        hook.remove()
