"""The content of training checkpoints, checked before it is used: they may be damaged, or of another run."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import Checkpoint

# Entries of a training checkpoint and their types.
STATE: dict[str, Any] = {
    "model": dict, "optimizer": dict, "precision": dict, "spec": dict, "recipe": dict, "metrics": dict, "step": int,
    "steps_per_epoch": int, "best_epoch": int, "seconds": int | float,
}  # fmt: skip
# Entries that not every checkpoint has; the lists are of numbers.
OPTIONAL_STATE: dict[str, Any] = {
    "evaluated_step": int, "kept_at": int | float, "history": list, "left_out": list, "listing": int, "labels": list,
    "teacher": int | str, "processes": int,
}  # fmt: skip
HASHES = ("listing", "teacher")  # may be negative
# Entries of optimizers' states that have the shape of their parameter.
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "exp_inf")


def checked_state(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The content of a training checkpoint.

    Raises:
        ValueError: An entry is missing or has another type.
    """
    state = checkpoint.state
    for name, kinds in (STATE | {name: kinds for name, kinds in OPTIONAL_STATE.items() if name in state}).items():
        value = state.get(name)
        valid = isinstance(value, kinds)
        if isinstance(value, int | float) and name not in HASHES:
            valid = valid and 0 <= value < math.inf
        elif isinstance(value, list):
            valid = valid and all(isinstance(item, int | float) for item in value)
        if not valid:
            raise ValueError(f"{checkpoint.path}: not a training checkpoint: its entry {name!r} is {str(value)[:80]!r}")
    if not isinstance(state["spec"].get("classes"), list | tuple):
        raise ValueError(f"{checkpoint.path}: not a training checkpoint: its model spec has no classes")
    try:
        json.dumps(state["metrics"])
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{checkpoint.path}: not a training checkpoint: its metrics are invalid ({error})") from error
    return state


def not_finite(state: dict[str, Any], device: torch.device) -> set[str]:
    """Dotted names of the floating-point tensors in nested dictionaries and lists that are not finite.

    Args:
        state: E.g. of a model and an optimizer.
        device: Device on which the answers are collected, in one transfer.
    """
    tensors = dict(_tensors(state))
    if not tensors:
        return set()
    # On one device: the step of an optimizer that is not fused is on the CPU, beside a GPU's parameters.
    finite = torch.stack([value.isfinite().all().to(device) for value in tensors.values()]).tolist()
    return {name for name, is_finite in zip(tensors, finite, strict=True) if not is_finite}


def _tensors(content: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor) and content.is_floating_point():
        yield name, content
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from _tensors(value, f"{name}.{key}" if name else str(key))


def check_optimizer(state: Any, optimizer: Any) -> None:
    """Raise a ValueError for a state of other parameters: PyTorch's fused kernels would read beyond its end.

    Other optimizers may have several kinds of states, as Muon, or one number per parameter, as NovoGrad. A parameter
    that never had a gradient has no state.
    """
    groups, ours = state["param_groups"], optimizer.state_dict()["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in ours]:
        raise ValueError("the groups have other numbers of parameters")
    fused = any(group.get("fused") for group in ours)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in groups for number in group["params"]]
    states = [state["state"].get(number, {}) for number in numbers]
    first: Any = next(filter(None, states), {})
    for number, parameter, values in zip(numbers, parameters, states, strict=True):
        if fused and values and values.keys() != first.keys():
            raise ValueError(f"parameter {number} has {sorted(values)} and the first one {sorted(first)}")
        for name, value in values.items():
            if name == "step" and isinstance(value, Tensor) and value.numel() != 1:
                raise ValueError(f"step of parameter {number} has shape {tuple(value.shape)} instead of one element")
            if name in MOMENTS and not _is_moment(value, parameter, number_will_do=not fused):
                found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"{name} of parameter {number} is {found} instead of {tuple(parameter.shape)}")
            if name in MOMENTS:
                end = (value.storage_offset() + value.numel()) * value.element_size()
                if value.untyped_storage().nbytes() < end:
                    raise ValueError(f"{name} of parameter {number} is a view of fewer numbers than it has")


def _is_moment(value: Any, parameter: Tensor, number_will_do: bool) -> bool:
    if not isinstance(value, Tensor):
        return False
    return value.shape == parameter.shape or (number_will_do and value.numel() == 1)
