"""SAA's expansion as custom operators, opaque to compilers and exporters; the kernels are in ``triton_saa.py``.

``smt_vision::grouped_gelu`` is the grouped product followed by GELU, with the normalization folded into the weights.
``smt_vision::grouped_norm_gelu`` normalizes with the statistics of the batch.

``B`` batch, ``H W`` grid, ``N`` heads, ``G`` groups, ``R`` outputs per group.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .availability import HEADS, INT32, compute_dtype, gradients_of, triton_is_supported

MAX_OUTPUTS = 16  # per group; a kernel thread holds N times as many weights


def is_supported(x: Tensor, expand: nn.Module, norm: nn.Module) -> bool:
    """Whether :func:`expand_norm_gelu` supports this input and these modules.

    The norm must be a ``BatchNorm2d`` and not a subclass. Evaluation mode is supported without gradients only.
    """
    if not triton_is_supported(x) or type(expand) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d:
        return False
    if norm.weight is None or expand.bias is None:
        return False
    if not _takes(x, expand.out_channels):
        return False
    B, H, W = x.shape[:3]
    if norm.training:
        return B * H * W > 1
    differentiated = torch.is_grad_enabled() and any(
        t.requires_grad for t in (x, expand.weight, expand.bias, norm.weight, norm.bias)
    )
    return norm.running_mean is not None and B * H * W > 0 and not differentiated


def _takes(x: Tensor, outputs: int) -> bool:
    B, H, W, G, N = x.shape
    return N in HEADS and outputs <= MAX_OUTPUTS * G and B * H * W * outputs < INT32


def grouped_gelu_is_supported(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`grouped_gelu` supports this input and these weights, where no gradients are needed."""
    if not triton_is_supported(x):  # first: x may be an FX proxy
        return False
    differentiated = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return x.numel() > 0 and _takes(x, len(weight)) and not differentiated


def expand_norm_gelu(x: Tensor, expand: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """``gelu(norm(expand(x)))``, including the update of the running statistics.

    Differentiable in training mode. Computed in float32; under autocast the input is cast as for a convolution.

    Args:
        x: MHMC's output ``(B, H, W, G, N)``; :func:`is_supported` must be true.
        expand: Grouped 1x1 convolution from ``G N`` to ``G R`` channels in ``G`` groups.
        norm: BatchNorm of its output.

    Returns:
        ``(B, H, W, G R)``.
    """
    x = x.to(compute_dtype(x))
    weight, bias = expand.weight.flatten(1), expand.bias
    assert bias is not None  # checked by is_supported()
    if not norm.training:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return grouped_gelu(x, weight * scale[:, None], (bias - norm.running_mean) * scale + norm.bias)
    y, mean, var = _norm_gelu(x, weight, bias, norm.weight, norm.bias, norm.eps)
    with torch.no_grad():
        _update_running_stats(norm, mean + bias, var, x.shape[0] * x.shape[1] * x.shape[2])
    return y


def _update_running_stats(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int) -> None:
    """Update the running statistics like ``nn.BatchNorm2d``."""
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    momentum: float | Tensor | None = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:  # cumulative average over all batches
            momentum = norm.num_batches_tracked.to(norm.running_mean.dtype).reciprocal()
    for running, new in ((norm.running_mean, mean), (norm.running_var, var * (count / (count - 1)))):
        running.lerp_(new.to(running.dtype), 0.0 if momentum is None else momentum)


@torch.library.custom_op("smt_vision::grouped_gelu", mutates_args=())
def grouped_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``gelu(weight x + bias)`` per group; not differentiable.

    Args:
        x: ``(B, H, W, G, N)``.
        weight: ``(G R, N)``.
        bias: ``(G R,)``.

    Returns:
        ``(B, H, W, G R)``.
    """
    from . import triton_saa

    return triton_saa.apply(x.contiguous(), weight.contiguous(), bias.contiguous())


@grouped_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:3], len(weight))


@torch.library.custom_op("smt_vision::grouped_norm_gelu", mutates_args=())
def _norm_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and mean and biased variance of ``weight x`` in float32.

    ``bias`` does not affect the output, because the mean is subtracted. It is an argument so that it gets its gradient,
    which is zero.
    """
    from . import triton_saa

    x, weight = x.contiguous(), weight.contiguous()
    mean, var = triton_saa.statistics(x, weight)
    norm_weight, norm_bias = _normalized_product(weight, mean, var, eps)
    y = triton_saa.apply(x, norm_weight * gamma[:, None], norm_bias * gamma + beta)
    return y, mean, var


@_norm_gelu.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    y = x.new_empty(*x.shape[:3], len(weight))
    mean = x.new_empty(len(weight), dtype=torch.float32)
    return y, mean, torch.empty_like(mean)


@torch.library.custom_op("smt_vision::grouped_norm_gelu_backward", mutates_args=())
def _norm_gelu_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the input ``(B, H, W, N, G)``, weight, gamma and beta."""
    from . import triton_saa

    grad, x, weight = grad.contiguous(), x.contiguous(), weight.contiguous()
    norm_weight, norm_bias = _normalized_product(weight, mean, var, eps)
    args = (grad, x, norm_weight, norm_bias, gamma, beta)
    grad_gamma, grad_beta = triton_saa.gradient_sums(*args)
    grad_x, grad_weight = triton_saa.gradients(*args, grad_gamma, grad_beta)
    grad_weight *= torch.rsqrt(var + eps)[:, None]
    return grad_x, grad_weight.to(weight.dtype), grad_gamma.to(gamma.dtype), grad_beta.to(beta.dtype)


@_norm_gelu_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, H, W, G, N = x.shape
    new_weight = weight.new_empty(weight.shape)
    return x.new_empty(B, H, W, N, G), new_weight, gamma.new_empty(gamma.shape), beta.new_empty(beta.shape)


def _normalized_product(weight: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Weight and bias of the normalized product in float32; ``mean`` and ``var`` are those of ``weight x``."""
    rstd = torch.rsqrt(var + eps)
    return weight * rstd[:, None], -mean * rstd


def _save(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, weight, bias, gamma, beta, ctx.eps = inputs
    _, mean, var = output
    ctx.save_for_backward(x, weight, bias, gamma, beta, mean, var)


def _plain(x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """The output, by PyTorch's operators."""
    G, N = x.shape[3:]
    product = torch.einsum("bhwgn,grn->bhwgr", x.float(), weight.float().view(G, -1, N)).flatten(3)
    normed = F.batch_norm(product.flatten(0, 2), None, None, gamma.float(), beta.float(), training=True, eps=eps)
    return F.gelu(normed).view_as(product).to(x.dtype)


def _gradients(ctx: Any, grad: Tensor, _mean: Tensor, _var: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, gamma, beta, mean, var = ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradients will be differentiated, which the kernels cannot be
        grad_x, grad_weight, grad_gamma, grad_beta = gradients_of(_plain, (x, weight, gamma, beta), grad, ctx.eps)
        return grad_x, grad_weight, torch.zeros_like(bias), grad_gamma, grad_beta, None
    grad_x, grad_weight, grad_gamma, grad_beta = _norm_gelu_backward(grad, x, weight, gamma, beta, mean, var, ctx.eps)
    return grad_x.transpose(-1, -2), grad_weight, torch.zeros_like(bias), grad_gamma, grad_beta, None


_norm_gelu.register_autograd(_gradients, setup_context=_save)
