"""Forms for training: the same functions with less memory and, on a CPU, in less time.

- Cheap activations are recomputed in the backward pass instead of stored (``kernels/linear.py``).
- On a CPU: faster matrix products for linear layers, a fast weight gradient for depthwise convolutions with wide
  kernels, FFN's sum as part of its convolution, and explicit matrix products for attention over short sequences.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.attention import attention
from ..kernels.availability import in_functorch_transform
from ..kernels.depthwise import depthwise_conv2d, hangs, residual_depthwise_conv2d
from ..kernels.linear import linear, recomputed_linear
from ..model.attention import MSA, split_heads
from ..model.modulation import MHMC, SAA, SAM
from ..model.smt import FFN, Stem
from .form import FastForm
from .guard import can_bypass, can_recompute


class TrainingStem(FastForm, Stem):
    """:class:`Stem` that first converts its input to channels-last, in training and in evaluation.

    All submodules are called, so the only guard is for ``vmap``, which has no rule for the conversion.
    """

    def fast_forward(self, x: Tensor) -> Tensor:
        if in_functorch_transform():
            return self.plain_forward(x)
        return self.plain_forward(x.contiguous(memory_format=torch.channels_last))


class TrainingMHMC(FastForm, MHMC):
    """:class:`MHMC` with a fast weight gradient on a CPU, where it also takes kernels of any size in bfloat16."""

    def fast_forward(self, s: Tensor) -> Tensor:
        wanted = torch.is_grad_enabled() or hangs(s, max(self.kernel_sizes))
        if not wanted or not can_bypass(s, *self.convs):
            return self.plain_forward(s)
        convs: Any = self.convs
        heads = s.permute(0, 3, 1, 2).chunk(self.num_heads, dim=1)
        maps = [depthwise_conv2d(x, conv.weight, conv.bias) for x, conv in zip(heads, convs, strict=True)]
        return torch.stack([x.permute(0, 2, 3, 1) for x in maps], dim=-1)


class TrainingSAA(FastForm, SAA):
    """:class:`SAA` that stores the output of neither BatchNorm nor GELU."""

    def fast_forward(self, x: Tensor) -> Tensor:
        if not can_recompute(x, self.norm, self.act, self.reduce) or not (self.norm.training and self.norm.affine):
            return self.plain_forward(x)
        x = self.expand(x.flatten(-2).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return recomputed_linear(
            self._norm_act,
            self.reduce.weight,
            self.reduce.bias,
            x,
            self.norm.weight,
            self.norm.bias,
            recompute_fn=self._recompute_norm_act,
        )

    def _norm_act(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.act(self.norm(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)

    def _recompute_norm_act(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # Without running statistics: the forward pass has already updated them with this batch.
        x = F.batch_norm(x.permute(0, 3, 1, 2), None, None, weight, bias, training=True, eps=self.norm.eps)
        return self.act(x).permute(0, 2, 3, 1)


class TrainingSAM(FastForm, SAM):
    """:class:`SAM` that does not store the modulated value."""

    def fast_forward(self, x: Tensor) -> Tensor:
        if not can_recompute(x, self.vs, self.proj):
            return self.plain_forward(x)
        value, context = linear(x, self.vs.weight, self.vs.bias).chunk(2, dim=-1)
        modulator = self.saa(self.mhmc(context))
        join = torch.mul if self.modulation == "product" else torch.add
        return self.proj_drop(recomputed_linear(join, self.proj.weight, self.proj.bias, modulator, value))


class TrainingMSA(FastForm, MSA):
    """:class:`MSA` with faster matrix products on a CPU."""

    def fast_forward(self, x: Tensor) -> Tensor:
        if not can_recompute(x, self.qkv, self.proj):
            return self.plain_forward(x)
        q, k, v = linear(x, self.qkv.weight, self.qkv.bias).chunk(3, dim=-1)
        out = attention(
            split_heads(q, self.num_heads),
            split_heads(k, self.num_heads),
            split_heads(v, self.num_heads),
            self.attn_drop_rate if self.training else 0.0,
        )
        out = out.transpose(1, 2).reshape(x.shape)
        local = self.local_conv(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj_drop(linear(out + local, self.proj.weight, self.proj.bias))


class TrainingFFN(FastForm, FFN):
    """:class:`FFN` that does not store the output of GELU."""

    def fast_forward(self, x: Tensor) -> Tensor:
        dropout = self.drop.training and self.drop.p > 0
        if dropout or not can_recompute(x, self.fc1, self.dwconv, self.fc2, self.drop):
            return self.plain_forward(x)
        x = linear(x, self.fc1.weight, self.fc1.bias).permute(0, 3, 1, 2)
        x = residual_depthwise_conv2d(x, self.dwconv.weight, self.dwconv.bias).permute(0, 2, 3, 1)
        return recomputed_linear(F.gelu, self.fc2.weight, self.fc2.bias, x)
