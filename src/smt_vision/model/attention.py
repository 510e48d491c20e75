"""Multi-head self-attention (MSA) with local enhancement, the mixer of SMT's deep stages.

Source: "Scale-Aware Modulation Meet Transformer", arXiv 2307.08579, section 3.2, and the authors' release.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.lean import linear
from .layers import conv_bhwc

# On a CPU the backward pass of torch's fused attention is slow for short sequences, most so in half precision: training
# takes the two products that it is made of up to so many tokens.
PRODUCTS_UP_TO = {torch.bfloat16: 256, torch.float16: 256, torch.float32: 64}


def attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, training: bool = False) -> Tensor:
    """Softmax attention of ``(B, A, N, D)`` queries, keys and values, by whichever form is faster here."""
    if training and q.device.type == "cpu" and q.shape[-2] <= PRODUCTS_UP_TO.get(q.dtype, 0):
        weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1, dtype=q.dtype)
        return F.dropout(weights, dropout) @ v
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout if training else 0.0)


class MSA(nn.Module):
    """Global self-attention over the grid, plus a depthwise 3x3 convolution of the value.

    Args:
        dim: channels ``C``; a multiple of ``num_heads``.
        num_heads: attention heads ``A``; the scale is ``(C / A) ** -0.5``.
        attn_drop_rate: dropout on the attention weights.
        drop_rate: dropout after the output projection.

    Shape: ``(B, H, W, C) -> (B, H, W, C)``.
    """

    def __init__(self, dim: int, num_heads: int, attn_drop_rate: float = 0.0, drop_rate: float = 0.0) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"MSA: dim={dim} is not a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.attn_drop_rate = attn_drop_rate
        self.qkv = nn.Linear(dim, 3 * dim)
        self.local_conv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        qkv = linear(self.qkv, x)
        q, k, v = (  # each (B, A, H*W, C/A)
            part.flatten(1, 2).unflatten(-1, (self.num_heads, C // self.num_heads)).transpose(1, 2)
            for part in qkv.chunk(3, dim=-1)
        )
        out = attention(q, k, v, self.attn_drop_rate, self.training)
        out = out.transpose(1, 2).reshape(B, H, W, C)
        return self.proj_drop(linear(self.proj, out + conv_bhwc(self.local_conv, qkv[..., 2 * C :])))
