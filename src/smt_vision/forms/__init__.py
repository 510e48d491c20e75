"""Fast forms of the model's modules: drop-in subclasses that compute the same function with ``kernels``."""

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
    """Replace the class of each plain module in a model by its fast form, in place; returns the model.

    Assigning ``__class__`` is also how ``torch.nn.utils.parametrize`` and FSDP2 work. A form adds no state: parameters,
    buffers, submodules and state dict keys stay the same. It only overrides ``forward``, which falls back to the plain
    ``forward`` in TorchScript and if its guard is false (see :mod:`smt_vision.forms.guard`). Modules of any other type,
    including subclasses of the plain types, are not changed.
    """
    for module in model.modules():
        module.__class__ = FORMS.get(type(module), type(module))
    return model
