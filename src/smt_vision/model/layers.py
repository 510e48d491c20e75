"""Pieces that several parts of the network share. ``B`` batch, ``H W`` grid, ``C`` channels."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..kernels.lean import can_be_lean, linear, linear_of
from ..kernels.switch import autocast_dtype


def conv_bhwc(conv: nn.Module, x: Tensor) -> Tensor:
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
        x = self._local(linear(self.fc1, x))
        if can_be_lean(self.fc2) and not (self.training and self.drop.p):
            return linear_of(F.gelu, self.fc2, x)
        return self.drop(self.fc2(self.drop(F.gelu(x))))

    def _local(self, x: Tensor) -> Tensor:
        """``x + dwconv(x)``; in training on a CPU the sum is in the kernel, which saves two passes over memory."""
        conv = self.dwconv
        # In fewer bits than float32's, autocast's or TF32's, a kernel with 1 added would lose its own digits.
        whole = x.device.type == "cpu" and x.dtype is torch.float32 and not autocast_dtype("cpu")
        if not whole or not can_be_lean(conv):
            return x + conv_bhwc(conv, x)
        weight = conv.weight + F.pad(conv.weight.new_ones(1, 1, 1, 1), (1, 1, 1, 1))
        return F.conv2d(x.permute(0, 3, 1, 2), weight, conv.bias, padding=1, groups=conv.groups).permute(0, 2, 3, 1)


class LayerScale(nn.Module):
    """A learned factor for each channel: ``(..., C) -> (..., C)``."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(init_value * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    """``block(x)``, recomputed in the backward pass in place of keeping its activations.

    The second run leaves BatchNorm's running statistics alone, so that they are those of a run without checkpoints.
    """
    if torch.compiler.is_compiling():  # the compiler takes no context; it plans its own recomputation
        return checkpoint(block, x, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _no_statistics_update(block)

    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _no_statistics_update(block: nn.Module) -> Iterator[None]:
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, num_batches_tracked) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches_tracked
