"""MHMC as a custom operator, ``smt_vision::mhmc``, opaque to compilers and exporters.

The kernels are in ``triton_mhmc.py``.

``B`` batch, ``H W`` grid, ``C`` channels, ``N`` heads, ``G = C / N`` groups, ``T`` taps of all heads.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .availability import HEADS, INT32, compute_dtype, gradients_of, triton_is_supported


def is_supported(s: Tensor, kernel_sizes: Sequence[int]) -> bool:
    """Whether :func:`convolve` supports this context and these kernel sizes, one per head."""
    heads = len(kernel_sizes)
    paper = heads in HEADS and tuple(kernel_sizes) == tuple(3 + 2 * i for i in range(heads))
    return triton_is_supported(s) and paper and s.numel() > 0 and s.shape[0] * s.stride(0) < INT32


def convolve(s: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """The zero-padded depthwise convolutions of all heads; see :class:`~smt_vision.model.MHMC`.

    Sums are in float32; under autocast the context is cast as for a convolution.

    Args:
        s: Context ``(B, H, W, C)``; :func:`is_supported` must be true.
        weights: Weight of each head, ``(G, 1, 3 + 2i, 3 + 2i)`` for head ``i``.
        biases: Bias of each head, ``(G,)``.

    Returns:
        ``(B, H, W, G, N)``. Flattening the last two axes gives SAA's interleaved order.
    """
    packed = torch.cat([weight.flatten(1).t() for weight in weights])  # (T, G): the weights of a tap are contiguous
    return _mhmc(s.to(compute_dtype(s)), packed, torch.stack(list(biases)))


@torch.library.custom_op("smt_vision::mhmc", mutates_args=())
def _mhmc(s: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from . import triton_mhmc

    return triton_mhmc.forward(_channels_contiguous(s), weight.contiguous(), bias.contiguous())


@_mhmc.register_fake
def _(s: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return s.new_empty(*s.shape[:3], bias.shape[1], bias.shape[0])


@torch.library.custom_op("smt_vision::mhmc_backward", mutates_args=())
def _mhmc_backward(grad: Tensor, s: Tensor, weight: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Gradients of the context and the weights. ``grad`` is ``(B, H, W, N, G)``; it is copied if not contiguous."""
    from . import triton_mhmc

    grad = grad.contiguous()
    return (
        triton_mhmc.backward_input(grad, weight.contiguous(), num_heads),
        triton_mhmc.backward_weight(_channels_contiguous(s), grad).to(weight.dtype),
    )


@_mhmc_backward.register_fake
def _(grad: Tensor, s: Tensor, weight: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    return s.new_empty(s.shape), weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    s, weight, bias = inputs
    ctx.save_for_backward(s, weight)
    ctx.bias_dtype = bias.dtype


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    s, weight = ctx.saved_tensors
    grad_bias = grad.sum((0, 1, 2), dtype=torch.float32).t().to(ctx.bias_dtype)
    if torch.is_grad_enabled():  # the gradients will be differentiated, which the kernels cannot be
        return *gradients_of(_plain, (s, weight), grad, grad.shape[4]), grad_bias
    grad = grad.transpose(-1, -2)
    grad_s, grad_weight = _mhmc_backward(grad, s, weight, grad.shape[3])
    return grad_s, grad_weight, grad_bias


def _plain(s: Tensor, weight: Tensor, num_heads: int) -> Tensor:
    """The convolutions without their biases, by PyTorch's operators."""
    heads = s.permute(0, 3, 1, 2).chunk(num_heads, dim=1)
    maps, start = [], 0
    for i, head in enumerate(heads):
        k, groups = 3 + 2 * i, head.shape[1]
        taps = weight[start : start + k * k].t().reshape(groups, 1, k, k).to(s.dtype)
        maps.append(F.conv2d(head, taps, padding=k // 2, groups=groups).permute(0, 2, 3, 1))
        start += k * k
    return torch.stack(maps, dim=-1)


_mhmc.register_autograd(_gradients, setup_context=_save)


def _channels_contiguous(s: Tensor) -> Tensor:
    return s if s.stride(-1) == 1 else s.contiguous()
