"""A model in use, from wherever it is."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo
from torch import nn

from ..convert import identify, state_dict_of
from ..data import input_from_model
from ..deploy.exported import MANIFEST, load_exported
from ..engine import checkpoint
from ..heads.detectors import build_detector
from ..heads.features import build_backbone
from ..heads.upernet import UPerNet
from ..heads.whole import DetectorOf
from ..model.official import our_state
from ..recipes import CHANGEABLE, Detect, Input, Recipe, Segment, from_plain
from ..tasks.build import create_model
from .classify import Classifier
from .detect import Detector
from .segment import Segmenter

Changes = Mapping[str, Mapping[str, Any]]
Model = Classifier | Detector | Segmenter


def load(source: str | Path, device: str | torch.device = "cpu", changes: Changes | None = None) -> Model:
    """Load a run's folder (its best weights), an export's, a checkpoint file of ours, a release's, or a timm name.

    Releases' files and timm's names are classifiers.

    Args:
        source: what to load.
        device: where it is to run.
        changes: fields of the recipe's groups ``input``, ``detect`` and ``segment`` that are to be others than in
            training, as ``{"segment": {"test_flip": True}}``; :data:`smt_vision.recipes.CHANGEABLE` has them.

    Raises:
        FileNotFoundError: the folder holds no finished evaluation and no export.
        ValueError: there is neither such a file or folder nor such a timm model, the file is not a model's, or a change
            is not one for it.
        RuntimeError: the model has no pretrained weights, or they could not be fetched.
    """
    path, changes = Path(source), changes or {}
    if (path / MANIFEST).is_file():
        return _from_export(path, device, changes)
    if path.is_dir():
        if not (path / "best.pt").is_file():
            raise FileNotFoundError(
                f"{path} holds no finished evaluation and no export: there is no best.pt in it, and no {MANIFEST}"
            )
        path = path / "best.pt"
    if path.is_file():
        return _from_file(path, device, changes)
    return _from_timm(str(source), device, changes)


def _from_file(path: Path, device: str | torch.device, changes: Changes) -> Model:
    state = checkpoint.load(path)
    if state.get("card") is None:
        weights = our_state(state_dict_of(state, path))
        variant, num_classes, in_chans, _ = identify(weights, path)
        model = create_model(variant, num_classes=num_classes, in_chans=in_chans)
        model.load_state_dict(weights)
        return _of_timm(model, num_classes, f"{variant} ({path.name})", device, changes)
    card = _changed(state["card"], changes)
    model = _of_card(card)
    model.load_state_dict(state["ema"] if state.get("ema") else state["model"])
    recipe = Recipe.from_dict(state["recipe"]) if "recipe" in state else None
    return _predictor(model, card, str(path), device, recipe)


def _predictor(
    model: nn.Module, card: dict[str, Any], name: str, device: str | torch.device, recipe: Recipe | None = None
) -> Model:
    """What the card tells of, with the model in it."""
    classes, input = card["classes"], from_plain(Input, card["input"])
    if card["task"] == "detect":
        config = from_plain(Detect, card["detect"])
        return Detector(model, classes, card["category_ids"], input, config, name, device, recipe)
    if card["task"] == "segment":
        return Segmenter(model, classes, input, from_plain(Segment, card["segment"]), name, device, recipe)
    return Classifier(model, classes, input, name, device, recipe)


def _of_card(card: dict[str, Any]) -> nn.Module:
    """The model that a checkpoint's card tells of, without its weights."""
    name, arguments, channels = card["model"], card["model_args"], card["input"]["channels"]
    if card["task"] == "classify":
        return create_model(name, num_classes=len(card["classes"]), in_chans=channels, **arguments)
    backbone = build_backbone(name, arguments, channels=channels)
    if card["task"] == "detect":
        config = from_plain(Detect, card["detect"])
        if config.norm == "sync":  # one process has nothing to synchronise
            config = replace(config, norm="train")
        return build_detector(backbone, len(card["classes"]), config)
    segment = from_plain(Segment, card["segment"])
    return UPerNet(backbone, 1 if segment.kind == "binary" else len(card["classes"]), segment)


def _from_export(folder: Path, device: str | torch.device, changes: Changes) -> Model:
    if torch.device(device).type != "cpu":
        raise ValueError(
            f"{folder} is an export, which runs on the CPU and not on {device}: ask for the CPU (--device cpu, for "
            "smt eval --engine.accelerator cpu), or use the model that it was made of"
        )
    program = load_exported(folder)
    manifest = program.manifest
    own = {**manifest.card, "input": asdict(manifest.input)}
    card = _changed(own, changes)
    model: nn.Module = program
    if card["task"] == "detect":
        model = DetectorOf(program, _kept(own, card, folder))
    return _predictor(model, {**card, "classes": list(manifest.classes)}, str(folder), device)


def _kept(own: Mapping[str, Any], card: Mapping[str, Any], folder: Path) -> Detect:
    """A detector's fields as the card has them, where its export, made by its own, can follow.

    Raises:
        ValueError: it cannot.
    """
    made, asked = (from_plain(Detect, c["detect"]) for c in (own, card))
    for name, can in (
        ("score_threshold", asked.score_threshold >= made.score_threshold),
        ("nms_threshold", asked.nms_threshold == made.nms_threshold),
        ("max_detections", asked.max_detections <= made.max_detections),
    ):
        if not can:
            raise ValueError(
                f"{folder} is an export made with detect.{name}={getattr(made, name)}, and cannot be used with "
                f"{getattr(asked, name)}: export the model again, with --detect.{name} {getattr(asked, name)}"
            )
    return asked


def _from_timm(name: str, device: str | torch.device, changes: Changes) -> Model:
    try:
        model: Any = create_model(name, pretrained=True)
    except ValueError as error:
        raise ValueError(f"there is no file or folder {name!r}, and as a name: {error}") from error
    return _of_timm(model, model.num_classes, name, device, changes)


def _of_timm(model: nn.Module, num_classes: int, name: str, device: str | torch.device, changes: Changes) -> Model:
    classes = _class_names(model, num_classes)
    card = {"task": "classify", "classes": classes, "input": asdict(input_from_model(model))}
    return _predictor(model, _changed(card, changes), name, device)


def _changed(card: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """The card with the changes in its groups; those to ``None`` are none.

    Raises:
        ValueError: its task has no such field, or the field is not one to change.
    """
    out, known = dict(card), CHANGEABLE[card["task"]]
    for group, values in changes.items():
        given = {name: value for name, value in values.items() if value is not None}
        if wrong := [f"{group}.{name}" for name in given if name not in known.get(group, ())]:
            may = ", ".join(f"{group}.{name}" for group, names in known.items() for name in names)
            raise ValueError(f"{wrong[0]} cannot be changed of a model that does {card['task']}; these can: {may}")
        if given:
            out[group] = {**card[group], **given}
    return out


def _class_names(model: Any, num_classes: int) -> tuple[str, ...]:
    """A timm model's class names: its own, ImageNet's where it has as many, else the numbers."""
    if names := model.pretrained_cfg.get("label_names"):
        return tuple(names)
    subset = {1000: "imagenet-1k", 21841: "imagenet-22k"}.get(num_classes)
    if subset is None:
        return tuple(map(str, range(num_classes)))
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(i) for i in range(num_classes))
