"""Conversion of weight files between the release's layout and this package's.

The network loads both layouts; conversion is for tools that need the other one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from . import checkpoints
from .files import write_atomic
from .model import SMT
from .model.official import is_official, require_smt, smt_state, to_official, to_ours
from .registry import TAG_ARGS, VARIANTS

SUFFIXES = (".pth", ".safetensors")


@dataclass(frozen=True)
class ConversionReport:
    """What :func:`convert_file` did.

    Attributes:
        source: The file read.
        target: The file written.
        direction: ``official -> ours`` or ``ours -> official``.
        variant: Name of the variant that the weights are for.
        num_classes: Number of classes of the classifier, 0 without one.
        in_chans: Number of image channels.
        tensors: Number of tensors in the target.
        parameters: Number of trainable parameters in the target, i.e. without BatchNorm's statistics.
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
    """Convert a weight file from the release's layout to this package's, or back.

    The direction and the variant are found from the content, the target's format from its suffix. A ``.pth`` file in
    the release's layout is written as ``{"model": state dict}``, as the release does; every other file is the state
    dict only. Of a larger network, the SMT in it is converted. Values and dtypes do not change. The target is written
    atomically.

    Args:
        source: A PyTorch or ``.safetensors`` file, or a run's folder; only tensors and plain data are unpickled.
        target: The file to write, ``.pth`` or ``.safetensors``.

    Raises:
        FileNotFoundError: The source does not exist.
        ValueError: The target's suffix is unknown, the target is the source, or the content is not the weights of a
            variant.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    if target.suffix not in SUFFIXES:
        raise ValueError(f"{target}: unknown suffix {target.suffix!r}; expected one of {', '.join(SUFFIXES)}")
    if source.exists() and target.exists() and target.samefile(source):
        raise ValueError(f"{target}: the target is the source; name another file")

    state = smt_state(checkpoints.load(source).weights, source)
    official = is_official(state)
    try:
        result = to_ours(state) if official else to_official(state)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
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


def identify(state: Mapping[str, Tensor], source: Path) -> tuple[str, int, int, int]:
    """Variant, number of classes, of image channels and of parameters of a state dict with this package's keys.

    Raises:
        ValueError: It is not exactly the weights of a variant.
    """
    require_smt(state, source)
    blocks = [re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", key) for key in state]
    places = {(int(m[1]), int(m[2])) for m in blocks if m}
    depths = tuple(sum(stage == i for stage, _ in places) for i in range(len({stage for stage, _ in places})))
    norms = [state.get(f"stages.{i}.norm.weight") for i in range(len(depths))]
    head = state.get("head.fc.weight")
    scalars = {f"stages.{i}.norm.weight": norm for i, norm in enumerate(norms)} | {"head.fc.weight": head}
    if scalar := [name for name, tensor in scalars.items() if tensor is not None and tensor.ndim == 0]:
        raise ValueError(f"{source}: {scalar[0]} is a single number; the file is damaged, download or write it again")
    if absent := [f"stages.{i}.norm.weight" for i, norm in enumerate(norms) if norm is None]:
        raise ValueError(f"{source}: incomplete: it has no {', '.join(absent)}; download or write the file again")
    dims = tuple(norm.shape[0] for norm in norms if norm is not None)
    rows = {**VARIANTS, **{tag: {**VARIANTS[tag.partition(".")[0]], **args} for tag, args in TAG_ARGS.items()}}
    found = [name for name, row in rows.items() if (row["embed_dims"], row["depths"]) == (dims, depths)]
    if not found:
        known = "; ".join(f"{name} {row['embed_dims']}, {row['depths']}" for name, row in rows.items())
        raise ValueError(f"{source}: unknown channels {dims} and depths {depths} per stage; the variants are {known}")
    num_classes, in_chans = 0 if head is None else head.shape[0], state["stem.conv1.weight"].shape[1]
    with torch.device("meta"):
        model = SMT(**rows[found[0]], num_classes=num_classes, in_chans=in_chans)
    try:
        model.load_state_dict({key: value.to("meta") for key, value in state.items()}, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"{source}: looks like {found[0]} but does not match it; the file may be damaged. {error}"
        ) from error
    return found[0], num_classes, in_chans, sum(p.numel() for p in model.parameters())
