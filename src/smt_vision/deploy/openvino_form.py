"""The fused model in operators that OpenVINO runs faster on a CPU.

- A LayerNorm of the last of four axes is decomposed into several operators, and one of three axes is not.
- The grouped 1x1 convolution of SAA, of a few channels per group, takes longer than the dense product with the same
  weights and zeros between the groups.

Shapes: B images, H x W grid, C channels.
"""

import copy

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ..forms.fused_layers import FusedConv2d, FusedLinear
from ..forms.inference import FusedSAM, is_fused


def for_openvino(model: nn.Module) -> nn.Module:
    """A copy of a model with the same outputs, to be traced for OpenVINO; other models than fused SMTs are returned."""
    if not is_fused(model):
        return model
    model = copy.deepcopy(model)
    for name, module in [*model.named_modules()]:
        if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
            model.set_submodule(name, FlatNorm(module))
        elif isinstance(module, FusedSAM) and isinstance(module.expand, FusedConv2d):
            model.set_submodule(f"{name}.expand", nn.Sequential(_dense(module.expand), nn.GELU()))
    return model


class FlatNorm(nn.Module):
    """A LayerNorm of C channels over B x HW positions.

    Shape: ``(B, H, W, C)`` to the same; in place of timm's ``LayerNorm2d``, ``(B, C, H, W)`` to the same. Other shapes
    are normalized as they are.
    """

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.channels_first = isinstance(norm, LayerNorm2d)
        self.norm = nn.LayerNorm(norm.normalized_shape, norm.eps)
        self.norm.load_state_dict(norm.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            out: Tensor = self.norm(x)
            return out
        x = x.permute(0, 2, 3, 1) if self.channels_first else x
        x = self.norm(x.flatten(1, 2)).unflatten(1, x.shape[1:3])
        return x.permute(0, 3, 1, 2) if self.channels_first else x


def _dense(conv: FusedConv2d) -> FusedLinear:
    """The linear layer that computes a grouped 1x1 convolution."""
    C_out, group_width = conv.weight.shape[:2]
    blocks = conv.weight.flatten(1).view(conv.groups, C_out // conv.groups, group_width)
    return FusedLinear(torch.block_diag(*blocks), conv.bias)
