"""SMT written a second time, as plainly as the paper and the release's checkpoints allow.

It is the other side of the comparisons in the tests and the baseline of the benchmarks, so it takes no short cut:
tensors are ``B C H W`` or ``B N C`` (``N = H W`` tokens), there is one convolution a head, the heads are concatenated
and reshaped into groups, value and context (query and key-value) are separate linear layers, and attention is written
out. Its state dict has the keys of the release's checkpoints.

Dropout and drop path are left out: both are compared without.

Source: arXiv 2307.08579, sections 3.1 to 3.3, and the key list of the release v1.0.0.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smt_vision.model.arguments import expand_pattern


def to_grid(x: Tensor, H: int, W: int) -> Tensor:
    """``(B, N, C) -> (B, C, H, W)``."""
    B, _, C = x.shape
    return x.transpose(1, 2).reshape(B, C, H, W)


def to_tokens(x: Tensor) -> Tensor:
    """``(B, C, H, W) -> (B, N, C)``."""
    return x.flatten(2).transpose(1, 2)


class SAM(nn.Module):
    """MHMC, SAA and the modulation: ``(B, N, C) -> (B, N, C)``."""

    def __init__(self, dim: int, num_heads: int = 4, expand_ratio: int = 2, aggregation: str = "saa") -> None:
        super().__init__()
        self.num_heads, self.aggregation = num_heads, aggregation == "saa"
        self.groups = dim // num_heads
        self.v = nn.Linear(dim, dim)
        self.s = nn.Linear(dim, dim)
        for i in range(num_heads):
            size = 3 + 2 * i
            conv = nn.Conv2d(self.groups, self.groups, size, padding=size // 2, groups=self.groups)
            self.add_module(f"local_conv_{i + 1}", conv)
        if aggregation == "saa":
            self.proj0 = nn.Conv2d(dim, dim * expand_ratio, 1, groups=self.groups)
            self.bn = nn.BatchNorm2d(dim * expand_ratio)
            self.proj1 = nn.Conv2d(dim * expand_ratio, dim, 1)
        self.proj = nn.Linear(dim, dim)

    def mhmc(self, s: Tensor) -> list[Tensor]:
        """One map ``(B, C / heads, H, W)`` a head, of kernels 3, 5, 7, ..."""
        heads = s.split(self.groups, dim=1)
        return [self.get_submodule(f"local_conv_{i + 1}")(head) for i, head in enumerate(heads)]

    def saa(self, heads: list[Tensor]) -> Tensor:
        """Group g is channel g of every head; the scales mix within a group, then the groups mix."""
        B, _, H, W = heads[0].shape
        grouped = torch.cat([head.unsqueeze(2) for head in heads], dim=2)  # (B, C / heads, heads, H, W)
        x = grouped.reshape(B, self.groups * self.num_heads, H, W)
        return self.proj1(F.gelu(self.bn(self.proj0(x))))

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        v = self.v(x)
        heads = self.mhmc(to_grid(self.s(x), H, W))
        modulator = self.saa(heads) if self.aggregation else torch.cat(heads, dim=1)
        return self.proj(to_tokens(modulator) * v)


class MSA(nn.Module):
    """Self-attention written out, plus the depthwise convolution of the value: ``(B, N, C) -> (B, N, C)``."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.local_conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        B, N, C = x.shape
        q = self.q(x).reshape(B, N, self.num_heads, C // self.num_heads).permute(0, 2, 1, 3)
        kv = self.kv(x).reshape(B, N, 2, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        k, v = kv[0], kv[1]  # (B, heads, N, C / heads), as q
        attn = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        local = self.local_conv(to_grid(v.transpose(1, 2).reshape(B, N, C), H, W))
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, C) + to_tokens(local))


class DWConv(nn.Module):
    """Depthwise 3x3 convolution of tokens, a module of its own since the release's keys say ``dwconv.dwconv``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        return to_tokens(self.dwconv(to_grid(x, H, W)))


class FFN(nn.Module):
    """``(B, N, C) -> (B, N, C)``."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = DWConv(hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        h = self.fc1(x)
        return self.fc2(F.gelu(h + self.dwconv(h, H, W)))


