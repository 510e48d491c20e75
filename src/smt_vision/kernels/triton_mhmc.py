"""Triton kernels of MHMC: all heads in a single launch over the context, forward and backward.

A program computes strips of ``ROWS`` vertically adjacent positions for a block of groups, one head at a time. Channels
are contiguous in memory, so a tap is a shifted load of full cache sectors, and its weights, packed as ``(taps,
groups)``, are one short contiguous load. An input is reused from registers for all rows of its strip; reuse by other
taps and neighboring programs is served by the caches. The results of the heads are interleaved in registers and stored
in SAA's channel order, so stores are contiguous too. Sums are accumulated in float32 for every tensor dtype.

Device memory traffic in bytes, for ``n = B H W C`` elements of ``e`` bytes (weights and partial sums are negligible):
``2 n e`` forward, ``2 n e`` for the gradient of the context, ``2 n e`` for the gradient of the weights. Each is the
minimum of one read and one write, as long as the L2 cache holds the data that concurrent programs share. With four
heads, each pass takes ``41 n`` multiply-adds (164 taps for four channels).

Letters: ``P = B H W`` positions, ``N`` heads, ``G = C / N`` groups, ``K = 3 + 2i`` kernel size of head ``i``, ``T``
taps of all heads, ordered by head, then row (9 + 25 + 49 + 81 = 164 for four heads).
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,var-annotated"
# Kernels are Triton, not Python: arguments become Triton values, and tuples grow at compile time.

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_probe import on_device

WARPS = 4
ROWS = 2  # output rows per thread: an input is loaded and converted once for all of them
MAX_GROUPS = 64  # per program: a full cache line of half-precision channels
TILE = 1024  # strips x groups per program
REDUCTION_TILE = 1024  # positions x groups per program of the weight gradient, with up to 9 sums each
CHUNKS = 64  # maximum number of partial sums of the weight gradient; fixed, so that results do not depend on the device


def num_taps(num_heads: int) -> int:
    """Total number of taps of all heads."""
    return sum((3 + 2 * i) ** 2 for i in range(num_heads))


def forward(s: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve the context with the kernels of all heads.

    Args:
        s: Context ``(B, H, W, C)`` with contiguous channels; the other strides are arbitrary.
        weight: Taps ``(T, G)``, contiguous.
        bias: Biases ``(N, G)``, contiguous.

    Returns:
        Output ``(B, H, W, G, N)``, contiguous.
    """
    B, H, W, C = s.shape
    N = len(bias)
    out = s.new_empty(B, H, W, C // N, N)
    _launch_convolve(s, weight, bias, out, N, transposed=False)
    return out


def backward_input(grad: Tensor, weight: Tensor, num_heads: int) -> Tensor:
    """Gradient with respect to the context.

    Args:
        grad: Output gradient ``(B, H, W, N, G)``, contiguous, with the channels ordered by head as in the context.
        weight: Taps ``(T, G)``, contiguous.
        num_heads: Number of heads ``N``.

    Returns:
        Gradient ``(B, H, W, C)``, contiguous.
    """
    out = torch.empty_like(grad.flatten(-2))
    _launch_convolve(grad.flatten(-2), weight, None, out, num_heads, transposed=True)
    return out


def backward_weight(s: Tensor, grad: Tensor) -> Tensor:
    """Gradient with respect to the weights; partial sums are added in a fixed order.

    Args:
        s: Context ``(B, H, W, C)`` with contiguous channels; the other strides are arbitrary.
        grad: Output gradient ``(B, H, W, N, G)``, contiguous.

    Returns:
        Gradient ``(T, G)``, float32.
    """
    B, H, W, N, G = grad.shape
    P = B * H * W
    BG = min(triton.next_power_of_2(G), MAX_GROUPS)
    BP = REDUCTION_TILE // BG
    chunk = triton.cdiv(triton.cdiv(P, CHUNKS), BP) * BP
    chunks = triton.cdiv(P, chunk)
    partial = torch.empty(chunks, num_taps(N), G, device=s.device, dtype=torch.float32)
    rows = sum(3 + 2 * i for i in range(N))
    with on_device(s):
        _weight_gradient[(rows, chunks, triton.cdiv(G, BG))](
            s, grad, partial, P, chunk, H, W, *s.stride()[:3],
            G=G, N=N, BP=BP, BG=BG, num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return partial.sum(0)


def _launch_convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, num_heads: int, transposed: bool
) -> None:
    B, H, W, C = x.shape
    Q, G = B * triton.cdiv(H, ROWS) * W, C // num_heads
    BG = min(triton.next_power_of_2(G), MAX_GROUPS)
    BQ = TILE // BG
    GP = triton.cdiv(G, BG) * BG
    weight = _pad_taps(weight, num_heads, GP, transposed)
    with on_device(x):
        _convolve[(triton.cdiv(Q, BQ), triton.cdiv(G, BG))](
            x, weight, bias, out, Q, H, W, *x.stride()[:3], G=G, GP=GP, N=num_heads, TRANSPOSED=transposed,
            ROWS=ROWS, BQ=BQ, BG=BG, num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip


def _pad_taps(weight: Tensor, num_heads: int, groups: int, transposed: bool) -> Tensor:
    """Pad the taps with zeros, so that loading them needs no mask, which would be a sixth of the instructions.

    Each head gets ``ROWS - 1`` rows of zeros above and below its taps, because the taps of a thread's output rows are
    shifted against each other. Groups are padded to a multiple of the block size.

    Args:
        weight: Taps ``(T, G)``.
        num_heads: Number of heads ``N``.
        groups: Number of groups after padding.
        transposed: Whether to flip each head's taps.

    Returns:
        Padded taps, float32, ``groups`` columns.
    """
    sizes = [3 + 2 * i for i in range(num_heads)]
    margins = [size * (ROWS - 1) for size in sizes]
    padded = weight.new_zeros(num_taps(num_heads) + 2 * sum(margins), groups, dtype=torch.float32)
    first = row = 0
    # No tensor is kept for the next call: in a CUDA graph it would be memory that the graph may reuse.
    for size, margin in zip(sizes, margins, strict=True):
        taps = weight[first : first + size * size]
        row += margin
        padded[row : row + size * size, : weight.shape[1]] = taps.flip(0) if transposed else taps
        first += size * size
        row += size * size + margin
    return padded


@triton.jit(do_not_specialize=["Q"])
def _convolve(
    x, weight, bias, out, Q, H, W, x_image, x_row, x_col,
    G: tl.constexpr, GP: tl.constexpr, N: tl.constexpr, TRANSPOSED: tl.constexpr,
    ROWS: tl.constexpr, BQ: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    """All heads for a block of strips and groups.

    The input channels are ordered by head. The output is interleaved; if ``TRANSPOSED``, for the gradient with respect
    to the input, it is ordered by head and there is no bias. ``x_image``, ``x_row``, ``x_col`` are the strides of the
    input; ``weight`` is the result of :func:`_pad_taps`.
    """
    strip = tl.program_id(0) * BQ + tl.arange(0, BQ)  # ROWS vertically adjacent positions
    col, rest = strip % W, strip // W
    strips_high = (H + ROWS - 1) // ROWS
    row, image = rest % strips_high * ROWS, rest // strips_high
    row = tl.where(strip < Q, row, H)  # row H is outside, so nothing is stored
    position = (image * H + row) * W + col
    group = tl.program_id(1) * BG + tl.arange(0, BG)
    here = x + (image * x_image + row * x_row + col * x_col)[:, None] + group[None, :]

    heads = ()
    for i in tl.static_range(N):
        start = tl.zeros((BQ, BG), tl.float32)
        if not TRANSPOSED:
            start += tl.load(bias + i * G + group, mask=group < G, other=0.0).to(tl.float32)[None, :]
        sums = _head(here + i * G, weight, start, row, col, group, H, W, x_row, x_col, G, GP, 3 + 2 * i, ROWS)
        weight += (3 + 2 * i) * (3 + 2 * i + 2 * (ROWS - 1)) * GP
        for r in tl.static_range(ROWS):
            head = sums[r].to(out.dtype.element_ty)
            if TRANSPOSED:
                to = out + (position + r * W)[:, None] * (N * G) + i * G + group[None, :]
                tl.store(to, head, mask=(row + r < H)[:, None] & (group < G)[None, :])
            else:
                heads = heads + (head,)  # noqa: RUF005  Triton has no unpacking

    if not TRANSPOSED:
        channel = tl.program_id(1) * (BG * N) + tl.arange(0, BG * N)
        for r in tl.static_range(ROWS):
            tile = heads[r]
            if N == 2:
                tile = tl.interleave(tile, heads[ROWS + r])
            elif N == 4:
                tile = tl.interleave(
                    tl.interleave(tile, heads[2 * ROWS + r]), tl.interleave(heads[ROWS + r], heads[3 * ROWS + r])
                )
            to = out + (position + r * W)[:, None] * (N * G) + channel[None, :]
            tl.store(to, tile, mask=(row + r < H)[:, None] & (channel < N * G)[None, :])


@triton.jit
def _head(
    here, weight, start, row, col, group, H, W, x_row, x_col,
    G: tl.constexpr, GP: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """``start`` plus the convolution of one head: ``ROWS`` float32 tensors ``(BQ, BG)``.

    ``here`` points to the input of the first row, ``weight`` to the padded taps of the head.
    """
    PAD: tl.constexpr = K // 2
    is_group = group < G
    sums = (start,) * ROWS
    for j in range(K + ROWS - 1):  # not unrolled: four heads would overflow the instruction cache
        y = row + (j - PAD)
        row_inside = (row < H) & (y >= 0) & (y < H)
        for dx in tl.static_range(K):
            inside = row_inside & (col + (dx - PAD) >= 0) & (col + (dx - PAD) < W)
            value = tl.load(
                here + (j - PAD) * x_row + (dx - PAD) * x_col, mask=inside[:, None] & is_group[None, :], other=0.0
            ).to(tl.float32)
            added = ()
            for r in tl.static_range(ROWS):  # input row j meets tap row j - r of output row r
                factor = tl.load(weight + ((j + ROWS - 1 - r) * K + dx) * GP + group)
                added = added + (sums[r] + value * factor[None, :],)  # noqa: RUF005
            sums = added
    return sums


@triton.jit(do_not_specialize=["P", "chunk"])
def _weight_gradient(
    x, grad, partial, P, chunk, H, W, x_image, x_row, x_col,
    G: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    """Gradient of one row of one head's taps over a chunk of positions; ``grad`` is ``(P, N, G)``, contiguous."""
    row = tl.program_id(0)  # among the tap rows of all heads; those of head i begin at i (i + 2)
    for i in tl.static_range(N):
        if (row >= i * (i + 2)) & (row < (i + 1) * (i + 3)):
            _tap_row(
                x + i * G, grad + i * G, partial, row - i * (i + 2), P, chunk, H, W, x_image, x_row, x_col,
                G, N, i, BP, BG,
            )  # fmt: skip


@triton.jit
def _tap_row(
    x, grad, partial, dy, P, chunk, H, W, x_image, x_row, x_col,
    G: tl.constexpr, N: tl.constexpr, HEAD: tl.constexpr, BP: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    """Gradient of row ``dy`` of one head's taps; the output gradient is loaded once for all taps of the row."""
    K: tl.constexpr = 3 + 2 * HEAD
    PAD: tl.constexpr = 1 + HEAD
    FIRST: tl.constexpr = (HEAD + 1) * (2 * HEAD + 1) * (2 * HEAD + 3) // 3 - 1
    TAPS: tl.constexpr = (N + 1) * (2 * N + 1) * (2 * N + 3) // 3 - 1  # all heads
    group = tl.program_id(2) * BG + tl.arange(0, BG)
    is_group = (group < G)[None, :]
    first = tl.program_id(1) * chunk

    sums = (tl.zeros((BP, BG), tl.float32),) * K
    for start in range(first, tl.minimum(first + chunk, P), BP):
        position = start + tl.arange(0, BP)
        col, y = position % W, position // W % H + (dy - PAD)
        row_inside = (position < P) & (y >= 0) & (y < H)
        here = x + (position // (H * W) * x_image + y * x_row + col * x_col)[:, None] + group[None, :]
        out_grad = tl.load(
            grad + position[:, None] * (N * G) + group[None, :], mask=row_inside[:, None] & is_group, other=0.0
        ).to(tl.float32)
        added = ()
        for dx in tl.static_range(K):
            inside = row_inside & (col + (dx - PAD) >= 0) & (col + (dx - PAD) < W)
            value = tl.load(here + (dx - PAD) * x_col, mask=inside[:, None] & is_group, other=0.0)
            added = added + (sums[dx] + out_grad * value.to(tl.float32),)  # noqa: RUF005
        sums = added

    to = partial + (tl.program_id(1) * TAPS + FIRST + dy * K) * G + group
    for dx in tl.static_range(K):
        tl.store(to + dx * G, tl.sum(sums[dx], axis=0), mask=group < G)
