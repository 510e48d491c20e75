"""SAA's expansion in Triton: grouped product, normalisation and GELU, without a stop in memory between them.

A group of ``N`` inputs becomes ``R`` outputs, so a product is a few multiply-adds an output: cheaper to compute again
than to read. Training computes it four times (statistics; output; the backward pass's sums; its gradients) and never
writes it; between the passes only the input and numbers per channel are kept.

A program keeps a block of groups' weights in registers and walks a chunk of positions. What it reduces over positions
it sums per thread and combines once at its end; chunks are combined by PyTorch, in a fixed order.

Bytes through device memory, for an input of ``n = P C`` elements and an output of ``r n``, ``e`` bytes each:
evaluation ``(1 + r) n e``, the floor; training forward ``(2 + r) n e``, since the statistics need a pass of their own,
and backward ``(3 + 2 r) n e``, where ``(2 + r) n e`` would be the floor if sums over all of the batch came for free.

Letters: ``P = B H W`` positions, ``C = N G`` channels, ``N`` heads, ``G`` groups, ``R`` outputs a group, ``r = R / N``.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,var-annotated"
# A kernel is not the Python that it looks like: its arguments are Triton's, its tuples grow as it is compiled.

import torch
import triton
import triton.language as tl
from torch import Tensor

from .availability import on_device

WARPS = 4
TILE = 2048  # positions x outputs of a step: 16 a thread
BACKWARD_TILE = 1024  # up to N sums for each: more would not fit the registers
MAX_OUTPUTS = 128  # of a program, their N weights each in registers
PROGRAMS = 1024  # about, whatever the device: so the partial sums, and the result, are the same everywhere


def apply(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``gelu(weight x + bias)``: ``(B, H, W, G, N) -> (B, H, W, G R)``.

    Args:
        x: contiguous.
        weight: ``(G R, N)``, contiguous.
        bias: ``(G R,)``, contiguous.
    """
    y = x.new_empty(*x.shape[:3], len(weight))
    with on_device(x):
        grid, sizes = _layout(x, weight)
        _apply[grid](x, weight, bias, y, **sizes)
    return y


