"""Scale-aware modulation (SAM), the convolutional mixer of SMT.

``SAM(x) = proj(SAA(MHMC(s)) * v)`` with value ``v`` and context ``s`` linear in ``x``.

Source: "Scale-Aware Modulation Meet Transformer", arXiv 2307.08579, section 3.1. The other aggregations, kernel sizes
and the sum in place of the product are for ablations.

Shapes: ``B`` batch, ``H W`` grid, ``C`` channels, ``N`` convolution heads, ``r`` expansion ratio. A convolution of a
``B H W C`` tensor is written between two permutations: it sees the same memory as a ``B C H W`` tensor in
``torch.channels_last`` format, so no copy is made.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MODULATIONS = ("product", "sum")


def paper_kernel_sizes(num_heads: int) -> tuple[int, ...]:
    """The kernel sizes of the paper's convolution heads: 3, 5, 7 and so on."""
    return tuple(range(3, 3 + 2 * num_heads, 2))


class MHMC(nn.Module):
    """Multi-head mixed convolution: each head is a depthwise convolution with its own kernel size.

    Args:
        dim: Number of channels ``C``, a multiple of ``num_heads``.
        num_heads: Number of convolution heads ``N``.
        dilation: Dilation of the convolutions.
        kernel_sizes: Kernel size of each head, odd; ``None`` for the paper's, ``3 + 2i`` in head ``i``.

    Shape: ``(B, H, W, C) -> (B, H, W, C / N, N)``. The last axis is the head: flattening the last two axes gives the
    interleaved channel order that SAA works on.
    """

    def __init__(
        self, dim: int, num_heads: int = 4, dilation: int = 1, kernel_sizes: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"invalid num_heads={num_heads}: expected a divisor of dim={dim}")
        kernel_sizes = paper_kernel_sizes(num_heads) if kernel_sizes is None else tuple(kernel_sizes)
        if len(kernel_sizes) != num_heads or any(k < 1 or k % 2 == 0 for k in kernel_sizes):
            raise ValueError(f"invalid kernel_sizes={kernel_sizes!r}: expected {num_heads} odd numbers, one per head")
        width = dim // num_heads
        self.num_heads = num_heads
        self.kernel_sizes = kernel_sizes
        self.dilation = dilation
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, k, padding=dilation * (k // 2), dilation=dilation, groups=width)
            for k in kernel_sizes
        )

    def forward(self, s: Tensor) -> Tensor:
        heads = s.permute(0, 3, 1, 2).chunk(self.num_heads, dim=1)
        maps = []
        for i, conv in enumerate(self.convs):  # not a comprehension, which TorchScript cannot compile
            maps.append(conv(heads[i]).permute(0, 2, 3, 1))
        return torch.stack(maps, dim=-1)


