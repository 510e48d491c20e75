"""Depthwise convolution with kernels larger than 3x3, trained on a CPU.

oneDNN has a fast kernel for the weight gradient of a depthwise convolution up to three columns wide; wider ones take a
path many times slower. The gradient of a wide kernel is that of strips of three columns side by side, each over a
shifted input, and each strip takes the fast kernel.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .switch import autocast_dtype, backward_is_ours

STRIP = 3


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution of odd kernel that keeps the grid: ``(B, C, H, W) -> (B, C, H, W)``.

    An ``nn.Conv2d`` in all but the time its backward pass takes.
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.kernel_size[1] > STRIP
        if not (wide and self.weight.requires_grad and x.device.type == "cpu" and backward_is_ours()):
            return super().forward(x)
        weight, bias = _reaching(self.weight, *x.shape[2:]), self.bias
        if dtype := autocast_dtype("cpu"):
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        return _Depthwise.apply(x, weight, bias)


def _reaching(weight: Tensor, height: int, width: int) -> Tensor:
    """The middle of a kernel ``(C, 1, k, k)`` that reaches anything but padding from somewhere on a map."""
    k = weight.shape[-1]
    rows, columns = (max(k // 2 - (side - 1), 0) for side in (height, width))  # cut off on either side
    return weight[:, :, rows : k - rows, columns : k - columns]


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, padding=_padding(weight), groups=weight.shape[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = F.conv2d(grad, weight.flip(2, 3), padding=_padding(weight), groups=weight.shape[0])
        if ctx.needs_input_grad[1]:
            grad_weight = weight_gradient(x, grad, weight)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(dim=(0, 2, 3))
        return grad_x, grad_weight, grad_bias


def _padding(weight: Tensor) -> tuple[int, int]:
    """What keeps the grid."""
    return weight.shape[2] // 2, weight.shape[3] // 2


def weight_gradient(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of ``weight`` in a depthwise ``conv2d`` that keeps the grid, strip by strip.

    Args:
        x: ``(B, C, H, W)``.
        grad: of the output, ``(B, C, H, W)``.
        weight: ``(C, 1, h, w)``, for its shape and dtype; both sides odd.
    """
    H, W = x.shape[2:]
    h, w = weight.shape[2:]
    strips = -(-w // STRIP)
    # A kernel taller than the map takes the slow path too: then the strips are cut into squares.
    rows, height = (1, h) if h <= H else (-(-h // STRIP), STRIP)
    x = F.pad(x, (w // 2, w // 2 + strips * STRIP - w, h // 2, h // 2 + rows * height - h))
    part = weight.new_empty(weight.shape[0], 1, height, STRIP)

    def gradient(top: int, left: int) -> Tensor:
        seen = x[:, :, top : top + H + height - 1, left : left + W + STRIP - 1]
        return torch.ops.aten.convolution_backward(
            grad, seen, part, None, [1, 1], [0, 0], [1, 1], False, [0, 0], x.shape[1], [False, True, False]
        )[1]

    columns = [
        torch.cat([gradient(row * height, strip * STRIP) for strip in range(strips)], dim=3) for row in range(rows)
    ]
    return torch.cat(columns, dim=2)[:, :, :h, :w]
