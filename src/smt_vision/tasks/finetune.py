"""What of a model is trained: frozen parts of the backbone, and low-rank adapters in its linear layers."""

import re
from collections.abc import Callable, Mapping
from itertools import chain
from math import inf
from typing import Any

from timm.models._manipulate import group_with_matcher
from torch import nn

from ..extras import require
from ..lora import ADAPTER, UP, plain_name
from ..recipe import Lora, Recipe
from ..spec import ModelSpec
from .backbone import find_backbone
from .build import classifier_key, classifier_layers, classifier_of
from .classes import some_names


def select_trained(model: nn.Module, spec: ModelSpec, recipe: Recipe) -> list[nn.Module]:
    """Freeze the part of a model that ``recipe.freeze`` names, and add the adapters of ``recipe.lora``, in place.

    Parameters that are not trained then have ``requires_grad=False``.

    Args:
        model: Classifier, detector or segmenter with its initial weights.
        spec: Its model spec.
        recipe: Recipe of the run.

    Returns:
        The modules that must stay in evaluation mode during training: those of the frozen part, and BatchNorm layers
        that are not trained.

    Raises:
        ValueError: The backbone has no such part, or no linear layers for the adapters.
        ImportError: peft, which the adapters need, is not installed.
    """
    if recipe.freeze == "none" and not recipe.lora.rank:
        return []
    backbone = find_backbone(model)
    network: Any = model if backbone is None else backbone.network
    heads = classifier_layers(network) if backbone is None else ()
    fixed = _freeze(network, _frozen_names(network, heads, spec, recipe.freeze)) if recipe.freeze != "none" else []
    if recipe.lora.rank:
        fixed += _add_adapters(network, heads, recipe.lora, spec.model)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"freeze={recipe.freeze} leaves nothing to train: timm names no classifier of {spec.model}")
    return fixed


