"""The spec of a published classifier, from timm's account of its weights, and the classes of ImageNet."""

from collections.abc import Sequence
from typing import Any

from timm.data import ImageNetInfo, resolve_model_data_config

from ...data.transforms import channel_statistics, resize_filter
from ...spec import ModelSpec
from ..classes import class_candidates
from .config import ClassificationInput, ClassifyConfig

IMAGENET_22K = 21841  # classes


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


def describe(model: Any, spec: ModelSpec) -> None:
    """The inverse of :func:`published_spec`: write classes and preprocessing to a timm model's ``pretrained_cfg``.

    What timm takes from there, e.g. to publish the model, is then that of the spec and not that of the variant.
    """
    input: Any = spec.input
    mean, std = channel_statistics(input)
    values = {
        "num_classes": len(spec.classes),
        "label_names": spec.classes,
        "input_size": (input.channels, input.size, input.size),
        "crop_pct": input.crop_pct,
        "crop_mode": input.crop_mode,
        "interpolation": resize_filter(input),
        "mean": mean,
        "std": std,
        # Of the published weights: other values for testing, and what follows from their size.
        "test_input_size": None,
        "test_crop_pct": None,
        "pool_size": None,
    }
    model.pretrained_cfg.update(values)


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


def imagenet22k_rows(classes: Sequence[str]) -> list[int] | None:
    """The rows of ImageNet-1K's classes in a classifier of ImageNet-22K, by WordNet id.

    The rows follow timm's list of the 21,841 classes, the archive of fall 2011. The authors' ``map22kto1k.txt`` numbers
    a list of 21,843, with n03931044 and n09859684: by it, 281 classes would take the row of one of the next two.

    Args:
        classes: Class names, WordNet ids or names of ImageNet-1K's classes in any order.

    Returns:
        The row of each class, -1 for n04399382 (teddy bear), which is not among the 22K; ``None`` for other classes.
    """
    info = ImageNetInfo("imagenet-1k")
    ids = info.label_names()
    if len(classes) != len(ids):
        return None
    by_name = class_candidates(classes, [info.index_to_description(i) for i in range(len(ids))])
    found = [first or second for first, second in zip(by_name, class_candidates(classes, ids), strict=True)]
    if any(len(indices) != 1 for indices in found) or len({i for (i,) in found}) < len(ids):
        return None
    row_of = {name: row for row, name in enumerate(class_synonyms(IMAGENET_22K))}
    return [row_of.get(ids[i], -1) for (i,) in found]


def _imagenet(num_classes: int) -> ImageNetInfo | None:
    subset = {1000: "imagenet-1k", IMAGENET_22K: "imagenet-22k"}.get(num_classes)
    return None if subset is None else ImageNetInfo(subset)
