"""Segmentation networks by the name of their head.

Shapes: B images of H x W pixels, K classes; logits in training have stride s, 2 or 4.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ....data.padding import padded
from ...backbone import Backbone
from ..config import SegmentConfig
from .decoders import DecoderHead
from .upernet import FCNHead, UPerHead, resize


class SegmentationNetwork(nn.Module):
    """A backbone with a segmentation head and the auxiliary head.

    Training of ``upernet`` needs at least two images per batch: its coarsest pooling leaves one value per channel and
    image, and BatchNorm needs more than one.

    Args:
        backbone: Backbone of four feature maps.
        num_classes: Number of classes K; 1 for ``binary`` segmentation.
        config: Head, and its channels and dropout; there is an auxiliary head, on the second to last map, if
            ``aux_weight`` is above 0.

    Shape:
        Evaluation: ``(B, 3, H, W)`` to logits ``(B, K, H, W)``. Training: to logits ``(B, K, H / s, W / s)`` and the
        auxiliary head's logits at the size of its feature map, or ``None``; H and W are multiples of 32, except for
        ``upernet``.

    Raises:
        ImportError: The head needs segmentation_models.pytorch, which is not installed.
        ValueError: ``channels`` does not fit the head.
    """

    def __init__(self, backbone: Backbone, num_classes: int, config: SegmentConfig) -> None:
        super().__init__()
        channels: list[int] = backbone.feature_info.channels()
        self.backbone = backbone
        self.head = (
            UPerHead(channels, config.channels, num_classes, config.dropout)
            if config.head == "upernet"
            else DecoderHead(channels, num_classes, config)
        )
        self.auxiliary = (
            FCNHead(channels[-2], config.aux_channels, num_classes, config.dropout) if config.aux_weight > 0 else None
        )

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        height, width = image.shape[-2:]
        if isinstance(self.head, DecoderHead):  # each of its maps must have twice the size of the next
            image = F.pad(image, (0, padded(width) - width, 0, padded(height) - height))
            maps = self.backbone(image)
            logits = self.head(maps, image)
        else:
            maps = self.backbone(image)
            logits = self.head(maps)
        if self.training:
            return logits, None if self.auxiliary is None else self.auxiliary(maps[-2])
        return resize(logits.float(), image.shape[-2:])[..., :height, :width]
