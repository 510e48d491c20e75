"""Maps of scale-aware modulation: what each convolution head and their aggregation give.

Source: "Scale-Aware Modulation Meet Transformer", arXiv 2307.08579, section 3.1, which compares the modulators of
several heads with those of one.

Shapes: ``N`` convolution heads, a grid of ``H W`` cells.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..forms.inference import is_fused
from ..model import SAM
from ..modes import evaluation_mode
from .blocks import NotDefined, require_one_image

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ModulationMaps:
    """Maps of one modulation block.

    Attributes:
        name: Module path of the mixer, e.g. ``stages.0.blocks.0.mixer``.
        kernels: Kernel size of each head.
        heads: ``(N, H, W)``: absolute value of each head's convolution, averaged over the head's channels.
        modulator: ``(H, W)``: absolute value of the modulator, which multiplies the value or is added to it, averaged
            over all channels.
    """

    name: str
    kernels: tuple[int, ...]
    heads: Floats
    modulator: Floats

    @property
    def mean(self) -> Floats:
        """``(H, W)``: mean of the heads."""
        return self.heads.mean(axis=0)

    def arrays(self) -> dict[str, Any]:
        """The arrays by name, for an npz file."""
        return {
            f"{self.name}.kernels": np.array(self.kernels),
            f"{self.name}.heads": self.heads,
            f"{self.name}.modulator": self.modulator,
        }


def find_modulation(network: nn.Module) -> dict[str, SAM]:
    """The modulation blocks of a network by module path.

    Raises:
        NotDefined: There are none.
    """
    found = {name: module for name, module in network.named_modules() if isinstance(module, SAM)}
    if not found:
        raise NotDefined(f"there are no modulation maps: {_why(network)}")
    return found


def _why(network: nn.Module) -> str:
    if is_fused(network):
        return "a fused network computes its convolution heads as one; use the original network"
    return "the network has no scale-aware modulation (SAM)"


@torch.no_grad()
def modulation_maps(network: nn.Module, x: Tensor) -> list[ModulationMaps]:
    """The maps of every modulation block, in order.

    Args:
        network: A network with :class:`~smt_vision.model.SAM`.
        x: An image ``(1, C, H, W)``.

    Raises:
        NotDefined: The network has no modulation.
    """
    require_one_image(x)
    kept: dict[nn.Module, Tensor] = {}
    found = find_modulation(network)

    def keep(module: nn.Module, args: Any, out: Tensor) -> None:
        kept[module] = out[0].abs().float().mean(dim=2).cpu()  # (H, W, C / N, N) -> (H, W, N), (H, W, C) -> (H, W)

    handles = [module.register_forward_hook(keep) for sam in found.values() for module in (sam.mhmc, sam.saa)]
    try:
        with evaluation_mode(network):
            network(x)
    finally:
        for handle in handles:
            handle.remove()
    return [
        ModulationMaps(
            name,
            tuple(conv.kernel_size[0] for conv in sam.mhmc.convs if isinstance(conv, nn.Conv2d)),
            kept[sam.mhmc].permute(2, 0, 1).numpy(),
            kept[sam.saa].numpy(),
        )
        for name, sam in found.items()
    ]
