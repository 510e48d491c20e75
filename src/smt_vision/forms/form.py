"""Base class of the fast forms."""

from collections.abc import Callable
from types import FunctionType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class FastForm(nn.Module):
    """A module that computes the function of a plain module faster.

    Subclasses derive from this class and then from the plain module, and define ``fast_forward``, which calls
    ``plain_forward``, the ``forward`` of the plain module, if its guard is false. TorchScript compiles only
    ``plain_forward``: it can compile neither the guards nor a call of ``super()``.
    """

    plain_forward: ClassVar[Callable[[Any, Tensor], Tensor]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # Not the first base: FSDP2 derives a class from the form and from one of its own, which is not a module.
        modules = (base for base in cls.__mro__ if issubclass(base, nn.Module))
        plain: Any = next(base for base in modules if not issubclass(base, FastForm))
        cls.plain_forward = _renamed(plain.forward, "plain_forward")

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self.plain_forward(x)
        else:  # TorchScript does not compile this branch; it would compile a statement after the first one
            return self.fast_forward(x)

    def fast_forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def _renamed(function: Any, name: str) -> Any:
    """A copy of a function with another name. TorchScript names the methods of a module by their functions."""
    renamed = FunctionType(function.__code__, function.__globals__, name, function.__defaults__, function.__closure__)
    renamed.__annotations__ = function.__annotations__
    renamed.__module__, renamed.__doc__ = function.__module__, function.__doc__
    return renamed
