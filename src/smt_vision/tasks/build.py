"""A recipe's model: any of timm's, ours among them."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from ..files import read_tensors
from ..heads.features import Backbone, build_backbone
from ..model.official import our_state, unwrap
from ..recipes import Input, Recipe


def build_model(recipe: Recipe, num_classes: int) -> nn.Module:
    """The recipe's model, with a classifier of ``num_classes`` and the weights it starts from, if it names any.

    Raises:
        ValueError: timm knows no such model, it does not take the recipe's ``model_args``, or the checkpoint does not
            fit it.
    """
    model: Any = create_model(
        recipe.model,
        pretrained=recipe.pretrained and recipe.checkpoint is None,
        num_classes=num_classes,
        in_chans=recipe.input.channels,
        **recipe.model_args,
    )
    if recipe.checkpoint is not None:
        start_from(model, Path(recipe.checkpoint))
    if recipe.engine.grad_checkpointing:
        model.set_grad_checkpointing(True)
    return model


def build_features(recipe: Recipe) -> Backbone:
    """The recipe's model as a backbone of feature maps, with the weights it starts from, if it names any.

    Those of a detector or segmenter are left to :func:`start_whole`.

    Raises:
        ValueError: the model cannot be one, or the checkpoint does not fit it.
    """
    backbone = build_backbone(
        recipe.model,
        recipe.model_args,
        channels=recipe.input.channels,
        pretrained=recipe.pretrained and recipe.checkpoint is None,
    )
    network: Any = backbone.network
    if recipe.checkpoint is not None and _card(Path(recipe.checkpoint))["task"] == "classify":
        whole = create_model(recipe.model, in_chans=recipe.input.channels, **recipe.model_args)
        start_from(whole, Path(recipe.checkpoint))
        network.load_state_dict(_of_features(whole.state_dict(), network.state_dict()))
    if recipe.engine.grad_checkpointing:
        network.set_grad_checkpointing(True)
    return backbone


def create_model(name: str, **arguments: Any) -> nn.Module:
    """``timm.create_model`` with errors that name the argument and the nearest model.

    Raises:
        ValueError: timm knows no such model, or it does not take the arguments.
    """
    if ":" not in name and not timm.is_model(name):
        close = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=3)
        raise ValueError(f"model {name!r}: timm knows none of that name; near it are: {', '.join(close) or 'none'}")
    try:
        return timm.create_model(name, **arguments)
    except TypeError as error:
        raise ValueError(f"model {name!r} does not take {arguments}: {error}") from error


def start_from(model: Any, path: Path) -> None:
    """Load weights from a checkpoint of ours or the release's, or a run's folder (its best weights).

    A classifier of another size is left as it is; everything else must fit.

    Raises:
        ValueError: the weights do not fit the model.
    """
    state = our_state(read_tensors(_file(path))[0])
    own = model.state_dict()
    heads = model.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    for key in [key for key in (own.keys() | state.keys()) if key.rpartition(".")[0] in heads]:
        if key not in own:
            del state[key]
        elif key not in state or state[key].shape != own[key].shape:
            state[key] = own[key]
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"checkpoint {path} does not fit the model; check model and model_args. {error}") from error


def start_whole(model: nn.Module, recipe: Recipe, classes: Sequence[str]) -> None:
    """Load a detector's or a segmenter's weights into one of the same kind, if the recipe starts from such.

    Where the classes are others, the layers that have an output a class stay as they are.

    Args:
        model: for the recipe's task.
        recipe: its ``checkpoint`` is a run's folder, a checkpoint of ours, or nothing of that kind.
        classes: of the model.

    Raises:
        ValueError: the weights do not fit the model.
    """
    if recipe.checkpoint is None or (card := _card(Path(recipe.checkpoint)))["task"] == "classify":
        return
    path, own = Path(recipe.checkpoint), model.state_dict()
    if card["task"] != recipe.task:
        raise ValueError(
            f"checkpoint {path} is of a model that does {card['task']}, and {recipe.name} does {recipe.task}"
        )
    state = dict(unwrap(read_tensors(_file(path))[0]))
    if tuple(card["classes"]) != tuple(classes):
        for name in own.keys() & state.keys():
            if state[name].shape[:1] != own[name].shape[:1] and state[name].shape[1:] == own[name].shape[1:]:
                state[name] = own[name]
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"checkpoint {path} does not fit the model; check model, model_args and the head. {error}"
        ) from error


def _file(path: Path) -> Path:
    return path / "best.pt" if path.is_dir() else path


def _card(path: Path) -> Mapping[str, Any]:
    """What a checkpoint says of its model; files that say nothing are classifiers'."""
    card: Mapping[str, Any] = read_tensors(_file(path))[0].get("card") or {"task": "classify"}
    return card


def _of_features(whole: Mapping[str, Tensor], features: Iterable[str]) -> dict[str, Tensor]:
    """A classifier's weights by the names of its ``features_only`` form, which may call ``stages.0`` ``stages_0``."""
    out = {}
    for name in features:
        first, _, rest = name.partition(".")
        parent, _, child = first.rpartition("_")
        out[name] = whole[name] if name in whole else whole[f"{parent}.{child}.{rest}"]
    return out


def resolve_input(config: Input, model: nn.Module) -> Input:
    """Fill in the mean and deviation that the model's weights were trained with, where the recipe names none.

    For grey images a model's three are averaged.
    """
    theirs = resolve_model_data_config(model)

    def values(name: str) -> tuple[float, ...]:
        given = tuple(theirs[name])
        return given if len(given) == config.channels else (sum(given) / len(given),) * config.channels

    return replace(config, mean=config.mean or values("mean"), std=config.std or values("std"))
