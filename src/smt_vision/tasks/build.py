"""A recipe's model: any of timm's, ours among them."""

from dataclasses import replace
from typing import Any

import timm
from timm.data import resolve_model_data_config
from torch import nn

from ..recipes import Input, Recipe


def build_model(recipe: Recipe, num_classes: int) -> nn.Module:
    """The recipe's model, with a classifier of ``num_classes`` and its pretrained weights, if it asks for them.

    Raises:
        ValueError: timm knows no such model, or it does not take the recipe's ``model_args``.
    """
    try:
        model: Any = timm.create_model(
            recipe.model,
            pretrained=recipe.pretrained,
            num_classes=num_classes,
            in_chans=recipe.input.channels,
            **recipe.model_args,
        )
    except TypeError as error:
        raise ValueError(f"model_args: {recipe.model} does not take {recipe.model_args}: {error}") from error
    if recipe.engine.grad_checkpointing:
        model.set_grad_checkpointing(True)
    return model


def resolve_input(config: Input, model: nn.Module) -> Input:
    """Fill in the mean and deviation that the model's weights were trained with, where the recipe names none.

    For grey images a model's three are averaged.
    """
    theirs = resolve_model_data_config(model)

    def values(name: str) -> tuple[float, ...]:
        given = tuple(theirs[name])
        return given if len(given) == config.channels else (sum(given) / len(given),) * config.channels

    return replace(config, mean=config.mean or values("mean"), std=config.std or values("std"))
