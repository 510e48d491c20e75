"""Label files, multi-label classification, cross-validation, and images of any number of bands."""

import csv
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import tifffile
import torch
from PIL import Image
from pyarrow import parquet
from torch.utils._python_dispatch import TorchDispatchMode

import smt_vision
from command import answer, refusal
from drawn_sets import shapes_recipe, write_shapes
from smt_vision.data.decode import UnreadableImage, decode, decode_input
from smt_vision.data.resample import ResizeTo
from smt_vision.data.stratify import split_fold
from smt_vision.deploy.samples import image_to_tensor, sample_photo_crops
from smt_vision.engine.folds import cross_validate
from smt_vision.engine.loop import train
from smt_vision.tasks.classes import label_separator
from smt_vision.tasks.classification.config import ClassificationInput, ClassifyConfig, LabelsConfig
from smt_vision.tasks.classification.data import label_files
from smt_vision.tasks.classification.data.dataset import ImageDataset
from smt_vision.tasks.classification.data.sources import open_dataset
from smt_vision.tasks.classification.data.transforms import eval_transform
from tiny_run import COLORS, tiny, write_config, write_images, write_split

pytestmark = pytest.mark.usefixtures("one_thread")
Write = Callable[..., Path]
NAMES = [f"{i}.png" for i in range(6)]
MULTI = ClassifyConfig(multi_label=True)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a label file beside six small images, 0.png to 5.png."""
    for i, name in enumerate(NAMES):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(tmp_path / name)

    def file(content: str | bytes, name: str = "labels.csv") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return file


def table(*labels: str, header: str = "path,label", names: list[str] = NAMES) -> str:
    return "\n".join([header, *(f"{name},{label}" for name, label in zip(names, labels, strict=False))]) + "\n"


def opened(file: Path, multi_label: bool = False, **config: Any) -> dict[str, Any]:
    """All images with their labels."""
    images = open_dataset(str(file), "train", val_fraction=0.0, multi_label=multi_label, labels=LabelsConfig(**config))
    return labels_of(images)


def labels_of(images: ImageDataset) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for i in range(len(images)):
        target = images.read(i)[1]
        found[images.id(i)] = (
            images.classes[target]
            if isinstance(target, int)
            else {images.classes[k] for k in np.flatnonzero(target).tolist()}
        )
    return found


def test_a_folder_of_many_rows_is_listed_once(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """On network storage, a question for every file takes long. What is not listed may exist nevertheless."""
    monkeypatch.setattr(label_files, "LISTED_FROM", 3)
    file = write(table(*"ababab"))
    asked: list[str] = []
    is_file = os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda path: asked.append(str(path)) or is_file(path))
    assert len(opened(file)) == 6
    assert len([path for path in asked if path.endswith(".png")]) == 2
    asked.clear()
    monkeypatch.setattr(label_files, "files_in", lambda folder: [])
    assert len(opened(file)) == 6
    assert len([path for path in asked if path.endswith(".png")]) == 6


# --- label files ---

CATS = dict(zip(NAMES[:4], ("cat", "dog", "cat", "dog"), strict=True))
PLAIN = table(*CATS.values())
READ: dict[str, tuple[str | bytes, str, dict[str, Any]]] = {
    "csv": (PLAIN, "x.csv", {}),
    "quoted": (PLAIN.replace("0.png,cat", '"0.png","cat"'), "x.csv", {}),
    "byte order mark": (PLAIN.encode("utf-8-sig"), "x.csv", {}),
    "windows line ends": (PLAIN.replace("\n", "\r\n"), "x.csv", {}),
    "semicolons": (PLAIN.replace(",", ";"), "x.csv", {}),
    "tabs": (PLAIN.replace(",", "\t"), "x.tsv", {}),
    "empty lines": (PLAIN.replace("\n", "\n\n,\n") , "x.csv", {}),
    "spaces": (PLAIN.replace(",", " , "), "x.csv", {}),
    "other case": (PLAIN.replace("path,label", "Image_Path,Class"), "x.CSV", {}),
    "named columns": (PLAIN.replace("path,label", "photo,animal"), "x.csv", dict(path="photo", label="animal")),
    "suffix": (PLAIN.replace(".png", ""), "x.csv", dict(suffix=".png")),
    "folder": (PLAIN, "meta/x.csv", dict(folder="..")),
    "parent folder": (table(*CATS.values(), names=[f"../{name}" for name in NAMES]), "meta/x.csv", {}),
    "dot": (PLAIN.replace("0.png", "./0.png"), "x.csv", {}),
    "repeated row": (PLAIN + "0.png,cat\n", "x.csv", {}),
    "one column per class": (table("1,0", "0,1", "1.0,0.0", "false,TRUE", header="image,cat,dog"), "x.csv", {}),
    "chosen columns": (
        table("7,1,0", "8,0,1", "9,1,0", "7,0,1", header="image,age,cat,dog"), "x.csv", dict(label=("cat", "dog")),
    ),
    "json lines": ("".join(json.dumps({"file_name": n, "label": c}) + "\n" for n, c in CATS.items()), "x.jsonl", {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_single_labels_are_read(kind: str, write: Write, tmp_path: Path) -> None:
    content, name, config = READ[kind]
    found = opened(write(content, name), **config)
    assert {str((tmp_path / "meta" / key).resolve().name): value for key, value in found.items()} == CATS


def test_parquet_is_read(write: Write, tmp_path: Path) -> None:
    write(b"")
    names, kinds = list(CATS), list(CATS.values())
    columns: dict[str, Any] = {"path": names, "label": pyarrow.array(kinds).dictionary_encode(), "other": [{}] * 4}
    parquet.write_table(pyarrow.table(columns | {"other": [b"\xff"] * 4}), tmp_path / "x.parquet")
    assert opened(tmp_path / "x.parquet") == CATS
    parquet.write_table(pyarrow.table({"path": names, "tags": [["a", "b"], [], None, ["b"]]}), tmp_path / "m.parquet")
    found = opened(tmp_path / "m.parquet", multi_label=True)
    assert found == {"0.png": {"a", "b"}, "1.png": set(), "2.png": set(), "3.png": {"b"}}


SEVERAL = {"0.png": {"cat", "dog"}, "1.png": set(), "2.png": {"cat"}, "3.png": {"cat"}}


@pytest.mark.parametrize(("content", "config"), [
    (table("cat|dog", "", "cat", " cat | cat "), {}),
    (table("cat;dog", "", "cat", "cat"), dict(separator=";")),
    (table('"cat,dog"', "", "cat", "cat"), dict(separator=",")),
    (table("cat dog", "", "cat", "cat"), dict(separator=" ")),
    (table("1,1", "0,0", "1,0", "1,0", header="file,cat,dog"), {}),
])  # fmt: skip
def test_several_labels_are_read(content: str, config: dict[str, Any], write: Write) -> None:
    assert opened(write(content), multi_label=True, **config) == SEVERAL


REFUSED: dict[str, tuple[str | bytes, dict[str, Any], str]] = {
    "missing file": (table("cat", "dog", names=["0.png", "7.png"]), {}, r"'7\.png' \(line 3\)"),
    "address": (table("cat", names=["https://host/0.png"]), {}, r"https.* \(line 2\)"),
    "device": (table("cat", names=["/dev/zero"]), {}, r"/dev/zero.*line 2"),
    "backslash": (table("cat", names=["a\\0.png"]), {}, r"line 2.*backslash"),
    "empty path": (table("cat", "dog", names=["0.png", ""]), {}, "path: line 3"),
    "empty label": (table("cat", ""), {}, "empty labels: line 3.*classify.multi_label"),
    "different labels": (table("cat", "dog", names=["0.png", "./0.png"]), {}, r"0\.png \(line 2, line 3\)"),
    "several labels": (table("cat|dog", "cat"), {}, r"line 2.*classify\.multi_label"),
    "several labels, comma": (table('"cat,dog"', "cat", "dog"), {}, r"'cat,dog' \(line 2\).*labels\.separator"),
    "several columns": (table("1,1", "1,0", header="path,a,b"), {}, r"line 2.*classify\.multi_label"),
    "no column": (table("0,0", "1,0", header="path,a,b"), {}, r"line 2.*classify\.multi_label"),
    "unknown value": (table("1,0", "-1,1", header="path,a,b"), {}, r"'-1' in column 'a' \(line 3\).*0 or 1"),
    "list as text": (table("\"['a', 'b']\"", "a"), {}, r"line 2.*labels\.separator"),
    "too many cells": (table("cat", "dog,x"), {}, "line 3 has 3 cells"),
    "open quote": (table("cat", '"dog'), {}, "line 3: unexpected end"),
    "latin-1": (table("cat", "hündin").encode("latin-1"), {}, "line 3: not text in UTF-8"),
    "utf-16": (PLAIN.encode("utf-16"), {}, "line 1: not text in UTF-8"),
    "no header": (PLAIN.partition("\n")[2], {}, r"no path column.*labels\.path"),
    "no rows": ("path,label\n", {}, "no rows"),
    "empty": ("", {}, "no path column"),
    "no label column": (table("1", header="path,age"), {}, r"no label column.*labels\.label"),
    "two path columns": (table("x,cat", header="path,file,label"), {}, r"path, file.*labels\.path"),
    "missing column": (PLAIN, dict(label="breed"), r"'breed' \(labels\.label\)"),
    "one class": (table("cat", "cat"), {}, "only one class"),
    "not in classes": (PLAIN, dict(classes=("cat", "cow")), r"'dog' \(line 3\).*labels\.classes"),
    "split": (table("cat,train", "dog,dev", header="path,label,split"), {}, r"'dev' \(line 3\)"),
    "class of validation only": (
        table("cat,train", "dog,train", "cow,val", header="path,label,split"), {}, r"'cow' \(line 4\)",
    ),
    "long field": (table("c" * 200_000), {}, "line 2: field larger"),
    "long line": (table("c" * 2_000_000), {}, "line 2 has more than"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_rows_are_refused_with_file_and_row(kind: str, write: Write) -> None:
    content, config, message = REFUSED[kind]
    with pytest.raises(ValueError, match=rf"(?s)labels\.csv.*{message}"):
        opened(write(content), **config)


@pytest.mark.parametrize(("content", "name", "message"), [
    ("[1]\n", "x.jsonl", "line 1: found"), ("{\n", "x.jsonl", "line 1: invalid JSON"),
    ('{"path": "0.png", "label": "a"}\n{"path": "1.png"}\n', "x.jsonl", "line 2 lacks 'label'"),
    ('{"path": "0.png", "label": {"a": 1}}\n', "x.jsonl", "line 1: .*'label'"), (b"PAR1", "x.parquet", "Parquet"),
])  # fmt: skip
def test_bad_json_and_parquet_are_refused(content: str | bytes, name: str, message: str, write: Write) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        opened(write(content, name))


def test_single_labels_in_a_multi_label_run_are_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"exactly one label.*classify\.multi_label"):
        opened(write(PLAIN), multi_label=True)
    with pytest.raises(ValueError, match=r"classify\.multi_label"):
        opened(write_images(tmp_path / "folders", COLORS, [1, 1, 1]), multi_label=True)


def test_a_column_called_split_can_be_ignored(write: Write) -> None:
    path = write(table("cat,0", "dog,1", header="path,label,split"))
    with pytest.raises(ValueError, match=r"invalid splits.*set labels\.split to none"):
        opened(path)
    assert len(opened(path, split="none")) == 2


def test_order_of_classes(write: Write) -> None:
    rows = table("10", "9", "b", "A")
    assert open_dataset(str(write(rows)), "train").classes == ("9", "10", "A", "b")  # natural order
    assert open_dataset(str(write(table("1,0", "0,1", header="path,z,a"))), "train").classes == ("z", "a")
    given = LabelsConfig(classes=("b", "A", "9", "10", "c"))
    assert open_dataset(str(write(rows)), "train", labels=given).classes == given.classes


def test_splits(write: Write, tmp_path: Path) -> None:
    rows = table("a,train", "b,Train", "a,valid", "b,test", header="path,label,split")
    train_ids, val_ids = (set(labels_of(open_dataset(str(write(rows)), split))) for split in ("train", "val"))
    assert (train_ids, val_ids) == ({"0.png", "1.png"}, {"2.png"})
    (tmp_path / "labels.csv").unlink()
    write(table("a", "b"), "train.csv")
    write(table("b", "a", names=NAMES[2:]), "val.csv")
    write("path\n4.png\n", "test.csv")
    assert labels_of(open_dataset(str(tmp_path), "val")) == {"2.png": "b", "3.png": "a"}
    write(PLAIN, "train.tsv")  # not tabs: it has no path column
    assert len(open_dataset(str(tmp_path), "train")) == 2
    write(PLAIN.replace(",", "\t"), "train.tsv")
    with pytest.raises(ValueError, match=r"train\.csv and .*train\.tsv"):
        open_dataset(str(tmp_path), "train")


def test_keys_that_the_first_line_of_json_lacks_count(write: Write) -> None:
    rows = [
        {"path": "0.png", "label": "a"},
        {"path": "1.png", "label": "b"},
        {"path": "2.png", "label": "a", "split": "val"},
    ]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    with pytest.raises(ValueError, match="line 1 lacks 'split', which other lines have"):
        opened(write(lines, "x.jsonl"))
    lines = "".join(f"{json.dumps({'split': 'train', **row})}\n" for row in rows)
    assert labels_of(open_dataset(str(write(lines, "x.jsonl")), "val")) == {"2.png": "a"}


@pytest.mark.parametrize("labeled", ["train.csv", "train/metadata.csv", "train/labels.csv"])
def test_validation_images_without_labels_are_an_error(labeled: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for name in NAMES:
            Image.new("RGB", (8, 8)).save(tmp_path / split / name)
    prefix = "train/" if labeled == "train.csv" else ""
    (tmp_path / labeled).write_text(table("a", "b", "a", "b", names=[prefix + name for name in NAMES]))
    with pytest.raises(ValueError, match=r"the 6 images in .*val/ have none; expected .*val/labels\.csv"):
        open_dataset(str(tmp_path), "val")
    assert len(open_dataset(str(tmp_path / labeled), "val", val_fraction=0.5)) == 2
    (tmp_path / "val" / "labels.csv").write_text(table("a", "b"))
    found = open_dataset(str(tmp_path), "val")
    assert [found.name(i) for i in range(len(found))] == [str(tmp_path / "val" / name) for name in NAMES[:2]]


def test_a_label_file_without_a_path_column_is_named(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    root = write(PLAIN.replace("path", "image_id"), "train.csv").parent
    write_images(root / "train", COLORS, [2, 2, 2])
    assert len(open_dataset(str(root), "train", val_fraction=0.0).classes) == 3
    assert "train.csv: ignored: it has no path column" in caplog.text


def test_metadata_of_hugging_face_is_read(tmp_path: Path) -> None:
    for split, labels in (("train", "ab"), ("validation", "ba")):
        (tmp_path / split).mkdir()
        for i in range(2):
            Image.new("RGB", (8, 8)).save(tmp_path / split / f"{i}.png")
        rows = table(*labels, header="file_name,label")
        (tmp_path / split / "metadata.csv").write_text(rows)
    assert labels_of(open_dataset(str(tmp_path), "train")) == {"0.png": "a", "1.png": "b"}
    assert labels_of(open_dataset(str(tmp_path), "val")) == {"0.png": "b", "1.png": "a"}


@pytest.mark.usefixtures("no_report")
def test_label_file_equals_class_folders(tmp_path: Path) -> None:
    root = write_images(tmp_path / "set", COLORS, [5, 5, 5])
    rows = sorted((str(path.relative_to(root)), path.parent.name) for path in root.rglob("*.png"))
    with open(tmp_path / "set.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *reversed(rows)])
    recipe = tiny(root, epochs=1, input=dict(val_fraction=0.2))
    runs = [
        train(replace(recipe, data=str(data), labels=LabelsConfig(folder="set")), tmp_path / f"run{i}", display=False)
        for i, data in enumerate((root, tmp_path / "set.csv"))
    ]
    assert runs[0].metrics == runs[1].metrics
    first, second = (run.raw.state_dict() for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- multi-label ---


def write_multi(folder: Path, count: int = 24) -> Path:
    """Images with a colored square for each of their labels."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    rows = ["image,labels"]
    for i in range(count):
        pixels = rng.integers(0, 60, (32, 48, 3)).astype(np.uint8)
        names = [name for name in COLORS if rng.random() < 0.5]
        for name in names:
            k = list(COLORS).index(name)
            pixels[8:24, 16 * k : 16 * k + 16] = COLORS[name]
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{'|'.join(names)}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def multi_label_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("multi")
    recipe = tiny(
        write_multi(folder / "set"), epochs=4, classify=MULTI, input=dict(val_fraction=0.25),
        augment=dict(mixup=0.2, cutmix=0.5, mix_prob=0.2),
    )  # fmt: skip
    train(recipe, folder / "run", display=False)
    return folder


