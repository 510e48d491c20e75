"""Whether the project's own forms of an operator may stand in for PyTorch's: decided here, for all of them.

The Triton kernels run by themselves on CUDA tensors. ``SMT_VISION_KERNELS=plain`` in the environment, read when the
package is imported, turns them off: to compare, to differentiate twice, or to leave nothing but PyTorch's own operators
in an exported graph. ``TRITON_INTERPRET=1`` runs them on CPU tensors too, in Triton's interpreter, slowly: for tests.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.autograd import forward_ad

CHOICES = ("auto", "plain")
CHOICE = os.environ.get("SMT_VISION_KERNELS", "auto")
if CHOICE not in CHOICES:
    raise ValueError(f"SMT_VISION_KERNELS={CHOICE!r} is unknown: one of {', '.join(CHOICES)}")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = find_spec("triton") is not None
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEADS = (1, 2, 4)  # convolution heads that the kernels are written for
INT32 = 2**31  # they count elements in 32 bits


def transformed() -> bool:
    """Whether ``torch.func`` (``grad``, ``vmap``, ``jvp``) or forward-mode differentiation is at work here.

    Both want PyTorch's own operators, which have rules for them.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def backward_is_ours() -> bool:
    """Whether layers may take forms whose backward pass is written by hand, faster or leaner than autograd's.

    Only while plain autograd takes gradients; a compiler plans by itself.
    """
    return torch.is_grad_enabled() and not torch.compiler.is_compiling() and not transformed()


def usable(x: Tensor) -> bool:
    """Whether Triton's kernels are on and can read ``x`` where it is."""
    here = x.is_cuda or (INTERPRETED and x.device.type == "cpu")
    return here and HAS_TRITON and CHOICE == "auto" and compute_dtype(x) in DTYPES


def autocast_dtype(device: str) -> torch.dtype | None:
    """The type that autocast computes products in on this type of device; ``None`` where it is off."""
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # on the meta device it is not
    return torch.get_autocast_dtype(device) if on else None


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type that a convolution of ``x`` would compute in here: autocast's where it is on, else that of ``x``."""
    return x.dtype if x.dtype == torch.float64 else autocast_dtype(x.device.type) or x.dtype


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """A kernel starts on the current device: make it that of ``x``."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
