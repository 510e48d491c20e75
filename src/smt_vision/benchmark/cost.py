"""What a model costs: parameters, GMAC, activations, and the shape of each stage's feature map.

GMAC are multiply-accumulates over 1e9, of one image, with attention's two products counted. The counter is torch's
own (``torch.utils.flop_counter``, halved), which counts ``@`` and fused attention alike.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..model.smt import SMT


@dataclass(frozen=True)
class StageInfo:
    """A part of a model.

    Attributes:
        name: module path inside the model.
        shape: of its output, without the batch: ``(C, H, W)`` for maps, as it is for anything else.
        parameters: trained numbers inside.
        gmac: multiply-accumulates inside, over 1e9.
        mixers: of an SMT stage, one letter a block: ``S`` (modulation), ``A`` (attention).
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    gmac: float
    mixers: str | None = None


@dataclass(frozen=True)
class ModelInfo:
    """A model's size and cost at one input size.

    Attributes:
        name: timm's name of the architecture, or the class.
        input_size: ``(C, H, W)``.
        parameters: trained numbers.
        gmac: multiply-accumulates for an image, over 1e9.
        activations: numbers that convolutions and linear layers write for an image.
        stages: the parts; those of an SMT add up to the whole, those of another model are its ``feature_info``'s.
    """

    name: str
    input_size: tuple[int, int, int]
    parameters: int
    gmac: float
    activations: int
    stages: tuple[StageInfo, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def describe(model: nn.Module, input_size: Sequence[int] = (3, 224, 224)) -> ModelInfo:
    """Count a model's parameters and, at an input size, its GMAC and activations, stage by stage.

    A copy without weights runs on the meta device, where shapes alone are computed, or, should the model have an
    operator unknown there, a full copy on the model's own device. The model itself is not touched.

    Args:
        model: an SMT, any of timm's, or any module of one image batch.
        input_size: ``(C, H, W)``.

    Raises:
        ValueError: ``input_size`` is not three positive numbers, or the model cannot run at it.
    """
    size = tuple(input_size)
    if len(size) != 3 or any(n < 1 for n in size):
        raise ValueError(f"input_size={input_size!r} cannot work: three positive numbers, channels, height and width")
    C, H, W = size
    try:
        seen = _run(_meta_copy(model), torch.empty(1, C, H, W, device="meta"))
    except (NotImplementedError, RuntimeError):
        first = next(model.parameters(), torch.empty(0))
        try:
            seen = _run(copy.deepcopy(model), torch.zeros(1, C, H, W, device=first.device, dtype=first.dtype))
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"input_size={size!r} cannot work: {type(model).__name__} fails at it ({error}); "
                "give the size it was built for"
            ) from error
    stages = tuple(
        StageInfo(
            name=name,
            shape=_channels_first(seen.shapes[name], channels),
            parameters=_parameters(model.get_submodule(name)),
            gmac=seen.gmac(name),
            mixers=mixers,
        )
        for name, channels, mixers in _parts(model)
        if name in seen.shapes
    )
    cfg = getattr(model, "pretrained_cfg", None)
    architecture = cfg.get("architecture") if isinstance(cfg, Mapping) else None
    return ModelInfo(
        architecture or type(model).__name__, (C, H, W), _parameters(model), seen.gmac(""), seen.activations, stages
    )


@dataclass(frozen=True)
class _Run:
    """What one forward pass showed: flops and output shapes by module path."""

    flops: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    activations: int

    def gmac(self, name: str) -> float:
        return self.flops.get(name, 0) / 2e9


def _run(model: nn.Module, x: Tensor) -> _Run:
    shapes: dict[str, tuple[int, ...]] = {}
    written = 0

    def watch(name: str, module: nn.Module) -> None:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            nonlocal written
            if isinstance(out, Tensor):
                shapes[name] = tuple(out.shape[1:])
                written += out.numel() if isinstance(module, nn.Linear | nn.Conv2d) else 0

        module.register_forward_hook(hook)

    for name, module in model.named_modules():
        watch(name, module)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(x)
    root = type(model).__name__
    counts = {name.removeprefix(f"{root}."): sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    counts[""] = counter.get_total_flops()
    return _Run(counts, shapes, written)


def _meta_copy(model: nn.Module) -> nn.Module:
    """The model on the meta device. Its weights are not copied on the way: a large model's need not fit twice."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in model.parameters()}
    memo |= {id(b): b.to("meta") for b in model.buffers()}
    return copy.deepcopy(model, memo)


def _parts(model: nn.Module) -> list[tuple[str, int | None, str | None]]:
    """Module path, channels where known, and mixers, of each part worth a row."""
    if isinstance(model, SMT):
        stages = [(f"stages.{i}", model.feature_info[i]["num_chs"], p) for i, p in enumerate(model.patterns)]
        return [("stem", model.feature_info[0]["num_chs"], None), *stages, ("head", None, None)]
    infos = getattr(model, "feature_info", None)
    if not isinstance(infos, list):
        return []
    return [(info["module"], info["num_chs"], None) for info in infos if info.get("module")]


def _channels_first(shape: tuple[int, ...], channels: int | None) -> tuple[int, ...]:
    """``(H, W, C) -> (C, H, W)`` where, by its size, the last axis is the channels."""
    last = len(shape) == 3 and shape[-1] == channels and shape[0] != channels
    return (shape[-1], *shape[:-1]) if last else shape


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