def statistics(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of ``weight x`` over the positions, float32: ``(B, H, W, G, N) -> 2 (G R,)``.

    Means and squared deviations from them are updated value by value (Welford) and combined pairwise (Chan), so a mean
    that is large beside the deviation costs no digits, as it would in the mean of squares.
    """
    with on_device(x):
        grid, sizes = _layout(x, weight)
        mean, deviation = torch.empty(2, grid[0], len(weight), device=x.device, dtype=torch.float32)
        _statistics[grid](x, weight, mean, deviation, **sizes)
    P, chunk = sizes["P"], sizes["chunk"]
    count = torch.full((grid[0], 1), float(chunk), device=x.device)
    count[-1] = P - (grid[0] - 1) * chunk
    whole = (count * mean).sum(0) / P
    return whole, (deviation + count * (mean - whole).square()).sum(0) / P


def gradient_sums(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients to ``gamma`` and ``beta`` of ``gelu(gamma (weight x + bias) + beta)``, float32.

    Args:
        grad: that of the output, ``(B, H, W, G R)``, contiguous.
        x: ``(B, H, W, G, N)``, contiguous.
        weight, bias: ``(G R, N)`` and ``(G R,)``, which give normalised values.
        gamma, beta: ``(G R,)``.
    """
    with on_device(x):
        grid, sizes = _layout(x, weight, BACKWARD_TILE)
        for_gamma, for_beta = torch.empty(2, grid[0], len(weight), device=x.device, dtype=torch.float32)
        _gradient_sums[grid](grad, x, weight, bias, gamma, beta, for_gamma, for_beta, **sizes)
    return for_gamma.sum(0), for_beta.sum(0)


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
    """Gradients to ``x`` and to ``weight``, through the batch statistics that made ``weight`` and ``bias``.

    Args:
        grad, x, weight, bias, gamma, beta: as for :func:`gradient_sums`.
        grad_gamma, grad_beta: what it returned.

    Returns:
        ``(B, H, W, N, G)``, head after head, as MHMC's backward pass reads it; ``(G R, N)``, float32.
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
    """Grid (chunks, blocks of groups) and the arguments that every kernel ends with."""
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
    """A program's groups ``(1, BG, 1)``, outputs ``(1, BG, BR)``, and which of the outputs there are."""
    group = tl.program_id(1) * BG + tl.arange(0, BG)[None, :, None]
    r = tl.arange(0, BR)[None, None, :]
    return group, group * R + r, (group < G) & (r < R)


@triton.jit
def _weights(weight, output, is_output, N: tl.constexpr):
    """``N`` tensors ``(1, BG, BR)``: what each input of a group counts for, in each of its outputs."""
    weights = ()
    for n in tl.static_range(N):
        factor = tl.load(weight + output * N + n, mask=is_output, other=0.0).to(tl.float32)
        weights = weights + (factor,)  # noqa: RUF005  Triton has no unpacking
    return weights


@triton.jit
def _inputs(x, position, inside, group, G: tl.constexpr, N: tl.constexpr):
    """``N`` tensors ``(BP, BG, 1)``: each head's value; zeros beyond the end."""
    inputs = ()
    for n in tl.static_range(N):
        value = tl.load(x + (position * G + group) * N + n, mask=inside & (group < G), other=0.0).to(tl.float32)
        inputs = inputs + (value,)  # noqa: RUF005
    return inputs


@triton.jit
def _product(inputs, weights, bias, N: tl.constexpr):
    """``(BP, BG, BR)``: the grouped product, plus ``bias``."""
    h = bias
    for n in tl.static_range(N):
        h = h + inputs[n] * weights[n]
    return h


@triton.jit
def _cdf(z):
    """The normal distribution function, of which ``gelu(z) = z cdf(z)``."""
    return 0.5 + 0.5 * tl.erf(z * 0.7071067811865476)


@triton.jit
def _gelu_slope(z):
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
    """A chunk's mean and sum of squared deviations, for each output."""
    group, output, is_output = _outputs(G, R, BG, BR)
    weights = _weights(weight, output, is_output, N)
    first = tl.program_id(0) * chunk
    end = tl.minimum(first + chunk, P)
    count = tl.zeros((BP, 1, 1), tl.float32)
    means = tl.zeros((BP, BG, BR), tl.float32)
    deviations = tl.zeros((BP, BG, BR), tl.float32)
    for start in range(first, end, BP):  # Welford, on its own in each of the BP slots
        position = start + tl.arange(0, BP)[:, None, None]
        inside = position < P
        h = _product(_inputs(x, position, inside, group, G, N), weights, tl.zeros((1, 1, 1), tl.float32), N)
        count += tl.where(inside, 1.0, 0.0)
        away = tl.where(inside, h - means, 0.0)
        means += away * (1.0 / tl.maximum(count, 1.0))
        deviations += away * (h - means)
    whole = tl.sum(means * count, axis=0, keep_dims=True) / (end - first).to(tl.float32)  # Chan, over the slots
    away = means - whole
    to = tl.program_id(0) * (G * R) + output
    tl.store(mean + to, whole, mask=is_output)
    tl.store(deviation + to, tl.sum(deviations + count * away * away, axis=0, keep_dims=True), mask=is_output)


@triton.jit(do_not_specialize=["P", "chunk"])
def _gradient_sums(
    grad, x, weight, bias, gamma, beta, grad_gamma, grad_beta, P, chunk,
    G: tl.constexpr, N: tl.constexpr, R: tl.constexpr, BP: tl.constexpr, BG: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """A chunk's share of the gradients to ``gamma`` and ``beta``."""
    group, output, is_output = _outputs(G, R, BG, BR)
    weights = _weights(weight, output, is_output, N)
    offset = tl.load(bias + output, mask=is_output, other=0.0)
    scale = tl.load(gamma + output, mask=is_output, other=0.0).to(tl.float32)
    shift = tl.load(beta + output, mask=is_output, other=0.0).to(tl.float32)
    first = tl.program_id(0) * chunk
    for_gamma = tl.zeros((BP, BG, BR), tl.float32)
    for_beta = tl.zeros((BP, BG, BR), tl.float32)
    for start in range(first, tl.minimum(first + chunk, P), BP):
        position = start + tl.arange(0, BP)[:, None, None]
        inside = position < P
        normal = _product(_inputs(x, position, inside, group, G, N), weights, offset, N)
        grad_y = tl.load(grad + position * (G * R) + output, mask=inside & is_output, other=0.0).to(tl.float32)
        grad_z = grad_y * _gelu_slope(scale * normal + shift)
        for_gamma += grad_z * normal
        for_beta += grad_z
    to = tl.program_id(0) * (G * R) + output
    tl.store(grad_gamma + to, tl.sum(for_gamma, axis=0, keep_dims=True), mask=is_output)
    tl.store(grad_beta + to, tl.sum(for_beta, axis=0, keep_dims=True), mask=is_output)


@triton.jit(do_not_specialize=["P", "chunk"])
def _gradients(
    grad, x, weight, bias, gamma, beta, mean_gamma, mean_beta, grad_x, grad_weight, P, chunk,
    G: tl.constexpr, N: tl.constexpr, R: tl.constexpr, BP: tl.constexpr, BG: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """The gradient to the input, and a chunk's share of that to the weights.

    What the normalisation takes from the gradient is its mean and its share along the normalised value.
    """
    group, output, is_output = _outputs(G, R, BG, BR)
    weights = _weights(weight, output, is_output, N)
    offset = tl.load(bias + output, mask=is_output, other=0.0)
    scale = tl.load(gamma + output, mask=is_output, other=0.0).to(tl.float32)
    shift = tl.load(beta + output, mask=is_output, other=0.0).to(tl.float32)
    mean = tl.load(mean_beta + output, mask=is_output, other=0.0)
    along = tl.load(mean_gamma + output, mask=is_output, other=0.0)
    first = tl.program_id(0) * chunk
    for_weights = (tl.zeros((BP, BG, BR), tl.float32),) * N
    for start in range(first, tl.minimum(first + chunk, P), BP):
        position = start + tl.arange(0, BP)[:, None, None]
        inside = position < P
        inputs = _inputs(x, position, inside, group, G, N)
        normal = _product(inputs, weights, offset, N)
        grad_y = tl.load(grad + position * (G * R) + output, mask=inside & is_output, other=0.0).to(tl.float32)
        grad_z = grad_y * _gelu_slope(scale * normal + shift)
        grad_h = scale * (grad_z - mean - normal * along)
        added = ()
        for n in tl.static_range(N):
            to = grad_x + (position * N + n) * G + group
            tl.store(to, tl.sum(grad_h * weights[n], axis=2, keep_dims=True), mask=inside & (group < G))
            added = added + (for_weights[n] + grad_h * inputs[n],)  # noqa: RUF005
        for_weights = added
    to = grad_weight + (tl.program_id(0) * (G * R) + output) * N
    for n in tl.static_range(N):
        tl.store(to + n, tl.sum(for_weights[n], axis=0, keep_dims=True), mask=is_output)
