"""Feature pyramid over the feature maps of a backbone.

Shapes: B images of H x W pixels; four maps of C_i channels and strides s_i, finest first.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from ....kernels.availability import autocast_dtype
from ...backbone import Backbone
from ..config import DetectConfig

GROUPS, GROUP_CHANNELS = 32, 4
CANDIDATES = 1000
Norm = Callable[[int], nn.Module]


class Pyramid(nn.Module):
    """A backbone with a feature pyramid (Lin et al., CVPR 2017) of five levels with equal channels.

    Args:
        backbone: Backbone of four feature maps.
        channels: Number of channels per level.
        top: ``pool``: levels of the four maps, and the last one subsampled by 2 (for proposals); ``convs``: levels of
            the last three maps, and two more from strided convolutions of the last map (RetinaNet, FCOS).
        norm: Function from a number of channels to the normalization layer after each convolution; ``None`` for no
            normalization.

    Attributes:
        out_channels: Number of channels per level.
        strides: Strides of the levels.

    Shape: ``(B, 3, H, W)`` to levels by name, finest first, each ``(B, channels, H / s, W / s)`` in float32.
    """

    def __init__(self, backbone: Backbone, channels: int, top: Literal["pool", "convs"], norm: Norm | None) -> None:
        super().__init__()
        maps = backbone.feature_info.channels()
        strides: list[int] = backbone.feature_info.reduction()
        self.first = 0 if top == "pool" else 1
        self.out_channels = channels
        self.backbone = backbone
        extra: LastLevelMaxPool | LastLevelP6P7
        if top == "pool":
            extra = LastLevelMaxPool()
        else:
            extra = LastLevelP6P7(maps[-1], channels)
            extra.use_P5 = False  # otherwise torchvision uses the level instead of the map if their channels are equal
        self.fpn = FeaturePyramidNetwork(maps[self.first :], channels, extra, norm)
        self.strides: Sequence[int] = [strides[self.first] * 2**i for i in range(5)]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps = self.backbone(image)[self.first :]
        levels = self.fpn({str(i): x for i, x in enumerate(maps)})
        # Boxes inherit the dtype of the levels; bfloat16 would be off by pixels.
        return {name: level.float() for name, level in levels.items()}


class StridedAnchors(AnchorGenerator):
    """torchvision's anchors, with the strides of the levels.

    torchvision's own are the quotients of the sides of images and maps. If a side is not a multiple of a stride, they
    are smaller, e.g. 114 instead of 128, and depend on the padding.

    Args:
        strides: Stride of each level.
        sizes: Sides of the anchors of each level, in pixels.
        ratios: Height / width of the anchors, of all levels.
        offset: Position of the anchors' centers in their cells, as a fraction of the stride: 0 for the upper left
            corner, as torchvision has it, 0.5 for the center.
    """

    def __init__(
        self,
        strides: Sequence[int],
        sizes: tuple[tuple[float, ...], ...],
        ratios: tuple[float, ...],
        offset: float = 0.0,
    ) -> None:
        super().__init__(sizes, (ratios,) * len(sizes))
        self.strides = tuple(strides)
        self.offset = offset

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        dtype, device = feature_maps[0].dtype, feature_maps[0].device
        self.set_cell_anchors(dtype, device)
        strides = [[torch.full((), stride, dtype=torch.int64, device=device)] * 2 for stride in self.strides]
        grids = [[feature_map.shape[-2], feature_map.shape[-1]] for feature_map in feature_maps]
        levels = zip(self.strides, self.grid_anchors(grids, strides), strict=True)
        anchors = torch.cat([anchors + self.offset * stride if self.offset else anchors for stride, anchors in levels])
        return [anchors for _ in image_list.image_sizes]


def candidates(config: DetectConfig) -> int:
    """Anchors, points or regions per level and image that reach non-maximum suppression: 1000, as published, or more
    where it could not leave ``max_detections`` otherwise."""
    return max(CANDIDATES, 2 * config.max_detections)


def head_norm(config: DetectConfig) -> Norm | None:
    """Function from a number of channels to the normalization layer of pyramid and heads, or ``None``."""
    return None if config.head_norm == "none" else group_norm


def group_norm(channels: int) -> nn.Module:
    """GroupNorm of 32 groups, or of fewer so that they have an equal number of channels, at least 4."""
    most = min(GROUPS, max(1, channels // GROUP_CHANNELS))
    return nn.GroupNorm(next(groups for groups in range(most, 0, -1) if channels % groups == 0), channels)


class _WithoutAutocast(nn.Module):
    """A layer that computes in the precision of its weights, also where autocast would use a lower one."""

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        if autocast_dtype(device) is None:
            return super().forward(x)
        weight: Any = self.weight
        with torch.autocast(device, enabled=False):
            return super().forward(x.to(weight.dtype))


class _Linear(_WithoutAutocast, nn.Linear): ...


class _Conv2d(_WithoutAutocast, nn.Conv2d): ...


def in_float32(module: nn.Module, *last: str) -> nn.Module:
    """Compute the outputs of a module in float32 under autocast, because boxes and losses are computed from them.

    Args:
        module: An output layer, or layers that end in one or several; changed in place.
        last: Names of these last layers, convolutions or linear; none if it is the module itself.
    """
    for name in last or ("",):
        layer = module.get_submodule(name)
        layer.__class__ = _Linear if isinstance(layer, nn.Linear) else _Conv2d
    module.register_forward_hook(_cast)  # for weights in a lower precision
    module.is_output_layer = True  # type: ignore[assignment]
    return module


_hooks_lock = threading.Lock()


@contextmanager
def checked_outputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within the context, every call of an output layer by this thread appends whether its outputs are finite.

    Detections do not show it: no comparison with NaN is true, so that they are dropped.
    """
    checks: list[Tensor] = []
    thread = threading.get_ident()

    def check(module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == thread:
            checks.extend(x.isfinite().all() for x in tree_leaves(output))

    layers = [module for module in model.modules() if getattr(module, "is_output_layer", False)]
    with _hooks_lock:  # PyTorch numbers hooks with a counter that two threads may read at once
        handles = [layer.register_forward_hook(check) for layer in layers]
    try:
        yield checks
    finally:
        for handle in handles:
            handle.remove()


def _cast(module: nn.Module, args: Any, output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return output.float()
    if isinstance(output, dict):
        return {name: _cast(module, args, value) for name, value in output.items()}
    return type(output)(_cast(module, args, value) for value in output)
