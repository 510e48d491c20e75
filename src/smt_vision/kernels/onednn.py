"""Products and convolutions on a CPU together with what follows them: oneDNN's fused operators.

These are the operators that torch.compile's CPU backend puts into its graphs. Called directly they save, beside the
passes over memory, two things that eager PyTorch does at every call: laying a weight out anew for the matrix product,
and, for one image, sending grouped convolutions to a much slower path.

They have no gradient of their own: the modules here are for inference, and :func:`product` is what training's layers
(``lean``) are made of. Where the operators cannot be used (gradients, another device, a compiler or exporter looking
on, another build of torch) the same function is computed with plain ones.
"""

from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["none", "relu", "gelu"]
Join = Literal["add", "mul"]


class _Fused(nn.Module):
    """Frozen weights, and the form of them that oneDNN computes with, made at the first call."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = _frozen(weight), _frozen(bias)
        self._packed: tuple[tuple[int, int], Tensor] | None = None

    def packed(self, pack: Callable[..., Tensor], *how: object) -> Tensor:
        """The weight laid out by ``pack``, anew where it has changed since."""
        version = 0 if self.weight.is_inference() else self.weight._version
        key = (self.weight.data_ptr(), version)
        if self._packed is None or self._packed[0] != key:
            self._packed = key, pack(self.weight.detach(), *how)
        return self._packed[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_packed": None}  # what is packed can be neither copied nor pickled


class FusedLinear(_Fused):
    """``join(x @ weight.T + bias, other)``, of frozen weights.

    Args:
        weight: ``(C_out, C_in)``.
        bias: ``(C_out,)``.

    Shape: ``(..., C_in) -> (..., C_out)``; ``other`` is of the output's shape.
    """

    def forward(self, x: Tensor, other: Tensor | None = None, join: Join = "add") -> Tensor:
        if not usable(x):
            y = F.linear(x, self.weight, self.bias)
            return y if other is None else y + other if join == "add" else y * other
        weight = self.packed(torch.ops.mkldnn._reorder_linear_weight)
        y = torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, "none", [], "")
        # The operator would join too, but builds its kernel anew at every call: ten times the cost of this pass.
        return y if other is None else y.add_(other) if join == "add" else y.mul_(other)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}"


class FusedConv2d(_Fused):
    """``act(conv(x) + bias)`` or ``conv(x) + bias + other``, of frozen weights, over channels-last maps.

    Args:
        weight: ``(C_out, C_in / groups, k, k)``.
        bias: ``(C_out,)``.
        stride: of both axes.
        padding: of both axes.
        groups: of the channels.
        act: what follows; GELU is the exact one.

    Shape: ``(B, H, W, C_in) -> (B, H', W', C_out)``; ``other`` is of the output's shape.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, stride: int = 1, padding: int = 0, groups: int = 1, act: Activation = "none"
    ) -> None:
        super().__init__(weight.contiguous(memory_format=torch.channels_last), bias)
        self.stride, self.padding, self.groups, self.act = stride, padding, groups, act

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        if other is not None:
            other = other.permute(0, 3, 1, 2)
        if usable(x):
            y = self._fused(x, other)
        else:
            y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)
            y = y if other is None else y + other
            y = F.relu(y) if self.act == "relu" else F.gelu(y) if self.act == "gelu" else y
        return y.permute(0, 2, 3, 1)

    def _fused(self, x: Tensor, other: Tensor | None) -> Tensor:
        op, size = torch.ops.mkldnn._convolution_pointwise, self.weight.shape
        weight: Tensor = self.weight
        how = ([self.padding] * 2, [self.stride] * 2, [1, 1], self.groups)
        if self.groups == 1:
            weight = self.packed(torch.ops.mkldnn._reorder_convolution_weight, *how, list(x.shape))
        if other is not None:
            return op(x, weight, self.bias, *how, "none", [], "").add_(other)
        if self.act == "gelu" and 1 < size[1] < size[0]:  # grouped: with GELU attached oneDNN takes a slow kernel
            return torch.ops.aten.gelu_(op(x, weight, self.bias, *how, "none", [], ""))
        return op(x, weight, self.bias, *how, self.act, [], "none" if self.act == "gelu" else "")

    def extra_repr(self) -> str:
        kernel = tuple(self.weight.shape[2:])
        return f"{tuple(self.weight.shape[:2])}, {kernel=}, stride={self.stride}, groups={self.groups}, act={self.act}"


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, the weight as it lies in memory; on a CPU faster than ``F.linear`` by a tenth or two.

    Args:
        x: ``(..., C_in)``.
        weight: ``(C_out, C_in)``, of any strides.
        bias: ``(C_out,)``.
    """
    if not usable(x):
        return F.linear(x, weight, bias)
    bias = None if bias is None else bias.contiguous()  # the operator takes another for one that is
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def usable(x: Tensor) -> bool:
    """Whether oneDNN's operators take this input, here and now."""
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not (torch.is_grad_enabled() and x.requires_grad)
        and not torch.is_autocast_enabled("cpu")
        and type(x) in (Tensor, nn.Parameter)  # not a tracer's
        and bool(torch.backends.mkldnn.enabled)
        and available(x.dtype)
    )


@cache
def available(dtype: torch.dtype) -> bool:
    """Whether this build of torch has the operators, with the signatures used here, and they compute what they should.

    They are torch's own, but not public: so they are tried, once, and where they differ they are not used.
    """
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    try:
        if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        return _agree(dtype)
    except (AttributeError, RuntimeError, TypeError):
        return False


@torch.no_grad()
def _agree(dtype: torch.dtype) -> bool:
    ramp = torch.linspace(-1, 1, 64, dtype=dtype)
    x, w, b = ramp.view(2, 2, 2, 8), ramp.view(8, 8), ramp[:8]
    packed = torch.ops.mkldnn._reorder_linear_weight(w)
    packed_product = torch.ops.mkldnn._linear_pointwise(x, packed, b, "none", [], "")
    strided = torch.ops.mkldnn._linear_pointwise(x, w.t(), None, "none", [], "")
    maps, grouped = x.permute(0, 3, 1, 2), w.view(16, 4, 1, 1)
    how = ([0, 0], [1, 1], [1, 1], 2)
    dense = w.view(8, 8, 1, 1)
    packed_dense = torch.ops.mkldnn._reorder_convolution_weight(dense, [0, 0], [1, 1], [1, 1], 1, list(maps.shape))
    mixed = torch.ops.mkldnn._convolution_pointwise(maps, packed_dense, b, [0, 0], [1, 1], [1, 1], 1, "relu", [], "")
    conv = torch.ops.mkldnn._convolution_pointwise(maps, grouped, ramp[:16], *how, "gelu", [], "none")
    plain = F.conv2d(maps, grouped, ramp[:16], groups=2)
    pairs = (
        (packed_product, F.linear(x, w, b)),
        (strided, F.linear(x, w.t())),
        (mixed, F.relu(F.conv2d(maps, dense, b))),
        (conv, F.gelu(plain)),
    )
    tolerance = 1e-5 if dtype is torch.float32 else 5e-2
    return all(torch.allclose(a.float(), b.float(), atol=tolerance, rtol=tolerance) for a, b in pairs)


def _frozen(x: Tensor) -> nn.Parameter:
    # A copy: a part of a merged weight would keep the whole alive, and be stored with it.
    return nn.Parameter(x.detach().clone(), requires_grad=False)
