"""When the kernels can run: what is installed, and what autocast and differentiation want of a call.

Triton kernels run on CUDA tensors. ``TRITON_INTERPRET=1`` in the environment runs them on CPU tensors too, in Triton's
interpreter, slowly: for tests.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.autograd import forward_ad

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = find_spec("triton") is not None
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEADS = (1, 2, 4)  # numbers of convolution heads that the Triton kernels are written for
INT32 = 2**31  # the Triton kernels count elements in 32 bits


def in_functorch_transform() -> bool:
    """Whether ``torch.func`` (``grad``, ``vmap``, ``jvp``) or forward-mode differentiation is active.

    Both need PyTorch's own operators, which have rules for them. False in compiled code, which cannot ask.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def triton_is_supported(x: Tensor) -> bool:
    """Whether the Triton kernels can run and read ``x`` on its device; not where it is a tracer's stand-in."""
    device = isinstance(x, Tensor) and (x.is_cuda or (INTERPRETED and x.device.type == "cpu"))
    return device and HAS_TRITON and compute_dtype(x) in DTYPES


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype that autocast computes products in on a type of device; ``None`` where it is off."""
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # on the meta device it is not
    return torch.get_autocast_dtype(device) if on else None


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a convolution of ``x`` would compute in: autocast's where it is on, else that of ``x``."""
    return x.dtype if x.dtype == torch.float64 else autocast_dtype(x.device.type) or x.dtype


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """A context in which the current device, which a kernel starts on, is that of ``x``."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
