"""Building models from their specs, and loading initial weights."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import timm
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from ..checkpoints import Checkpoint
from ..model.official import our_state
from ..recipe import Input
from ..spec import ModelSpec
from .backbone import Backbone

AnyInput = TypeVar("AnyInput", bound=Input)


def create_model(name: str, **arguments: Any) -> Any:
    """``timm.create_model`` with errors that name the arguments and suggest similar model names.

    Raises:
        ValueError: The model is unknown to timm or does not accept the arguments.
    """
    if ":" not in name and not timm.is_model(name):
        close = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(f"unknown timm model {name!r}{hint}")
    try:
        return timm.create_model(name, **arguments)
    except TypeError as error:
        raise ValueError(f"model {name!r} does not accept {arguments}: {error}") from error


def build_backbone(spec: ModelSpec, pretrained: bool, checkpoint: Checkpoint | None) -> Backbone:
    """Build the backbone of a detector or segmenter, with its initial weights.

    Args:
        spec: Model spec of the detector or segmenter.
        pretrained: Load the published weights of the backbone, unless ``checkpoint`` is given.
        checkpoint: Checkpoint of a classifier to load. Checkpoints of detectors and segmenters are ignored here and
            loaded by :func:`load_head_checkpoint`.

    Raises:
        ValueError: The model cannot be used as a backbone, or the checkpoint does not match it.
    """
    name, arguments, channels = spec.model, dict(spec.model_args), spec.input.channels
    try:
        net = timm.create_model(
            name, features_only=True, in_chans=channels, pretrained=pretrained and checkpoint is None, **arguments
        )
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"model {name!r} with {arguments or 'no further arguments'} cannot be used as a backbone: {error}"
        ) from error
    try:
        backbone = Backbone(net)
    except ValueError as error:
        raise ValueError(f"model {name!r} cannot be used as a backbone: {error}") from error
    if checkpoint is not None and checkpoint.task == "classify":
        classifier = create_model(name, in_chans=channels, **arguments)
        load_pretrained(classifier, checkpoint)
        features = backbone.network.state_dict()
        backbone.network.load_state_dict(_to_feature_keys(classifier.state_dict(), features))
    return backbone


def load_pretrained(model: Any, checkpoint: Checkpoint) -> None:
    """Load a classifier's weights from a checkpoint of this library or the official release.

    The classification head keeps its initialization if its shape differs; all other weights must match.

    Raises:
        ValueError: The weights do not match the model.
    """
    state, own = our_state(checkpoint.weights), model.state_dict()
    heads = model.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    for key in [key for key in (own.keys() | state.keys()) if key.rpartition(".")[0] in heads]:
        if key not in own:
            del state[key]
        elif key not in state or state[key].shape != own[key].shape:
            state[key] = own[key]
    _load_state(model, state, checkpoint, "model and model_args")


def load_head_checkpoint(model: nn.Module, spec: ModelSpec, checkpoint: Checkpoint | None) -> None:
    """Load the weights of a detector or segmenter, including its heads; checkpoints of classifiers are ignored.

    If the classes differ, layers with outputs per class keep their initialization.

    Raises:
        ValueError: The checkpoint is for another task, or the weights do not match the model.
    """
    if checkpoint is None or checkpoint.spec is None or checkpoint.task == "classify":
        return
    if checkpoint.task != spec.task:
        raise ValueError(
            f"checkpoint {checkpoint.path} is for task {checkpoint.task!r}, the recipe is for {spec.task!r}"
        )
    state, own = checkpoint.weights, model.state_dict()
    if tuple(checkpoint.spec["classes"]) != tuple(spec.classes):
        for name in own.keys() & state.keys():
            if state[name].shape[:1] != own[name].shape[:1] and state[name].shape[1:] == own[name].shape[1:]:
                state[name] = own[name]
    _load_state(model, state, checkpoint, "model, model_args and the head")


def _load_state(model: nn.Module, state: Mapping[str, Tensor], checkpoint: Checkpoint, settings: str) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"checkpoint {checkpoint.path} does not match the model; check {settings}. {error}") from error


def _to_feature_keys(classifier: Mapping[str, Tensor], features: Iterable[str]) -> dict[str, Tensor]:
    """Rename a classifier's weights to the keys of its ``features_only`` model, e.g. ``stages.0`` to ``stages_0``."""
    out = {}
    for name in features:
        first, _, rest = name.partition(".")
        parent, _, child = first.rpartition("_")
        out[name] = classifier[name] if name in classifier else classifier[f"{parent}.{child}.{rest}"]
    return out


def resolve_input(config: AnyInput, model: nn.Module) -> AnyInput:
    """Set a missing mean and standard deviation to those of the model's pretrained weights.

    For grayscale images the three values of an RGB model are averaged.
    """
    data_config = resolve_model_data_config(model)

    def values(name: str) -> tuple[float, ...]:
        per_channel = tuple(data_config[name])
        if len(per_channel) == config.channels:
            return per_channel
        return (sum(per_channel) / len(per_channel),) * config.channels

    return replace(config, mean=config.mean or values("mean"), std=config.std or values("std"))
