"""Scale-aware modulation (SAM), the convolutional mixer of SMT.

``SAM(x) = proj(SAA(MHMC(s)) * v)`` with value ``v`` and context ``s`` linear in ``x``.

Source: "Scale-Aware Modulation Meet Transformer", arXiv 2307.08579, section 3.1.

Shapes: ``B`` batch, ``H W`` grid, ``C`` channels, ``N`` convolution heads, ``r`` expansion ratio. A convolution of a
``B H W C`` tensor is written between two permutations: it sees the same memory as a ``B C H W`` tensor in
``torch.channels_last`` format, so no copy is made.
"""

import torch
from torch import Tensor, nn


class MHMC(nn.Module):
    """Multi-head mixed convolution: head ``i`` is a depthwise convolution with kernel size ``3 + 2i``.

    Args:
        dim: Number of channels ``C``, a multiple of ``num_heads``.
        num_heads: Number of convolution heads ``N``.
        dilation: Dilation of the convolutions.

    Shape: ``(B, H, W, C) -> (B, H, W, C / N, N)``. The last axis is the head: flattening the last two axes gives the
    interleaved channel order that SAA works on.
    """

    def __init__(self, dim: int, num_heads: int = 4, dilation: int = 1) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"invalid num_heads={num_heads}: expected a divisor of dim={dim}")
        width = dim // num_heads
        self.num_heads = num_heads
        self.dilation = dilation
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, 3 + 2 * i, padding=dilation * (1 + i), dilation=dilation, groups=width)
            for i in range(num_heads)
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
    """Takes the place of :class:`SAA` in the paper's ablation: the heads side by side, not mixed.

    Shape: ``(B, H, W, C / N, N) -> (B, H, W, C)``, in the channel order of the context.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(-1, -2).flatten(-2)


class SAM(nn.Module):
    """Scale-aware modulation: a value multiplied by a modulator, which convolutions of several sizes gather.

    Args:
        dim: Number of channels ``C``.
        num_heads: Number of convolution heads ``N`` (4 in the paper: kernel sizes 3, 5, 7 and 9).
        expand_ratio: Expansion ratio ``r`` of SAA.
        aggregation: Whether SAA mixes the heads. Without it (the paper's ablation), they modulate unmixed.
        drop_rate: Dropout rate after the output projection.
        dilation: Dilation of the convolutions of MHMC.

    Shape: ``(B, H, W, C) -> (B, H, W, C)``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        expand_ratio: int = 2,
        aggregation: bool = True,
        drop_rate: float = 0.0,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.vs = nn.Linear(dim, 2 * dim)  # value and context in one product
        self.mhmc = MHMC(dim, num_heads, dilation)
        self.saa = SAA(dim, num_heads, expand_ratio) if aggregation else ConcatHeads()
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        value, context = self.vs(x).chunk(2, dim=-1)
        modulator = self.saa(self.mhmc(context))
        return self.proj_drop(self.proj(modulator * value))
