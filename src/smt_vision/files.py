"""Tensor files: read without executing pickled code, written atomically."""

import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` with a temporary file in the directory of ``path``, then rename it to ``path``.

    A reader always finds the complete old file or the complete new one. If ``write`` fails, the old file is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Load a ``.safetensors`` file, or a PyTorch file (any other suffix), to the CPU.

    Returns:
        The content, and the metadata of a ``.safetensors`` file.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is truncated, is not a tensor file, or contains pickled objects.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; check the path")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
            return load_file(path), metadata
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path}: not a readable {path.suffix} tensor file ({type(error).__name__}): it is truncated, not a tensor "
            "file, or contains pickled objects, which are never loaded; download it again, or save only a state dict"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: contains a {type(content).__name__}; expected a state dict, tensors by name")
    return content, {}