def test_multi_label_run_is_evaluated_on_its_held_out_images(multi_label_run: Path) -> None:
    metrics = json.loads((multi_label_run / "run" / "metrics.json").read_text())
    again = smt_vision.evaluate(multi_label_run / "run", workers=0)
    assert again["map"] == pytest.approx(metrics["map"], abs=1e-3)
    assert (again["count"], again["trained_on"]) == (metrics["count"], 0)
    assert 0 < metrics["map"] <= 100


@pytest.mark.pictures
def test_multi_label_predictions(multi_label_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictor: Any = smt_vision.load(multi_label_run / "run", overrides={"classify": {"threshold": 0.4}})
    images = [multi_label_run / "set" / f"{i}.png" for i in range(4)]
    results = predictor(images, top_k=1)
    for result in results:
        pixels = predictor.transform(decode(Path(result.source), 3, name="x"))
        scores = predictor.model(pixels[None])[0].sigmoid()
        expected = {predictor.classes[i] for i in np.flatnonzero(scores.detach().numpy() >= 0.4)}
        assert {label for label, _ in result.labels} == expected
        assert [score for _, score in result.labels] == sorted((s for _, s in result.labels), reverse=True)
        assert len(result.top) == 1
    predictor.save(results, tmp_path / "out")
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [set(filter(None, row["labels"].split("|"))) for row in rows] == [
        {label for label, _ in result.labels} for result in results
    ]
    assert (tmp_path / "out" / "predictions.png").stat().st_size > 1000
    none = smt_vision.load(multi_label_run / "run", overrides={"classify": {"threshold": 1.0}})
    assert none(images[:1])[0].labels == ()
    assert none.row(none(images[:1])[0])[0] == "none"
    (found,) = answer(capsys, "predict", str(multi_label_run / "run"), str(images[0]), "--classify.threshold", "0")
    assert {label for label, _ in found["labels"]} == set(COLORS)


def test_labels_are_joined_by_what_is_in_no_class_name(multi_label_run: Path, tmp_path: Path) -> None:
    assert [label_separator(names) for names in (["a", "b;c"], ["a|b"], ["a|b", "c;d"], ["a|;,"])] == [
        "|",
        ";",
        ",",
        "|",
    ]
    predictor: Any = smt_vision.load(multi_label_run / "run", overrides={"classify": {"threshold": 0.0}})
    predictor.classes = ("blue|b", "green", "red")
    (result,) = predictor([multi_label_run / "set" / "0.png"])
    predictor.save([result], tmp_path)
    with open(tmp_path / "predictions.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert set(row["labels"].split(";")) == set(predictor.classes)


def test_mixing_keeps_the_share_of_each_label(multi_label_run: Path) -> None:
    recipe = tiny(multi_label_run / "set", classify=MULTI, augment=dict(mixup=1.0, mix_prob=1.0))
    task = smt_vision.tasks.get_task("classify").training(recipe)
    batch = next(iter(task.train_loader(0, 1).epoch(0)))
    assert batch["target"].shape == (4, 3)
    assert batch["target"].dtype == torch.float32
    torch.manual_seed(0)
    _, mixed = task.mix(batch["image"], batch["target"])
    assert torch.allclose(mixed.sum(0), batch["target"].sum(0))
    assert not torch.equal(mixed, batch["target"])


def test_multi_label_images_are_held_out_in_proportion(tmp_path: Path) -> None:
    write_multi(tmp_path / "set", count=100)
    sets = [open_dataset(str(tmp_path / "set"), s, val_fraction=0.2, multi_label=True) for s in ("train", "val")]
    counts = np.array([images.targets.sum(0) for images in sets])
    assert np.abs(counts[1] / counts.sum(0) - 0.2).max() < 0.03
    assert not set(labels_of(sets[0])) & set(labels_of(sets[1]))
    assert len(sets[0]) + len(sets[1]) == 100
    again = open_dataset(str(tmp_path / "set"), "val", val_fraction=0.2, multi_label=True)
    assert labels_of(again) == labels_of(sets[1])
    other = open_dataset(str(tmp_path / "set"), "val", val_fraction=0.2, multi_label=True, seed=1)
    assert labels_of(other) != labels_of(sets[1])


def test_every_class_keeps_an_image_for_training(write: Write) -> None:
    """Z has two images, which also are the rarest of two other classes."""
    rows = table("A", "A|Z", "C", "C|Z", "F", "F")
    for seed in range(20):
        images = open_dataset(str(write(rows)), "train", val_fraction=0.1, multi_label=True, seed=seed)
        assert images.targets.any(0).all(), seed


def test_validation_images_without_any_label_are_an_error_at_the_start(write: Write) -> None:
    file = write(table("a|b,train", "b,train", ",val", header="path,label,split"))
    with pytest.raises(ValueError, match="none of the 1 validation images has a class"):
        smt_vision.tasks.get_task("classify").training(tiny(file, classify=MULTI))


@pytest.mark.usefixtures("no_report")
def test_label_files_of_other_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model reads them as in training, by default, or as an option says; evaluated are the images it held out."""
    root = write_images(tmp_path / "set", COLORS, [4, 4, 4])
    rows = sorted((str(path.relative_to(root)), path.parent.name) for path in root.rglob("*.png"))
    for name, columns in (("own", "photo,kind"), ("default", "path,label"), ("other", "image_id,breed")):
        text = "".join(f"{path},{label}\n" for path, label in rows)
        (tmp_path / f"{name}.csv").write_text(f"{columns}\n{text}")
    labels = LabelsConfig(path="photo", label="kind", folder="set")
    train(replace(tiny(tmp_path / "own.csv", epochs=1), labels=labels), tmp_path / "run", display=False)
    (tmp_path / "same_columns.csv").write_text((tmp_path / "own.csv").read_text())
    arguments = ("eval", tmp_path / "run", "--workers", "0", "--data")
    assert answer(capsys, *arguments, tmp_path / "same_columns.csv")["count"] == 3
    assert "'photo'" in refusal(capsys, 1, *arguments, tmp_path / "other.csv")
    (root / "default.csv").write_text((tmp_path / "default.csv").read_text())
    assert answer(capsys, *arguments, root / "default.csv")["count"] == 3
    options = ("--labels.path", "image_id", "--labels.label", "breed", "--labels.folder", "set")
    assert answer(capsys, *arguments, tmp_path / "other.csv", *options)["count"] == 3
    out = ("--out", tmp_path / "features.npz")
    assert answer(capsys, "embed", tmp_path / "run", tmp_path / "other.csv", *out, *options)["images"]["train"] == 9


def test_names_that_read_as_numbers_are_to_be_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    assert "quote names" in refusal(capsys, 2, "train", "finetune", "--labels.classes", "[0, 1]")


# --- cross-validation ---


@pytest.mark.parametrize("multi_label", [False, True])
def test_folds_are_a_stratified_partition(multi_label: bool, tmp_path: Path) -> None:
    source = write_multi(tmp_path, 50) if multi_label else write_images(tmp_path / "x", COLORS, [11, 7, 4])
    images = open_dataset(str(source), "train", val_fraction=0.0, multi_label=multi_label)
    folds = [split_fold(images, fold, 3, seed=5) for fold in (1, 2, 3)]
    held_out = [labels_of(val) for _, val in folds]
    assert sorted(name for fold in held_out for name in fold) == sorted(labels_of(images))
    for train_set, val in folds:
        assert not set(labels_of(train_set)) & set(labels_of(val))
        assert len(train_set) + len(val) == len(images)
        expected = np.bincount(images.presence()[1], minlength=3) / 3
        assert np.abs(np.bincount(val.presence()[1], minlength=3) - expected).max() < (2 if multi_label else 1)
    shuffled = images.select(np.random.default_rng(0).permutation(len(images)))
    assert labels_of(split_fold(shuffled, 2, 3, seed=5)[1]) == held_out[1]
    assert labels_of(split_fold(images, 2, 3, seed=6)[1]) != held_out[1]
    with pytest.raises(ValueError, match="folds=1000"):
        split_fold(images, 1, 1000, seed=0)


def test_cross_validation_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny(write_split(tmp_path / "set", train=4, val=2), epochs=1, folds=2)
    stopped = cross_validate(recipe, tmp_path / "cv", display=False, max_steps=2)  # one fold of 6 images has 1 step
    assert (len(stopped.folds), stopped.finished) == (2, True)
    stopped = cross_validate(recipe, tmp_path / "resumed", display=False, max_steps=1)
    assert (len(stopped.folds), stopped.finished) == (1, False)
    before = (tmp_path / "resumed" / "fold-1" / "best.pt").stat().st_mtime_ns
    found = answer(capsys, "train", "--resume", str(tmp_path / "resumed"))
    assert (tmp_path / "resumed" / "fold-1" / "best.pt").stat().st_mtime_ns == before
    stored = json.loads((tmp_path / "cv" / "folds.json").read_text())
    assert found["mean"] == stored["mean"]
    values = [fold["loss"] for fold in stored["folds"]]
    assert found["mean"]["loss"] == pytest.approx(np.mean(values))
    assert found["std"]["loss"] == pytest.approx(np.std(values, ddof=1))
    assert "fold-2" in (tmp_path / "cv" / "summary.md").read_text()
    again = smt_vision.evaluate(tmp_path / "cv" / "fold-2", workers=0)
    assert again["loss"] == pytest.approx(values[1], abs=1e-6)
    assert (again["count"], again["trained_on"]) == (6, 0)


@pytest.mark.parametrize("place", [("--run", "cv"), ()])
def test_folds_trained_one_by_one_are_collected(
    place: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("smt_vision.engine.loop.write_report", lambda run, command: None)
    (tmp_path / "runs" / "finetune").mkdir(parents=True)
    (tmp_path / "runs" / "finetune" / "recipe.yaml").touch()  # an ordinary run, which is left alone
    recipe = tiny(write_split(tmp_path / "set", train=4, val=2), epochs=1)
    command = ["train", "finetune", "--config", write_config(recipe, tmp_path / "tiny.yaml"), "--folds", "2", *place]
    folder = Path(place[1] if place else "runs/finetune-2")
    found = answer(capsys, *command, "--fold", "2", "--max_steps", "0")
    assert (found["run"], found["step"]) == (str(folder / "fold-2"), 0)
    assert answer(capsys, "train", "--resume", folder / "fold-2")["step"] == 1
    assert answer(capsys, *command, "--fold", "1")["run"] == str(folder / "fold-1")
    written = [(folder / f"fold-{i}" / "last.pt").stat().st_mtime_ns for i in (1, 2)]
    collected = answer(capsys, "train", "--resume", folder) if place else answer(capsys, *command)
    assert (collected["run"], len(collected["folds"])) == (str(folder), 2)
    assert written == [(folder / f"fold-{i}" / "last.pt").stat().st_mtime_ns for i in (1, 2)]
    assert answer(capsys, "train", "--resume", folder, "--fold", "2")["run"] == str(folder / "fold-2")
    inside = refusal(capsys, 1, *command, "--fold", "1", "--run", folder / "fold-2")
    assert f"{folder / 'fold-2'} holds an ordinary run" in inside


def test_folds_that_stop_early_are_finished(tmp_path: Path) -> None:
    early = dict(patience=1, min_delta=100.0, loggers=())  # no second evaluation is better by so much
    recipe = tiny(write_split(tmp_path / "set", train=4, val=2), epochs=5, folds=2, engine=early)
    result = cross_validate(recipe, tmp_path / "cv", display=False)
    assert (len(result.folds), result.finished) == (2, True)
    assert "epoch 2 of 5" in (tmp_path / "cv" / "fold-2" / "summary.md").read_text()


@pytest.mark.usefixtures("no_report")
def test_folds_of_a_detector(tmp_path: Path) -> None:
    recipe = replace(shapes_recipe(write_shapes(tmp_path / "shapes"), "faster_rcnn"), folds=2, fold=2)
    run = train(recipe, tmp_path / "run", display=False)
    assert (len(run.task.train_set), len(run.task.val_set)) == (2, 2)
    again = smt_vision.evaluate(tmp_path / "run", workers=0)
    assert (again["count"], again["trained_on"]) == (2, 0)


def test_invalid_folds_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="fold=3"):
        tiny(tmp_path, folds=2, fold=3)
    with pytest.raises(ValueError, match="fold=1"):
        tiny(tmp_path, fold=1)
    with pytest.raises(ValueError, match="folds=None"):
        cross_validate(tiny(tmp_path), tmp_path / "run")
    with pytest.raises(ValueError, match="folds=2 without a fold"):
        train(tiny(write_split(tmp_path / "set", 2, 1), folds=2), tmp_path / "run", display=False)
    run = tmp_path / "cv"
    assert "none" in refusal(capsys, 1, "train", "quickstart", "--data", "none", "--folds", "2", "--run", str(run))
    assert not (run / "recipe.yaml").exists()


# --- bands ---

BANDS = ClassificationInput(channels=5, size=32, crop_pct=1.0, workers=0)
PIXELS = np.random.default_rng(0).integers(0, 60_000, (20, 24, 5)).astype(np.uint16)
PLANES = PIXELS.transpose(2, 0, 1)


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def tiff(array: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, array, photometric="minisblack", **options)
    return out.getvalue()


@pytest.mark.parametrize("data", [
    npy(PIXELS), npy(np.asfortranarray(PIXELS)), npy(PIXELS.astype(">u2")), tiff(PIXELS, planarconfig="contig"),
    tiff(PLANES, planarconfig="separate"), tiff(PLANES), tiff(PLANES, byteorder=">"), tiff(PLANES, bigtiff=True),
    tiff(PLANES, compression="zlib"),
])  # fmt: skip
def test_bands_are_decoded(data: bytes) -> None:
    decoded = decode_input(data, BANDS, name="x")
    assert isinstance(decoded, torch.Tensor)
    assert torch.equal(decoded, torch.from_numpy(PLANES.astype(np.float32)) / 65535)


def test_ranges_of_values() -> None:
    for dtype, largest in (("uint8", 255), ("uint16", 65535)):
        full = np.full((4, 4, 5), largest, dtype)
        assert torch.equal(decode_input(npy(full), BANDS, name="x"), torch.ones(5, 4, 4))
    real = np.full((4, 4, 5), 0.5, np.float32)
    assert float(decode_input(npy(real), replace(BANDS, max_value=2.0), name="x").max()) == 0.25
    gray = Image.fromarray(np.array([[0, 4095], [1, 2048]], np.uint16))
    decoded = decode_input(gray, replace(BANDS, channels=1, max_value=4095.0), name="x")
    assert np.array_equal(decoded[0] * 4095, [[0, 4095], [1, 2048]])  # all 12 bits


def test_arrays_of_8_bits_are_images() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    assert np.array_equal(decode(npy(pixels), 3, name="x"), pixels)
    assert np.array_equal(decode(npy(pixels[..., :1]), 1, name="x"), pixels[..., 0])


@pytest.mark.parametrize(("data", "input", "message"), [
    (npy(PIXELS), replace(BANDS, channels=4), r"\(20, 24, 5\).*input\.channels=4"),
    (npy(PLANES), BANDS, "bands are first"),
    (npy(PIXELS.astype(np.float32)), BANDS, r"float32.*input\.max_value"),
    (npy(np.full((4, 4, 5), np.nan, np.float32)), replace(BANDS, max_value=1.0), "not finite"),
    (npy(PIXELS)[:500], BANDS, "truncated: an array of shape"), (npy(np.zeros((2, 2, 5), "c16")), BANDS, "complex128"),
    (tiff(PLANES)[:500], BANDS, "x: "), (tiff(np.zeros((2, 5, 8, 8), np.uint8)), BANDS, r"axes"),
    (npy(PIXELS), ClassificationInput(), r"input\.channels.*input\.max_value"),
        (tiff(PIXELS[..., :4], planarconfig="contig"), ClassificationInput(), r"TIFF.*input\.channels"),
])  # fmt: skip
def test_other_bands_are_unreadable(data: bytes, input: ClassificationInput, message: str) -> None:
    with pytest.raises(UnreadableImage, match=f"x: .*{message.removeprefix('x: ')}"):
        decode_input(data, input, name="x")


def test_claimed_size_is_refused_before_it_is_allocated() -> None:
    huge = npy(PIXELS).replace(b"(20, 24, 5), }      ", b"(99999, 99999, 5), }")
    with pytest.raises(UnreadableImage, match="99999"):
        decode_input(huge, BANDS, name="x")


def test_rgb_as_bands_equals_rgb() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(pixels).resize((112, 80)))
    rgb, bands = (replace(BANDS, channels=3, interpolation="bilinear", max_value=v) for v in (None, 255.0))
    one, other = (eval_transform(i)(decode_input(npy(smooth), i, name="x")) for i in (rgb, bands))
    assert float((one - other).abs().max()) < 2 / 255 / 0.22


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.elements = max(self.elements, out.numel())
        return out


def test_long_images_of_bands_need_little_memory() -> None:
    long = torch.rand(5, 40_000, 2)
    with Largest() as largest:
        assert ResizeTo(32, "bicubic", square=False, exact=False)(long).shape == (5, 512, 32)
        assert ResizeTo(32, "bicubic", square=True, exact=False)(long).shape == (5, 32, 32)
    assert largest.elements <= long.numel()


@pytest.mark.usefixtures("no_report")
def test_classifier_of_bands(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k, name in enumerate(("dry", "wet")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 1000, (36, 40 + i, 5)).astype(np.uint16)
            pixels[..., k] += 20_000
            tifffile.imwrite(
                tmp_path / "set" / name / f"{i}.tif", pixels, photometric="minisblack", planarconfig="contig"
            )
    recipe = tiny(
        tmp_path / "set", epochs=1, input=dict(channels=5), augment=dict(crop="rrc", hflip=0.5, random_erasing=0.5)
    )
    run = train(recipe, tmp_path / "run", display=False)
    assert run.task.input_description == "5 x 32 x 32 pixels"
    predictor: Any = smt_vision.load(tmp_path / "run")
    assert len(predictor.input.mean) == 5
    results = predictor([tmp_path / "set" / "wet" / "0.tif", tmp_path / "none.tif"])
    assert results[0].label in ("dry", "wet")
    assert results[1].error
    predictor.save(results, tmp_path / "out")
    samples = [image_to_tensor(image, predictor.input, predictor.transform) for image in sample_photo_crops()[:2]]
    assert predictor.model(torch.stack(samples)).shape == (2, 2)  # an export is checked on these


@pytest.mark.usefixtures("no_report")
def test_first_convolution_is_adapted(tmp_path: Path) -> None:
    source = tiny(write_split(tmp_path / "set", 2, 1), epochs=1)
    train(source, tmp_path / "run", display=False)
    task = smt_vision.tasks.get_task("classify").training(
        replace(tiny(tmp_path / "set", input=dict(channels=6, max_value=255.0)), checkpoint=str(tmp_path / "run"))
    )
    weights = smt_vision.checkpoints.load(tmp_path / "run").weights
    name = next(key for key, value in weights.items() if value.ndim == 4)
    assert torch.allclose(task.model.state_dict()[name], torch.cat([weights[name]] * 2, 1) / 2, atol=1e-6)


@pytest.mark.parametrize(("input", "augment", "field"), [
    (dict(channels=5), dict(color_jitter=0.4), "augment.color_jitter"),
    (dict(max_value=255.0), dict(auto_augment="rand-m9"), "augment.auto_augment"),
    (dict(channels=5, interpolation="lanczos"), {}, "input.interpolation"),
    (dict(channels=5, crop_mode="border"), {}, "input.crop_mode"), (dict(channels=5, exact=True), {}, "input.exact"),
    (dict(channels=5, mean=(0.5,) * 3), {}, "input.mean"), (dict(channels=0), {}, "input.channels"),
])  # fmt: skip
def test_settings_for_rgb_are_refused(input: dict[str, Any], augment: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field.replace(".", r"\.")):
        tiny(Path("x"), input=input, augment=augment)
