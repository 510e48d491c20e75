"""When a form may compute with the parameters of its submodules instead of calling them."""

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from ..kernels.availability import in_dispatch_mode, in_functorch_transform

PLAIN_TYPES = frozenset({nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.GELU, nn.Dropout})
TENSORS = (Tensor, nn.Parameter)


def can_bypass(x: Tensor, *children: nn.Module, in_compiled_code: bool = False) -> bool:
    """Whether a form may use the parameters of submodules instead of calling the submodules.

    False if a call may do more than the layer's own ``forward``: the layer was replaced by an adapter (e.g. LoRA), it
    has a parametrization, a hook (including hooks registered for all modules), a ``forward`` set on the instance (e.g.
    by accelerate), or a parameter that is a tensor subclass (e.g. of torchao). False if the layer is not the one that
    the forms compute: a convolution that is dilated, strided, or not zero-padded to the size of its input, or an
    approximate GELU. Also false where PyTorch's own operators are needed: for a tensor subclass, in
    ``torch.func`` transforms and forward-mode differentiation, in dispatch modes, in compilers, exporters and tracers,
    and in FX, where ``x`` is a ``Proxy``.

    Args:
        x: Input of the form.
        children: Submodules that would not be called.
        in_compiled_code: Whether the replacement is an operator that ``torch.compile`` supports.
    """
    if torch.compiler.is_compiling():
        possible = in_compiled_code and not torch.compiler.is_exporting()
    else:
        tracing = torch.jit.is_tracing() or in_functorch_transform() or in_dispatch_mode()
        possible = type(x) in TENSORS and not tracing
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


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of a module may do more than the ``forward`` of its type: hooks, or a ``forward`` of its own."""
    hooks = module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks
    return bool(hooks) or "forward" in module.__dict__


def _is_plain(child: nn.Module) -> bool:
    if type(child) not in PLAIN_TYPES or has_hooks(child):
        return False
    for parameter in child._parameters.values():
        if parameter is not None and type(parameter) not in TENSORS:
            return False
    if type(child) is nn.Conv2d:
        return _keeps_size(child)
    return type(child) is not nn.GELU or child.approximate == "none"


def _keeps_size(conv: nn.Conv2d) -> bool:
    height, width = conv.kernel_size
    return (
        conv.padding == (height // 2, width // 2)
        and conv.stride == (1, 1)
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
    )
