"""Decoders of segmentation_models.pytorch on the four feature maps of any backbone.

They are written for encoders that also have maps at strides 1 and 2. The decoders in the shape of a U (``unet``,
``unetplusplus``, ``manet``, ``linknet``) therefore have four blocks instead of five here: from stride 32 to stride 2,
with a skip connection from each of the three finer maps. Left out are DeepLabV3+, which needs a dilated backbone whose
last map has stride 16, and PAN, which pools the last map three times: images would need sides of 256 pixels.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from ....extras import require
from ..config import SegmentConfig
from .upernet import init_weights

# Name of the head: its module in segmentation_models_pytorch.decoders, and its class there.
DECODERS = {
    "fpn": ("fpn", "FPNDecoder"),
    "linknet": ("linknet", "LinknetDecoder"),
    "manet": ("manet", "MAnetDecoder"),
    "segformer": ("segformer", "SegformerDecoder"),
    "unet": ("unet", "UnetDecoder"),
    "unetplusplus": ("unetplusplus", "UnetPlusPlusDecoder"),
}
BLOCKS = 4  # of decoders in the shape of a U


class DecoderHead(nn.Module):
    """A decoder of segmentation_models.pytorch, dropout and a classifier.

    Args:
        in_channels: Channels of the four maps, finest first.
        num_classes: Number of classes K.
        config: ``head``, ``channels`` and ``dropout``. Decoders in the shape of a U have ``channels`` in their first
            block and half as many in each further one; ``fpn`` has ``channels`` in its pyramid and half as many after.

    Shape: feature maps, finest first, and the image ``(B, C, H, W)``, H and W multiples of 32, to logits
        ``(B, K, H / s, W / s)``; s is 2 for decoders in the shape of a U and 4 for ``fpn`` and ``segformer``.

    Raises:
        ImportError: segmentation_models.pytorch is not installed.
        ValueError: ``channels`` does not fit the decoder.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, config: SegmentConfig) -> None:
        super().__init__()
        name, channels = config.head, config.channels
        multiple = {"fpn": 128, "segformer": 1}.get(name, 2 ** (BLOCKS - 1))
        if channels % multiple:
            raise ValueError(
                f"invalid segment.channels={channels}: segment.head={name} needs a multiple of {multiple}, e.g. 256"
            )
        module, kind = DECODERS[name]
        require("segmentation_models_pytorch", "segment")
        decoder = getattr(require(f"segmentation_models_pytorch.decoders.{module}.decoder", "segment"), kind)
        # The first entry stands for the image, whose channels no decoder uses.
        encoder_channels = [0, *in_channels]
        widths = [channels // 2**i for i in range(BLOCKS)]
        if name == "fpn":
            self.decoder = decoder(
                encoder_channels, BLOCKS, pyramid_channels=channels, segmentation_channels=widths[1], dropout=0.0
            )
        elif name == "segformer":
            self.decoder = decoder(encoder_channels, BLOCKS, segmentation_channels=channels)
        elif name == "linknet":
            self.decoder = decoder(encoder_channels, prefinal_channels=widths[-1], n_blocks=BLOCKS)
        else:
            self.decoder = decoder(encoder_channels, widths, n_blocks=BLOCKS)
        out_channels = {"fpn": widths[1], "segformer": channels}.get(name, widths[-1])
        self.first_stride = 1 if name == "segformer" else 2  # of the map of which decoders use the size
        self.drop = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(out_channels, num_classes, 1)
        init_weights(self)

    def forward(self, maps: Sequence[Tensor], image: Tensor) -> Tensor:
        first = image[..., :: self.first_stride, :: self.first_stride]
        return self.classifier(self.drop(self.decoder([first, *maps])))
