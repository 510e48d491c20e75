"""Checkpoints: plain data and tensors, written atomically and read without executing code from the file.

A run folder has two kinds of checkpoints. ``last.pt`` is the complete training state for resuming; the ones before it
are kept under names with their step. ``best.pt`` holds the weights with the best primary metric, or, of self-supervised
pretraining, those of the latest evaluation (the EMA weights if the recipe has an EMA), and the model spec. A checkpoint
can also be a ``.safetensors`` file with the weights, and everything else as JSON in its metadata.

Every checkpoint has checksums, which are verified when it is read: those of its records for ``.pt``, which is a zip
file, and one in the metadata for ``.safetensors``.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .files import write_atomic
from .legacy import upgrade
from .lora import has_adapters, merge_state
from .tensor_files import find_state_dict, read_tensors

LAST, BEST = "last.pt", "best.pt"
EARLIER, KEPT = "last-{:08}.pt", "step-{:08}.pt"  # checkpoints of earlier steps: the last few, and those kept for good
FORMAT = 2
METADATA, CHECKSUM = "smt_vision", "smt_vision.checksum"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of this library, or any other file of weights.

    Args:
        path: Path of the file.
        state: Content of the file.
    """

    path: Path
    state: Mapping[str, Any]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The state dict, with low-rank adapters merged; see :func:`smt_vision.tensor_files.find_state_dict`.

        Raises:
            ValueError: The file does not contain a state dict.
        """
        try:
            state = find_state_dict(self.state)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        if not has_adapters(state) or not _is_own(self.state):
            return state
        try:
            lora = self.state["recipe"]["lora"]
            return merge_state(state, lora["alpha"] / lora["rank"])
        except (KeyError, TypeError, RuntimeError, ZeroDivisionError) as error:
            raise ValueError(f"{self.path}: damaged adapters ({error}); use another checkpoint") from error

    @property
    def spec(self) -> dict[str, Any] | None:
        """The model spec as plain data; ``None`` for files that are not checkpoints of this library."""
        return self.state.get("spec") if _is_own(self.state) else None

    @property
    def task(self) -> str:
        """Name of the task; files without a spec are treated as classifiers."""
        return "classify" if self.spec is None else str(self.spec["task"])


def save(state: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint.

    Args:
        state: ``model`` is a state dict; the rest is plain data (for ``.safetensors``: data that JSON can hold).
        path: Path of the file; the suffix ``.safetensors`` selects that format.
    """
    if path.suffix == ".safetensors":
        tensors = {k: v.detach().cpu().contiguous() for k, v in state["model"].items()}
        rest = json.dumps({"format": FORMAT, **{k: v for k, v in state.items() if k != "model"}})
        metadata = {"format": "pt", METADATA: rest, CHECKSUM: checksum(tensors, rest)}
        write_atomic(path, lambda part: save_file(tensors, part, metadata=metadata), _size(tensors))
    else:

        def write(part: Path) -> None:
            with part.open("wb") as file:  # of a path, torch.save would not say why it cannot write
                torch.save({"format": FORMAT, **state}, file)

        write_atomic(path, write, _size(state))


def _size(content: Any) -> int:
    """Bytes of the tensors in a nested structure."""
    if isinstance(content, Tensor):
        return content.numel() * content.element_size()
    values = content.values() if isinstance(content, Mapping) else content if isinstance(content, list | tuple) else ()
    return sum(map(_size, values))


def checksum(tensors: Mapping[str, Tensor], rest: str = "") -> str:
    """Hash of names, dtypes, shapes and values of tensors, and of a text."""
    digest = hashlib.blake2b(rest.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def training_checkpoints(folder: Path) -> list[Path]:
    """The complete training states in a run's folder, the newest first."""
    newest = [folder / LAST] if (folder / LAST).is_file() else []
    names = EARLIER.partition("{")[0], KEPT.partition("{")[0]
    earlier = [path for name in names for path in folder.glob(f"{name}[0-9]*.pt")]
    return newest + sorted(earlier, key=lambda path: path.stem.rpartition("-")[2], reverse=True)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint, or any file of weights, onto the CPU.

    Args:
        path: Path of the file, or of a run folder for its best checkpoint.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not a checkpoint, is damaged, or has a later format.
    """
    path = path.expanduser()
    if path.is_dir():
        if not (path / BEST).is_file():
            raise FileNotFoundError(f"{path}: there is no {BEST} in this folder; expected a run's folder, or a file")
        path = path / BEST
    content, metadata = read_tensors(path)
    if CHECKSUM in metadata and metadata[CHECKSUM] != checksum(content, metadata.get(METADATA, "")):
        raise ValueError(f"{path}: damaged: its checksum is wrong; use another checkpoint, or a copy of this file")
    state = {**_read_metadata(metadata[METADATA], path), "model": content} if METADATA in metadata else content
    if not _is_own(state):
        return Checkpoint(path, state)
    version = state["format"]
    if version > FORMAT:
        raise ValueError(
            f"{path}: checkpoint format {version} is newer than the supported format {FORMAT}; update smt-vision"
        )
    try:
        state = upgrade(state)
        damaged = next((name for name in ("spec", "recipe") if not isinstance(state.get(name, {}), Mapping)), None)
        if damaged or not isinstance(state.get("spec", {"task": ""})["task"], str):
            raise TypeError(f"{damaged or 'the task in spec'} has another type")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path}: its model spec or recipe is damaged ({type(error).__name__}: {error}); use another checkpoint"
        ) from error
    return Checkpoint(path, state)


def _read_metadata(text: str, path: Path) -> dict[str, Any]:
    """The plain data in a safetensors file."""
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"a {type(values).__name__} instead of an object")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: the metadata {METADATA!r} of this safetensors file is not valid JSON ({error}); download it again"
        ) from error
    return values


def _is_own(state: Mapping[str, Any]) -> bool:
    """Whether the content of a file was written by :func:`save`."""
    return isinstance(state.get("format"), int)
