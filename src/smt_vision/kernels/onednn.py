"""oneDNN's fused operators: products and convolutions on a CPU together with what follows them.

These are the operators that torch.compile's CPU backend puts into its graphs. Called directly they save, besides passes
over memory, two things that eager PyTorch does at every call: laying out a weight anew for the matrix product, and, for
one image, sending grouped convolutions to a much slower path.

They have no gradient of their own: the layers of the fused model are for inference, and :func:`product` is used inside
operators with a backward pass (``linear.py``).
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .availability import in_functorch_transform


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, the weight as it lies in memory; on a CPU faster than ``F.linear`` by a tenth or two.

    Args:
        x: ``(..., C_in)``.
        weight: ``(C_out, C_in)``, of any strides.
        bias: ``(C_out,)``.
    """
    if not is_supported(x):
        return F.linear(x, weight, bias)
    bias = None if bias is None else bias.contiguous()  # the operator takes another for one that is
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def is_supported(x: Tensor) -> bool:
    """Whether oneDNN's operators can be used for this input; otherwise the callers use PyTorch's own."""
    return (
        type(x) in (Tensor, nn.Parameter)  # not a tracer's
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not in_functorch_transform()
        and not (torch.is_grad_enabled() and x.requires_grad)
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and available(x.dtype)
    )


@cache
def available(dtype: torch.dtype) -> bool:
    """Whether this build of torch has the operators, with the signatures used here, and they compute what they should.

    They are torch's own, but not public: so they are tried, once, and where they differ they are not used.
    """
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    try:
        if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        return _agree(dtype)
    except (AttributeError, RuntimeError, TypeError):
        return False


@torch.no_grad()
def _agree(dtype: torch.dtype) -> bool:
    ramp = torch.linspace(-1, 1, 64, dtype=dtype)
    x, w, b = ramp.view(2, 2, 2, 8), ramp.view(8, 8), ramp[:8]
    packed = torch.ops.mkldnn._reorder_linear_weight(w)
    packed_product = torch.ops.mkldnn._linear_pointwise(x, packed, b, "none", [], "")
    strided = torch.ops.mkldnn._linear_pointwise(x, w.t(), None, "none", [], "")
    maps, grouped = x.permute(0, 3, 1, 2), w.view(16, 4, 1, 1)
    how = ([0, 0], [1, 1], [1, 1], 2)
    dense = w.view(8, 8, 1, 1)
    packed_dense = torch.ops.mkldnn._reorder_convolution_weight(dense, [0, 0], [1, 1], [1, 1], 1, list(maps.shape))
    mixed = torch.ops.mkldnn._convolution_pointwise(maps, packed_dense, b, [0, 0], [1, 1], [1, 1], 1, "relu", [], "")
    conv = torch.ops.mkldnn._convolution_pointwise(maps, grouped, ramp[:16], *how, "gelu", [], "none")
    plain = F.conv2d(maps, grouped, ramp[:16], groups=2)
    pairs = (
        (packed_product, F.linear(x, w, b)),
        (strided, F.linear(x, w.t())),
        (mixed, F.relu(F.conv2d(maps, dense, b))),
        (conv, F.gelu(plain)),
    )
    tolerance = 1e-5 if dtype is torch.float32 else 5e-2
    return all(torch.allclose(a.float(), b.float(), atol=tolerance, rtol=tolerance) for a, b in pairs)
