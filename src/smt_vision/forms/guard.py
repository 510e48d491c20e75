"""When a form may compute with the parameters of its submodules instead of calling them."""

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from ..kernels.availability import in_functorch_transform

PLAIN_TYPES = frozenset({nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.GELU, nn.Dropout})


def can_bypass(x: Tensor, *children: nn.Module, in_compiled_code: bool = False) -> bool:
    """Whether a form may use the parameters of submodules instead of calling the submodules.

    False if a call may do more than the layer's own ``forward``: the layer was replaced by an adapter (e.g. LoRA), it
    has a parametrization, a hook (including hooks registered for all modules), a ``forward`` set on the instance, or a
    parameter that is a tensor subclass. Also false where PyTorch's own operators are needed: in ``torch.func``
    transforms and forward-mode differentiation, in compilers, exporters and tracers, and in FX, where ``x`` is a
    ``Proxy``.

    Args:
        x: Input of the form.
        children: Submodules that would not be called.
        in_compiled_code: Whether the replacement is an operator that ``torch.compile`` supports.
    """
    if torch.compiler.is_compiling():
        possible = in_compiled_code and not torch.compiler.is_exporting()
    else:
        possible = isinstance(x, Tensor) and not torch.jit.is_tracing() and not in_functorch_transform()
    return possible and not _has_global_hooks() and all(_is_plain(child) for child in children)


def can_recompute(x: Tensor, *children: nn.Module) -> bool:
    """:func:`can_bypass` for forms with a custom backward pass, which are used only if gradients are enabled."""
    return torch.is_grad_enabled() and can_bypass(x, *children)


def _has_global_hooks() -> bool:
    return bool(
        global_hooks._global_forward_pre_hooks
        or global_hooks._global_forward_hooks
        or global_hooks._global_backward_pre_hooks
        or global_hooks._global_backward_hooks
    )


def _is_plain(child: nn.Module) -> bool:
    hooks = child._forward_pre_hooks or child._forward_hooks or child._backward_pre_hooks or child._backward_hooks
    if type(child) not in PLAIN_TYPES or hooks or "forward" in child.__dict__:
        return False
    for parameter in child._parameters.values():
        if parameter is not None and type(parameter) is not nn.Parameter and type(parameter) is not Tensor:
            return False
    return True