class Block(nn.Module):
    """``(B, N, C) -> (B, N, C)``."""

    def __init__(self, dim: int, mixer: nn.Module, hidden_dim: int, layer_scale: float | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = mixer
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = FFN(dim, hidden_dim)
        if layer_scale is not None:
            self.gamma_1 = nn.Parameter(torch.full((dim,), layer_scale))
            self.gamma_2 = nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        gamma_1, gamma_2 = getattr(self, "gamma_1", 1.0), getattr(self, "gamma_2", 1.0)
        x = x + gamma_1 * self.attn(self.norm1(x), H, W)
        return x + gamma_2 * self.mlp(self.norm2(x), H, W)


class Stem(nn.Module):
    """``(B, in_chans, H, W)`` -> tokens, height, width."""

    def __init__(self, in_chans: int, dim: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        first, second = {4: (2, 2), 2: (1, 2), 1: (1, 1)}[stride]
        self.conv = nn.Sequential(
            nn.Conv2d(in_chans, dim, kernel_size, stride=first, padding=kernel_size // 2, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
            nn.Conv2d(dim, dim, second, stride=second),
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.conv(x)
        return self.norm(to_tokens(x)), x.shape[2], x.shape[3]


class PatchEmbed(nn.Module):
    """``(B, C_in, H, W)`` -> tokens, height, width, both halved and rounded up."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.proj(x)
        return self.norm(to_tokens(x)), x.shape[2], x.shape[3]


class LiteralSMT(nn.Module):
    """The whole network, of the arguments of ``smt_vision.SMT`` that name a function (no dropout rates).

    ``conv_heads``, ``attn_heads``, ``mlp_ratios`` and ``mixers`` are one entry a stage.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 8, 1),
        mlp_ratios: Sequence[float] = (4, 4, 4, 2),
        mixers: Sequence[str] = ("S", "S", "SA", "A"),
        conv_heads: Sequence[int] = (4, 4, 4, 4),
        attn_heads: Sequence[int] = (2, 4, 8, 16),
        expand_ratio: int = 2,
        aggregation: str = "saa",
        layer_scale: float | None = None,
        stem_kernel: int = 3,
        stem_stride: int = 4,
    ) -> None:
        super().__init__()
        self.num_stages = len(embed_dims)
        for i, dim in enumerate(embed_dims):
            if i == 0:
                embed: nn.Module = Stem(in_chans, dim, stem_kernel, stem_stride)
            else:
                embed = PatchEmbed(embed_dims[i - 1], dim)
            blocks = nn.ModuleList()
            for letter in expand_pattern(mixers[i], depths[i]):
                if letter == "S":
                    mixer: nn.Module = SAM(dim, conv_heads[i], expand_ratio, aggregation)
                else:
                    mixer = MSA(dim, attn_heads[i])
                blocks.append(Block(dim, mixer, int(dim * mlp_ratios[i]), layer_scale))
            self.add_module(f"patch_embed{i + 1}", embed)
            self.add_module(f"block{i + 1}", blocks)
            self.add_module(f"norm{i + 1}", nn.LayerNorm(dim, eps=1e-6))
        self.head = nn.Linear(embed_dims[-1], num_classes) if num_classes else nn.Identity()

    def features(self, x: Tensor) -> list[Tensor]:
        """Every stage's normalised map, ``(B, C, H, W)``."""
        maps = []
        for i in range(1, self.num_stages + 1):
            x, H, W = self.get_submodule(f"patch_embed{i}")(x)
            for block in self.get_submodule(f"block{i}").children():
                x = block(x, H, W)
            x = to_grid(self.get_submodule(f"norm{i}")(x), H, W)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)[-1].mean(dim=(2, 3)))


def reference_state_dict(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Weights that anyone can rebuild from the official keys and shapes, float32.

    Source: the rule in the README of the reference outputs.
    """
    out = {}
    for key, shape in shapes.items():
        seed = zlib.crc32(key.encode())
        a = np.random.default_rng(seed).standard_normal(tuple(shape)).astype(np.float32)
        value: Any
        if key.endswith("num_batches_tracked"):
            value = np.zeros(tuple(shape), dtype=np.int64)
        elif key.endswith("running_var"):
            value = 1 + 0.1 * np.abs(a)
        elif key.endswith("running_mean"):
            value = 0.1 * a
        elif a.ndim == 1:
            value = 1 + 0.1 * a if key.endswith("weight") else 0.1 * a
        else:
            value = a / np.sqrt(np.prod(shape[1:]))
        out[key] = torch.from_numpy(np.asarray(value, dtype=value.dtype if value.dtype == np.int64 else np.float32))
    return out


def reference_input(shape: Sequence[int]) -> Tensor:
    """The input that goes with :func:`reference_state_dict`, float32."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal(tuple(shape)).astype(np.float32))
