"""Conversion of weight files between the keys of the authors' release and this package's.

The network loads files of both kinds; conversion is for tools that expect the other one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .files import read_tensors, write_atomic
from .model import SMT
from .model.official import is_official, our_state, to_official, unwrap
from .registry import VARIANTS

SUFFIXES = (".pth", ".safetensors")


@dataclass(frozen=True)
class ConversionReport:
    """Result of :func:`convert_file`.

    Args:
        source: Input file.
        target: Output file.
        direction: ``official -> ours`` or ``ours -> official``.
        variant: Name of the variant.
        num_classes: Number of classes; 0 without a classifier.
        in_chans: Number of image channels.
        tensors: Number of tensors in the output file.
        parameters: Number of trainable parameters, i.e. without BatchNorm statistics.
    """

    source: Path
    target: Path
    direction: str
    variant: str
    num_classes: int
    in_chans: int
    tensors: int
    parameters: int


def convert_file(source: str | Path, target: str | Path) -> ConversionReport:
    """Convert a weight file from the release's keys to ours, or from ours to the release's.

    The keys determine the direction and the variant, the suffixes the file formats. A ``.pth`` with the release's keys
    is written as in the release, ``{"model": state dict}``; every other file is a plain state dict. Values and dtypes
    do not change. The target is written atomically.

    Args:
        source: Input file, ``.pth`` or ``.safetensors``; only tensors are unpickled.
        target: Output file, ``.pth`` or ``.safetensors``.

    Raises:
        FileNotFoundError: The source does not exist.
        ValueError: A suffix is unknown, the target is the source, or the weights do not match a variant.
    """
    source, target = Path(source), Path(target)
    for path in (source, target):
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{path}: unknown suffix {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")
    if target.exists() and target.samefile(source):
        raise ValueError(f"{target}: the target is the source; name another file")

    state = state_dict_of(read_tensors(source)[0], source)
    official = is_official(state)
    result = our_state(state) if official else to_official(state)
    variant, num_classes, in_chans, parameters = identify(result if official else state, source)
    result = {key: value.contiguous() for key, value in result.items()}

    def write(part: Path) -> None:
        if target.suffix == ".safetensors":
            save_file(result, part, metadata={"format": "pt"})
        else:
            torch.save(result if official else {"model": result}, part)

    write_atomic(target, write)
    direction = "official -> ours" if official else "ours -> official"
    return ConversionReport(source, target, direction, variant, num_classes, in_chans, len(result), parameters)


def state_dict_of(content: Mapping[str, Any], source: Path) -> dict[str, Tensor]:
    """The state dict in the content of a file: all of it, or its entry ``model``.

    Raises:
        ValueError: The content is not a state dict.
    """
    state = unwrap(content)
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{source}: holds no state dict; expected names and tensors, or an entry 'model' with them")
    return dict(state)


def identify(state: Mapping[str, Tensor], source: Path) -> tuple[str, int, int, int]:
    """Variant, number of classes, of image channels and of parameters of a state dict with our keys.

    Raises:
        ValueError: The tensors do not match a variant exactly.
    """
    matches = [re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", key) for key in state]
    blocks = {(int(m[1]), int(m[2])) for m in matches if m}
    depths = tuple(sum(stage == i for stage, _ in blocks) for i in range(len({stage for stage, _ in blocks})))
    norms = [state.get(f"stages.{i}.norm.weight") for i in range(len(depths))]
    dims = tuple(0 if norm is None else norm.shape[0] for norm in norms)
    stem = state.get("stem.conv1.weight")
    if stem is None or stem.ndim != 4 or not depths:
        raise ValueError(
            f"{source}: not the weights of an SMT; expected the release's keys (patch_embed1.conv.0.weight, ...) or "
            f"ours (stem.conv1.weight, ...), found {', '.join(list(state)[:3]) or 'nothing'}"
        )
    variant = next(
        (name for name, row in VARIANTS.items() if (row["embed_dims"], row["depths"]) == (dims, depths)), None
    )
    if variant is None:
        known = "; ".join(f"{name} {row['embed_dims']}, {row['depths']}" for name, row in VARIANTS.items())
        raise ValueError(f"{source}: no variant has embed_dims={dims} and depths={depths}; expected one of {known}")
    head = state.get("head.fc.weight")
    num_classes, in_chans = 0 if head is None else head.shape[0], stem.shape[1]
    with torch.device("meta"):
        model = SMT(**VARIANTS[variant], num_classes=num_classes, in_chans=in_chans)
    try:
        model.load_state_dict({key: value.to("meta") for key, value in state.items()}, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{source}: looks like {variant} but does not match it; download it again. {error}") from error
    return variant, num_classes, in_chans, sum(p.numel() for p in model.parameters())
