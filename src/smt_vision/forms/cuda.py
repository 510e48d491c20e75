"""Forms for CUDA: MHMC and the first half of SAA as Triton kernels, in training and in evaluation.

On other devices they fall back to the training forms.
"""

from typing import Any

from torch import Tensor

from ..kernels import mhmc, saa
from .guard import can_bypass
from .training import TrainingMHMC, TrainingSAA


class CudaMHMC(TrainingMHMC):
    """:class:`~smt_vision.model.MHMC` with all heads in one kernel."""

    def fast_forward(self, s: Tensor) -> Tensor:
        if not mhmc.is_supported(s, self.kernel_sizes) or not can_bypass(s, *self.convs, in_compiled_code=True):
            return super().fast_forward(s)
        convs: Any = self.convs
        return mhmc.convolve(s, [conv.weight for conv in convs], [conv.bias for conv in convs])


class CudaSAA(TrainingSAA):
    """:class:`~smt_vision.model.SAA` with fused expansion, normalization and activation."""

    def fast_forward(self, x: Tensor) -> Tensor:
        supported = saa.is_supported(x, self.expand, self.norm)
        if not supported or not can_bypass(x, self.expand, self.norm, self.act, in_compiled_code=True):
            return super().fast_forward(x)
        hidden = saa.expand_norm_gelu(x, self.expand, self.norm)
        return self.reduce(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
