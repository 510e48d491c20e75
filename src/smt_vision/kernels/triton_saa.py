"""Triton kernels of SAA's expansion: grouped product, normalization and GELU, fused without intermediate tensors.

A group of ``N`` inputs becomes ``R`` outputs, so the product takes only a few multiply-adds per output and is cheaper
to recompute than to read. Training computes it four times (statistics; output; sums of the backward pass; gradients)
and never stores it. Only the input and per-channel values are kept between the passes.

A program keeps the weights of a block of groups in registers and loops over a chunk of positions. Reductions over
positions are accumulated per thread and combined once at the end; PyTorch combines the chunks in a fixed order.

Device memory traffic in bytes, for an input of ``n = P C`` elements and an output of ``r n``, ``e`` bytes each:
evaluation ``(1 + r) n e``, the minimum; training forward ``(2 + r) n e``, because the statistics need their own pass;
backward ``(3 + 2 r) n e``, where the minimum would be ``(2 + r) n e`` if sums over the batch were free.

Letters: ``P = B H W`` positions, ``C = N G`` channels, ``N`` heads, ``G`` groups, ``R`` outputs per group,
``r = R / N``.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,var-annotated"
# Kernels are Triton, not Python: arguments become Triton values, and tuples grow at compile time.

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_probe import on_device

WARPS = 4
TILE = 2048  # positions x outputs per iteration: 16 per thread
BACKWARD_TILE = 1024  # positions x outputs with up to N sums each; more would not fit into the registers
MAX_OUTPUTS = 128  # per program, each with N weights in registers
PROGRAMS = 1024  # approximate; fixed, so that partial sums and results do not depend on the device


def apply(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute ``gelu(weight x + bias)``.

    Args:
        x: Input ``(B, H, W, G, N)``, contiguous.
        weight: Weights ``(G R, N)``, contiguous.
        bias: Biases ``(G R,)``, contiguous.

    Returns:
        Output ``(B, H, W, G R)``.
    """
    y = x.new_empty(*x.shape[:3], len(weight))
    with on_device(x):
        grid, sizes = _layout(x, weight)
        _apply[grid](x, weight, bias, y, **sizes)
    return y


