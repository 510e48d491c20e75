"""FocalNet's modulation as a mixer of SMT's blocks, for comparison with SAM.

Source: Yang et al., "Focal Modulation Networks", NeurIPS 2022, arXiv 2203.11926, in timm's implementation.
"""

from timm.layers import trunc_normal_
from timm.models.focalnet import FocalModulation as TimmFocalModulation
from torch import Tensor, nn


class FocalModulation(nn.Module):
    """Focal modulation with FocalNet's setting for large receptive fields: kernel sizes 3, 5 and 7, one after another.

    Args:
        dim: Number of channels ``C``.
        drop_rate: Dropout rate after the output projection.

    Shape: ``(B, H, W, C) -> (B, H, W, C)``.
    """

    def __init__(self, dim: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.modulation = TimmFocalModulation(dim, focal_window=3, focal_level=3, proj_drop=drop_rate)

    def init_weights(self) -> None:
        """Initialise the layers as FocalNet does; those of SMT's convolutions would be seven times as large."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.modulation(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
