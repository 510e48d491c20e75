"""Tensor files: read without executing anything in them, and searched for a state dict."""

import argparse
import pickle
import re
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from .text import get_logger

log = get_logger(__name__)
# Entries of a checkpoint that hold the weights. Averaged weights come first, as they are the ones that were evaluated.
AVERAGED = ("ema", "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "params_ema")
WEIGHTS = ("model", "state_dict")
MAX_NESTING = 100  # containers in each other
SHOWN_NAME = 100  # characters of a nested name in a message
_END = object()  # of a container's items
_lock = threading.Lock()


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Load a PyTorch or safetensors file to the CPU; its content decides which of them it is, not its suffix.

    Besides tensors and plain data, a PyTorch file may hold an ``argparse.Namespace``, as timm's training checkpoints
    do.

    Returns:
        The content, and the metadata of a safetensors file.

    Raises:
        FileNotFoundError: If the file does not exist.
        PermissionError: If the file may not be read.
        ValueError: If the file is truncated, is not a tensor file, contains other pickled objects, or has tensors that
            are not dense or describe more data than the file has.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; check the path")
    with open(path, "rb") as file:
        start = file.read(64)
    _check_zip(path)
    try:
        if start[8:9] == b"{":  # safetensors: the length of a JSON header in 8 bytes, and the header
            with safe_open(path, "pt") as tensors:
                metadata = tensors.metadata() or {}
            return load_file(path), metadata
        # Of a path, torch.load would take the suffix for the format.
        with open(path, "rb") as file, _namespaces_allowed():
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the description of a tensor in a damaged file can raise almost any exception
        unreadable = f"{path}: not a readable {path.suffix} tensor file"
        if types := _refused_types(path, error):
            # MMEngine's checkpoints have the first of these entries, most other programs' the second.
            entries = ["state_dict", "model"] if any(name.startswith("mmengine.") for name in types) else WEIGHTS
            raise ValueError(
                f"{unreadable}: it contains pickled objects ({', '.join(types)}), which are never loaded, since "
                "loading them can execute code. Where you trust the file and have the libraries that it was written "
                f"with, save its state dict only: torch.save(torch.load({path.name!r}, weights_only=False)"
                f"[{entries[0]!r}], 'weights.pth'), with its entry {entries[1]!r} instead, or .state_dict() of a "
                "model, if it contains these"
            ) from error
        raise ValueError(f"{unreadable} ({type(error).__name__}): {_found_instead(start, error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: contains a {type(content).__name__}; expected a state dict, tensors by name")
    _check_tensors(content, path)
    return content, {}


@contextmanager
def _namespaces_allowed() -> Iterator[None]:
    """Let ``torch.load`` read ``argparse.Namespace``, which the authors' checkpoints contain.

    The list of allowed types is that of the process, so one thread at a time changes it.
    """
    with _lock:
        known = argparse.Namespace in torch.serialization.get_safe_globals()  # by the application
        with torch.serialization.safe_globals([] if known else [argparse.Namespace]):
            yield


def _check_zip(path: Path) -> None:
    """Raise a ValueError for a zip file, as PyTorch's are, that is damaged, or unpacks to much more than its size."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            size, unpacked = path.stat().st_size, sum(member.file_size for member in archive.infolist())
            limit = 2 * size + 2**20  # a TorchScript program is compressed a little
            damaged = None if unpacked > limit else archive.testzip()
    except Exception as error:  # of many kinds
        raise ValueError(f"{path}: damaged: its directory cannot be read ({error}); use a copy of the file") from error
    if unpacked > limit:
        raise ValueError(
            f"{path}: a compressed zip of {size} bytes that unpacks to {unpacked}; expected a file of torch.save, "
            "which does not compress"
        )
    if damaged is not None:
        raise ValueError(
            f"{path}: damaged: the checksum of {damaged} is wrong; use another checkpoint, or a copy of this file (one "
            "that was written without checksums has to be saved again; see torch.serialization.set_crc32_options)"
        )


def _check_tensors(content: Mapping[Any, Any], path: Path) -> None:
    """Raise a ValueError if a tensor in nested containers is not dense, or describes more data than the file has.

    So do containers that contain themselves, or are nested deeply.
    """
    size = path.stat().st_size
    pending: list[tuple[str, Any]] = [("", content)]
    around: list[int] = []  # the containers that the present value is in
    seen: set[int] = set()
    while pending:
        name, value = pending.pop()
        if value is _END:
            around.pop()
        elif isinstance(value, Tensor):
            kind = "quantized" if value.is_quantized else "meta" if value.is_meta else str(value.layout)
            if kind != "torch.strided":
                raise ValueError(
                    f"{path}: {name[1:]} is a {kind} tensor; expected a dense one: save it with .to_dense()"
                )
            if (needed := value.numel() * value.element_size()) > size:
                raise ValueError(
                    f"{path}: {name[1:]} of shape {tuple(value.shape)} has {needed} bytes, but the file has {size}; "
                    "it is damaged, or the tensor is an expanded view: save it with .contiguous()"
                )
        elif isinstance(value, Mapping | list | tuple):
            if id(value) in around or len(around) >= MAX_NESTING:
                raise ValueError(
                    f"{path}: {name[1 : 1 + SHOWN_NAME]} is in itself, or in more than {MAX_NESTING} containers; "
                    "expected a state dict, tensors by name"
                )
            if id(value) not in seen:
                seen.add(id(value))
                around.append(id(value))
                items = value.items() if isinstance(value, Mapping) else enumerate(value)
                pending += [("", _END), *((f"{name}.{key}", item) for key, item in items)]


def _found_instead(start: bytes, error: Exception) -> str:
    """What an unreadable file is, judged by its first bytes, and what to do."""
    if not start:
        return "it is empty; download it again"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file that it stands for with git lfs pull"
    if start.lstrip()[:1] in (b"<", b"{"):
        return "it is a web page or a server's message, not the file; download it again"
    if "TorchScript" in str(error):
        return "it is a TorchScript program; expected a state dict, e.g. torch.jit.load(FILE).state_dict()"
    return "it is truncated or not a tensor file; download it again"


def _refused_types(path: Path, error: Exception) -> list[str]:
    """Names of the pickled types because of which a file was refused, at most five."""
    if not isinstance(error, pickle.UnpicklingError):
        return []
    try:
        with _namespaces_allowed():
            types = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # not a zip file: the format before PyTorch 1.6, of which the error names the first type
        types = re.findall(r"GLOBAL ([\w.]+)", str(error))[:1]
    return [*types[:5], "..."] if len(types) > 5 else types


def find_state_dict(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict in the content of a file of weights: an entry of a checkpoint, or the entire content.

    Averaged weights (:data:`AVERAGED`) come before ``model`` and ``state_dict``. If a checkpoint has none of these
    entries, all its state dicts are returned as one, with the entry's name as the prefix of its keys. Entries beside
    the tensors of a state dict, e.g. an epoch, are logged and left out.

    Raises:
        ValueError: There is no state dict.
    """
    state = _search(content)
    if state is None:
        entries = ", ".join(f"{name} ({type(value).__name__})" for name, value in list(content.items())[:5])
        raise ValueError(
            f"contains no state dict; expected tensors by name, or an entry 'model' or 'state_dict' with them, found "
            f"{entries}"
        )
    return {name: value.detach() for name, value in state.items()}  # parameters in a file require gradients


def _search(content: Mapping[str, Any]) -> dict[str, Tensor] | None:
    if _is_state_dict(content):
        return dict(content)
    for name in (*AVERAGED, *WEIGHTS):
        value = content.get(name)
        if isinstance(value, Mapping) and value and (state := _search(value)) is not None:
            return state
    found = {
        name: value for name, value in content.items() if isinstance(value, Mapping) and value and _is_state_dict(value)
    }
    if len(found) == 1:
        return dict(next(iter(found.values())))
    if found:
        return {f"{name}.{key}": value for name, state in found.items() for key, value in state.items()}
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        others = [str(name) for name in content if name not in tensors]
        log.warning("state dict: left out %d entries that are not tensors: %s", len(others), ", ".join(others[:5]))
    return tensors or None


def _is_state_dict(content: Mapping[str, Any]) -> bool:
    return all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