def statistics(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of ``weight x`` over the positions.

    Means and squared deviations are updated value by value (Welford) and combined pairwise (Chan). Unlike the mean of
    squares, this loses no precision if the mean is large compared with the deviation.

    Args:
        x: Input ``(B, H, W, G, N)``, contiguous.
        weight: Weights ``(G R, N)``, contiguous.

    Returns:
        Mean and variance, each ``(G R,)``, float32.
    """
    with on_device(x):
        grid, sizes = _layout(x, weight)
        mean, deviation = torch.empty(2, grid[0], len(weight), device=x.device, dtype=torch.float32)
        _statistics[grid](x, weight, mean, deviation, **sizes)
    P, chunk = sizes["P"], sizes["chunk"]
    count = torch.full((grid[0], 1), float(chunk), device=x.device)
    count[-1] = P - (grid[0] - 1) * chunk
    global_mean = (count * mean).sum(0) / P
    return global_mean, (deviation + count * (mean - global_mean).square()).sum(0) / P


def gradient_sums(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of ``gelu(gamma (weight x + bias) + beta)`` with respect to ``gamma`` and ``beta``.

    Args:
        grad: Output gradient ``(B, H, W, G R)``, contiguous.
        x: Input ``(B, H, W, G, N)``, contiguous.
        weight, bias: Weights ``(G R, N)`` and biases ``(G R,)`` that give normalized values.
        gamma, beta: Affine parameters of the normalization, ``(G R,)``.

    Returns:
        Gradients of ``gamma`` and ``beta``, each ``(G R,)``, float32.
    """
    with on_device(x):
        grid, sizes = _layout(x, weight, BACKWARD_TILE)
        grad_gamma, grad_beta = torch.empty(2, grid[0], len(weight), device=x.device, dtype=torch.float32)
        _gradient_sums[grid](grad, x, weight, bias, gamma, beta, grad_gamma, grad_beta, **sizes)
    return grad_gamma.sum(0), grad_beta.sum(0)


def gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gamma: Tensor,
    beta: Tensor,
    grad_gamma: Tensor,
    grad_beta: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to ``x`` and ``weight``, including those through the batch statistics.

    Args:
        grad, x, weight, bias, gamma, beta: Same as for :func:`gradient_sums`.
        grad_gamma, grad_beta: Results of :func:`gradient_sums`.

    Returns:
        Gradient of ``x``, ``(B, H, W, N, G)``, ordered by head as MHMC's backward pass expects it; and gradient of
        ``weight``, ``(G R, N)``, float32.
    """
    grad_x = x.new_empty(*x.shape[:3], x.shape[4], x.shape[3])
    with on_device(x):
        grid, sizes = _layout(x, weight, BACKWARD_TILE)
        partial = torch.empty(grid[0], *weight.shape, device=x.device, dtype=torch.float32)
        P = sizes["P"]
        _gradients[grid](
            grad, x, weight, bias, gamma, beta, grad_gamma / P, grad_beta / P, grad_x, partial, **sizes
        )  # fmt: skip
    return grad_x, partial.sum(0)


def _layout(x: Tensor, weight: Tensor, tile: int = TILE) -> tuple[tuple[int, int], dict[str, int]]:
    """Return the grid (chunks, blocks of groups) and the trailing arguments common to all kernels."""
    *BHW, G, N = x.shape
    P = BHW[0] * BHW[1] * BHW[2]
    R = len(weight) // G
    BR = triton.next_power_of_2(R)
    BG = min(triton.next_power_of_2(G), MAX_OUTPUTS // BR)
    BP = tile // (BG * BR)
    blocks = triton.cdiv(G, BG)
    chunk = triton.cdiv(triton.cdiv(P * blocks, PROGRAMS), BP) * BP
    sizes = dict(P=P, chunk=chunk, G=G, N=N, R=R, BP=BP, BG=BG, BR=BR, num_warps=WARPS, enable_fp_fusion=True)
    return (triton.cdiv(P, chunk), blocks), sizes


@triton.jit
def _outputs(G: tl.constexpr, R: tl.constexpr, BG: tl.constexpr, BR: tl.constexpr):
    """Groups ``(1, BG, 1)`` and outputs ``(1, BG, BR)`` of a program, and the mask of valid outputs."""
    group = tl.program_id(1) * BG + tl.arange(0, BG)[None, :, None]
    r = tl.arange(0, BR)[None, None, :]
    return group, group * R + r, (group < G) & (r < R)


@triton.jit
def _weights(weight, output, is_output, N: tl.constexpr):
    """Load the weights as ``N`` tensors ``(1, BG, BR)``, one per input of a group."""
    weights = ()
    for n in tl.static_range(N):
        factor = tl.load(weight + output * N + n, mask=is_output, other=0.0).to(tl.float32)
        weights = weights + (factor,)  # noqa: RUF005  Triton has no unpacking
    return weights


@triton.jit
def _inputs(x, position, inside, group, G: tl.constexpr, N: tl.constexpr):
    """Load the inputs as ``N`` tensors ``(BP, BG, 1)``, one per head; zero where masked."""
    inputs = ()
    for n in tl.static_range(N):
        value = tl.load(x + (position * G + group) * N + n, mask=inside & (group < G), other=0.0).to(tl.float32)
        inputs = inputs + (value,)  # noqa: RUF005
    return inputs


@triton.jit
def _product(inputs, weights, bias, N: tl.constexpr):
    """Grouped product plus ``bias``, ``(BP, BG, BR)``."""
    h = bias
    for n in tl.static_range(N):
        h = h + inputs[n] * weights[n]
    return h


@triton.jit
def _cdf(z):
    """Cumulative distribution function of the standard normal distribution; ``gelu(z) = z cdf(z)``."""
    return 0.5 + 0.5 * tl.erf(z * 0.7071067811865476)


@triton.jit
def _gelu_grad(z):
    return _cdf(z) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)


@triton.jit(do_not_specialize=["P", "chunk"])
def _apply(
    x, weight, bias, y, P, chunk,
    G: tl.constexpr, N: tl.constexpr, R: tl.constexpr, BP: tl.constexpr, BG: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    group, output, is_output = _outputs(G, R, BG, BR)
    weights = _weights(weight, output, is_output, N)
    offset = tl.load(bias + output, mask=is_output, other=0.0).to(tl.float32)
    first = tl.program_id(0) * chunk
    for start in range(first, tl.minimum(first + chunk, P), BP):
        position = start + tl.arange(0, BP)[:, None, None]
        z = _product(_inputs(x, position, position < P, group, G, N), weights, offset, N)
        tl.store(y + position * (G * R) + output, z * _cdf(z), mask=(position < P) & is_output)


@triton.jit(do_not_specialize=["P", "chunk"])
def _statistics(
    x, weight, mean, deviation, P, chunk,
    G: tl.constexpr, N: tl.constexpr, R: tl.constexpr, BP: tl.constexpr, BG: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of each output over a chunk."""
    group, output, is_output = _outputs(G, R, BG, BR)
    weights = _weights(weight, output, is_output, N)
    first = tl.program_id(0) * chunk
    end = tl.minimum(first + chunk, P)
    count = tl.zeros((BP, 1, 1), tl.float32)
    means = tl.zeros((BP, BG, BR), tl.float32)
    deviations = tl.zeros((BP, BG, BR), tl.float32)
    for start in range(first, end, BP):  # Welford's update, separately in each of the BP slots
        position = start + tl.arange(0, BP)[:, None, None]
        inside = position < P
        h = _product(_inputs(x, position, inside, group, G, N), weights, tl.zeros((1, 1, 1), tl.float32), N)
        count += tl.where(inside, 1.0, 0.0)
        delta = tl.where(inside, h - means, 0.0)
        means += delta * (1.0 / tl.maximum(count, 1.0))
        deviations += delta * (h - means)
    # Chan's formula combines the slots.
    chunk_mean = tl.sum(means * count, axis=0, keep_dims=True) / (end - first).to(tl.float32)
    delta = means - chunk_mean
    to = tl.program_id(0) * (G * R) + output
    tl.store(mean + to, chunk_mean, mask=is_output)
    tl.store(deviation + to, tl.sum(deviations + count * delta * delta, axis=0, keep_dims=True), mask=is_output)


@triton.jit(do_not_specialize=["P", "chunk"])
def _gradient_sums(
    grad, x, weight, bias, gamma, beta, grad_gamma, grad_beta, P, chunk,
    G: tl.constexpr, N: tl.constexpr, R: tl.constexpr, BP: tl.constexpr, BG: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Partial sums over a chunk of the gradients of ``gamma`` and ``beta``."""
    group, output, is_output = _outputs(G, R, BG, BR)
    weights = _weights(weight, output, is_output, N)
    offset = tl.load(bias + output, mask=is_output, other=0.0)
    scale = tl.load(gamma + output, mask=is_output, other=0.0).to(tl.float32)
    shift = tl.load(beta + output, mask=is_output, other=0.0).to(tl.float32)
    first = tl.program_id(0) * chunk
    gamma_sums = tl.zeros((BP, BG, BR), tl.float32)
    beta_sums = tl.zeros((BP, BG, BR), tl.float32)
    for start in range(first, tl.minimum(first + chunk, P), BP):
        position = start + tl.arange(0, BP)[:, None, None]
        inside = position < P
        normalized = _product(_inputs(x, position, inside, group, G, N), weights, offset, N)
        grad_y = tl.load(grad + position * (G * R) + output, mask=inside & is_output, other=0.0).to(tl.float32)
        grad_z = grad_y * _gelu_grad(scale * normalized + shift)
        gamma_sums += grad_z * normalized
        beta_sums += grad_z
    to = tl.program_id(0) * (G * R) + output
    tl.store(grad_gamma + to, tl.sum(gamma_sums, axis=0, keep_dims=True), mask=is_output)
    tl.store(grad_beta + to, tl.sum(beta_sums, axis=0, keep_dims=True), mask=is_output)


@triton.jit(do_not_specialize=["P", "chunk"])
def _gradients(
    grad, x, weight, bias, gamma, beta, mean_gamma, mean_beta, grad_x, grad_weight, P, chunk,
    G: tl.constexpr, N: tl.constexpr, R: tl.constexpr, BP: tl.constexpr, BG: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Gradient of the input, and partial sums over a chunk of the gradient of the weights.

    The backward pass of the normalization subtracts from the gradient its mean and its projection onto the normalized
    values.
    """
    group, output, is_output = _outputs(G, R, BG, BR)
    weights = _weights(weight, output, is_output, N)
    offset = tl.load(bias + output, mask=is_output, other=0.0)
    scale = tl.load(gamma + output, mask=is_output, other=0.0).to(tl.float32)
    shift = tl.load(beta + output, mask=is_output, other=0.0).to(tl.float32)
    beta_mean = tl.load(mean_beta + output, mask=is_output, other=0.0)
    gamma_mean = tl.load(mean_gamma + output, mask=is_output, other=0.0)
    first = tl.program_id(0) * chunk
    weight_sums = (tl.zeros((BP, BG, BR), tl.float32),) * N
    for start in range(first, tl.minimum(first + chunk, P), BP):
        position = start + tl.arange(0, BP)[:, None, None]
        inside = position < P
        inputs = _inputs(x, position, inside, group, G, N)
        normalized = _product(inputs, weights, offset, N)
        grad_y = tl.load(grad + position * (G * R) + output, mask=inside & is_output, other=0.0).to(tl.float32)
        grad_z = grad_y * _gelu_grad(scale * normalized + shift)
        grad_h = scale * (grad_z - beta_mean - normalized * gamma_mean)
        added = ()
        for n in tl.static_range(N):
            to = grad_x + (position * N + n) * G + group
            tl.store(to, tl.sum(grad_h * weights[n], axis=2, keep_dims=True), mask=inside & (group < G))
            added = added + (weight_sums[n] + grad_h * inputs[n],)  # noqa: RUF005
        weight_sums = added
    to = grad_weight + (tl.program_id(0) * (G * R) + output) * N
    for n in tl.static_range(N):
        tl.store(to + n, tl.sum(weight_sums[n], axis=0, keep_dims=True), mask=is_output)
