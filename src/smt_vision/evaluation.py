"""A model measured on labelled images: any model of timm's, a run, a checkpoint or an export, all the same way."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from timm.data import ImageNetInfo

from .data import ImageSet, eval_loader, open_dataset
from .engine.launch import launch
from .engine.loop import evaluate
from .inference import Classifier
from .recipes import Engine
from .tasks.classify import Classification


def evaluate_classifier(
    source: str,
    data: str | None = None,
    *,
    engine: Engine,
    batch_size: int = 64,
    workers: int = 8,
    max_broken: int = 10,
    advance: Callable[[int, int], None] | None = None,
    **input_overrides: Any,
) -> tuple[dict[str, Any], Classification]:
    """Evaluate a classifier on a set's validation images; exact for any batch size and number of processes.

    Args:
        source: a run's folder, a checkpoint, an export's folder, or a timm name.
        data: the images, as for training; ``None`` for those that a run was trained on. Of a set without a validation
            split all are taken, but of the run's own the ones that training held out.
        engine: devices, processes and precision.
        batch_size: images a batch.
        workers: loader processes for each process.
        max_broken: unreadable images to skip before giving up.
        advance: called after each batch with its number and the count of all.
        input_overrides: fields of :class:`Input` to change, as ``size`` or ``crop_pct``.

    Returns:
        The numbers, and the task, which draws pictures of them.

    Raises:
        ValueError: the set has more classes than the model, or ``data`` is not given and not known.
    """
    fabric = launch(engine)
    classifier = Classifier.load(source, fabric.device)
    given = {k: v for k, v in input_overrides.items() if v is not None}
    input = replace(classifier.input, workers=workers, max_broken=max_broken, **given)
    recipe = classifier.recipe
    if data is None and recipe is None:
        raise ValueError(f"{source} does not say what it was trained on; name the images with --data")
    data = data or (recipe.data if recipe else "")
    own = recipe is not None and data == recipe.data
    fraction, seed = (recipe.input.val_fraction, recipe.seed) if recipe and own else (1.0, 0)
    with fabric.rank_zero_first():
        images = relabel(open_dataset(data, "val", val_fraction=fraction, seed=seed), classifier.classes)
    task = Classification(classifier.classes, images)
    loader = eval_loader(images, input, batch_size, rank=fabric.global_rank, world=fabric.world_size)
    done = 0

    def count(n: int) -> None:
        nonlocal done
        done += n
        if advance is not None and fabric.is_global_zero:
            advance(done, len(loader))

    metrics = evaluate(fabric, task, classifier.model, loader, count)
    return {"model": classifier.name, "data": data, "input": _told(input), **metrics}, task


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


def _told(input: Any) -> str:
    return f"{input.size} px, crop {input.crop_pct:.3g} {input.crop_mode}, {input.interpolation}"
