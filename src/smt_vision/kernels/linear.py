"""Linear layers in training: faster products, and cheap inputs that are computed again in the backward pass.

On a CPU the product and the gradient of its input are oneDNN's (``onednn.product``); the weight's gradient, whose sum
runs over the rows, is not faster there.

``linear(fn(x))`` keeps the input of ``fn``, which the gradient of ``fn`` needs, and for the weight's gradient its
output: another tensor of the same size, for a GELU or a product that takes a hundredth of the layer's time. Here the
output is dropped and computed again.
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
    """``F.linear(x, weight, bias)``; on a CPU by the faster products, which autocast does not cast for."""
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
    """``F.linear(fn(*inputs), weight, bias)``, keeping only ``inputs`` for the backward pass.

    Args:
        fn: A cheap function without randomness.
        weight: ``(C_out, C_in)``, or that of a 1x1 convolution, ``(C_out, C_in, 1, 1)``.
        bias: ``(C_out,)``.
        inputs: All tensors that ``fn`` needs a gradient for.
        recompute_fn: What to call in the backward pass, where ``fn`` has an effect that must not be repeated.

    Shape: the output of ``fn`` is ``(..., C_in)``; the result ``(..., C_out)``.
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
        twice = torch.is_grad_enabled()  # this pass will itself be differentiated
        with torch.enable_grad(), _back_to(ctx.autocast, grad.device.type):
            inputs = [
                x.view_as(x) if twice else x.detach().requires_grad_(needed)
                for x, needed in zip(inputs, need_inputs, strict=True)
            ]
            hidden = ctx.recompute_fn(*inputs)
        parameters = _parameter_gradients(grad, hidden if twice else hidden.detach(), weight, ctx.bias_dtype, need)
        wanted = [x for x, needed in zip(inputs, need_inputs, strict=True) if needed]
        grads: Iterator[Tensor] = iter(())
        if wanted:
            grad_hidden = _input_gradient(grad, weight.flatten(1), hidden)
            grads = iter(torch.autograd.grad(hidden, wanted, grad_hidden, create_graph=twice))
        return None, None, *parameters, *(next(grads) if needed else None for needed in need_inputs)


def _back_to(dtype: torch.dtype | None, device: str) -> AbstractContextManager[object]:
    """A context in which :func:`autocast_dtype` is ``dtype``."""
    return (
        nullcontext() if dtype == autocast_dtype(device) else torch.autocast(device, dtype, enabled=dtype is not None)
    )


def _input_gradient(grad: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    return product(grad, weight.t().to(grad.dtype)).to(x.dtype)


def _parameter_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, bias_dtype: torch.dtype | None, need: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Of the weight and the bias of ``F.linear(x, weight, bias)``, where they are needed."""
    rows, columns = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
    need_weight, need_bias = need
    grad_weight = (rows.t() @ columns.to(rows.dtype)).view_as(weight).to(weight.dtype) if need_weight else None
    return grad_weight, rows.sum(0).to(bias_dtype) if need_bias else None
