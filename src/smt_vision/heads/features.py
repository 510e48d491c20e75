"""Feature maps: any of timm's features_only models as a backbone, and the feature pyramid over it.

Shapes: B images of H x W pixels; four maps of C_i channels and strides s_i, finest first.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import timm
import torch
from timm.layers import Format
from timm.models import FeatureInfo
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from ..recipes import LARGEST_STRIDE, Detect

MAPS = 4
GROUPS, GROUP_CHANNELS = 32, 4  # of GroupNorm: 32 groups, unless they would have fewer than 4 channels
Norm = Callable[[int], nn.Module]


class Backbone(nn.Module):
    """The last four feature maps of a timm model, each of twice the stride of the one before.

    Args:
        net: a model made with ``features_only=True``.

    Attributes:
        feature_info: timm's account of the four maps: ``channels()`` C_i and ``reduction()`` s_i.

    Shape: ``(B, 3, H, W)`` to a list of ``(B, C_i, H / s_i, W / s_i)``.

    Raises:
        ValueError: the model has no four such maps.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        strides = list(net.feature_info.reduction())
        last = strides[-MAPS:]
        if len(last) < MAPS or last != [last[0] * 2**i for i in range(MAPS)] or last[-1] > LARGEST_STRIDE:
            raise ValueError(
                f"the model's feature maps have strides {strides}: a detector or segmenter needs four maps, each of "
                f"twice the stride of the one before, the last of at most {LARGEST_STRIDE}, as 4, 8, 16, 32; take a "
                "model of that kind, as an SMT, Swin, ConvNeXt or ResNet"
            )
        self.net = net
        self.feature_info = FeatureInfo(net.feature_info.get_dicts()[-MAPS:], tuple(range(MAPS)))
        self._channels_last = getattr(net, "output_fmt", Format.NCHW) == Format.NHWC  # Swin's, for one

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = self.net(image)[-MAPS:]
        return [x.permute(0, 3, 1, 2) for x in maps] if self._channels_last else list(maps)

    @property
    def network(self) -> nn.Module:
        """timm's own module, whose names the weights of a classifier have."""
        return getattr(self.net, "model", self.net)


def build_backbone(
    name: str, model_args: dict[str, Any] | None = None, *, channels: int = 3, pretrained: bool = False
) -> Backbone:
    """A timm model as a backbone.

    Args:
        name: timm's name of it.
        model_args: further constructor arguments.
        channels: of the images.
        pretrained: load its published weights.

    Raises:
        ValueError: timm has no such model, it does not take the arguments, or it gives no feature maps as needed.
    """
    try:
        net = timm.create_model(
            name, features_only=True, in_chans=channels, pretrained=pretrained, **(model_args or {})
        )
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"model {name!r} with {model_args or 'no further arguments'} cannot be a backbone: {error}"
        ) from error
    try:
        return Backbone(net)
    except ValueError as error:
        raise ValueError(f"model {name!r} cannot be a backbone: {error}") from error


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


def head_norm(config: Detect) -> Norm | None:
    """What makes the normalisation of pyramid and heads, of a number of channels."""
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
