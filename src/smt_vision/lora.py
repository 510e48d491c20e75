"""Low-rank adapters as they are in state dicts, merged into plain ones.

The names are those of the library peft: a linear layer ``fc`` with an adapter has ``fc.base_layer.weight`` (C_out,
C_in), ``fc.lora_A.default.weight`` (rank, C_in) and ``fc.lora_B.default.weight`` (C_out, rank).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

ADAPTER = "default"  # peft's name of the only adapter of a layer
BASE, DOWN, UP = ".base_layer.", f".lora_A.{ADAPTER}.", f".lora_B.{ADAPTER}."


def merge_weight(weight: Tensor, down: Tensor, up: Tensor, scaling: float) -> Tensor:
    """The weight (C_out, C_in) of a linear layer with its adapter merged into it."""
    return weight + scaling * (up @ down)


def plain_name(name: str) -> str:
    """The name of a parameter without adapters; of those of an adapter, that of the weight it adapts."""
    for part in (BASE, DOWN, UP):
        name = name.replace(part, ".")
    return name


def has_adapters(state: Mapping[str, Any]) -> bool:
    """Whether a state dict has adapters."""
    return any(UP in key for key in state)


def merge_state(state: Mapping[str, Tensor], scaling: float) -> dict[str, Tensor]:
    """A state dict with its adapters merged into the linear layers, with the keys of the plain model."""
    merged = {}
    for key, value in state.items():
        if DOWN in key or UP in key:
            continue
        layer, base, name = key.partition(BASE)
        if base and name == "weight":
            value = merge_weight(value, state[f"{layer}{DOWN}weight"], state[f"{layer}{UP}weight"], scaling)
        merged[f"{layer}.{name}" if base else key] = value
    return merged


@contextmanager
def merged_adapters(model: nn.Module) -> Iterator[None]:
    """Within the context, a model is the plain one: each layer with an adapter is a linear layer that has it merged.

    Its modules, parameters and values are the same as before when the context ends.
    """
    layers: list[tuple[nn.Module, str, Any, Tensor]] = []
    for parent in list(model.modules()):
        children: dict[str, Any] = dict(parent.named_children())
        layers += [
            (parent, name, layer, layer.base_layer.weight.data)
            for name, layer in children.items()
            if hasattr(layer, "lora_A")
        ]
    try:
        for parent, name, layer, weight in layers:
            down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            with torch.no_grad():
                layer.base_layer.weight.data = merge_weight(weight, down, up, layer.scaling[ADAPTER])
            setattr(parent, name, layer.base_layer)
        yield
    finally:
        for parent, name, layer, weight in layers:
            layer.base_layer.weight.data = weight
            setattr(parent, name, layer)
