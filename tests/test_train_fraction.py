"""``train_fraction``: training on a fixed part of the images of each class."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import smt_vision
from dense_sets import annotation, write_coco
from drawn_sets import scenes_recipe, shapes_recipe
from smt_vision.data.subset import take_fraction
from smt_vision.tasks import get_task
from smt_vision.tasks.classification.data.sources import open_dataset
from smt_vision.tasks.detection.data.sources import open_detection
from tiny_run import COLORS, tiny, write_images, write_split


def ids(images: Any) -> list[str]:
    return [images.id(i) for i in range(len(images))]


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_fraction_out_of_range_is_an_error(fraction: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train_fraction=.*above 0 and at most 1"):
        tiny(tmp_path, train_fraction=fraction)


def test_all_images_are_the_dataset_itself(tmp_path: Path) -> None:
    images = open_dataset(str(write_split(tmp_path)), "train")
    assert take_fraction(images, 1.0) is images


def test_smaller_fractions_are_parts_of_larger_ones_by_class(tmp_path: Path) -> None:
    write_images(tmp_path / "train", COLORS, [20, 10, 1])
    write_images(tmp_path / "val", COLORS, [1, 1, 1])
    images = open_dataset(str(tmp_path), "train")
    images.fingerprints()
    before: set[str] = set()
    for fraction, counts in ((0.01, [1, 1, 1]), (0.1, [2, 1, 1]), (0.25, [5, 2, 1]), (0.5, [10, 5, 1])):
        subset = take_fraction(images, fraction)
        assert np.bincount(subset.targets).tolist() == counts
        assert before < {*ids(subset)} or fraction == 0.01
        before = {*ids(subset)}
        assert ids(subset) == [name for name in ids(images) if name in before]  # in the same order
        for i in range(len(subset)):
            raw, target, name = subset.read(i)
            assert (str(raw), subset.classes[target]) == (name, Path(name).parent.name)
        rows = [ids(images).index(name) for name in ids(subset)]
        assert subset.fingerprints().tolist() == images.fingerprints()[rows].tolist()


def test_images_do_not_depend_on_the_seed_or_the_model(tmp_path: Path) -> None:
    recipe = tiny(write_split(tmp_path), train_fraction=0.5)
    listings = {
        get_task("classify").training(each).train_set.listing()
        for each in (recipe, replace(recipe, seed=3), replace(recipe, model_args={**recipe.model_args, "mixers": "S"}))
    }
    assert len(listings) == 1


def test_every_class_of_a_detection_set_keeps_an_image_with_its_objects(tmp_path: Path) -> None:
    names = ("common", "rare", "crowded")
    content = {
        "images": [{"id": i, "file_name": f"{i:02}.png", "width": 40, "height": 30} for i in range(20)],
        "annotations": [
            *(annotation(100 + i, i, 1, (i, 2, 10, 10)) for i in range(16)),
            *(annotation(200 + i, i, 2, (i, 4, 9, 9)) for i in (3, 7)),
            annotation(300, 5, 3, (1, 1, 20, 20)),
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, start=1)],
    }
    images = open_detection(str(write_coco(tmp_path, content)), "train")
    for fraction, most in ((0.1, 5), (0.5, 12)):
        subset = take_fraction(images, fraction)
        assert fraction * 20 <= len(subset) <= most
        assert subset.unused_classes() == []
        for i, name in enumerate(ids(subset)):
            j = ids(images).index(name)
            for key, value in images.read(j)[1].items():
                assert np.array_equal(np.asarray(value), np.asarray(subset.read(i)[1][key])), key
    truth, all_truth = take_fraction(images, 0.5).ground_truth(), images.ground_truth()
    kept = {row["id"] for row in truth["images"]}
    assert truth["annotations"] == [row for row in all_truth["annotations"] if row["image_id"] in kept]


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_dense_tasks_train_on_the_fraction(task: str, shapes: Path, scenes: Path, tmp_path: Path) -> None:
    recipe: Any = shapes_recipe(shapes) if task == "detect" else scenes_recipe(scenes)
    full = get_task(task).training(recipe)
    part = get_task(task).training(replace(recipe, train_fraction=0.5))
    assert 0 < len(part.train_set) < len(full.train_set)
    assert {*ids(part.train_set)} < {*ids(full.train_set)}
    assert ids(part.val_set) == ids(full.val_set)
    for i, name in enumerate(ids(part.train_set)):
        assert part.train_set.read(i)[0] == full.train_set.read(ids(full.train_set).index(name))[0]
    batch = next(iter(part.train_loader(0, 1).epoch(0)))
    assert all(loss.isfinite() for loss in part.loss(part.model, batch).values())


def test_segmentation_keeps_images_with_their_label_maps(scenes: Path) -> None:
    recipe: Any = scenes_recipe(scenes)
    full, part = (get_task("segment").training(replace(recipe, train_fraction=f)).train_set for f in (1.0, 0.5))
    for i, name in enumerate(ids(part)):
        assert np.array_equal(part.read(i)[1], full.read(ids(full).index(name))[1])


@pytest.mark.usefixtures("no_report")
def test_run_is_resumed_with_the_same_images_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = tiny(write_split(tmp_path / "data"), train_fraction=0.5, epochs=2)
    whole = smt_vision.train(recipe, tmp_path / "whole", display=False)
    assert whole.total_steps == 2 * (3 * 4 // 4)
    smt_vision.train(recipe, tmp_path / "parts", display=False, max_steps=2)
    with pytest.raises(ValueError, match=r"train_fraction is 0.5 there and 1.0 here"):
        smt_vision.train(replace(recipe, train_fraction=1.0), tmp_path / "parts", display=False)
    with caplog.at_level(logging.WARNING):
        resumed = smt_vision.train(recipe, tmp_path / "parts", display=False)
    assert not caplog.records
    for name, value in whole.raw.state_dict().items():
        assert torch.equal(value, resumed.raw.state_dict()[name]), name


@pytest.mark.usefixtures("no_report")
def test_run_on_a_fraction_is_evaluated_on_its_held_out_images(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", COLORS, [20] * 3)
    recipe = tiny(data, train_fraction=0.2, epochs=1, input={"val_fraction": 0.2})
    run = smt_vision.train(recipe, tmp_path / "run", display=False)
    metrics = smt_vision.evaluate(run.folder, str(data), workers=0)
    assert (metrics["count"], metrics["trained_on"]) == (12, 0)
    trained = smt_vision.load(run.folder).used_images
    assert trained is not None
    assert len(trained.train) == 3 * round(0.2 * 16)