class SAA(nn.Module):
    """Scale-aware aggregation: mixes the scales within each group of channels, then the groups.

    A grouped 1x1 convolution expands ``C`` to ``rC`` channels in ``C / N`` groups, each holding one channel of every
    head. After BatchNorm and GELU, a dense 1x1 convolution reduces them to ``C``.

    Args:
        dim: Number of channels ``C``, a multiple of ``num_heads``.
        num_heads: Number of heads ``N`` of the preceding :class:`MHMC`.
        expand_ratio: Expansion ratio ``r``.

    Shape: ``(B, H, W, C / N, N) -> (B, H, W, C)``.
    """

    def __init__(self, dim: int, num_heads: int = 4, expand_ratio: int = 2) -> None:
        super().__init__()
        hidden_dim = dim * expand_ratio
        self.expand = nn.Conv2d(dim, hidden_dim, kernel_size=1, groups=dim // num_heads)
        self.norm = nn.BatchNorm2d(hidden_dim)
        self.act = nn.GELU()
        self.reduce = nn.Conv2d(hidden_dim, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x.flatten(-2).permute(0, 3, 1, 2))
        return self.reduce(self.act(self.norm(x))).permute(0, 2, 3, 1)


class ConcatHeads(nn.Module):
    """No aggregation: the heads side by side, not mixed.

    Shape: ``(B, H, W, C / N, N) -> (B, H, W, C)``, in the channel order of the context.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(-1, -2).flatten(-2)


class DenseAggregation(nn.Module):
    """Aggregations that the paper compares with :class:`SAA`: dense layers over all channels.

    Args:
        dim: Number of channels ``C``.
        hidden_dim: Number of hidden channels; ``None`` for one linear layer from ``C`` to ``C``. Between two linear
            layers are BatchNorm and GELU, as in :class:`SAA`.
        depthwise: Whether a depthwise 3x3 convolution precedes BatchNorm (an inverted bottleneck).
        dilation: Dilation of this convolution.

    Shape: ``(B, H, W, C / N, N) -> (B, H, W, C)``.
    """

    def __init__(self, dim: int, hidden_dim: int | None = None, depthwise: bool = False, dilation: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(dim, hidden_dim or dim, kernel_size=1)]
        if hidden_dim is not None:
            if depthwise:
                layers.append(
                    nn.Conv2d(hidden_dim, hidden_dim, 3, padding=dilation, dilation=dilation, groups=hidden_dim)
                )
            layers += [nn.BatchNorm2d(hidden_dim), nn.GELU(), nn.Conv2d(hidden_dim, dim, kernel_size=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(-2).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


AGGREGATIONS = ("saa", "none", "linear", "mlp", "inverted_bottleneck")


def build_aggregation(name: str, dim: int, num_heads: int, expand_ratio: int, dilation: int) -> nn.Module:
    """The module that combines the heads of :class:`MHMC`, by its name in :data:`AGGREGATIONS`.

    Args:
        name: ``saa``: scale-aware aggregation; ``none``: the heads unmixed; ``linear``: one linear layer, C to C;
            ``mlp``: two linear layers, C to rC to C; ``inverted_bottleneck``: ``mlp`` with a depthwise 3x3 convolution
            between them.
        dim: Number of channels ``C``.
        num_heads: Number of heads ``N``.
        expand_ratio: Expansion ratio ``r``.
        dilation: Dilation of the depthwise convolution.
    """
    if name == "saa":
        return SAA(dim, num_heads, expand_ratio)
    if name == "none":
        return ConcatHeads()
    if name == "linear":
        return DenseAggregation(dim)
    if name in AGGREGATIONS:
        return DenseAggregation(dim, dim * expand_ratio, name == "inverted_bottleneck", dilation)
    raise ValueError(f"invalid aggregation={name!r}: expected one of {', '.join(map(repr, AGGREGATIONS))}")


class SAM(nn.Module):
    """Scale-aware modulation: a value multiplied by a modulator, which convolutions of several sizes gather.

    Args:
        dim: Number of channels ``C``.
        num_heads: Number of convolution heads ``N`` (4 in the paper: kernel sizes 3, 5, 7 and 9).
        expand_ratio: Expansion ratio ``r`` of the aggregation.
        aggregation: How the heads are combined; see :func:`build_aggregation`.
        drop_rate: Dropout rate after the output projection.
        dilation: Dilation of the convolutions.
        kernel_sizes: Kernel size of each head; ``None`` for the paper's.
        modulation: ``product`` of modulator and value, or ``sum``, with the same parameters and cost.

    Shape: ``(B, H, W, C) -> (B, H, W, C)``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        expand_ratio: int = 2,
        aggregation: str = "saa",
        drop_rate: float = 0.0,
        dilation: int = 1,
        kernel_sizes: Sequence[int] | None = None,
        modulation: str = "product",
    ) -> None:
        super().__init__()
        if modulation not in MODULATIONS:
            raise ValueError(f"invalid modulation={modulation!r}: expected one of 'product', 'sum'")
        self.modulation = modulation
        self.vs = nn.Linear(dim, 2 * dim)  # value and context in one product
        self.mhmc = MHMC(dim, num_heads, dilation, kernel_sizes)
        self.saa = build_aggregation(aggregation, dim, num_heads, expand_ratio, dilation)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        value, context = self.vs(x).chunk(2, dim=-1)
        modulator = self.saa(self.mhmc(context))
        modulated = modulator * value if self.modulation == "product" else modulator + value
        return self.proj_drop(self.proj(modulated))
