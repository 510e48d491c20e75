"""SAA's expansion as operators, opaque to the compiler and to export; the kernels are ``triton_saa``'s.

``smt_vision::grouped_gelu`` is the grouped product and the GELU, the normalisation folded into the weights;
``smt_vision::grouped_norm_gelu`` normalises by the batch's statistics.

``B`` batch, ``H W`` grid, ``N`` heads, ``G`` groups, ``R`` outputs per group.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .availability import HEADS, INT32, compute_dtype, triton_is_supported

MAX_OUTPUTS = 16  # per group: the kernels hold N times as many weights per thread


def is_supported(x: Tensor, expand: nn.Module, norm: nn.Module) -> bool:
    """Whether :func:`expand_norm_gelu` takes this input and these modules.

    Of the normalizations, only BatchNorm2d itself; in evaluation, only without gradients.
    """
    if not triton_is_supported(x) or type(expand) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d:
        return False
    if norm.weight is None or expand.bias is None:
        return False
    B, H, W, G, N = x.shape
    if N not in HEADS or expand.out_channels > MAX_OUTPUTS * G or B * H * W * expand.out_channels >= INT32:
        return False
    if norm.training:
        return B * H * W > 1
    differentiated = torch.is_grad_enabled() and any(
        t.requires_grad for t in (x, expand.weight, expand.bias, norm.weight, norm.bias)
    )
    return norm.running_mean is not None and B * H * W > 0 and not differentiated


def expand_norm_gelu(x: Tensor, expand: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """``gelu(norm(expand(x)))``, the running statistics updated as the norm's ``forward`` does.

    Differentiable once, in training. Arithmetic is in float32; under autocast the input is cast as for any convolution.

    Args:
        x: MHMC's output ``(B, H, W, G, N)``, which :func:`is_supported` accepts.
        expand: the grouped 1x1 convolution, ``G N`` to ``G R`` channels in ``G`` groups.
        norm: the normalisation of its output.

    Returns:
        ``(B, H, W, G R)``.
    """
    x = x.to(compute_dtype(x))
    weight, bias = expand.weight.flatten(1), expand.bias
    assert bias is not None  # is_supported() saw to it
    if not norm.training:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return grouped_gelu(x, weight * scale[:, None], (bias - norm.running_mean) * scale + norm.bias)
    y, centre, var = _norm_gelu(x, weight, bias, norm.weight, norm.bias, norm.eps)
    with torch.no_grad():
        _update(norm, centre + bias, var, x.shape[0] * x.shape[1] * x.shape[2])
    return y


def _update(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int) -> None:
    """Move the running statistics towards a batch's, as ``nn.BatchNorm2d`` does."""
    if norm.running_mean is None or norm.running_var is None:
        return
    momentum: float | Tensor | None = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:  # the mean over all batches
            momentum = norm.num_batches_tracked.to(norm.running_mean.dtype).reciprocal()
    for running, new in ((norm.running_mean, mean), (norm.running_var, var * (count / (count - 1)))):
        running.lerp_(new.to(running.dtype), 0.0 if momentum is None else momentum)


@torch.library.custom_op("smt_vision::grouped_gelu", mutates_args=())
def grouped_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``gelu(weight x + bias)`` in each group; not differentiable.

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
    """The output; mean and biased variance of ``weight x``, float32.

    The batch's mean takes the bias out again: it is an argument for the sake of its gradient, zeros.
    """
    from . import triton_saa

    x, weight = x.contiguous(), weight.contiguous()
    centre, var = triton_saa.statistics(x, weight)
    normal_weight, normal_bias = _normalising(weight, centre, var, eps)
    y = triton_saa.apply(x, normal_weight * gamma[:, None], normal_bias * gamma + beta)
    return y, centre, var


@_norm_gelu.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    y = x.new_empty(*x.shape[:3], len(weight))
    centre = x.new_empty(len(weight), dtype=torch.float32)
    return y, centre, torch.empty_like(centre)


@torch.library.custom_op("smt_vision::grouped_norm_gelu_backward", mutates_args=())
def _norm_gelu_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    centre: Tensor,
    var: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to the input ``(B, H, W, N, G)``, weight, gamma and beta."""
    from . import triton_saa

    grad, x, weight = grad.contiguous(), x.contiguous(), weight.contiguous()
    normal_weight, normal_bias = _normalising(weight, centre, var, eps)
    known = (grad, x, normal_weight, normal_bias, gamma, beta)
    grad_gamma, grad_beta = triton_saa.gradient_sums(*known)
    grad_x, grad_weight = triton_saa.gradients(*known, grad_gamma, grad_beta)
    grad_weight *= torch.rsqrt(var + eps)[:, None]
    return grad_x, grad_weight.to(weight.dtype), grad_gamma.to(gamma.dtype), grad_beta.to(beta.dtype)


@_norm_gelu_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    centre: Tensor,
    var: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, H, W, G, N = x.shape
    new_weight = weight.new_empty(weight.shape)
    return x.new_empty(B, H, W, N, G), new_weight, gamma.new_empty(gamma.shape), beta.new_empty(beta.shape)


def _normalising(weight: Tensor, centre: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Weight and bias, float32, of the product that comes out normalised; ``centre`` is its mean without a bias."""
    rstd = torch.rsqrt(var + eps)
    return weight * rstd[:, None], -centre * rstd


def _save(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, weight, bias, gamma, beta, ctx.eps = inputs
    _, centre, var = output
    ctx.save_for_backward(x, weight, bias, gamma, beta, centre, var)


def _gradients(ctx: Any, grad: Tensor, _centre: Tensor, _var: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, gamma, beta, centre, var = ctx.saved_tensors
    grad_x, grad_weight, grad_gamma, grad_beta = _norm_gelu_backward(grad, x, weight, gamma, beta, centre, var, ctx.eps)
    return grad_x.transpose(-1, -2), grad_weight, torch.zeros_like(bias), grad_gamma, grad_beta, None


_norm_gelu.register_autograd(_gradients, setup_context=_save)
