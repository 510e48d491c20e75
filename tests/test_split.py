"""Which images a model is evaluated on, whatever their path, and the classes that they are matched with."""

import json
import logging
import os
import shutil
import tarfile
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import smt_vision
from blank_pictures import without_report
from command import answer, refusal
from drawn_sets import scenes_recipe, shapes_recipe
from smt_vision import checkpoints
from smt_vision.data.files import image_formats
from smt_vision.data.fingerprint import MAX_TRAIN, hash_bytes, hash_content, hash_file
from smt_vision.engine.loop import train
from smt_vision.tasks import classes as classes_module
from smt_vision.tasks import get_task, read_spec
from smt_vision.tasks.classes import match_classes
from smt_vision.tasks.classification.data.dataset import ImageDataset
from smt_vision.tasks.classification.data.sources import open_dataset
from smt_vision.tasks.classification.predictor import Classifier
from smt_vision.tasks.classification.published import class_names, class_synonyms
from smt_vision.tasks.classification.task import ClassificationTraining, open_evaluation
from smt_vision.tasks.detection.data.sources import open_detection
from smt_vision.tasks.segmentation.data.sources import open_segmentation
from smt_vision.tasks.splits import open_splits
from tiny_run import COLORS, QUICK_TO_EXPORT, tiny, write_images, write_split

Capture = pytest.CaptureFixture[str]
Log = pytest.LogCaptureFixture
IMAGES, HELD_OUT = 60, 6


pytestmark = pytest.mark.usefixtures("one_thread", "no_report")


