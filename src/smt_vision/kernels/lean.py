"""Linear layers in training: faster products, and what is cheap to compute is computed again in the backward pass.

On a CPU the product and the gradient of its input are oneDNN's (``onednn.product``); the weight's gradient, whose sum
runs over the rows, is not faster there.

``linear(cheap(x))`` keeps the input of ``cheap`` (which its own gradient needs) and, for the weight's gradient, its
output: another tensor of the same size, for a GELU or a product that takes a hundredth of the layer's time. Here the
output is dropped and computed again. The compiler plans that by itself, so under torch.compile the layers stay plain.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .onednn import product
from .switch import autocast_dtype, backward_is_ours


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """``layer(x)``; in training on a CPU by the faster products."""
    if x.device.type != "cpu" or autocast_dtype("cpu") or not can_be_lean(layer):
        return layer(x)
    return _Linear.apply(x, layer.weight, layer.bias)


def linear_of(
    cheap: Callable[..., Tensor],
    linear: nn.Linear | nn.Conv2d,
    *inputs: Tensor,
    again: Callable[..., Tensor] | None = None,
) -> Tensor:
    """``linear(cheap(*inputs))``, keeping ``inputs`` alone for the backward pass.

    Args:
        cheap: elementwise, or nearly, and without randomness.
        linear: a linear layer, or a 1x1 convolution, over the last axis.
        inputs: all that ``cheap`` needs a gradient for.
        again: what is called in the backward pass, where ``cheap`` has an effect that must not be repeated.

    Shape: ``cheap``'s output is ``(..., C_in)``; the result ``(..., C_out)``.
    """
    return _LinearOf.apply(cheap, again or cheap, linear.weight, linear.bias, *inputs)


def can_be_lean(*layers: nn.Module) -> bool:
    """Whether layers may be replaced by :func:`linear_of` here.

    Only in training as ``backward_is_ours`` has it, and only layers that are what they seem: a hook, a parametrization
    or an adapter (LoRA) that stands in a layer's place wants to be called.
    """
    return backward_is_ours() and all(type(layer) in (nn.Linear, nn.Conv2d) and not _hooked(layer) for layer in layers)


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


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


class _LinearOf(torch.autograd.Function):
    @staticmethod
    def forward(
        cheap: Callable[..., Tensor],
        again: Callable[..., Tensor],
        weight: Tensor,
        bias: Tensor | None,
        *inputs: Tensor,
    ) -> Tensor:
        return product(cheap(*inputs), weight.flatten(1), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.again, weight, bias, *rest = inputs
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
            seen = ctx.again(*inputs)
        parameters = _parameter_gradients(grad, seen if twice else seen.detach(), weight, ctx.bias_dtype, need)
        wanted = [x for x, needed in zip(inputs, need_inputs, strict=True) if needed]
        grads: Iterator[Tensor] = iter(())
        if wanted:
            grad_seen = _input_gradient(grad, weight.flatten(1), seen)
            grads = iter(torch.autograd.grad(seen, wanted, grad_seen, create_graph=twice))
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
