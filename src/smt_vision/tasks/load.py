"""Predictors, from wherever a model is."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import checkpoints
from ..checkpoints import BEST, Checkpoint
from ..convert import identify
from ..deploy.exported import MANIFEST, load_exported
from ..model.official import our_state
from ..recipe import Recipe
from ..spec import ModelSpec
from . import get_task, inference_overrides, read_recipe, read_spec, recipe_class
from .build import create_model
from .classification.published import published_spec
from .predictor import Predictor

Overrides = Mapping[str, Mapping[str, Any]]


def load(source: str | Path, device: str | torch.device = "cpu", overrides: Overrides | None = None) -> Predictor[Any]:
    """Load a predictor from a run's folder (its best weights), an export, a checkpoint, a release's file or timm.

    Releases' files and timm's models are classifiers.

    Args:
        source: A folder, a file, or a timm model name.
        device: Device to run on.
        overrides: Fields of the recipe groups that are to differ from training, e.g.
            ``{"segment": {"test_flip": True}}``; :func:`smt_vision.tasks.inference_overrides` lists them by task.

    Returns:
        A :class:`~smt_vision.tasks.classification.predictor.Classifier`,
        :class:`~smt_vision.tasks.detection.predictor.Detector` or
        :class:`~smt_vision.tasks.segmentation.predictor.Segmenter`.

    Raises:
        FileNotFoundError: The folder has neither a finished evaluation nor an export in it.
        ValueError: There is neither such a file or folder nor such a timm model, the file is not a model's, or an
            override does not exist for the task.
        RuntimeError: The model has no pretrained weights, or they could not be downloaded.
    """
    path, overrides = Path(source), overrides or {}
    if (path / MANIFEST).is_file():
        return _from_export(path, device, overrides)
    if path.is_dir() and not (path / BEST).is_file():
        raise FileNotFoundError(f"{path}: neither a finished evaluation ({BEST}) nor an export ({MANIFEST}) in it")
    if path.exists():
        return _from_checkpoint(checkpoints.load(path), device, overrides)
    return _from_timm(str(source), device, overrides)


def _from_checkpoint(checkpoint: Checkpoint, device: str | torch.device, overrides: Overrides) -> Predictor[Any]:
    if checkpoint.spec is None:
        weights = our_state(checkpoint.weights)
        variant, num_classes, in_chans, _ = identify(weights, checkpoint.path)
        model = create_model(variant, num_classes=num_classes, in_chans=in_chans)
        model.load_state_dict(weights)
        spec = override(published_spec(model, variant), overrides)
        return _predictor(model, spec, f"{variant} ({checkpoint.path.name})", device)
    spec = override(read_spec(checkpoint.spec), overrides)
    model = get_task(spec.task).build_model(spec)
    model.load_state_dict(checkpoint.weights)
    recipe = read_recipe(checkpoint.state["recipe"]) if "recipe" in checkpoint.state else None
    return _predictor(model, spec, str(checkpoint.path), device, recipe)


def _from_export(folder: Path, device: str | torch.device, overrides: Overrides) -> Predictor[Any]:
    if torch.device(device).type != "cpu":
        raise ValueError(
            f"{folder} is an export, which runs on the CPU and not on {device}: use the CPU (--device cpu, for smt eval "
            "--engine.accelerator cpu), or the model that was exported"
        )
    program = load_exported(folder)
    exported = read_spec(program.manifest.spec)
    spec = override(exported, overrides)
    model = get_task(spec.task).export.as_model(program, exported, spec, folder)
    return _predictor(model, spec, str(folder), device)


def _from_timm(name: str, device: str | torch.device, overrides: Overrides) -> Predictor[Any]:
    try:
        model = create_model(name, pretrained=True)
    except ValueError as error:
        raise ValueError(f"there is no file or folder {name!r}, and as a model name: {error}") from error
    return _predictor(model, override(published_spec(model, name), overrides), name, device)


def _predictor(
    model: nn.Module, spec: ModelSpec, name: str, device: str | torch.device, recipe: Recipe | None = None
) -> Predictor[Any]:
    predictor: Any = get_task(spec.task).predictor
    found: Predictor[Any] = predictor(model, spec, name, device, recipe)
    return found


def override(spec: ModelSpec, overrides: Overrides) -> ModelSpec:
    """The spec with other values in fields of its input or head; ``None`` keeps a value.

    Raises:
        ValueError: The task has no such field, or it cannot differ from training.
    """
    allowed, head = inference_overrides(spec.task), recipe_class(spec.task).head_group
    for group, values in overrides.items():
        given = {name: value for name, value in values.items() if value is not None}
        if wrong := [f"{group}.{name}" for name in given if name not in allowed.get(group, ())]:
            may = ", ".join(f"{group}.{name}" for group, names in allowed.items() for name in names)
            raise ValueError(f"{wrong[0]} cannot be overridden for task {spec.task!r}: expected one of {may}")
        if given and group == "input":
            spec = replace(spec, input=replace(spec.input, **given))
        elif given and group == head:
            spec = replace(spec, head=replace(spec.head, **given))
    return spec
