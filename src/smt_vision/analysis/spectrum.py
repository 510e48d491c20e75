"""Fourier spectrum of feature maps by depth: how much of the high frequencies each block keeps.

Source: Park and Kim, "How Do Vision Transformers Work?", ICLR 2022, figure 2: the log amplitude of the
Fourier-transformed maps, averaged over channels, along the diagonal, relative to that of frequency 0. With an even
side of n cells, the diagonal ends at (n - 2) / n pi in their code and at pi here; only here is the highest frequency
corrected for odd grids.

Shapes: ``B`` images, ``C`` channels, a map of ``H W`` cells, ``F`` frequencies.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .blocks import BlockInfo, NotDefined, block_outputs, require_one_image

Floats = npt.NDArray[np.float64]
SMALLEST = 1e-6  # amplitudes below count as this one


@dataclass(frozen=True)
class BlockSpectrum:
    """Spectrum of the feature map after a block.

    Attributes:
        name: Module path of the block.
        info: Its stage and mixer.
        depth: Depth from 0, the first block, to 1, the last.
        frequencies: ``(F,)`` on the diagonal, in units of pi per cell: from 0 to 1, or to ``(n - 1) / n`` for an odd
            short side of n cells.
        log_amplitude: ``(F,)``: natural logarithm of the amplitude relative to frequency 0.
        complex_share: Share of the images whose coefficient of the highest frequency is a complex number: those whose
            grid has an odd side. Between two frequencies of an image, it is interpolated like the amplitude.
    """

    name: str
    info: BlockInfo
    depth: float
    frequencies: Floats
    log_amplitude: Floats
    complex_share: float = 0.0

    @property
    def high(self) -> float:
        """Relative log amplitude of the highest frequency; NaN for a map with one cell along a side.

        That of a complex coefficient is less ln(2) / 2, by which the expected logarithm of its amplitude is larger than
        that of a real one of the same power (normally distributed), so that grids of all sizes compare.
        """
        if len(self.log_amplitude) < 2:
            return float("nan")
        return float(self.log_amplitude[-1]) - self.complex_share * math.log(2) / 2

    def arrays(self) -> dict[str, Any]:
        """The arrays by name, for an npz file."""
        return {
            f"{self.name}.stage": np.array(self.info.stage),
            f"{self.name}.mixer": np.array(self.info.mixer),
            f"{self.name}.depth": np.array(self.depth),
            f"{self.name}.frequencies": self.frequencies,
            f"{self.name}.log_amplitude": self.log_amplitude,
            f"{self.name}.complex_share": np.array(self.complex_share),
            f"{self.name}.high": np.array(self.high),
        }


def relative_log_amplitude(maps: Tensor) -> tuple[Floats, Floats]:
    """The spectrum along the diagonal, averaged over images and channels.

    Both diagonals are averaged; the other two quadrants are the same, since maps are real. On a grid that is not
    square, the frequency along the longer side is the one nearest to the shorter side's.

    Args:
        maps: ``(B, C, H, W)``.

    Returns:
        Frequencies ``(F,)`` in units of pi per cell, and relative log amplitudes ``(F,)``; F is ``min(H, W) // 2 + 1``.
    """
    H, W = maps.shape[-2:]
    log = torch.fft.fft2(maps.float()).abs().clamp_min(SMALLEST).log().cpu().double().mean(dim=(0, 1)).numpy()
    n = min(H, W)
    steps = np.arange(n // 2 + 1)
    rows, columns = np.rint(steps * H / n).astype(int), np.rint(steps * W / n).astype(int)
    diagonal = (log[rows % H, columns % W] + log[rows % H, -columns % W]) / 2
    return 2 * steps / n, diagonal - diagonal[0]


def _spectrum(maps: Tensor) -> tuple[Floats, Floats, Floats]:
    """The spectrum, and which of its coefficients are complex (1) or real (0)."""
    frequencies, log_amplitude = relative_log_amplitude(maps)
    is_complex = np.ones(len(frequencies))
    is_complex[0] = 0
    if maps.shape[-2] % 2 == maps.shape[-1] % 2 == 0:
        is_complex[-1] = 0
    return frequencies, log_amplitude, is_complex


def spectra(network: nn.Module, images: Iterable[Tensor]) -> list[BlockSpectrum]:
    """The spectrum after each block, averaged over images.

    Of images of different sizes, the frequencies are those of the first.

    Args:
        network: A timm model, a :class:`~smt_vision.tasks.backbone.Backbone`, or any module that returns feature maps.
        images: Images ``(1, C, H, W)``, each at the network's input size.

    Raises:
        NotDefined: The network has no feature maps, or all of them have one cell along a side, hence one frequency.
        ValueError: There are no images, or several in a batch.
    """
    first: list[Any] = []
    sums: list[Floats] = []  # (2, F) of each block: log amplitude, and which coefficients are complex
    count = 0
    for x in images:
        require_one_image(x)
        with torch.no_grad():
            outputs = block_outputs(network, x, _spectrum)
        count += 1
        if not first:
            first, sums = outputs, [np.zeros((2, len(output.value[0]))) for output in outputs]
        for total, at, output in zip(sums, first, outputs, strict=True):
            frequencies, *values = output.value
            total += [np.interp(at.value[0], frequencies, value) for value in values]
    if not first:
        raise ValueError("no images to average over: expected at least one")
    if all(total.shape[1] < 2 for total in sums):
        raise NotDefined("there are no spectra: all feature maps have one cell along a side; use larger images")
    last = max(1, len(first) - 1)
    found = []
    for i, (output, total) in enumerate(zip(first, sums, strict=True)):
        log_amplitude, is_complex = total / count
        found.append(BlockSpectrum(output.name, output.info, i / last, output.value[0], log_amplitude, is_complex[-1]))
    return found
