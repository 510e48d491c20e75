"""Linear layers for training: faster matrix products, and inputs that are recomputed in the backward pass.

On a CPU, the product and the gradient of its input use oneDNN (``onednn.product``). The weight gradient, a sum over the
rows, would not be faster with it.

Autograd stores two tensors of the same size for ``linear(fn(x))``: the input of ``fn`` for the gradient of ``fn``, and
its output for the weight gradient. For a GELU or a product, which take a hundredth of the layer's time, the output is
not stored but recomputed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .availability import autocast_dtype
from .onednn import product


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear(x, weight, bias)``, with oneDNN on a CPU. Not under autocast, which does not cast for oneDNN."""
    if x.device.type != "cpu" or autocast_dtype("cpu"):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)


def recomputed_linear(
    fn: Callable[..., Tensor],
    weight: Tensor,
    bias: Tensor | None,
    *inputs: Tensor,
    recompute_fn: Callable[..., Tensor] | None = None,
) -> Tensor:
    """``F.linear(fn(*inputs), weight, bias)``, storing only ``inputs`` for the backward pass.

    Args:
        fn: A cheap deterministic function.
        weight: ``(C_out, C_in)``, or ``(C_out, C_in, 1, 1)`` for a 1x1 convolution.
        bias: ``(C_out,)``.
        inputs: Arguments of ``fn``, including all tensors that need a gradient.
        recompute_fn: Function to call in the backward pass if ``fn`` has side effects that must not be repeated.

    Shape: the output of ``fn`` is ``(..., C_in)``, the result ``(..., C_out)``.
    """
    return _RecomputedLinear.apply(fn, recompute_fn or fn, weight, bias, *inputs)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return product(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        x, weight, bias = inputs
        ctx.save_for_backward(x, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, *need = ctx.needs_input_grad
        grad_x = _input_gradient(grad, weight, x) if need_x else None
        return grad_x, *_parameter_gradients(grad, x, weight, ctx.bias_dtype, need)


class _RecomputedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        fn: Callable[..., Tensor],
        recompute_fn: Callable[..., Tensor],
        weight: Tensor,
        bias: Tensor | None,
        *inputs: Tensor,
    ) -> Tensor:
        return product(fn(*inputs), weight.flatten(1), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.recompute_fn, weight, bias, *rest = inputs
        ctx.save_for_backward(weight, *rest)
        ctx.autocast = autocast_dtype(output.device.type)
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *inputs = ctx.saved_tensors
        _, _, *need = ctx.needs_input_grad
        need, need_inputs = need[:2], need[2:]
        double_backward = torch.is_grad_enabled()  # this backward pass will be differentiated
        with torch.enable_grad(), _autocast_to(ctx.autocast, grad.device.type):
            inputs = [
                x.view_as(x) if double_backward else x.detach().requires_grad_(needed)
                for x, needed in zip(inputs, need_inputs, strict=True)
            ]
            hidden = ctx.recompute_fn(*inputs)
        layer_input = hidden if double_backward else hidden.detach()
        parameter_grads = _parameter_gradients(grad, layer_input, weight, ctx.bias_dtype, need)
        differentiable = [x for x, needed in zip(inputs, need_inputs, strict=True) if needed]
        grads: Iterator[Tensor] = iter(())
        if differentiable:
            grad_hidden = _input_gradient(grad, weight.flatten(1), hidden)
            grads = iter(torch.autograd.grad(hidden, differentiable, grad_hidden, create_graph=double_backward))
        return None, None, *parameter_grads, *(next(grads) if needed else None for needed in need_inputs)


def _autocast_to(dtype: torch.dtype | None, device: str) -> AbstractContextManager[object]:
    """A context in which :func:`autocast_dtype` is ``dtype``."""
    return (
        nullcontext() if dtype == autocast_dtype(device) else torch.autocast(device, dtype, enabled=dtype is not None)
    )


def _input_gradient(grad: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    return product(grad, weight.t().to(grad.dtype)).to(x.dtype)


def _parameter_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, bias_dtype: torch.dtype | None, need: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of weight and bias of ``F.linear(x, weight, bias)``; ``None`` if not needed."""
    rows, columns = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
    need_weight, need_bias = need
    grad_weight = (rows.t() @ columns.to(rows.dtype)).view_as(weight).to(weight.dtype) if need_weight else None
    return grad_weight, rows.sum(0).to(bias_dtype) if need_bias else None
