"""Fast forms of the network's modules: drop-in subclasses that compute the same function with ``kernels``."""

from typing import TypeVar

from torch import nn

from ..model import MHMC, MSA, SAA, SAM
from ..model.smt import FFN, Stem
from .cuda import CudaMHMC, CudaSAA
from .training import TrainingFFN, TrainingMSA, TrainingSAM, TrainingStem

ModelT = TypeVar("ModelT", bound=nn.Module)

FORMS: dict[type[nn.Module], type[nn.Module]] = {
    Stem: TrainingStem,
    MHMC: CudaMHMC,
    SAA: CudaSAA,
    SAM: TrainingSAM,
    MSA: TrainingMSA,
    FFN: TrainingFFN,
}


def use_fast_forms(model: ModelT) -> ModelT:
    """Give each module of a plain type, inside a model, the subclass that is its fast form; returns the model.

    The class of the module is set, as ``torch.nn.utils.parametrize`` and FSDP2 do. A form adds no state: it has the
    module's parameters, buffers and submodules, hence the same state-dict keys. It overrides ``forward``, which has one
    guard and falls back to the plain ``forward`` where that is false (see :mod:`smt_vision.forms.guard`). Modules of
    any other type, subclasses of the plain types among them, are left alone.
    """
    for module in model.modules():
        module.__class__ = FORMS.get(type(module), type(module))
    return model
