"""Attention for training on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor

# On a CPU, the backward pass of fused attention is slow for short sequences, especially in half precision. Up to this
# number of tokens, explicit matmul-softmax-matmul is faster.
MAX_TOKENS = {torch.bfloat16: 256, torch.float16: 256, torch.float32: 64}


def attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Softmax attention of ``(B, A, N, D)`` queries, keys and values, with the faster backward pass for this input."""
    if q.device.type != "cpu" or q.shape[-2] > MAX_TOKENS.get(q.dtype, 0):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1, dtype=q.dtype)
    return F.dropout(weights, dropout) @ v
