"""Depthwise convolutions for training on a CPU.

oneDNN has a fast weight gradient for depthwise kernels of up to three columns; wider kernels are many times slower.
Therefore, the gradient of a wide kernel is computed in strips of three columns, each for a shifted input.

In bfloat16, oneDNN (of PyTorch 2.15, on AVX-512) does not return from a depthwise convolution with a kernel of 15 or
more columns on a map of some 30 or more. These are computed in float32.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .availability import autocast_dtype

STRIP = 3
HANGS_FROM = 15  # columns of a kernel in bfloat16


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A depthwise convolution with "same" padding; on a CPU with a fast weight gradient for wide kernels.

    Args:
        x: ``(B, C, H, W)``.
        weight: ``(C, 1, k, k)``, ``k`` odd.
        bias: ``(C,)``.
    """
    if x.device.type != "cpu" or weight.shape[-1] <= STRIP or not weight.requires_grad:
        return _conv2d(x, weight, bias)
    weight = _crop_kernel(weight, *x.shape[2:])
    if dtype := autocast_dtype("cpu"):
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return _Depthwise.apply(x, weight, bias)


def hangs(x: Tensor, columns: int) -> bool:
    """Whether PyTorch's operator may not return from a depthwise convolution with kernels of this many columns."""
    if columns < HANGS_FROM or x.device.type != "cpu":
        return False
    return (autocast_dtype("cpu") or x.dtype) is torch.bfloat16


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not hangs(x, weight.shape[-1]):
        return F.conv2d(x, weight, bias, padding=_padding(weight), groups=weight.shape[0])
    with torch.autocast("cpu", enabled=False):
        bias = None if bias is None else bias.float()
        y = F.conv2d(x.float(), weight.float(), bias, padding=_padding(weight), groups=weight.shape[0])
    return y.bfloat16()


def residual_depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x`` plus its depthwise convolution; on a CPU the sum is part of the kernel, saving two passes over memory.

    Args:
        x: ``(B, C, H, W)``.
        weight: ``(C, 1, k, k)``, ``k`` odd.
        bias: ``(C,)``.
    """
    padding, groups = _padding(weight), weight.shape[0]
    # In bfloat16, float16 or TF32, adding 1 would round away digits of the kernel.
    if x.device.type != "cpu" or x.dtype is not torch.float32 or autocast_dtype("cpu"):
        return x + F.conv2d(x, weight, bias, padding=padding, groups=groups)
    identity = F.pad(weight.new_ones(1, 1, 1, 1), (padding[1], padding[1], padding[0], padding[0]))
    return F.conv2d(x, weight + identity, bias, padding=padding, groups=groups)


def _crop_kernel(weight: Tensor, height: int, width: int) -> Tensor:
    """Remove the outer part of a kernel ``(C, 1, k, k)`` that only ever covers padding of an ``H x W`` map."""
    k = weight.shape[-1]
    rows, columns = (max(k // 2 - (side - 1), 0) for side in (height, width))  # removed on each side
    return weight[:, :, rows : k - rows, columns : k - columns]


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _conv2d(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        # To channels-last. Batched gradients have no rule for contiguous(memory_format=torch.channels_last).
        grad = grad.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _conv2d(grad, weight.flip(2, 3), None)
        if ctx.needs_input_grad[1]:
            grad_weight = weight_gradient(x, grad, weight)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(dim=(0, 2, 3))
        return grad_x, grad_weight, grad_bias


def _padding(weight: Tensor) -> tuple[int, int]:
    """Padding that preserves height and width."""
    return weight.shape[2] // 2, weight.shape[3] // 2


def weight_gradient(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of ``weight`` in a depthwise ``conv2d`` with "same" padding, computed in strips.

    Args:
        x: Input ``(B, C, H, W)``.
        grad: Gradient of the output ``(B, C, H, W)``.
        weight: ``(C, 1, h, w)``, both sides odd; only its shape and dtype are used.
    """
    H, W = x.shape[2:]
    h, w = weight.shape[2:]
    strips = -(-w // STRIP)
    # Kernels taller than the map are slow as well; their strips are split into squares.
    rows, height = (1, h) if h <= H else (-(-h // STRIP), STRIP)
    x = F.pad(x, (w // 2, w // 2 + strips * STRIP - w, h // 2, h // 2 + rows * height - h))
    strip_weight = weight.new_empty(weight.shape[0], 1, height, STRIP)  # for its shape and dtype

    def gradient(top: int, left: int) -> Tensor:
        shifted = x[:, :, top : top + H + height - 1, left : left + W + STRIP - 1]
        return torch.ops.aten.convolution_backward(
            grad, shifted, strip_weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], x.shape[1], [False, True, False]
        )[1]

    parts = [
        torch.cat([gradient(row * height, strip * STRIP) for strip in range(strips)], dim=3) for row in range(rows)
    ]
    return torch.cat(parts, dim=2).narrow(2, 0, h).narrow(3, 0, w)
