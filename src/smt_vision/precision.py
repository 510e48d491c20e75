"""The precision of inference: float32, or bfloat16 where the device has instructions for it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # torch is imported where it is used: the help of a command does without
    import torch

Precision = Literal["auto", "fp32", "bf16"]
PRECISIONS = ("fp32", "bf16")


def resolve_dtype(precision: str, device: str | torch.device = "cpu") -> torch.dtype:
    """The data type of a precision; ``auto`` is bfloat16 if the device has instructions for it, else float32.

    Raises:
        ValueError: The precision is unknown.
    """
    import torch

    precision = resolve_precision(precision, device)
    if precision not in PRECISIONS:
        raise ValueError(f"invalid precision={precision!r}: expected one of auto, {', '.join(PRECISIONS)}")
    return torch.bfloat16 if precision == "bf16" else torch.float32


def resolve_precision(precision: str, device: str | torch.device = "cpu") -> str:
    """``bf16`` or ``fp32`` for ``auto``; every other precision is returned as it is."""
    return precision if precision != "auto" else "bf16" if has_bf16(device) else "fp32"


def has_bf16(device: str | torch.device = "cpu") -> bool:
    """Whether a device has instructions for products of bfloat16 matrices; emulation is slower than float32."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and _cpu_has_bf16()


def describe_precision(precision: str, device: str | torch.device = "cpu") -> str:
    """One line on the precision that is used on a device, and why."""
    import torch

    able = has_bf16(device)
    emulated = "; it is emulated, which is slow" if precision == "bf16" and not able else ""
    has = "has" if able else "has no"
    return f"precision: {precision} (this {torch.device(device).type} {has} instructions for bfloat16{emulated})"


@cache
def _cpu_has_bf16() -> bool:
    import torch

    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in early versions of PyTorch
    if known:
        return any(value is True for name, value in known.items() if name.endswith("bf16"))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
