"""timm models whose layers depend on the image size, e.g. Swin and ViT, built for another size or for all."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import timm
import torch
from torch import nn

from ..modes import evaluation_mode
from ..registry import create_timm_model

# The arguments of timm's models for images of any size: of Swin and Swin V2, and of ViT and its relatives. Windows are
# shifted in every second block also where a feature map is a single window, as in the detectors of Swin's authors.
ANY_SIZE = {"strict_img_size": False, "always_partition": True, "dynamic_img_size": True}

OTHER_SIZE = (96, 160)  # pixels


def arguments_for_size(name: str, arguments: Mapping[str, Any], size: int | tuple[int, int]) -> dict[str, Any]:
    """The model arguments, with ``img_size`` if the model's layers are for images of another size.

    timm then resamples the pretrained weights of most models, and cannot load those of others.

    Args:
        name: timm model name.
        arguments: Model arguments; a given ``img_size`` is kept.
        size: Image side in pixels, or height and width.
    """
    height, width = (size, size) if isinstance(size, int) else size
    cfg = _fixed_size_cfg(name)
    if cfg is None or cfg.input_size[1:] == (height, width) or "img_size" not in _accepted(name, arguments):
        return dict(arguments)
    return {"img_size": height if height == width else (height, width), **arguments}


def arguments_for_any_size(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The model arguments, with that for images of any size if the model's layers are for one size only.

    Args:
        name: timm model name.
        arguments: Model arguments; one that is given is kept.
    """
    if _fixed_size_cfg(name) is None:
        return dict(arguments)
    accepted = _accepted(name, arguments)
    return {**{key: value for key, value in ANY_SIZE.items() if key in accepted}, **arguments}


def is_for_one_size(name: str) -> bool:
    """Whether timm says that the weights of a model are for images of one size."""
    return _fixed_size_cfg(name) is not None


def check_any_size(network: nn.Module, channels: int) -> None:
    """Run a network on an image that is not square.

    Args:
        network: A network of images.
        channels: Image channels.

    Raises:
        ValueError: It cannot compute images of this size.
    """
    try:
        run_on_black(network, channels, *OTHER_SIZE)
    except (RuntimeError, AssertionError, ValueError, LookupError) as error:
        raise ValueError(f"its layers are for images of one size ({' '.join(str(error).split())})") from error


@torch.no_grad()
def run_on_black(network: nn.Module, channels: int, height: int, width: int) -> None:
    """Run a network on one black image, in evaluation mode."""
    parameter = next(network.parameters(), None)
    image = torch.zeros(1, channels, height, width)
    with evaluation_mode(network):
        network(image if parameter is None else image.to(parameter))


def _fixed_size_cfg(name: str) -> Any:
    """timm's configuration of the weights if they are for one size only; ``None`` otherwise."""
    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return cfg if cfg is not None and cfg.fixed_input_size else None


def _accepted(name: str, arguments: Mapping[str, Any]) -> set[str]:
    """Names of the constructor's arguments, also of those that it passes on to a base class."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = create_timm_model(name, **arguments)
    except (TypeError, AssertionError, AttributeError, LookupError, ArithmeticError):
        return set()  # the same error when the model itself is built
    return {argument for kind in type(model).__mro__[:-1] for argument in signature(kind).parameters}
