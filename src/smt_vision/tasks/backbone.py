"""Any timm model as a backbone of four feature maps.

Shapes: B images of H x W pixels; four maps of C_i channels and strides s_i, finest first.
"""

from typing import Any

from timm.layers import Format
from timm.models import FeatureInfo
from torch import Tensor, nn

from ..data.padding import LARGEST_STRIDE

MAPS = 4


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
