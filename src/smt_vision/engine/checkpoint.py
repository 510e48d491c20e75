"""Checkpoints: written whole or not at all, plain data, read without running anything.

A run's folder holds two: ``last.pt``, everything needed to go on as if never stopped, and ``best.pt``, the weights that
scored best (averaged ones, where the recipe averages) with what it takes to use them. A third form is ``.safetensors``
with the card in its metadata.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

FORMAT = 1


def save(state: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint atomically: a reader sees the old file or the new one, whatever happens meanwhile.

    A path ending in ``.safetensors`` gets ``state["model"]``, and the rest as JSON in the metadata.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        if path.suffix == ".safetensors":
            rest = {k: v for k, v in state.items() if k != "model"}
            tensors = {k: v.detach().cpu().contiguous() for k, v in state["model"].items()}
            save_file(tensors, temporary, metadata={"smt_vision": json.dumps({"format": FORMAT, **rest})})
        else:
            torch.save({"format": FORMAT, **state}, temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours, or any state dict, onto the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint, is cut short, or is of a later format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                rest = json.loads((file.metadata() or {}).get("smt_vision", "{}"))
            state = {**rest, "model": load_file(path)}
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise half a dozen kinds for a bad file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({reason}); is it cut short, or of another kind?"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a checkpoint")
    if state.get("format", FORMAT) > FORMAT:
        raise ValueError(f"{path} is of format {state['format']}; this version reads up to {FORMAT}: update smt-vision")
    return state
