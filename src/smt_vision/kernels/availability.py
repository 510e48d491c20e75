"""When the kernels can run, depending on installed packages, devices, autocast and function transforms.

Triton kernels run on CUDA tensors. With the environment variable ``TRITON_INTERPRET=1`` they also run on CPU tensors in
Triton's interpreter, which is slow and meant for tests.
"""

import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..text import get_logger

log = get_logger(__name__)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = find_spec("triton") is not None
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEADS = (1, 2, 4)  # numbers of convolution heads that the Triton kernels support
INT32 = 2**31  # the Triton kernels use 32-bit offsets
# Asked once: the compiler of PyTorch 2.11 cannot trace the question. Autocast is not available on the meta device.
AUTOCAST_DEVICES = frozenset(name for name in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(name))


def in_functorch_transform() -> bool:
    """Whether ``torch.func`` (``grad``, ``vmap``, ``jvp``) or forward-mode differentiation is active.

    Both need PyTorch's own operators, which have rules for them. Always false in compiled code, where this cannot be
    determined.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def in_dispatch_mode() -> bool:
    """Whether a ``TorchDispatchMode`` is active, e.g. ``FlopCounterMode`` or the tracer of ``make_fx``.

    Such a mode looks at each operator and knows PyTorch's own. Not to be called in compiled code.
    """
    return torch._C._len_torch_dispatch_stack() > 0


def triton_is_supported(x: Tensor) -> bool:
    """Whether the Triton kernels can run on ``x``; false for an FX proxy."""
    device = isinstance(x, Tensor) and (x.is_cuda or (INTERPRETED and x.device.type == "cpu"))
    if not (device and HAS_TRITON and compute_dtype(x) in DTYPES):
        return False
    # Compiled code needs Triton anyway; in a dispatch mode, e.g. of fake tensors, a kernel may not be launched.
    return torch.compiler.is_compiling() or in_dispatch_mode() or triton_runs_on(x.device)


@cache
def triton_runs_on(device: torch.device) -> bool:
    """Whether Triton can compile and launch a kernel on a device; the reason is logged if it cannot.

    It needs a C compiler, which many container images do not have, and a GPU that is not too old.
    """
    try:
        from . import triton_probe

        triton_probe.launch(device)
    except Exception as error:  # of Triton, its compiler or the driver
        log.warning(
            "Triton kernels cannot run on %s (%s: %s); PyTorch's operators are used instead, which take more time and "
            "memory. Triton needs a C compiler, e.g. gcc, and the headers of Python",
            device, type(error).__name__, next(iter(str(error).splitlines()), ""),
        )  # fmt: skip
        return False
    return True


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype that autocast uses for matrix products on a device type; ``None`` if autocast is disabled."""
    enabled = device in AUTOCAST_DEVICES and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if enabled else None


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a convolution of ``x``: autocast's dtype if enabled, except for float64, else the dtype of ``x``."""
    return x.dtype if x.dtype == torch.float64 else autocast_dtype(x.device.type) or x.dtype


def gradients_of(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor, *arguments: Any
) -> list[Tensor | None]:
    """Gradients of a function of PyTorch's operators, which can be differentiated again; for a custom operator whose
    kernels compute the same function.

    Args:
        function: Takes ``inputs`` and ``arguments``.
        inputs: Tensors; those that do not require gradients get ``None``.
        grad: Gradient of the function's value.
        arguments: Further arguments.
    """
    wanted = [x for x in inputs if x.requires_grad]
    found = iter(torch.autograd.grad(function(*inputs, *arguments), wanted, grad, create_graph=True))
    return [next(found) if x.requires_grad else None for x in inputs]
