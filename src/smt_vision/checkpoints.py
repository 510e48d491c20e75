"""Checkpoints: plain data and tensors, written atomically and read without executing anything in them.

A run's folder has two: ``last.pt``, everything needed to resume as if never stopped, and ``best.pt``, the weights with the
best primary metric (the EMA weights where the recipe has an EMA) and what is needed to use them. A third form is
``.safetensors``: the weights, and the rest as JSON in the metadata.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .files import read_tensors, write_atomic
from .legacy import upgrade

LAST, BEST = "last.pt", "best.pt"
FORMAT = 2
METADATA = "smt_vision"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of ours, or any other file of weights.

    Args:
        path: The file.
        state: Everything in it.
    """

    path: Path
    state: Mapping[str, Any]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The state dict to use: EMA weights where there are any; of other files, their ``model`` or ``state_dict``
        entry, or all of it.

        Raises:
            ValueError: The file holds no state dict.
        """
        state: Any = next(
            (self.state[key] for key in ("ema", "model", "state_dict") if self.state.get(key)), self.state
        )
        if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError(
                f"{self.path}: no state dict in it; expected names and tensors, or an entry 'model' of them"
            )
        return dict(state)

    @property
    def spec(self) -> dict[str, Any] | None:
        """The model spec as plain data; ``None`` for a file that is not a checkpoint of ours."""
        return self.state.get("spec")

    @property
    def task(self) -> str:
        """The task; files that do not say are taken for classifiers."""
        return "classify" if self.spec is None else str(self.spec["task"])


def save(state: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint: ``state["model"]`` is a state dict, the rest plain data (for ``.safetensors``: JSON)."""
    if path.suffix == ".safetensors":
        tensors = {k: v.detach().cpu().contiguous() for k, v in state["model"].items()}
        rest = json.dumps({"format": FORMAT, **{k: v for k, v in state.items() if k != "model"}})
        write_atomic(path, lambda part: save_file(tensors, part, metadata={"format": "pt", METADATA: rest}))
    else:
        write_atomic(path, lambda part: torch.save({"format": FORMAT, **state}, part))


def load(path: Path) -> Checkpoint:
    """Read a checkpoint of ours, or any file of weights, onto the CPU; of a run's folder, its best weights.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a checkpoint, is truncated, or has a later format.
    """
    path = path / BEST if path.is_dir() else path
    content, metadata = read_tensors(path)
    state = {**json.loads(metadata[METADATA]), "model": content} if METADATA in metadata else content
    number = state.get("format", FORMAT)
    if not isinstance(number, int) or number > FORMAT:
        raise ValueError(
            f"{path}: checkpoint format {number}, and this version reads up to {FORMAT}; update smt-vision"
        )
    return Checkpoint(path, upgrade(state))
