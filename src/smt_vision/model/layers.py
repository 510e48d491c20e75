"""Pieces that several parts of the network share. ``B`` batch, ``H W`` grid, ``C`` channels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bhwc(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Run a convolution over a channels-last tensor: ``(B, H, W, C_in) -> (B, H', W', C_out)``, without a copy."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class FFN(nn.Module):
    """Feed-forward network with a depthwise 3x3 convolution, added to what it convolves, before the GELU.

    Args:
        dim: channels ``C``.
        hidden_dim: channels inside.
        drop_rate: dropout after either linear layer.

    Shape: ``(B, H, W, C) -> (B, H, W, C)``.
    """

    def __init__(self, dim: int, hidden_dim: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, kernel_size=3, padding=1, groups=hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = self.drop(F.gelu(x + conv_bhwc(self.dwconv, x)))
        return self.drop(self.fc2(x))


class LayerScale(nn.Module):
    """A learned factor for each channel: ``(..., C) -> (..., C)``."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(init_value * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma
