"""Any timm model as a backbone with four feature maps.

Shapes: B images of H x W pixels; four maps with C_i channels and stride s_i, finest first.
"""

from collections.abc import Callable, Collection
from typing import Any

from timm.layers import Format
from timm.models import FeatureInfo
from torch import Tensor, nn

from ..data.padding import LARGEST_STRIDE

NUM_MAPS = 4


class Backbone(nn.Module):
    """The last four feature maps of a timm model, each with twice the stride of the previous one.

    Args:
        net: timm model created with ``features_only=True``.
        no_weight_decay: Function that returns the names of the parameters of :attr:`network` that weight decay does
            not apply to, e.g. tables of position biases, besides 1-D ones; ``None``: there are no others.

    Attributes:
        feature_info: timm's ``FeatureInfo`` of the four maps: ``channels()`` C_i and ``reduction()`` s_i.

    Shape: ``(B, 3, H, W)`` to a list of ``(B, C_i, H / s_i, W / s_i)``.

    Raises:
        ValueError: The model does not have four such maps.
    """

    def __init__(self, net: Any, no_weight_decay: Callable[[nn.Module], Collection[str]] | None = None) -> None:
        super().__init__()
        strides = list(net.feature_info.reduction())
        last = strides[-NUM_MAPS:]
        if len(last) < NUM_MAPS or last != [last[0] * 2**i for i in range(NUM_MAPS)] or last[-1] > LARGEST_STRIDE:
            raise ValueError(
                f"its feature maps have strides {strides}, but detection and segmentation need four maps, each with "
                f"twice the stride of the previous one and at most {LARGEST_STRIDE}, e.g. 4, 8, 16, 32; use a model "
                "such as an SMT, Swin, ConvNeXt or ResNet"
            )
        self.net = net
        self.feature_info = FeatureInfo(net.feature_info.get_dicts()[-NUM_MAPS:], tuple(range(NUM_MAPS)))
        self._no_weight_decay = no_weight_decay
        self._channels_last = getattr(net, "output_fmt", Format.NCHW) == Format.NHWC  # e.g. Swin

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = self.net(image)[-NUM_MAPS:]
        return [x.permute(0, 3, 1, 2) for x in maps] if self._channels_last else list(maps)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay does not apply to, besides 1-D ones, as of a timm model."""
        prefix = "net" if self.network is self.net else "net.model"
        listed = self._no_weight_decay(self.network) if self._no_weight_decay else ()
        return {f"{prefix}.{name}" for name in listed}

    @property
    def network(self) -> nn.Module:
        """The timm model inside; its state dict keys correspond to those of the classifier."""
        return getattr(self.net, "model", self.net)


def find_backbone(model: nn.Module) -> Backbone | None:
    """The backbone in a detector or segmenter; ``None`` for other models, e.g. classifiers."""
    return next((module for module in model.modules() if isinstance(module, Backbone)), None)
