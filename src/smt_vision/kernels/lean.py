"""Linear layers that remember less: what is cheap to compute is computed again in the backward pass.

``linear(cheap(x))`` keeps the input of ``cheap`` (which its own gradient needs) and, for the weight's gradient, its
output: another tensor of the same size, for a GELU or a product that takes a hundredth of the layer's time. Here the
output is dropped and computed again. The compiler plans that by itself, so under torch.compile the layers stay plain.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

    Only while gradients are taken, and only layers that are what they seem: a hook, a parametrization or an adapter
    (LoRA) that stands in a layer's place wants to be called.
    """
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and all(type(layer) in (nn.Linear, nn.Conv2d) and not _hooked(layer) for layer in layers)
    )


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


class _LinearOf(torch.autograd.Function):
    @staticmethod
    def forward(
        cheap: Callable[..., Tensor],
        again: Callable[..., Tensor],
        weight: Tensor,
        bias: Tensor | None,
        *inputs: Tensor,
    ) -> Tensor:
        return F.linear(cheap(*inputs), weight.flatten(1), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.again, weight, bias, *rest = inputs
        ctx.save_for_backward(weight, *rest)
        device = output.device.type
        if not torch.amp.is_autocast_available(device):  # as on the meta device
            ctx.autocast = nullcontext()
        else:
            ctx.autocast = torch.autocast(
                device, torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device)
            )
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *inputs = ctx.saved_tensors
        _, _, need_weight, need_bias, *need_inputs = ctx.needs_input_grad
        twice = torch.is_grad_enabled()  # this pass will itself be differentiated
        with torch.enable_grad(), ctx.autocast:
            inputs = [
                x.view_as(x) if twice else x.detach().requires_grad_(need)
                for x, need in zip(inputs, need_inputs, strict=True)
            ]
            seen = ctx.again(*inputs)
        rows, columns = grad.flatten(0, -2), (seen if twice else seen.detach()).flatten(0, -2)
        grad_weight = grad_bias = None
        if need_weight:
            grad_weight = (rows.t() @ columns.to(rows.dtype)).view_as(weight).to(weight.dtype)
        if need_bias:
            grad_bias = rows.sum(0).to(ctx.bias_dtype)
        wanted = [x for x, need in zip(inputs, need_inputs, strict=True) if need]
        grads: Iterator[Tensor] = iter(())
        if wanted:
            grad_seen = (grad @ weight.flatten(1).to(grad.dtype)).to(seen.dtype)
            grads = iter(torch.autograd.grad(seen, wanted, grad_seen, create_graph=twice))
        return None, None, grad_weight, grad_bias, *(next(grads) if need else None for need in need_inputs)
