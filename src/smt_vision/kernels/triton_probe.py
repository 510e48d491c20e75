"""Launching Triton kernels: the device, and a kernel that shows whether it is possible."""

# mypy: allow-untyped-defs

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """A context that makes the device of ``x`` current; Triton launches kernels on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def launch(device: torch.device) -> None:
    """Compile and launch a kernel on a device; raises what Triton raises if it cannot."""
    x = torch.zeros(1, device=device)
    with on_device(x):
        _store[(1,)](x)


@triton.jit
def _store(x):
    tl.store(x, 1.0)
