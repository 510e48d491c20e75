"""The spec of a published classifier, from timm's account of its weights."""

from typing import Any

from timm.data import ImageNetInfo, resolve_model_data_config

from ...spec import ModelSpec
from .config import ClassificationInput, ClassifyConfig


def published_spec(model: Any, name: str) -> ModelSpec:
    """Classes and preprocessing of a timm model, from its ``pretrained_cfg``.

    Args:
        model: Any timm model.
        name: timm's name of it.

    Raises:
        ValueError: The model's input cannot be expressed: not square, or another crop mode.
    """
    return ModelSpec("classify", name, class_names(model), published_input(model), head=ClassifyConfig())


def published_input(model: Any) -> ClassificationInput:
    """The input that a timm model was published with, at its test size, as in timm's ``validate.py``; ``exact``, too.

    Raises:
        ValueError: The input is not square, or has another crop mode.
    """
    config = resolve_model_data_config(model, use_test_size=True)
    channels, height, width = config["input_size"]
    if height != width:
        raise ValueError(f"the model's input is {height} x {width}: only square inputs are supported")
    if config["crop_mode"] not in ("center", "squash"):
        raise ValueError(f"the model's crop_mode is {config['crop_mode']!r}: expected 'center' or 'squash'")
    return ClassificationInput(
        size=height,
        channels=channels,
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        exact=True,
    )


def class_names(model: Any) -> tuple[str, ...]:
    """A timm model's class names: its own, ImageNet's where it has as many classes, else the class indices."""
    if names := model.pretrained_cfg.get("label_names"):
        return tuple(names)
    if (info := _imagenet(model.num_classes)) is None:
        return tuple(map(str, range(model.num_classes)))
    return tuple(info.index_to_description(i) for i in range(model.num_classes))


def class_synonyms(num_classes: int) -> tuple[str, ...]:
    """The WordNet ids of the classes of an ImageNet with this number of classes; empty if there is none."""
    info = _imagenet(num_classes)
    return () if info is None else tuple(info.label_names())


def _imagenet(num_classes: int) -> ImageNetInfo | None:
    subset = {1000: "imagenet-1k", 21841: "imagenet-22k"}.get(num_classes)
    return None if subset is None else ImageNetInfo(subset)
