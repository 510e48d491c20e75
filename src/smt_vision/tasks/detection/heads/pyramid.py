"""Feature maps: any of timm's features_only models as a backbone, and the feature pyramid over it.

Shapes: B images of H x W pixels; four maps of C_i channels and strides s_i, finest first.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from ...backbone import Backbone
from ..config import DetectConfig

GROUPS, GROUP_CHANNELS = 32, 4  # of GroupNorm: 32 groups, unless they would have fewer than 4 channels
Norm = Callable[[int], nn.Module]


class Pyramid(nn.Module):
    """A backbone and the feature pyramid over it (Lin et al., CVPR 2017): five levels of one number of channels.

    Args:
        backbone: gives the maps.
        channels: of each level.
        top: ``pool``: the four maps, and the last level taken at every second place (for proposals);
            ``convs``: the last three maps, and two levels more by strided convolutions of the last map (RetinaNet).
        norm: makes the layer after each convolution, of a number of channels; ``None`` for none.

    Attributes:
        out_channels: of each level.
        strides: of the levels.

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
            extra.use_P5 = False  # torchvision takes the level in place of the map where their channels are as many
        self.fpn = FeaturePyramidNetwork(maps[self.first :], channels, extra, norm)
        self.strides: Sequence[int] = [strides[self.first] * 2**i for i in range(5)]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps = self.backbone(image)[self.first :]
        levels = self.fpn({str(i): x for i, x in enumerate(maps)})
        # Boxes take their type from the levels, and in bfloat16 would be off by pixels.
        return {name: level.float() for name, level in levels.items()}


def head_norm(config: DetectConfig) -> Norm | None:
    """What makes the normalization of pyramid and heads, of a number of channels."""
    if config.head_norm == "none":
        return None
    return lambda channels: nn.GroupNorm(min(GROUPS, max(1, channels // GROUP_CHANNELS)), channels)


def in_float32(module: nn.Module) -> nn.Module:
    """Have a module give float32 whatever precision it runs in, since boxes and losses are made of what it gives."""
    module.register_forward_hook(_cast)
    return module


def _cast(module: nn.Module, args: Any, output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return output.float()
    if isinstance(output, dict):
        return {name: _cast(module, args, value) for name, value in output.items()}
    return type(output)(_cast(module, args, value) for value in output)