def check_adapters(model: nn.Module) -> None:
    """Check after a backward pass that every adapter has a gradient.

    Raises:
        ValueError: The model uses the weight of a linear layer without calling the layer, so its adapter has no effect.
    """
    adapters = {name.partition(UP)[0]: p.grad for name, p in model.named_parameters() if UP in name}
    if unused := [name for name, grad in adapters.items() if grad is None]:
        called = sorted({name.rpartition(".")[2] for name in adapters} - {name.rpartition(".")[2] for name in unused})
        raise ValueError(
            f"lora: the model does not call its layers {some_names(unused)}, so adapters there have no effect; leave "
            f"them out: --lora.targets '[{', '.join(called)}]'"
        )


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalization layer, by the name of its type."""
    return "norm" in type(module).__name__.lower()


def _in(name: str, layers: tuple[str, ...]) -> bool:
    return any(name == layer or name.startswith(f"{layer}.") for layer in layers)


def _frozen_names(network: nn.Module, heads: tuple[str, ...], spec: ModelSpec, part: str | int) -> set[str]:
    """Names of the parameters of the network that are frozen."""
    names = [name for name, _ in network.named_parameters() if not _in(name, heads)]
    if part == "backbone":
        return set(names)
    stages, count = layer_numbers(network, spec, f"freeze={part}", coarse=True)
    last = 0 if part == "stem" else int(part)
    if last > count:
        raise ValueError(
            f"invalid freeze={part}: {spec.model} has {count} stages; expected at most {count}, or backbone"
        )
    matched = [i for i, name in enumerate(names) if stages[name] <= last]
    # What belongs to no stage and comes before, e.g. a token, is below the trained layers, too.
    return {name for i, name in enumerate(names) if stages[name] <= last or (stages[name] > count and i < matched[-1])}


def layer_numbers(network: nn.Module, spec: ModelSpec, option: str, *, coarse: bool) -> tuple[Mapping[str, int], int]:
    """The layer of each parameter, 0 for the stem and more than the number of layers for the head, and their number.

    Args:
        network: A timm model, of classification or of feature maps.
        spec: Its model spec.
        option: What needs the layers, in messages.
        coarse: Whether layers are the stages.

    Raises:
        ValueError: timm does not say which layers a model has.
    """
    whole: Any = network
    if not hasattr(network, "group_matcher"):  # timm's networks of feature maps, whose layers may have other names
        whole = classifier_of(spec.model, spec.model_args)
    names = [name for name, _ in whole.named_parameters()]
    matcher = whole.group_matcher(coarse=coarse) if hasattr(whole, "group_matcher") else _feature_matcher(whole, names)
    if matcher is None:
        remedy = "use freeze=backbone" if coarse else "set it to null"
        raise ValueError(f"{option}: timm does not say which layers {spec.model} has; {remedy}")
    # The empty name is of no layer.
    ids = group_with_matcher(chain(((name, None) for name in names), [("", None)]), matcher, reverse=True)
    names = [name for name, _ in network.named_parameters()]
    return {name: ids[name if name in ids else classifier_key(plain_name(name), ids)] for name in names}, ids[""] - 1


def _feature_matcher(network: Any, names: list[str]) -> Callable[[str], float] | None:
    """The stages of a network without ``group_matcher``: the modules of its feature maps, and the stem before them."""
    modules = [info.get("module") for info in getattr(network, "feature_info", [])]
    found: dict[str, float] = {}
    stem = True
    for name in names:
        stage = next((i for i, module in enumerate(modules, 1) if module and _in(name, (module,))), inf)
        stem = stem and stage == inf
        found[name] = 0 if stem else stage
    return None if stem else lambda name: found.get(name, inf)


def _freeze(network: nn.Module, names: set[str]) -> list[nn.Module]:
    """Freeze parameters; returns the modules that have no others."""
    frozen = set()
    for name, parameter in network.named_parameters():
        if name in names:
            parameter.requires_grad_(False)
            frozen.add(id(parameter))

    def ids(module: nn.Module) -> set[int]:
        return {id(parameter) for parameter in module.parameters()}

    children = list(network.children())
    last = max((i for i, child in enumerate(children) if ids(child) & frozen), default=0)
    before = [child for child in children[:last] if not ids(child)]  # e.g. dropout between stem and blocks
    return before + [module for module in network.modules() if ids(module) and ids(module) <= frozen]


def _add_adapters(network: nn.Module, heads: tuple[str, ...], config: Lora, model: str) -> list[nn.Module]:
    """Add adapters to linear layers that are not frozen; returns the BatchNorm layers that are not trained."""
    linear = [
        name
        for name, module in network.named_modules()
        if type(module) is nn.Linear and module.weight.requires_grad and not _in(name, heads)
    ]
    if not linear:
        raise ValueError(
            f"lora.rank={config.rank} requires linear layers in the backbone that are not frozen, and {model} has "
            "none; use freeze only, or another model"
        )
    kinds = sorted({name.rpartition(".")[2] for name in linear})
    if unknown := [target for target in config.targets if target not in kinds]:
        raise ValueError(f"invalid lora.targets: no linear layer is called {unknown[0]!r}; expected {', '.join(kinds)}")
    chosen = [name for name in linear if not config.targets or name.rpartition(".")[2] in config.targets]
    trained = {id(p) for layer in heads for p in network.get_submodule(layer).parameters()}
    if config.norms:
        norms = [p for m in network.modules() if is_norm(m) for p in m.parameters(recurse=False)]
        trained |= {id(p) for p in norms if p.requires_grad}
    peft = require("peft", "lora")
    adapters = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="|".join(map(re.escape, chosen)),
    )
    peft.inject_adapter_in_model(adapters, network, adapter_name=ADAPTER)  # freezes everything else
    for parameter in network.parameters():
        if id(parameter) in trained:
            parameter.requires_grad_(True)
    return [
        module
        for module in network.modules()
        if hasattr(module, "running_mean") and not any(p.requires_grad for p in module.parameters())
    ]
