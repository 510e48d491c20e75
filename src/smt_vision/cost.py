"""Size and cost of a model: parameters, GMAC, activations, and the feature shape of each stage.

GMAC are multiply-accumulates of one image divided by 1e9, including the two matrix products of attention. They are
counted by ``torch.utils.flop_counter`` (FLOPs divided by two), which counts ``@`` and fused attention alike.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .forms.fused_layers import FusedConv2d, FusedLinear
from .model.smt import SMT

COUNTED = (nn.Linear, nn.Conv2d, FusedLinear, FusedConv2d)  # layers whose outputs are activations


@dataclass(frozen=True)
class StageInfo:
    """Size and cost of one part of a model.

    Attributes:
        name: Module path inside the model.
        shape: Output shape without the batch dimension: ``(C, H, W)`` for feature maps.
        parameters: Number of parameters.
        gmac: Multiply-accumulates divided by 1e9.
        mixers: SMT stages only: one letter per block, ``S`` (SAM), ``A`` (MSA) or ``F`` (FocalNet's).
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    gmac: float
    mixers: str | None = None


@dataclass(frozen=True)
class ModelInfo:
    """Size and cost of a model at one input size.

    Attributes:
        name: timm name of the architecture, or the class name.
        input_size: ``(C, H, W)``.
        parameters: Number of parameters.
        gmac: Multiply-accumulates per image divided by 1e9.
        activations: Number of output elements of all convolutions and linear layers per image.
        stages: Parts of the model: for an SMT all parts, which add up to the total; for other models the modules in
            their ``feature_info``.
    """

    name: str
    input_size: tuple[int, int, int]
    parameters: int
    gmac: float
    activations: int
    stages: tuple[StageInfo, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def describe(model: nn.Module, input_size: Sequence[int] = (3, 224, 224)) -> ModelInfo:
    """Count the parameters, GMAC and activations of a model, in total and per stage.

    The model is not modified. A copy without weights runs on the meta device, which computes shapes only. If an
    operator does not support the meta device, a full copy runs on the model's own device.

    Args:
        model: SMT, any timm model, or any module called with one image batch.
        input_size: ``(C, H, W)``.

    Raises:
        ValueError: ``input_size`` is not three positive numbers, or the model fails at this size.
    """
    size = tuple(input_size)
    if len(size) != 3 or any(n < 1 for n in size):
        raise ValueError(f"invalid input_size={input_size!r}: expected three positive numbers, (C, H, W)")
    C, H, W = size
    try:
        traced = _trace(_meta_copy(model), torch.empty(1, C, H, W, device="meta"))
    except (AssertionError, NotImplementedError, RuntimeError):
        first = next(model.parameters(), torch.empty(0))
        try:
            traced = _trace(copy.deepcopy(model), torch.zeros(1, C, H, W, device=first.device, dtype=first.dtype))
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"invalid input_size={size!r} for {type(model).__name__}: {error}; use the size the model was built for"
            ) from error
    stages = tuple(
        StageInfo(
            name=name,
            shape=_channels_first(traced.shapes[name], channels),
            parameters=_parameters(model.get_submodule(name)),
            gmac=traced.gmac(name),
            mixers=mixers,
        )
        for name, channels, mixers in _parts(model)
        if name in traced.shapes
    )
    cfg = getattr(model, "pretrained_cfg", None)
    architecture = cfg.get("architecture") if isinstance(cfg, Mapping) else None
    name = architecture or type(model).__name__
    return ModelInfo(name, (C, H, W), _parameters(model), traced.gmac(""), traced.activations, stages)


@dataclass(frozen=True)
class _Trace:
    """FLOPs and output shapes of one forward pass by module path, and the number of activations."""

    flops: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    activations: int

    def gmac(self, name: str) -> float:
        return self.flops.get(name, 0) / 2e9


def _trace(model: nn.Module, x: Tensor) -> _Trace:
    shapes: dict[str, tuple[int, ...]] = {}
    activations = 0

    def add_hook(name: str, module: nn.Module) -> None:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            nonlocal activations
            if isinstance(out, Tensor):
                shapes[name] = tuple(out.shape[1:])
                activations += out.numel() if isinstance(module, COUNTED) else 0

        module.register_forward_hook(hook)

    for name, module in model.named_modules():
        add_hook(name, module)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(x)
    root = type(model).__name__
    counts = {name.removeprefix(f"{root}."): sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    counts[""] = counter.get_total_flops()
    return _Trace(counts, shapes, activations)


def _meta_copy(model: nn.Module) -> nn.Module:
    """Copy of the model on the meta device. The weights are never copied, which halves the peak memory."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in model.parameters()}
    memo |= {id(b): b.to("meta") for b in model.buffers()}
    return copy.deepcopy(model, memo)


def _parts(model: nn.Module) -> list[tuple[str, int | None, str | None]]:
    """Module path, number of channels if known, and mixers, of each part to report."""
    if isinstance(model, SMT):
        stages = [(f"stages.{i}", model.feature_info[i]["num_chs"], p) for i, p in enumerate(model.patterns)]
        return [("stem", model.feature_info[0]["num_chs"], None), *stages, ("head", None, None)]
    infos = getattr(model, "feature_info", None)
    if not isinstance(infos, list):
        return []
    return [(info["module"], info["num_chs"], None) for info in infos if info.get("module")]


def _channels_first(shape: tuple[int, ...], channels: int | None) -> tuple[int, ...]:
    """``(H, W, C) -> (C, H, W)`` if only the last axis has as many elements as there are channels."""
    is_channels_last = len(shape) == 3 and shape[-1] == channels and shape[0] != channels
    return (shape[-1], *shape[:-1]) if is_channels_last else shape


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
