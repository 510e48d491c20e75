"""Layers of the fused model: frozen weights, computed by oneDNN's operators on a CPU.

If these cannot be used (gradients, another device, a compiler or exporter, a weight that is a tensor subclass, an
unsupported build of PyTorch), PyTorch's public operators compute the same function.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import onednn

Activation = Literal["none", "relu", "gelu"]


class _Fused(nn.Module):
    """Base class with frozen weights. The weight is packed into oneDNN's memory layout at the first call."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = _frozen(weight), _frozen(bias)
        self._packed: tuple[Tensor, int, Tensor] | None = None

    def can_use_onednn(self, x: Tensor) -> bool:
        return type(self.weight) is nn.Parameter and x.dtype == self.weight.dtype and onednn.is_supported(x)

    def packed(self, pack: Callable[..., Tensor], *args: object) -> Tensor:
        """``pack(weight, *args)``, cached until the weight changes."""
        version = 0 if self.weight.is_inference() else self.weight._version
        if self._packed is None or self._packed[0].data_ptr() != self.weight.data_ptr() or self._packed[1] != version:
            weight = self.weight.detach()  # kept: the address of freed memory could become that of another weight
            self._packed = weight, version, pack(weight, *args)
        return self._packed[2]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_packed": None}  # packed weights can be neither copied nor pickled


class FusedLinear(_Fused):
    """``join(x @ weight.T + bias, other)`` with frozen weights; ``join`` is ``add`` or ``mul``.

    Args:
        weight: ``(C_out, C_in)``.
        bias: ``(C_out,)``.

    Shape: ``(..., C_in) -> (..., C_out)``; ``other`` has the shape of the output.
    """

    def forward(self, x: Tensor, other: Tensor | None = None, join: str = "add") -> Tensor:
        if torch.jit.is_scripting():
            return self._plain(x, other, join)
        else:  # not compiled by TorchScript
            return self._fused(x, other, join) if self.can_use_onednn(x) else self._plain(x, other, join)

    def _plain(self, x: Tensor, other: Tensor | None, join: str) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return y if other is None else y + other if join == "add" else y * other

    def _fused(self, x: Tensor, other: Tensor | None, join: str) -> Tensor:
        weight = self.packed(torch.ops.mkldnn._reorder_linear_weight)
        y = torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, "none", [], "")
        # The operator can apply the join too, but it then builds its kernel at every call, at ten times the cost.
        return y if other is None else y.add_(other) if join == "add" else y.mul_(other)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}"


class FusedConv2d(_Fused):
    """``act(conv(x) + bias)`` or ``conv(x) + bias + other`` with frozen weights, for channels-last feature maps.

    Args:
        weight: ``(C_out, C_in / groups, k, k)``.
        bias: ``(C_out,)``.
        stride: Stride of both axes.
        padding: Padding of both axes.
        dilation: Dilation of both axes.
        groups: Number of channel groups.
        act: Activation; ``gelu`` is the exact GELU, not the tanh approximation.

    Shape: ``(B, H, W, C_in) -> (B, H', W', C_out)``; ``other`` has the shape of the output.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        act: Activation = "none",
    ) -> None:
        super().__init__(weight.contiguous(memory_format=torch.channels_last), bias)
        self.stride, self.padding, self.dilation, self.groups, self.act = stride, padding, dilation, groups, act

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        if other is not None:
            other = other.permute(0, 3, 1, 2)
        if torch.jit.is_scripting():
            y = self._plain(x, other)
        else:  # not compiled by TorchScript
            y = self._fused(x, other) if self.can_use_onednn(x) else self._plain(x, other)
        return y.permute(0, 2, 3, 1)

    def _plain(self, x: Tensor, other: Tensor | None) -> Tensor:
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        y = y if other is None else y + other
        return F.relu(y) if self.act == "relu" else F.gelu(y) if self.act == "gelu" else y

    def _fused(self, x: Tensor, other: Tensor | None) -> Tensor:
        op, size = torch.ops.mkldnn._convolution_pointwise, self.weight.shape
        weight: Tensor = self.weight
        geometry = ([self.padding] * 2, [self.stride] * 2, [self.dilation] * 2, self.groups)
        if self.groups == 1:
            weight = self.packed(torch.ops.mkldnn._reorder_convolution_weight, *geometry, list(x.shape))
        if other is not None:
            return op(x, weight, self.bias, *geometry, "none", [], "").add_(other)
        if self.act == "gelu" and 1 < size[1] < size[0]:  # oneDNN is slow for grouped convolutions with fused GELU
            return torch.ops.aten.gelu_(op(x, weight, self.bias, *geometry, "none", [], ""))
        return op(x, weight, self.bias, *geometry, self.act, [], "none" if self.act == "gelu" else "")

    def extra_repr(self) -> str:
        kernel = tuple(self.weight.shape[2:])
        dilation = f", dilation={self.dilation}" if self.dilation > 1 else ""
        sizes = f"{tuple(self.weight.shape[:2])}, {kernel=}, stride={self.stride}{dilation}"
        return f"{sizes}, groups={self.groups}, act={self.act}"


def _frozen(x: Tensor) -> nn.Parameter:
    # A copy, because a slice of a merged weight would keep all of it in memory and in the state dict.
    return nn.Parameter(x.detach().clone(), requires_grad=False)
