"""Files of tensors: read without running anything in them, written whole or not at all."""

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
    """Let ``write`` fill a temporary file beside ``path``, then put it in place in one step.

    A reader sees the old file or the new one, whatever happens meanwhile; a failure leaves the old one.
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
    """What a ``.safetensors`` file, or one of torch's (any other suffix), holds, on the CPU, and its metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read: cut short, of another kind, or with more than plain data in it.
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
            f"{path}: not a readable {path.suffix} file of tensors ({type(error).__name__}): it is cut short, of "
            "another kind, or has objects in it, which are never loaded; fetch it again, or save a state dict alone"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds no state dict but a {type(content).__name__}; expected names and tensors")
    return content, {}