@pytest.fixture(scope="module")
def unsplit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 images of each of three classes, without a validation split."""
    return write_images(tmp_path_factory.mktemp("unsplit") / "COL", COLORS, [20] * 3)


@pytest.fixture(scope="module")
def unsplit_run(unsplit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "unsplit"
    with without_report():
        train(tiny(unsplit, epochs=3, **QUICK_TO_EXPORT), folder, display=False)
    return folder


@pytest.fixture(scope="module")
def export(unsplit_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "unsplit"
    smt_vision.export(unsplit_run, folder, "torch")
    return folder


@pytest.fixture(scope="module")
def models(unsplit_run: Path, export: Path) -> list[Classifier]:
    """A run, its checkpoint and its export."""
    return [smt_vision.load(path) for path in (unsplit_run, unsplit_run / "best.pt", export)]  # type: ignore[misc]


def copy_as_tar(folder: Path, tar: Path) -> Path:
    with tarfile.open(tar, "w:gz") as file:
        file.add(folder, arcname="set")
    return tar


# --- which images are evaluated


@pytest.mark.parametrize(
    "spelling", ["name", "slash", "dot", "absolute", "up", "link", "parent", "copy", "tar", "another folder"]
)
def test_run_is_evaluated_on_its_held_out_images_under_any_path(
    spelling: str, unsplit: Path, models: list[Classifier], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(unsplit.parent)
    monkeypatch.setenv("SMT_CACHE_DIR", str(tmp_path / "cache"))
    data = {
        "name": "COL",
        "slash": "COL/",
        "dot": "./COL",
        "absolute": str(unsplit),
        "up": f"../{unsplit.parent.name}/COL",
        "link": str(tmp_path / "link"),
        "parent": str(tmp_path / "parent"),
        "copy": str(tmp_path / "copy"),
        "tar": str(tmp_path / "COL.tar.gz"),
        "another folder": "../COL",
    }[spelling]
    if spelling == "link":
        os.symlink(unsplit, data)
    elif spelling in ("copy", "parent"):
        shutil.copytree(unsplit, Path(data) / "inner" if spelling == "parent" else data)
    elif spelling == "tar":
        copy_as_tar(unsplit, Path(data))
    elif spelling == "another folder":
        (unsplit.parent / "cwd").mkdir(exist_ok=True)
        monkeypatch.chdir(unsplit.parent / "cwd")
    held_out = _ids(open_dataset(str(unsplit), "val"))
    assert len(held_out) == HELD_OUT
    for model in models:
        images = _evaluated(model, data)
        assert sorted(_ids(images)) == sorted(held_out)
        assert model.used_images is not None
        assert model.used_images.count_in(images.fingerprints()) == {"trained_on": 0, "calibrated_on": 0}


def _evaluated(model: Classifier, data: str) -> ImageDataset:
    """The images that an evaluation of the model takes of a dataset."""
    evaluation, _ = open_evaluation(model, data, replace(model.input, workers=0), 4, 0, 1)
    return evaluation.val_set


def _ids(images: object) -> list[str]:
    return [images.id(i) for i in range(len(images))]  # type: ignore[attr-defined, arg-type]


def test_changed_dataset_is_evaluated_on_what_training_held_out(
    unsplit: Path, unsplit_run: Path, tmp_path: Path, caplog: Log
) -> None:
    data = tmp_path / "data"
    shutil.copytree(unsplit, data)
    write_images(tmp_path / "new", {"blue": COLORS["blue"]}, [3], seed=9)
    for i in range(3):
        (tmp_path / "new" / "blue" / f"{i}.png").rename(data / "blue" / f"new{i}.png")
    assert smt_vision.evaluate(unsplit_run, data, workers=0)["count"] == HELD_OUT
    first = _ids(open_dataset(str(unsplit), "val"))[0]
    (data / first).unlink()
    with caplog.at_level(logging.WARNING):
        metrics = smt_vision.evaluate(unsplit_run, data, workers=0)
    assert (metrics["count"], metrics["trained_on"]) == (HELD_OUT - 1, 0)
    assert "1 of the 6 images" in caplog.text


def test_training_images_under_other_names_are_told(
    unsplit: Path, unsplit_run: Path, tmp_path: Path, capsys: Capture
) -> None:
    for i, path in enumerate(sorted(unsplit.rglob("*.png"))):
        target = tmp_path / "data" / path.parent.name / f"renamed{i}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    metrics = answer(capsys, "eval", unsplit_run, "--data", tmp_path / "data", "--workers", "0")
    assert (metrics["count"], metrics["trained_on"]) == (IMAGES, IMAGES - HELD_OUT)


def test_other_images_under_the_same_path_are_all_evaluated(
    unsplit: Path, unsplit_run: Path, tmp_path: Path, caplog: Log
) -> None:
    data = write_images(tmp_path / "COL", COLORS, [20] * 3, seed=77)
    with caplog.at_level(logging.WARNING):
        metrics = smt_vision.evaluate(unsplit_run, data, workers=0)
    assert (metrics["count"], metrics["trained_on"]) == (IMAGES, 0)
    assert not caplog.text


def test_checkpoint_without_fingerprints_compares_real_paths(
    unsplit: Path, unsplit_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Log
) -> None:
    # As written before fingerprints were kept.
    state = {key: value for key, value in checkpoints.load(unsplit_run).state.items() if key != "images"}
    checkpoints.save(state, tmp_path / "old.pt")
    monkeypatch.chdir(unsplit.parent)
    for data in ("COL", "COL/", "./COL", str(unsplit)):
        metrics = smt_vision.evaluate(tmp_path / "old.pt", data, workers=0)
        assert metrics["count"] == HELD_OUT
        assert "trained_on" not in metrics
    assert "does not say" not in caplog.text
    shutil.copytree(unsplit, tmp_path / "copy")
    assert smt_vision.evaluate(tmp_path / "old.pt", tmp_path / "copy", workers=0)["count"] == IMAGES
    assert "does not say which images it was trained on" in caplog.text


def test_held_out_images_among_new_ones_do_not_hide_these(unsplit: Path, unsplit_run: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "test", COLORS, [4] * 3, seed=5)
    for color in COLORS:
        for path in (data / color).iterdir():
            path.rename(path.with_name(f"new{path.name}"))
    for name in _ids(open_dataset(str(unsplit), "val")):
        shutil.copy(unsplit / name, data / name)
    metrics = smt_vision.evaluate(unsplit_run, data, workers=0)
    assert (metrics["count"], metrics["trained_on"]) == (12 + HELD_OUT, 0)


def test_images_of_the_initial_weights_are_told(unsplit: Path, unsplit_run: Path, tmp_path: Path, caplog: Log) -> None:
    # Another seed holds out other images.
    recipe = tiny(unsplit, epochs=1, seed=5, checkpoint=str(unsplit_run), **QUICK_TO_EXPORT)
    earlier = set(_ids(open_dataset(str(unsplit), "train")))
    common = len(earlier & set(_ids(open_dataset(str(unsplit), "val", seed=5))))
    assert common
    with caplog.at_level(logging.WARNING):
        train(recipe, tmp_path / "run", display=False)
    assert f"initial weights were trained on {common} of the 6 validation images" in caplog.text
    metrics = smt_vision.evaluate(tmp_path / "run", unsplit, workers=0)
    assert (metrics["count"], metrics["trained_on"]) == (HELD_OUT, common)


def test_seed_of_the_split(unsplit: Path, tmp_path: Path) -> None:
    def held_out(**seeds: int) -> set[str]:
        task = ClassificationTraining(tiny(unsplit, **seeds))
        return {task.val_set.name(i) for i in range(len(task.val_set))}

    assert held_out(seed=0) == held_out(seed=1, split_seed=0) != held_out(seed=1)
    assert held_out(seed=1) == held_out(seed=0, split_seed=1)


def test_run_is_resumed_with_the_same_images_only(unsplit: Path, tmp_path: Path, caplog: Log) -> None:
    run, copy = tmp_path / "run", tmp_path / "copy"
    train(tiny(unsplit, epochs=2), run, display=False, max_steps=2)
    shutil.copytree(unsplit, copy)
    train(tiny(copy, epochs=2), run, display=False, max_steps=4)
    assert not caplog.text
    others = write_images(tmp_path / "others", COLORS, [20] * 3, seed=8)
    with pytest.raises(
        ValueError, match=r"others is not the data .*54 training images are new, 6 validation images are new"
    ):
        train(tiny(others, epochs=2), run, display=False)
    shutil.copy(others / "red" / "0.png", copy / "red" / "new.png")
    accepted = tiny(copy, epochs=2, engine=dict(allow_changed_data=True))
    with caplog.at_level(logging.WARNING):
        train(accepted, run, display=False, max_steps=6)
    assert "1 training images are new, names or order of the images differ, labels differ" in caplog.text
    assert len(checkpoints.load(run / "last.pt").state["images"]["train"]) == IMAGES - HELD_OUT + 1
    (copy / "blue").rename(copy / "violet")
    with pytest.raises(ValueError, match="other classes: blue, green, red there and green, red, violet"):
        train(tiny(copy, epochs=2), run, display=False)


def test_validation_images_that_are_copies_of_training_images_are_told(tmp_path: Path, caplog: Log) -> None:
    data = write_images(tmp_path / "data", COLORS, [4] * 3)
    shutil.copytree(data, tmp_path / "split" / "train")
    write_images(tmp_path / "split" / "val", COLORS, [2] * 3, seed=1)
    shutil.copy(data / "red" / "3.png", tmp_path / "split" / "val" / "red" / "copy.png")
    with caplog.at_level(logging.WARNING):
        train(tiny(tmp_path / "split", epochs=1), tmp_path / "run", display=False, max_steps=1)
    assert "1 of the 7 validation images" in caplog.text


def test_resumed_run_keeps_its_fingerprints(unsplit: Path, unsplit_run: Path, tmp_path: Path) -> None:
    train(tiny(unsplit, epochs=3), tmp_path / "run", display=False, max_steps=3)
    train(tiny(unsplit, epochs=3), tmp_path / "run", display=False)
    images = [checkpoints.load(run / name).state["images"] for run in (unsplit_run, tmp_path / "run")
              for name in ("best.pt", "last.pt")]  # fmt: skip
    for other in images[1:]:
        assert all(torch.equal(images[0][name], other[name]) for name in ("train", "val", "calibration"))
    assert [len(images[0][name]) for name in ("train", "val", "calibration")] == [IMAGES - HELD_OUT, HELD_OUT, 0]


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_evaluation_on_training_images_is_told_in_every_task(
    task: str, detector_run: Path, segmenter_run: Path, shapes: Path, scenes: Path, caplog: Log
) -> None:
    # Both sets have the same images in train and val.
    run, data = (detector_run, shapes) if task == "detect" else (segmenter_run, scenes)
    with caplog.at_level(logging.WARNING):
        metrics = smt_vision.evaluate(run, data, workers=0)
    assert metrics["trained_on"] == metrics["count"] == 4
    assert "trained on 4 of these 4" in caplog.text


def test_changed_fingerprints_of_an_export_are_refused(export: Path, tmp_path: Path) -> None:
    shutil.copytree(export, tmp_path / "export")
    path = tmp_path / "export" / "images.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"images\.safetensors"):
        smt_vision.load(tmp_path / "export")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"images\.safetensors"):
        smt_vision.load(tmp_path / "export")


@pytest.mark.parametrize("suffix", [".bmp", ".dib", ".tga", ".tif", ".pbm", ".pgm", ".ppm", ".npy", ".png"])
def test_images_that_differ_in_a_single_place_have_different_fingerprints(suffix: str, tmp_path: Path) -> None:
    pixels = np.full((1300, 1300, 3), 255, dtype=np.uint8)
    for name in ("a", "b"):
        if suffix == ".npy":
            np.save(tmp_path / name, pixels)
        else:
            Image.fromarray(pixels).convert({".pbm": "1", ".pgm": "L"}.get(suffix, "RGB")).save(
                tmp_path / f"{name}{suffix}"
            )
        pixels[360:400, 360:400] = 0
    assert hash_file(tmp_path / f"a{suffix}") != hash_file(tmp_path / f"b{suffix}")


@pytest.mark.parametrize("size", [0, 1, 3 << 14, (3 << 14) + 1, 200_000])
def test_fingerprint_is_of_the_content(size: int, tmp_path: Path) -> None:
    content = np.random.default_rng(size).bytes(size)
    (tmp_path / "a").write_bytes(content)
    value = hash_file(tmp_path / "a")
    assert value == hash_content(size, lambda offset, length: content[offset : offset + length])
    for changed in (content + b"x", content[:-1] + b"\0" if size else b"y"):
        assert changed == content or value != hash_content(len(changed), lambda o, n, c=changed: c[o : o + n])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".gif", ".jp2", ".avif"])
def test_of_large_files_with_compression_three_parts_are_hashed(suffix: str, tmp_path: Path) -> None:
    """As ever: the fingerprints are compared with those in files."""
    path = tmp_path / f"a{suffix}"
    if Image.registered_extensions()[suffix] not in image_formats():
        pytest.skip("this build of Pillow does not have the format")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)).save(path)
    content, part = path.read_bytes(), 1 << 14
    assert len(content) > 3 * part
    middle = (len(content) - part) // 2
    parts = (content[:part], content[middle : middle + part], content[-part:])
    assert hash_file(path) == hash_bytes(str(len(content)).encode(), *parts)


def test_fingerprints_of_a_large_dataset_are_sampled(unsplit: Path) -> None:
    images = open_dataset(str(unsplit), "val", val_fraction=1.0)
    every, some = images.fingerprints(), images.fingerprints(limit=10)
    assert len(every) == len(set(every.tolist())) == IMAGES
    assert len(some) == len(set(some.tolist()) & set(every.tolist())) == 10
    assert np.array_equal(some, images.fingerprints(limit=10))
    assert np.array_equal(every, images.fingerprints(limit=IMAGES))


@pytest.mark.parametrize("source", ["folders", "tar", "label file"])
def test_a_dataset_without_a_validation_split_is_read_once(
    source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_images(tmp_path / "set", COLORS, [20] * 3)
    (data / "red" / "notes.txt").write_text("not an image")
    if source == "label file":
        rows = [f"{path.relative_to(data)},{path.parent.name}" for path in sorted(data.glob("*/*.png"))]
        (data / "labels.csv").write_text("\n".join(["path,label", *rows, *rows[:1]]))
    elif source == "tar":
        data = copy_as_tar(data, tmp_path / "set.tar.gz")
    expected = [open_dataset(str(data), split, seed=3) for split in ("train", "val")]
    caplog.clear()
    opened = open_splits(tiny(data, seed=3), lambda split: open_dataset(str(data), split, seed=3))
    assert len(caplog.messages) == 1
    for ours, theirs in zip(opened, expected, strict=True):
        assert (ours.listing(), ours.hash_labels(), ours.where) == (
            theirs.listing(),
            theirs.hash_labels(),
            theirs.where,
        )
        assert np.array_equal(ours.identities(), theirs.identities())
        assert ours.counterpart is None


def test_samples_of_a_large_dataset_are_nested_whatever_its_order(unsplit: Path) -> None:
    images = open_dataset(str(unsplit), "val", val_fraction=1.0)
    fewer, more = (set(images.fingerprints(limit).tolist()) for limit in (5, 20))
    assert fewer < more
    assert set(images.select(np.arange(IMAGES)[::-1].copy()).fingerprints(20).tolist()) == more
    assert MAX_TRAIN == 200_000


def test_held_out_images_of_a_sampled_dataset_are_found(
    unsplit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smt_vision.engine.run_images.MAX_TRAIN", 20)
    monkeypatch.setattr("smt_vision.data.subset.MAX_TRAIN", 20)
    train(tiny(unsplit, epochs=1), tmp_path / "run", display=False)
    assert len(checkpoints.load(tmp_path / "run").state["images"]["train"]) == 20  # of 54
    assert smt_vision.evaluate(tmp_path / "run", unsplit, workers=0)["count"] == HELD_OUT


def test_fingerprints_do_not_change() -> None:
    # They are compared with those in files.
    assert hash_bytes(b"abc") == int.from_bytes(bytes.fromhex("d8bb14d833d59559"), "little", signed=True)


# --- classes by name


def test_model_classes_are_found_by_name(unsplit_run: Path, tmp_path: Path, capsys: Capture) -> None:
    upper = {"Green": COLORS["green"], "Red": COLORS["red"]}
    metrics = answer(
        capsys, "eval", unsplit_run, "--data", write_images(tmp_path / "upper", upper, [2, 2]), "--workers", "0"
    )
    assert metrics["top1"] == 100.0
    assert [row["count"] for row in metrics["per_class"]] == [0, 2, 2]
    other = {"green": COLORS["green"], "red": COLORS["red"], "yellow": (200, 200, 40)}
    message = refusal(
        capsys, 1, "eval", unsplit_run, "--data", write_images(tmp_path / "other", other, [2] * 3), "--workers", "0"
    )
    assert "yellow" in message
    assert "blue" in message


@pytest.mark.parametrize(
    ("names", "classes", "expected"),
    [
        (("b", "a"), ("a", "b", "c"), [1, 0]),
        ((unicodedata.normalize("NFD", "é"), "z"), ("z", unicodedata.normalize("NFC", "é")), [1, 0]),
        (("Polish", "polish"), ("polish", "x", "Polish"), [2, 0]),  # told apart by case
        (("0", "2"), ("0", "1", "2"), [0, 2]),
        (("000", "002"), ("0", "1", "2"), [0, 2]),
        (("golden_retriever", "sea-lion"), ("Sea lion", "T-shirt", "golden retriever"), [2, 0]),
        (("a_b", "a-b"), ("a-b", "a_b"), [1, 0]),  # told apart by the separator
        (("__background__", "cat"), ("cat", "background"), [1, 0]),
        (("-1", "1"), ("1", "-1"), [1, 0]),
        (("golf ball", "tench"), ("tench, Tinca tinca", "golf ball"), [1, 0]),
        (("crane", "crane"), ("crane", "crane"), [0, 1]),
        (("tench", "crane", "crane"), ("tench", "crane", "crane"), [0, 1, 2]),
    ],
)
def test_classes_are_matched_by_name(
    names: tuple[str, ...], classes: tuple[str, ...], expected: list[int], caplog: Log
) -> None:
    with caplog.at_level(logging.WARNING):
        assert match_classes(names, classes, "data") == expected
    assert not caplog.text


@pytest.mark.parametrize(
    ("names", "classes", "expected"),
    [
        (("0", "2"), ("cat", "dog", "eel"), [0, 2]),  # numbers are the model's indices, not positions
        (("cat", "dog"), ("0", "1"), [0, 1]),
    ],
)
def test_classes_without_names_are_matched_by_index_with_a_warning(
    names: tuple[str, ...], classes: tuple[str, ...], expected: list[int], caplog: Log
) -> None:
    with caplog.at_level(logging.WARNING, logger=classes_module.__name__):
        assert match_classes(names, classes, "data") == expected
    assert len(caplog.records) == 1
    with pytest.raises(ValueError, match=r"2 of its 2 classes are not among the teacher's"):
        match_classes(names, classes, "data", owner="the teacher", by_index=False)


@pytest.mark.parametrize(
    ("names", "classes", "mentioned"),
    [
        (("cat", "dogs"), ("cat", "dog"), ["dogs", "'dog'"]),
        (("cat", "crane"), ("cat", "crane", "crane"), ["crane", "1, 2"]),
        (("cat", "dog"), ("0", "1", "2"), ["cat"]),
        (("1", "3"), ("a", "b", "c"), ["3"]),  # counted from one
        (("Polish", "polish"), ("polish", "x"), ["Polish"]),
        (("0", "1"), ("1", "2", "other"), ["0"]),  # not the indices, since the model has numbers as names
        (("a", "b", "c"), ("1", "2", "3"), ["a, b, c"]),  # ratings, for instance, and not indices
        (("saw", "chainsaw"), ("chain saw, saw, chainsaw", "x"), ["saw", "are all"]),
    ],
)
def test_classes_that_cannot_be_matched_are_refused(
    names: tuple[str, ...], classes: tuple[str, ...], mentioned: list[str]
) -> None:
    with pytest.raises(ValueError, match="data") as error:
        match_classes(names, classes, "data")
    assert all(word in str(error.value) for word in mentioned)


def test_classes_that_do_not_occur_need_not_be_matched() -> None:
    assert match_classes(("objects", "dog", "cat"), ("cat", "dog"), "data", unused=[0]) == [-1, 1, 0]
    with pytest.raises(ValueError, match=r"1 of its 3 classes .*objects"):
        match_classes(("objects", "dog", "cat"), ("cat", "dog"), "data", unused=[1])


def test_imagenet_folders_are_matched_by_wordnet_id() -> None:
    model = type("Model", (), {"pretrained_cfg": {}, "num_classes": 1000})
    names = class_names(model)
    assert match_classes(("n01440764", "n03888257"), names, "data", class_synonyms(1000)) == [0, 701]
    assert match_classes(names, names, "data", class_synonyms(1000)) == list(range(1000))
    # As Hub datasets and folders name them.
    assert match_classes(("tench", "french_horn"), names, "data", class_synonyms(1000)) == [0, 566]


def test_detection_categories_in_another_order_give_the_same_ap(
    detector_run: Path, shapes: Path, tmp_path: Path
) -> None:
    shutil.copytree(shapes, tmp_path / "set")
    for file in (tmp_path / "set" / "annotations").glob("*.json"):
        content = json.loads(file.read_text())
        ids = [category["id"] for category in content["categories"]]
        swapped = dict(zip(ids, reversed(ids), strict=True))
        for category in content["categories"]:
            category["id"] = swapped[category["id"]]
        for entry in content["annotations"]:
            entry["category_id"] = swapped[entry["category_id"]]
        file.write_text(json.dumps(content))
    original, reordered = open_detection(str(shapes), "val"), open_detection(str(tmp_path / "set"), "val")
    assert original.classes == tuple(reversed(reordered.classes))
    relabeled = reordered.relabel(original.classes, match_classes(reordered.classes, original.classes, ""))
    for i in range(len(original)):
        assert np.array_equal(original.read(i)[1]["labels"], relabeled.read(i)[1]["labels"])
    ours, theirs = (smt_vision.evaluate(detector_run, d, workers=0) for d in (shapes, tmp_path / "set"))
    assert {k: v for k, v in ours.items() if k != "data"} == {k: v for k, v in theirs.items() if k != "data"}


@pytest.mark.parametrize("change", ["unused category", "other order", "missing category"])
def test_categories_of_the_validation_images_are_matched_with_those_of_training(
    change: str, shapes: Path, tmp_path: Path
) -> None:
    shutil.copytree(shapes, tmp_path / "set")
    file = tmp_path / "set" / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    first, second = content["categories"]
    if change == "unused category":  # as Roboflow writes, for the supercategory
        content["categories"].insert(0, {"id": min(first["id"], second["id"]) - 1, "name": "shapes"})
    elif change == "other order":
        first["id"], second["id"] = second["id"], first["id"]
        for entry in content["annotations"]:
            entry["category_id"] = first["id"] + second["id"] - entry["category_id"]
    else:
        content["categories"] = [second]
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] == second["id"]]
    file.write_text(json.dumps(content))
    original, changed = (
        get_task("detect").training(shapes_recipe(data))
        for data in (shapes, tmp_path / "set")  # type: ignore[arg-type]
    )
    assert changed.spec == original.spec
    for i in range(len(original.val_set)):
        labels = original.val_set.read(i)[1]["labels"]
        if change == "missing category":
            labels = labels[labels == original.spec.classes.index(second["name"])]
        assert np.array_equal(labels, changed.val_set.read(i)[1]["labels"])


def test_detection_dataset_without_some_of_the_classes(shapes: Path, tmp_path: Path) -> None:
    dataset = open_detection(str(shapes), "val")
    relabeled = dataset.relabel(("other", *dataset.classes), [1, 2])
    assert relabeled.category_ids[1:] == dataset.category_ids
    assert len(set(relabeled.category_ids)) == 3
    truth = relabeled.ground_truth()
    assert [a["category_id"] for a in truth["annotations"]] == [
        a["category_id"] for a in dataset.ground_truth()["annotations"]
    ]


def test_label_maps_with_classes_in_another_order_give_the_same_labels(scenes: Path, tmp_path: Path) -> None:
    data = tmp_path / "set"
    shutil.copytree(scenes, data)
    classes = json.loads((data / "classes.json").read_text())
    (data / "classes.json").write_text(json.dumps(classes[1:] + classes[:1]))
    for path in (data / "labels").rglob("*.png"):
        labels = np.array(Image.open(path))
        rotated = np.where(labels == 255, 255, (labels + len(classes) - 1) % len(classes)).astype(np.uint8)
        Image.fromarray(rotated).save(path)
    config = scenes_recipe(scenes).segment
    original, other = open_segmentation(str(scenes), "val", config), open_segmentation(str(data), "val", config)
    relabeled = other.relabel(original.classes, match_classes(other.classes, original.classes, ""))
    for i in range(len(original)):
        assert np.array_equal(original.read(i)[1], relabeled.read(i)[1])
        assert not np.array_equal(original.read(i)[1], other.read(i)[1])


@pytest.mark.parametrize("task", ["classify", "detect", "segment"])
def test_initial_weights_of_other_classes_are_not_taken_for_these(
    task: str, trained: Path, detector_run: Path, segmenter_run: Path, caplog: Log
) -> None:
    run, layers = {
        "classify": (trained, {"head.fc"}),
        "detect": (
            detector_run,
            {f"stages.0.{name}" for name in ("box_predictor.cls_score", "box_predictor.bbox_pred",
                                             "mask_predictor.mask_fcn_logits")},
        ),
        "segment": (segmenter_run, {"head.classifier", "auxiliary.classifier"}),
    }[task]  # fmt: skip
    checkpoint = checkpoints.load(run)
    spec = read_spec(checkpoint.spec or {})
    build = get_task(task).build_model
    same = build(spec, checkpoint=checkpoint).state_dict()
    assert all(torch.equal(same[name], value) for name, value in checkpoint.weights.items())
    assert not caplog.text
    reordered = build(replace(spec, classes=spec.classes[::-1]), checkpoint=checkpoint).state_dict()
    assert "other classes" in caplog.text
    changed = {name for name in same if not torch.equal(same[name], reordered[name])}
    assert changed == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


@pytest.mark.parametrize("task", ["classify", "detect"])
def test_selection_on_a_test_split_is_told(task: str, shapes: Path, tmp_path: Path, caplog: Log) -> None:
    if task == "classify":
        write_split(tmp_path)
        (tmp_path / "val").rename(tmp_path / "test")
    else:
        for part, name in (("images", "{}"), ("annotations", "instances_{}.json")):
            (tmp_path / part).mkdir()
            for split, other in (("train", "train"), ("val", "test")):
                source = (shapes if part == "images" else shapes / part) / name.format(split)
                (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / part / name.format(other))
    opened = open_detection if task == "detect" else open_dataset
    opened(str(tmp_path), "val", val_fraction=1.0)  # evaluation
    assert "best weights" not in caplog.text
    opened(str(tmp_path), "val", val_fraction=0.1)
    assert caplog.text.count("best weights are selected on it") == 1


# --- too few images


def test_too_few_images_to_hold_out_is_an_early_error(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", COLORS, [1] * 3)
    with pytest.raises(ValueError, match="3 training images and none to validate"):
        train(tiny(data), tmp_path / "run", display=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("task", ["classify", "detect", "segment"])
def test_validation_images_that_cannot_be_read_are_told(task: str, shapes: Path, scenes: Path, tmp_path: Path) -> None:
    data = tmp_path / "set"
    if task == "classify":
        write_split(data)
        recipe, pattern = tiny(data, epochs=1), "val/*/*.png"
    else:
        shutil.copytree(shapes if task == "detect" else scenes, data)
        recipe, pattern = (
            (shapes_recipe(data), "val/*.*") if task == "detect" else (scenes_recipe(data), "images/val/*.*")
        )
    recipe = replace(recipe, input=replace(recipe.input, max_unreadable=100))
    files = list(data.glob(pattern))
    for path in files:
        path.write_bytes(b"not an image")
    with pytest.raises(ValueError, match=f"val.*: none of the {len(files)} images to evaluate on could be read"):
        train(recipe, tmp_path / "run", display=False)
    assert (tmp_path / "run" / "last.pt").is_file()


def test_one_training_image_of_a_segmenter_is_an_early_error(scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "set")
    for folder in ("images", "labels"):
        for path in sorted((tmp_path / "set" / folder / "train").iterdir())[1:]:
            path.unlink()
    with pytest.raises(ValueError, match="1 training images"):
        train(scenes_recipe(tmp_path / "set"), tmp_path / "run", display=False)
    assert not (tmp_path / "run").exists()


def test_several_test_sets_do_not_matter_in_training(shapes: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    for name in ("test_a", "test_b"):
        shutil.copy(data / "annotations/instances_val.json", data / f"annotations/instances_{name}.json")
    assert len(open_detection(str(data), "val", val_fraction=0.1)) > 0
