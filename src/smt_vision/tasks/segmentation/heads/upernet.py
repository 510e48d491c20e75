"""UPerNet: semantic segmentation from the feature maps of any backbone.

Xiao et al., Unified Perceptual Parsing for Scene Understanding, ECCV 2018: pyramid pooling (Zhao et al., CVPR 2017)
of the last feature map, followed by a feature pyramid of all maps. Training adds a small auxiliary head on the second
to last map. Default sizes are those of the SMT paper's ADE20K runs.

Shapes: B images of H x W pixels, K classes, C channels; the finest map is h x w, a quarter of the image's sides.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

POOL_SCALES = (1, 2, 3, 6)

_conv = partial(Conv2dNormActivation, inplace=True)  # convolution without bias, BatchNorm, ReLU; keeps H and W


class UPerHead(nn.Module):
    """A feature pyramid of all maps, and a classifier at the size of the finest map.

    Args:
        in_channels: Channels of each input map, finest first.
        channels: Channels of every map inside the head.
        num_classes: Number of classes K.
        dropout: Probability of zeroing a channel before the classifier.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        *finer, coarsest = in_channels
        self.pyramid = PyramidPooling(coarsest, channels)
        self.laterals = nn.ModuleList(_conv(c, channels, 1) for c in finer)
        self.outputs = nn.ModuleList(_conv(channels, channels, 3) for _ in finer)
        self.fuse = _conv(channels * len(in_channels), channels, 3)
        self.drop = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        init_weights(self)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Feature maps, finest first, to logits ``(B, K, h, w)`` at the size of the finest map."""
        *finer, coarsest = maps
        merged = [self.pyramid(coarsest)]  # coarsest first
        for lateral, x in zip(reversed(self.laterals), reversed(finer), strict=True):
            merged.append(lateral(x) + resize(merged[-1], x.shape[-2:]))
        coarsest, *finer = merged
        outputs = [coarsest, *(output(x) for output, x in zip(reversed(self.outputs), finer, strict=True))]
        size = outputs[-1].shape[-2:]
        return self.classifier(self.drop(self.fuse(torch.cat([resize(x, size) for x in reversed(outputs)], dim=1))))


class PyramidPooling(nn.Module):
    """A map fused with its averages over 1, 4, 9 and 36 bins: ``(B, in_channels, H, W) -> (B, channels, H, W)``."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(_conv(in_channels, channels, 1) for _ in POOL_SCALES)
        self.fuse = _conv(in_channels + channels * len(POOL_SCALES), channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) == 1:
            raise ValueError(
                "UPerNet needs at least two images per batch in training: with one image, global pooling leaves "
                "BatchNorm a single value per channel. Raise batch_size"
            )
        pooled = [branch(mean_pool(x, n)) for branch, n in zip(self.branches, POOL_SCALES, strict=True)]
        return self.fuse(torch.cat([x, *(resize(p, x.shape[-2:]) for p in pooled)], dim=1))


class FCNHead(nn.Module):
    """A 3x3 convolution and a classifier: ``(B, in_channels, H, W) -> (B, K, H, W)``."""

    def __init__(self, in_channels: int, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.conv = _conv(in_channels, channels, 3)
        self.drop = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.drop(self.conv(x)))


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize without aligned corners: ``(B, C, H, W) -> (B, C, *size)``."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def mean_pool(x: Tensor, n: int) -> Tensor:
    """``F.adaptive_avg_pool2d(x, n)``: ``(B, C, H, W) -> (B, C, n, n)``.

    Computed as a matrix product with bin weights that depend on H and W, so that exported models take any image size.
    """
    rows, columns = (_bin_weights(length, n, x) for length in x.shape[-2:])  # (n, H), (n, W)
    weights = (rows[:, None, :, None] * columns[None, :, None, :]).flatten(2).flatten(0, 1)  # (n * n, H * W)
    return (x.flatten(2) @ weights.T).unflatten(-1, (n, n))


def _bin_weights(length: int, n: int, like: Tensor) -> Tensor:
    """Bin weights of adaptive average pooling, ``(n, length)``; each row sums to 1.

    Row i has equal weights on the pixels that overlap the i-th of n equal bins.
    """
    index = torch.arange(n, device=like.device)[:, None]
    pixel = torch.arange(length, device=like.device)
    # Integer arithmetic: exact. Core ML's converter does not support the operator &.
    inside = torch.logical_and((pixel + 1) * n > index * length, pixel * n < (index + 1) * length)
    return inside.to(like.dtype) / inside.sum(dim=1, keepdim=True)


def init_weights(head: nn.Module) -> None:
    """Kaiming initialization; classifier weights start near zero, so that all classes have similar scores."""
    for name, module in head.named_modules():
        if isinstance(module, nn.Conv2d):
            if name == "classifier":
                nn.init.normal_(module.weight, std=0.01)
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
