"""A kernel that shows whether Triton kernels can be compiled and launched."""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl

from .availability import on_device


def launch(device: torch.device) -> None:
    """Compile and launch a kernel on a device; raises what Triton raises if it cannot."""
    x = torch.zeros(1, device=device)
    with on_device(x):
        _store[(1,)](x)


@triton.jit
def _store(x):
    tl.store(x, 1.0)
