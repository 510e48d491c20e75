"""UPerNet: a label for each pixel, from the feature maps of any backbone.

Xiao et al., Unified Perceptual Parsing for Scene Understanding, ECCV 2018: pyramid pooling (Zhao et al., CVPR 2017)
over the last feature map, then a feature pyramid over all of them. Beside it, in training, a small auxiliary head on
the last map but one. Sizes are those of the SMT paper's ADE20K runs.

Shapes: B images of H x W pixels, K classes, C channels; the finest map is h x w, a quarter of the image's sides.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from ...backbone import Backbone
from ..config import SegmentConfig

POOL_SCALES = (1, 2, 3, 6)

_conv = partial(Conv2dNormActivation, inplace=True)  # convolution without bias, BatchNorm, ReLU; the map keeps its size


class UPerNet(nn.Module):
    """A backbone, the UPerNet head, and the auxiliary head.

    The heads have BatchNorm, of which the coarsest pool leaves one value a channel and image: training takes at least
    two images a batch.

    Args:
        backbone: gives the feature maps.
        num_classes: K; 1 for one map of logits (``config.kind`` ``binary``).
        config: channels, dropout, and whether there is an auxiliary head (``aux_weight`` above 0).

    Shape:
        ``(B, 3, H, W)`` to ``(B, K, H, W)`` logits in evaluation; in training to ``(B, K, h, w)`` logits, and those of
        the auxiliary head, or ``None``, at the size of its map.
    """

    def __init__(self, backbone: Backbone, num_classes: int, config: SegmentConfig) -> None:
        super().__init__()
        channels: list[int] = backbone.feature_info.channels()
        self.backbone = backbone
        self.head = UPerHead(channels, config.channels, num_classes, config.dropout)
        self.auxiliary = (
            FCNHead(channels[-2], config.aux_channels, num_classes, config.dropout) if config.aux_weight > 0 else None
        )

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        maps = self.backbone(image)
        logits = self.head(maps)
        if self.training:
            return logits, None if self.auxiliary is None else self.auxiliary(maps[-2])
        return resize(logits, image.shape[-2:])

    def share_statistics(self) -> None:
        """Have the heads' BatchNorm take its statistics over all processes' images, as published; needs GPUs."""
        for part in (self.head, self.auxiliary):
            if part is not None:
                nn.SyncBatchNorm.convert_sync_batchnorm(part)


class UPerHead(nn.Module):
    """The pyramid over all maps, and the classifier at the finest one's size.

    Args:
        in_channels: of each map, finest first.
        channels: of every map inside.
        num_classes: K.
        dropout: share of the channels set to zero before the classifier, in training.
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
        _init_weights(self)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps, finest first, to logits ``(B, K, h, w)`` at the finest one's size."""
        *finer, coarsest = maps
        merged = [self.pyramid(coarsest)]  # coarsest first
        for lateral, x in zip(reversed(self.laterals), reversed(finer), strict=True):
            merged.append(lateral(x) + resize(merged[-1], x.shape[-2:]))
        coarsest, *finer = merged
        outputs = [coarsest, *(output(x) for output, x in zip(reversed(self.outputs), finer, strict=True))]
        size = outputs[-1].shape[-2:]
        return self.classifier(self.drop(self.fuse(torch.cat([resize(x, size) for x in reversed(outputs)], dim=1))))


class PyramidPooling(nn.Module):
    """A map beside its means over 1, 4, 9 and 36 cells, mixed: ``(B, in_channels, H, W) -> (B, channels, H, W)``."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(_conv(in_channels, channels, 1) for _ in POOL_SCALES)
        self.fuse = _conv(in_channels + channels * len(POOL_SCALES), channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) == 1:
            raise ValueError(
                "UPerNet trains on two images a batch or more: of one, the pool over the whole map leaves BatchNorm a "
                "single value. Raise batch_size"
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
        _init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.drop(self.conv(x)))


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corners not aligned: ``(B, C, H, W) -> (B, C, *size)``."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def mean_pool(x: Tensor, n: int) -> Tensor:
    """``F.adaptive_avg_pool2d(x, n)``: ``(B, C, H, W) -> (B, C, n, n)``.

    As a matrix product with the cells' weights, which are computed from H and W, so that an export takes any size.
    """
    rows, columns = (_cells(length, n, x) for length in x.shape[-2:])  # (n, H), (n, W)
    weights = (rows[:, None, :, None] * columns[None, :, None, :]).flatten(2).flatten(0, 1)  # (n * n, H * W)
    return (x.flatten(2) @ weights.T).unflatten(-1, (n, n))


def _cells(length: int, n: int, like: Tensor) -> Tensor:
    """``(n, length)``: in row i equal weights, of sum 1, on the pixels that the i-th of n equal cells touches."""
    cell = torch.arange(n, device=like.device)[:, None]
    pixel = torch.arange(length, device=like.device)
    touched = ((pixel + 1) * n > cell * length) & (pixel * n < (cell + 1) * length)  # whole numbers: exact
    return touched.to(like.dtype) / touched.sum(dim=1, keepdim=True)


def _init_weights(head: nn.Module) -> None:
    """He's initialisation; classifiers begin near zero, hence all classes alike."""
    for name, module in head.named_modules():
        if isinstance(module, nn.Conv2d):
            if name == "classifier":
                nn.init.normal_(module.weight, std=0.01)
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
