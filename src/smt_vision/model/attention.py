"""Multi-head self-attention (MSA) with local enhancement, the mixer of SMT's deep stages.

Source: "Scale-Aware Modulation Meet Transformer", arXiv 2307.08579, section 3.2, and the authors' release.
"""

import torch.nn.functional as F
from torch import Tensor, nn


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``(B, H, W, C) -> (B, A, H * W, C / A)``."""
    return x.flatten(1, 2).unflatten(-1, (num_heads, -1)).transpose(1, 2)


class MSA(nn.Module):
    """Global self-attention over the grid, plus a depthwise 3x3 convolution of the value.

    Args:
        dim: Number of channels ``C``, a multiple of ``num_heads``.
        num_heads: Number of attention heads ``A``; the scale is ``(C / A) ** -0.5``.
        attn_drop_rate: Dropout rate of the attention weights.
        drop_rate: Dropout rate after the output projection.
        dilation: Dilation of the convolution.

    Shape: ``(B, H, W, C) -> (B, H, W, C)``.
    """

    def __init__(
        self, dim: int, num_heads: int, attn_drop_rate: float = 0.0, drop_rate: float = 0.0, dilation: int = 1
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"invalid num_heads={num_heads}: expected a divisor of dim={dim}")
        self.num_heads = num_heads
        self.attn_drop_rate = attn_drop_rate
        self.qkv = nn.Linear(dim, 3 * dim)
        self.local_conv = nn.Conv2d(dim, dim, kernel_size=3, padding=dilation, dilation=dilation, groups=dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        out = F.scaled_dot_product_attention(
            split_heads(q, self.num_heads),
            split_heads(k, self.num_heads),
            split_heads(v, self.num_heads),
            dropout_p=self.attn_drop_rate if self.training else 0.0,
        )
        out = out.transpose(1, 2).reshape(x.shape)
        local = self.local_conv(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj_drop(self.proj(out + local))
