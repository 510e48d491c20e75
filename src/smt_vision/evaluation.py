"""A model measured on labelled images: any model of timm's, a run, a checkpoint or an export, all the same way."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from timm.data import ImageNetInfo

from .data import (
    EvalLoader,
    ImageSet,
    RawSet,
    detection_eval_loader,
    eval_loader,
    open_dataset,
    open_detection,
    open_segmentation,
    segmentation_eval_loader,
)
from .engine.launch import launch
from .engine.loop import run_evaluation
from .inference import Changes, Classifier, Detector, Predictor, Segmenter, load
from .recipes import Detect, Engine
from .tasks.classify import Classification
from .tasks.detect import Detection
from .tasks.segment import Segmentation
from .tasks.task import Evaluable


def evaluate_model(
    source: str,
    data: str | None = None,
    *,
    engine: Engine,
    batch_size: int | None = None,
    workers: int = 8,
    max_broken: int = 10,
    advance: Callable[[int, int], None] | None = None,
    changes: Changes | None = None,
) -> tuple[dict[str, Any], Evaluable]:
    """Evaluate a model on a set's validation images; exact for any batch size and number of processes.

    Args:
        source: a run's folder, a checkpoint, an export's folder, or a timm name.
        data: the images, as for training; ``None`` for those that a run was trained on. Of a set without a validation
            split all are taken, but of the run's own the ones that training held out.
        engine: devices, processes and precision.
        batch_size: images a batch; ``None``: 64 of a classifier, else 4.
        workers: loader processes for each process.
        max_broken: unreadable images to skip before giving up.
        advance: called after each batch with its number and the count of all.
        changes: fields to change, as :func:`smt_vision.inference.load` takes them.

    Returns:
        The numbers, and the task, which draws pictures of them.

    Raises:
        ValueError: the set's classes are not the model's, or ``data`` is not given and not known.
    """
    fabric = launch(engine)
    model = load(source, fabric.device, changes)
    if data is None and model.recipe is None:
        raise ValueError(f"{source} does not say what it was trained on; name the images with --data")
    data = data or (model.recipe.data if model.recipe else "")
    input = replace(model.input, workers=workers, max_broken=max_broken)
    shard = dict(rank=fabric.global_rank, world=fabric.world_size)
    task: Classification | Detection | Segmentation
    loader: EvalLoader[Any]
    with fabric.rank_zero_first():
        if isinstance(model, Detector):
            objects = open_detection(data, "val")
            _same_classes(objects, model)
            if model.config.has_masks:
                objects.require_masks()
            task = Detection(objects, input, model.config)
            loader = detection_eval_loader(objects, input, model.config, batch_size or 4, **shard)
        elif isinstance(model, Segmenter):
            maps = open_segmentation(data, "val", model.config)
            _same_classes(maps, model)
            task = Segmentation(maps, input, model.config)
            loader = segmentation_eval_loader(maps, input, model.config, batch_size or 4, **shard)
        else:
            images = _open_images(data, model)
            task = Classification(model.classes, images)
            loader = eval_loader(images, input, batch_size or 64, **shard)
    done = 0

    def count(n: int) -> None:
        nonlocal done
        done += n
        if advance is not None and fabric.is_global_zero:
            advance(done, len(loader))

    metrics = run_evaluation(fabric, task, model.model, loader, count)
    return {"model": model.name, "data": data, "input": _told(model), **metrics}, task


def _open_images(data: str, model: Classifier) -> ImageSet:
    """Of the set that the model was trained on, the images that training held out."""
    recipe = model.recipe
    own = recipe is not None and data == recipe.data
    fraction, seed = (recipe.input.val_fraction, recipe.seed) if recipe and own else (1.0, 0)
    return relabel(open_dataset(data, "val", val_fraction=fraction, seed=seed), model.classes)


def _same_classes(images: RawSet[Any], model: Detector | Segmenter) -> None:
    if images.classes != model.classes:
        raise ValueError(
            f"{images.where} has the classes {', '.join(images.classes)}, and the model {', '.join(model.classes)}; "
            "evaluate a model trained on these classes, in this order"
        )


def relabel(images: ImageSet, classes: Sequence[str]) -> ImageSet:
    """The same images with their classes numbered as a model numbers them.

    Matched by name where the names are the model's, or ImageNet's (WordNet ids, for a model of 1000 classes), a subset
    of them included. Where they are neither, the numbers are taken as they are, as timm's own validation does.

    Raises:
        ValueError: there are more classes than the model has.
    """
    if len(images.classes) > len(classes):
        raise ValueError(
            f"{images.where} has {len(images.classes)} classes and the model {len(classes)}; evaluate a model "
            "trained on these classes"
        )
    for names in (tuple(classes), tuple(ImageNetInfo("imagenet-1k").label_names()) if len(classes) == 1000 else ()):
        if set(images.classes) <= set(names):
            place = {name: i for i, name in enumerate(names)}
            matched = images.select(np.arange(len(images)))
            matched.targets = np.array([place[name] for name in images.classes])[images.targets]
            matched.classes = tuple(classes)
            return matched
    return images


def _told(model: Predictor[Any]) -> str:
    """How the model saw the images."""
    if isinstance(model, Detector | Segmenter):
        size = model.config
        sides = f"short side {size.short_side} px, at most {size.long_side}" if size.short_side else "as stored"
        if isinstance(size, Detect):
            return f"{sides}, {model.input.interpolation}"
        windows = "" if size.test == "whole" else f" in windows of {size.crop[0]} x {size.crop[1]}"
        scales = ", ".join(f"{scale:g}" for scale in size.test_scales)
        return f"{sides}, {size.test}{windows}, scales {scales}{', mirrored too' if size.test_flip else ''}"
    input = model.input
    return f"{input.size} px, crop {input.crop_pct:.3g} {input.crop_mode}, {input.interpolation}"
