"""Scale-aware modulation (SAM), the convolutional mixer of SMT.

``SAM(x) = proj(SAA(MHMC(s)) * v)`` with value ``v`` and context ``s`` linear in ``x``.

Source: "Scale-Aware Modulation Meet Transformer", arXiv 2307.08579, section 3.1.

Shapes: ``B`` batch, ``H W`` grid, ``C`` channels, ``N`` convolution heads, ``r`` expansion ratio.
Blocks work channels-last (``B H W C``): linear layers and LayerNorm then need no copy, and a
convolution sees the very same memory as a ``B C H W`` tensor in ``torch.channels_last`` format.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import mhmc, saa
from ..kernels.depthwise import DepthwiseConv2d
from ..kernels.lean import can_be_lean, linear, linear_of
from .layers import conv_bhwc


class MHMC(nn.Module):
    """Multi-head mixed convolution: head ``i`` is a depthwise convolution of kernel ``3 + 2i``.

    Args:
        dim: channels ``C``; a multiple of ``num_heads``.
        num_heads: convolution heads ``N``.

    Shape: ``(B, H, W, C) -> (B, H, W, C / N, N)``. The last axis is the head, so that flattening the
    last two gives the interleaved order SAA aggregates in; ``.transpose(-1, -2)`` gives head order.
    """

    def __init__(self, dim: int, num_heads: int = 4) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"MHMC: dim={dim} is not a multiple of num_heads={num_heads}")
        width = dim // num_heads
        self.num_heads = num_heads
        self.convs = nn.ModuleList(DepthwiseConv2d(width, kernel_size=3 + 2 * i) for i in range(num_heads))

    def forward(self, s: Tensor) -> Tensor:
        if mhmc.supports(s, self.num_heads):
            weights, biases = ([conv.get_parameter(name) for conv in self.convs] for name in ("weight", "bias"))
            return mhmc.convolve(s, weights, biases)
        heads = s.chunk(self.num_heads, dim=-1)
        return torch.stack([conv_bhwc(conv, head) for conv, head in zip(self.convs, heads, strict=True)], dim=-1)


class SAA(nn.Module):
    """Scale-aware aggregation: light fusion, first of the scales within a group, then of the groups.

    A grouped 1x1 convolution (``C / N`` groups; a group holds one channel of every head) expands to ``rC``,
    BatchNorm and GELU follow, and a dense 1x1 convolution brings ``rC`` back to ``C``.

    Args:
        dim: channels ``C``; a multiple of ``num_heads``.
        num_heads: convolution heads ``N`` of the MHMC in front.
        expand_ratio: expansion ``r``.

    Shape: ``(B, H, W, C / N, N) -> (B, H, W, C)``; flattened, the input is in the interleaved order
    ``[head0.g0, head1.g0, ..., head0.g1, ...]`` that the groups want.
    """

    def __init__(self, dim: int, num_heads: int = 4, expand_ratio: int = 2) -> None:
        super().__init__()
        hidden = dim * expand_ratio
        self.expand = nn.Conv2d(dim, hidden, kernel_size=1, groups=dim // num_heads)
        self.norm = nn.BatchNorm2d(hidden)
        self.act = nn.GELU()
        self.reduce = nn.Conv2d(hidden, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        if saa.supports(x, self.expand, self.norm):
            hidden = saa.expand_norm_gelu(x, self.expand, self.norm)
            return self.reduce(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = self.expand(x.flatten(-2).permute(0, 3, 1, 2))
        if self.training and type(self.norm) is nn.BatchNorm2d and can_be_lean(self.reduce):
            return linear_of(
                self._norm_act,
                self.reduce,
                x.permute(0, 2, 3, 1),
                self.norm.weight,
                self.norm.bias,
                again=self._norm_act_again,
            )
        return self.reduce(self.act(self.norm(x))).permute(0, 2, 3, 1)

    def _norm_act(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.act(self.norm(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)

    def _norm_act_again(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # The running statistics have seen this batch.
        normed = F.batch_norm(x.permute(0, 3, 1, 2), None, None, weight, bias, training=True, eps=self.norm.eps)
        return self.act(normed).permute(0, 2, 3, 1)


class SAM(nn.Module):
    """Scale-aware modulation: a value times a modulator gathered by convolutions of several sizes.

    Args:
        dim: channels ``C``.
        num_heads: convolution heads ``N`` (paper: 4, kernels 3, 5, 7, 9).
        expand_ratio: SAA's expansion ``r``.
        aggregation: with ``False`` the heads' outputs modulate unmixed, in head order (the paper's ablation).
        drop_rate: dropout after the output projection.

    Shape: ``(B, H, W, C) -> (B, H, W, C)``.
    """

    def __init__(
        self, dim: int, num_heads: int = 4, expand_ratio: int = 2, aggregation: bool = True, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.vs = nn.Linear(dim, 2 * dim)  # value and context in one product
        self.mhmc = MHMC(dim, num_heads)
        self.saa = SAA(dim, num_heads, expand_ratio) if aggregation else None
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        v, s = linear(self.vs, x).chunk(2, dim=-1)
        heads = self.mhmc(s)
        modulator = heads.transpose(-1, -2).flatten(-2) if self.saa is None else self.saa(heads)
        if can_be_lean(self.proj):
            return self.proj_drop(linear_of(torch.mul, self.proj, modulator, v))
        return self.proj_drop(self.proj(modulator * v))
