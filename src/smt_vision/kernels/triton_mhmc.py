"""MHMC in Triton: every head in one launch over the context, forward and backward.

A program computes strips of ``ROWS`` positions, one above the other, for a block of groups, head after head. Channels
are contiguous in memory, so a tap is a shifted load of whole cache sectors, and its weights, packed as ``(taps,
groups)``, are one short contiguous load. An input serves all rows of its strip from registers; what other taps and
neighbouring programs need again comes from the caches. The heads' results are put side by side in registers and stored
in SAA's interleaved order, contiguous again. Sums are in float32 whatever the type of the tensors.

Bytes through device memory, for ``n = B H W C`` elements of ``e`` bytes (weights and partial sums are small beside
it): ``2 n e`` forward, ``2 n e`` backward to the context, ``2 n e`` backward to the weights. Each is its floor, read
once and written once, as long as the second-level cache keeps what the programs in flight share. The arithmetic of
four heads is ``41 n`` multiply-adds (164 taps for four channels), each way.

Letters: ``P = B H W`` positions, ``G = C / N`` groups, ``N`` heads, head ``i`` of kernel ``K = 3 + 2i``, ``T`` taps of
all heads, head after head and row after row (9 + 25 + 49 + 81 = 164 of four).
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,var-annotated"
# A kernel is not the Python that it looks like: its arguments are Triton's, its tuples grow as it is compiled.

from functools import cache

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .availability import on_device

WARPS = 4
ROWS = 2  # output rows of a thread: an input is loaded and converted once for all of them
MAX_GROUPS = 64  # of a program: a whole cache line of half-precision channels
TILE = 1024  # positions x groups of a program, of the first of its rows
REDUCTION_TILE = 1024  # the weight gradient keeps up to 9 sums for each of these
CHUNKS = 64  # partial sums of the weight gradient, at most: a fixed number, so that the result is one everywhere


def num_taps(num_heads: int) -> int:
    """Taps of all heads together."""
    return sum((3 + 2 * i) ** 2 for i in range(num_heads))


def forward(s: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """All heads of ``s``.

    Args:
        s: ``(B, H, W, C)``, channels contiguous; else of any strides.
        weight: ``(T, G)``, contiguous.
        bias: ``(N, G)``, contiguous.

    Returns:
        ``(B, H, W, G, N)``, contiguous.
    """
    B, H, W, C = s.shape
    N = len(bias)
    out = s.new_empty(B, H, W, C // N, N)
    _launch_convolve(s, weight, bias, out, N, transposed=False)
    return out


def backward_input(grad: Tensor, weight: Tensor, num_heads: int) -> Tensor:
    """The gradient to the context.

    Args:
        grad: that of the output, ``(B, H, W, N, G)``, contiguous: head after head, as the context is.
        weight: ``(T, G)``, contiguous.
        num_heads: ``N``.

    Returns:
        ``(B, H, W, C)``, contiguous.
    """
    out = torch.empty_like(grad.flatten(-2))
    _launch_convolve(grad.flatten(-2), weight, None, out, num_heads, transposed=True)
    return out


def backward_weight(s: Tensor, grad: Tensor) -> Tensor:
    """The gradient to the weights, from partial sums that are added in a fixed order.

    Args:
        s: ``(B, H, W, C)``, channels contiguous; else of any strides.
        grad: that of the output, ``(B, H, W, N, G)``, contiguous.

    Returns:
        ``(T, G)``, float32.
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
    weight = _padded(weight, num_heads, GP, transposed)
    with on_device(x):
        _convolve[(triton.cdiv(Q, BQ), triton.cdiv(G, BG))](
            x, weight, bias, out, Q, H, W, *x.stride()[:3], G=G, GP=GP, N=num_heads, TRANSPOSED=transposed,
            ROWS=ROWS, BQ=BQ, BG=BG, num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip


def _padded(weight: Tensor, num_heads: int, groups: int, transposed: bool) -> Tensor:
    """The taps with zeros around, so that loading them needs no mask, a sixth of the instructions otherwise.

    Rows of zeros above and below each head's taps, where another of a thread's output rows has its taps; groups up to
    whole blocks. ``transposed``: each head's taps flipped. Float32.
    """
    with_zeros = F.pad(weight.float(), (0, groups - weight.shape[1], 0, 1))  # the last tap is the zeros
    return with_zeros[_tap_order(num_heads, transposed, weight.device)]


@cache
def _tap_order(num_heads: int, transposed: bool, device: torch.device) -> Tensor:
    order: list[int] = []
    first, zeros = 0, num_taps(num_heads)
    for i in range(num_heads):
        size = 3 + 2 * i
        taps = list(range(first, first + size * size))
        margin = [zeros] * (size * (ROWS - 1))
        order += margin + (taps[::-1] if transposed else taps) + margin
        first += size * size
    return torch.tensor(order, device=device)


@triton.jit(do_not_specialize=["Q"])
def _convolve(
    x, weight, bias, out, Q, H, W, x_image, x_row, x_col,
    G: tl.constexpr, GP: tl.constexpr, N: tl.constexpr, TRANSPOSED: tl.constexpr,
    ROWS: tl.constexpr, BQ: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    """Every head at a block of positions and groups.

    Plain: input head after head, output interleaved. ``TRANSPOSED``, the gradient to the input: no bias, and both
    sides head after head. ``x_image``, ``x_row``, ``x_col`` are the input's strides; ``weight`` is :func:`_padded`'s.
    """
    strip = tl.program_id(0) * BQ + tl.arange(0, BQ)  # ROWS positions, one above the other
    col, rest = strip % W, strip // W
    strips_high = (H + ROWS - 1) // ROWS
    row, image = rest % strips_high * ROWS, rest // strips_high
    row = tl.where(strip < Q, row, H)  # no row: nothing is stored
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
    """``start`` plus one head's convolution: ``ROWS`` times ``(BQ, BG)`` in float32.

    ``here`` points at the first row's input, ``weight`` at the head's taps, ``ROWS - 1`` rows of zeros around them.
    """
    PAD: tl.constexpr = K // 2
    is_group = group < G
    sums = (start,) * ROWS
    for j in range(K + ROWS - 1):  # a loop in the program: unrolled, four heads would overflow the instruction cache
        y = row + (j - PAD)
        row_inside = (row < H) & (y >= 0) & (y < H)
        for dx in tl.static_range(K):
            inside = row_inside & (col + (dx - PAD) >= 0) & (col + (dx - PAD) < W)
            value = tl.load(
                here + (j - PAD) * x_row + (dx - PAD) * x_col, mask=inside[:, None] & is_group[None, :], other=0.0
            ).to(tl.float32)
            added = ()
            for r in tl.static_range(ROWS):  # an input row is row j - r of the taps for the r-th output row
                factor = tl.load(weight + ((j + ROWS - 1 - r) * K + dx) * GP + group)
                added = added + (sums[r] + value * factor[None, :],)  # noqa: RUF005
            sums = added
    return sums


@triton.jit(do_not_specialize=["P", "chunk"])
def _weight_gradient(
    x, grad, partial, P, chunk, H, W, x_image, x_row, x_col,
    G: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    """One row of one head's taps, summed over a chunk of positions. ``grad`` is ``(P, N, G)``, contiguous."""
    row = tl.program_id(0)  # of the rows of all heads: head i's begin at i (i + 2)
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
    """Row ``dy`` of one head's taps; the output's gradient is loaded once for all of them."""
    K: tl.constexpr = 3 + 2 * HEAD
    PAD: tl.constexpr = 1 + HEAD
    FIRST: tl.constexpr = (HEAD + 1) * (2 * HEAD + 1) * (2 * HEAD + 3) // 3 - 1
    TAPS: tl.constexpr = (N + 1) * (2 * N + 1) * (2 * N + 3) // 3 - 1  # of all heads
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
