"""Checkpoints: plain data, written whole or not at all.

A run's folder holds two: ``last.pt``, everything needed to go on as if never stopped, and ``best.pt``, the weights that
scored best (averaged ones, where the recipe averages) with what it takes to use them. A third form is ``.safetensors``:
the weights, and the rest as JSON in the metadata.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..files import read_tensors, write_whole

FORMAT = 1
METADATA = "smt_vision"


def save(state: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint: ``state["model"]`` is a state dict, the rest plain data (for ``.safetensors``: JSON)."""
    if path.suffix == ".safetensors":
        tensors = {k: v.detach().cpu().contiguous() for k, v in state["model"].items()}
        rest = json.dumps({"format": FORMAT, **{k: v for k, v in state.items() if k != "model"}})
        write_whole(path, lambda part: save_file(tensors, part, metadata={"format": "pt", METADATA: rest}))
    else:
        write_whole(path, lambda part: torch.save({"format": FORMAT, **state}, part))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours, or any state dict, onto the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint, is cut short, or is of a later format.
    """
    content, metadata = read_tensors(path)
    state = {**json.loads(metadata[METADATA]), "model": content} if METADATA in metadata else content
    number = state.get("format", FORMAT)
    if not isinstance(number, int) or number > FORMAT:
        raise ValueError(f"{path}: is of format {number}; this version reads up to {FORMAT}: update smt-vision")
    return state
