"""The command line: help, errors, exit codes, JSON output, and the path from images to a trained model in use."""

import csv
import json
import re
import subprocess
import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_dataset, create_loader
from timm.utils import accuracy
from torch import nn

import smt_vision
from command import answer, refusal, run
from drawn_sets import scenes_recipe, shapes_recipe
from smt_vision import checkpoints, load
from smt_vision._version import __version__
from smt_vision.cli import COMMANDS, predict
from smt_vision.cli.common import finite
from smt_vision.cli.train import _free_folder
from smt_vision.engine.loop import train
from smt_vision.model.official import to_official
from smt_vision.recipe import Recipe
from smt_vision.tasks import RECIPES, get_task
from smt_vision.tasks.classification.config import ClassificationAugment
from tiny_run import CLASSIFICATION_PICTURES, COLORS, environment, tiny, write_config, write_images
from waiting import DEADLINE

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """The recipes that ``smt train`` passes to :func:`train`, which is replaced and raises."""
    passed: list[Recipe] = []

    def record(recipe: Recipe, *args: Any, **kwargs: Any) -> None:
        passed.append(recipe)
        raise RuntimeError("recorded")

    monkeypatch.setattr("smt_vision.engine.loop.train", record)
    return passed


def mentions(text: str, word: str) -> bool:
    """Whether a text contains a word, and not only as a part of a longer one."""
    return re.search(rf"(?<![\w.]){re.escape(word)}(?![\w.]*\w)", text) is not None


# Help


def test_help(capsys: Capture) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n  {command} " in text
    assert "Exit codes" in text
    assert run() == 2
    assert capsys.readouterr().out == text
    assert run("--version") == 0
    assert capsys.readouterr().out == f"smt-vision {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_command(command: str, capsys: Capture) -> None:
    assert run(command, "--help") == 0
    text = capsys.readouterr().out
    assert f"smt {command}" in text.splitlines()[0]
    assert "--json" in text
    assert text.count(f"smt {command} ") >= 2  # usage, and at least one example
    assert max(map(len, text.splitlines())) < 400


def test_train_help_has_fields_with_descriptions_and_recipe_values(capsys: Capture) -> None:
    assert run("train", "cifar10", "--help") == 0
    text = capsys.readouterr().out
    for field in ("--optim.lr LR", "--augment.random_erasing", "--engine.ema", "--input.mean", "--model_args"):
        assert field in text
    assert f"{RECIPES['cifar10'].optim.lr:g}" in text
    (description,) = re.findall(r"^ +scale: (.+)$", ClassificationAugment.__doc__ or "", re.MULTILINE)
    assert description.replace("`", "") in " ".join(text.replace("`", "").split())


def test_train_help_has_only_fields_of_the_task(capsys: Capture) -> None:
    assert run("train", "bccd_retinanet", "--help") == 0
    text = capsys.readouterr().out
    assert "--detect.head" in text
    for field in ("--segment.", "--augment.mixup", "--input.crop_pct"):
        assert field not in text


# Usage errors


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "train"),
        (["train", "quickstrat"], "quickstart"),
        (["train"], "recipe"),
        (["recipes", "finetun"], "finetune"),
        (["train", "quickstart", "--optim.lrr", "1"], "--optim.lr"),
        (["train", "quickstart", "--lr", "1"], "--optim.lr"),
        (["train", "quickstart", "--epoch", "1"], "--epochs"),
        (["train", "quickstart", "--task", "detect"], "detect"),
        (["train", "quickstart", "--detect.head", "retinanet"], "--detect.head"),
        (["train", "bccd_retinanet", "--input.crop_pct", "1"], "--input.crop_pct"),
        (["predict", "x", "y", "--topk", "1"], "--top_k"),
        (["eval", "x", "--batchsize", "1"], "--batch_size"),
        (["eval", "x", "--device", "cuda"], "--engine.accelerator"),
        (["predict", "x", "y", "--engine.accelerator", "cuda"], "--device"),
        (["predict", "x", "y", "--precison", "bf16"], "--precision"),
        (["train", "quickstart", "--output-dir", "x"], "--run"),
        (["eval", "x", "--output", "x"], "--out"),
        (["train", "quickstart", "--epochs", "three"], "epochs"),
        (["train", "quickstart", "--optim.lr", "fast"], "optim.lr"),
        (["train", "quickstart", "--augment.crop", "middle"], "augment.crop"),
        (["train", "quickstart", "--input.mean", "[a]"], "input.mean"),
        (["train", "quickstart", "--config", "no-such-file.yaml"], "no-such-file.yaml"),
        (["eval"], "model"),
        (["predict", "x"], "images"),
        (["info", "smt_tiny", "--size", "big"], "size"),
    ],
    ids=" ".join,
)
def test_usage_errors(arguments: list[str], expected: str, capsys: Capture) -> None:
    assert mentions(refusal(capsys, 2, *arguments), expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epoch: 3", "epochs"),
        ("optim: {lrr: 1}", "optim.lr"),
        ("optm: {lr: 1}", "optim.lr"),
        ("epochs: many", "epochs"),
        ("task: detect", "detect"),
        ("detect: {head: retinanet}", "detect.head"),
        ("optim: [1", "config"),
    ],
)
def test_config_file_errors(text: str, expected: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "my.yaml").write_text(text)
    assert mentions(refusal(capsys, 2, "train", "quickstart", "--config", tmp_path / "my.yaml"), expected)


# Failures


def test_errors_name_the_invalid_argument(trained: Path, colored: Path, tmp_path: Path, capsys: Capture) -> None:
    nothing = tmp_path / "nothing"
    empty = tmp_path / "empty"
    empty.mkdir()
    image = colored / "val" / "red" / "0.png"
    for command, arguments, expected in (
        ("train", ["quickstart", "--data", nothing, "--run", tmp_path / "run"], "nothing"),
        ("train", ["--resume", nothing], "nothing"),
        ("train", ["quickstart", "--model", "smt_tinny", "--run", tmp_path / "run", "--data", colored], "smt_tiny"),
        ("eval", [trained, "--data", nothing], "nothing"),
        ("eval", ["no_such_model", "--data", colored], "no_such_model"),
        ("predict", [nothing, image], "nothing"),
        ("predict", [empty, image], "best.pt"),
        ("predict", [trained, nothing], "nothing"),
        ("predict", [trained, empty], str(empty)),
        ("predict", [trained, image, "--top_k", "0"], "--top_k 0"),
        ("predict", [trained, image, "--score", "0.5"], "--score"),
        ("predict", [trained, image, "--annotations", image], "--annotations"),
        ("predict", [trained, image, "--out", image.parent], str(image)),
        ("predict", [trained, image, "--detect.score_threshold", "0.5"], "detect.score_threshold"),
        ("info", ["smt_tinny"], "smt_tiny"),
        ("info", ["smt_tiny", "--size", "1", "2", "3"], "--size [1, 2, 3]"),
        ("convert", [nothing.with_suffix(".pth"), tmp_path / "a.safetensors"], "nothing.pth"),
    ):
        error = refusal(capsys, 1, command, *arguments)
        assert error.startswith(f"smt {command}: error: ")
        assert expected in error, (command, arguments)
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


# Overrides of a recipe


def test_overrides_are_parsed_by_type(recipes: list[Recipe], tmp_path: Path, capsys: Capture) -> None:
    arguments = ["--optim.lr", "1e-2", "--input.mean", "[0.5]", "--input.std=[0.25]", "--epochs", "3",
                 "--augment.scale", "[0.1, 0.9]", "--optim.clip_grad", "null", "--model_args.stem_stride", "1",
                 "--pretrained", "true", "--engine.ema", "null", "--data", "MY/IMAGES"]  # fmt: skip
    assert run("train", "quickstart", "--run", tmp_path / "run", *arguments) == 1
    assert capsys.readouterr().err == "smt train: error: recorded\n"
    (given,) = recipes
    base = RECIPES["quickstart"]
    assert (given.optim.lr, given.epochs, given.data, given.pretrained) == (0.01, 3, "MY/IMAGES", True)
    assert (given.input.mean, given.input.std, given.augment.scale) == ((0.5,), (0.25,), (0.1, 0.9))
    assert given.optim.clip_grad is given.engine.ema is None
    assert given.model_args == {"stem_stride": 1}
    changed = given.to_dict()
    for path in ("optim.lr", "input.mean", "input.std", "augment.scale", "optim.clip_grad", "engine.ema"):
        group, field = path.split(".")
        changed[group][field] = base.to_dict()[group][field]
    for field in ("epochs", "data", "pretrained", "model_args"):
        changed[field] = base.to_dict()[field]
    assert changed == base.to_dict()


def test_single_model_argument_keeps_the_others(recipes: list[Recipe], tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("model_args: {stem_stride: 2, drop_path_rate: 0.2}")
    run(
        "train", "cifar10", "--config", tmp_path / "my.yaml", "--run", tmp_path / "run", "--model_args.stem_stride", "1"
    )
    assert recipes[0].model_args == {"stem_stride": 1, "drop_path_rate": 0.2}


def test_arguments_override_config_file_overrides_recipe(recipes: list[Recipe], tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("epochs: 7\noptim: {lr: 0.5, betas: [0.8, 0.9]}\nmodel: smt_femto\n")
    config = ["--config", tmp_path / "my.yaml"]
    for arguments in (["--optim.lr", "0.25", *config], [*config, "--optim.lr", "0.25"]):
        run("train", "quickstart", "--run", tmp_path / "run", *arguments, "--epochs", "5")
    for given, lr in zip(recipes, (0.5, 0.25), strict=True):
        assert (given.epochs, given.optim.lr, given.optim.betas, given.model) == (5, lr, (0.8, 0.9), "smt_femto")
        assert given.optim.weight_decay == RECIPES["quickstart"].optim.weight_decay


def test_option_value_that_is_a_recipe_name(
    recipes: list[Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("train", "--json", "--run", "cifar10", "quickstart")
    run("train", "--run=cifar10", "quickstart")
    assert recipes == [RECIPES["quickstart"]] * 2


@pytest.mark.parametrize("name", ["quickstart", "bccd_retinanet"])
def test_printed_recipe_is_a_config_file(name: str, recipes: list[Recipe], tmp_path: Path, capsys: Capture) -> None:
    assert run("recipes", name) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    run("train", name, "--config", tmp_path / "mine.yaml", "--run", tmp_path / "run")
    assert recipes == [RECIPES[name]]


def test_run_folder_is_numbered(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    assert _free_folder(folder) == folder
    for expected in ("mine-2", "mine-3"):
        existing = _free_folder(folder)
        existing.mkdir(parents=True)
        (existing / "recipe.yaml").touch()
        assert _free_folder(folder).name == expected


# Train, resume, predict and evaluate


@pytest.fixture(scope="module")
def working_folder(colored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a finished run in ``runs/quickstart``, and its standard output in ``out.txt``."""
    folder = tmp_path_factory.mktemp("work")
    config = write_config(tiny(colored, epochs=6), folder / "tiny.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "smt_vision", "train", "quickstart", "--config", config],
        cwd=folder, capture_output=True, text=True, timeout=DEADLINE, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (folder / "out.txt").write_text(done.stdout)
    return folder


@pytest.mark.parametrize(("output", "code", "said"), [("| head -n 1", 141, ""), ("> /dev/full", 1, "No space left")])
def test_output_that_cannot_be_written(output: str, code: int, said: str) -> None:
    line = f"set -o pipefail; {sys.executable} -m smt_vision recipes --json {output}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == bool(said)


def test_train_output_and_files(working_folder: Path) -> None:
    folder = working_folder / "runs" / "quickstart"
    lines = (working_folder / "out.txt").read_text().splitlines()
    evaluated = [line for line in lines if "train loss" in line]
    assert len(evaluated) == 6
    assert "top-1 100.00 %" in evaluated[-1]
    assert any(line.startswith("runs/quickstart: top1 100.00 %") for line in lines)
    assert "smt predict runs/quickstart" in lines[-1]
    for name in ("recipe.yaml", "log.jsonl", "best.pt", "last.pt", "metrics.json", "summary.md", "summary.html",
                 "curves.png", *CLASSIFICATION_PICTURES):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
        if name.endswith(".png"):
            with Image.open(folder / name) as picture:
                picture.load()
    summary = (folder / "summary.md").read_text()
    assert "smt train quickstart --config" in summary
    assert re.search(r"100\.00 % top-1.* 12 images", summary)


def test_resume_of_finished_run_changes_nothing(working_folder: Path, capsys: Capture) -> None:
    folder = working_folder / "runs" / "quickstart"
    before = checkpoints.load(folder / "last.pt").weights
    result = answer(capsys, "train", "--resume", folder)
    assert (result["step"], result["top1"]) == (36, 100.0)
    assert run("train", "--resume", folder) == 0
    assert "finished" in capsys.readouterr().out
    after = checkpoints.load(folder / "last.pt").weights
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert "optim.lr" in refusal(capsys, 1, "train", "--resume", folder, "--optim.lr", "1")
    for words, omit in ((["--run", "runs/other"], "--run runs/other"), (["quickstart"], "the recipe quickstart")):
        assert f"omit {omit}" in refusal(capsys, 2, "train", "--resume", folder, *words)
    assert f"give its folder: --resume {folder}" in refusal(capsys, 1, "train", "--resume", folder / "last.pt")
    recipe = folder / "recipe.yaml"
    assert f"smt train RECIPE --config {recipe}" in refusal(capsys, 2, "train", recipe)


def test_json_has_no_numbers_that_are_not_finite() -> None:
    data = {"a": [1.5, float("nan"), {"b": (float("-inf"), 2, "NaN", None, True)}]}
    assert finite(data) == {"a": [1.5, None, {"b": [None, 2, "NaN", None, True]}]}


def test_max_steps(colored: Path, tmp_path: Path, capsys: Capture) -> None:
    config = write_config(tiny(colored), tmp_path / "tiny.yaml")
    assert run("train", "quickstart", "--config", config, "--run", tmp_path / "run", "--max_steps", "2") == 0
    text = capsys.readouterr().out
    assert "step 2 of 12" in text
    assert f"smt train --resume {tmp_path}/run" in text
    assert "nan" not in text
    assert "best.pt" in refusal(capsys, 1, "predict", tmp_path / "run", colored)
    predictions = answer(capsys, "predict", tmp_path / "run" / "last.pt", colored / "val")
    assert len(predictions) == 12


def test_predict_json(trained: Path, colored: Path, capsys: Capture) -> None:
    predictions = answer(capsys, "predict", trained, colored / "val", "--top_k", "2", "--batch_size", "5")
    assert [p["id"] for p in predictions] == sorted(str(p) for p in (colored / "val").rglob("*.png"))
    for p in predictions:
        assert p["label"] == Path(p["id"]).parent.name
        assert p["class_id"] == list(COLORS).index(p["label"])
        assert p["top"][0] == [p["label"], p["score"]]
        assert len(p["top"]) == 2
        assert p["error"] is None


def test_predict_table_with_unreadable_image(trained: Path, colored: Path, tmp_path: Path, capsys: Capture) -> None:
    long_name = "a name[red] that is longer than a line of a terminal" * 3
    images = [tmp_path / f"{name}.png" for name in ("a", long_name, "c")]
    images[0].write_bytes((colored / "val" / "red" / "0.png").read_bytes())
    images[1].write_bytes(b"rubbish")
    images[2].write_bytes((colored / "val" / "blue" / "1.png").read_bytes())
    assert run("predict", trained, *images) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for line, image, label in zip(lines[1:], images, ("red", "unreadable", "blue"), strict=True):
        assert str(image) in line
        assert label in line.replace(str(image), "")
    assert "7 bytes" in lines[2]
    errors = [p["error"] for p in answer(capsys, "predict", trained, *images)]
    assert errors[0] is errors[2] is None
    assert "7 bytes" in errors[1]
    assert run("predict", trained, images[1]) == 1  # no image could be read


@pytest.mark.pictures
def test_predict_out(trained: Path, colored: Path, tmp_path: Path, capsys: Capture) -> None:
    unreadable = tmp_path / "unreadable.png"
    unreadable.write_bytes(b"")
    out = tmp_path / "out"
    predictions = answer(capsys, "predict", trained, unreadable, colored / "val", "--out", out)
    assert {path.name for path in out.iterdir()} == {"predictions.csv", "predictions.png"}
    with (out / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [""] + [c for c in COLORS for _ in range(4)]
    assert [row["class_id"] for row in rows] == [""] + [str(i) for i in range(3) for _ in range(4)]
    assert rows[0]["image"] == str(unreadable)
    assert "empty" in rows[0]["error"]
    assert 0.3 < float(rows[1]["score"]) <= 1
    assert rows[1]["others"].count(";") == 1
    for row, prediction in zip(rows[1:], predictions[1:], strict=True):
        assert row["image"] == prediction["id"]
        assert float(row["score"]) == pytest.approx(prediction["score"], abs=1e-6)
        assert row["error"] == ""
    with Image.open(out / "predictions.png") as image:
        assert min(image.size) > 100
    assert run("predict", trained, colored / "val", "--out", out) == 0
    text = capsys.readouterr().out
    assert str(out / "predictions.csv") in text
    assert str(out / "predictions.png") in text


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("predict smt_femto.cifar10 PHOTO", "--out"),
        ("eval smt_femto.cifar10 --data IMAGES", "--out"),
        ("export smt_femto.cifar10 --format onnx", "--out"),
        ("embed smt_femto.cifar10 PHOTO", "--report"),
        ("inspect IMAGES", "--out"),
        ("bench smt_atto", "--out"),
        ("analyze smt_femto.cifar10 PHOTO", "--out"),
        ("study aggregation --report", "--out"),
        ("study aggregation", "--run"),
        ("train cifar10 --data IMAGES", "--run"),
    ],
)
def test_a_file_in_the_place_of_the_output_folder_is_refused_first(
    command: str, option: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "file").write_text("kept")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        # Nothing else is looked at before: the images do not exist.
        error = refusal(capsys, 1, *command.split(), option, folder)
        assert f"invalid {option} '{folder}': expected a folder that exists or can be created, not a file" in error
    assert (tmp_path / "file").read_text() == "kept"


def test_predict_out_of_images_that_differ_in_suffix(
    trained: Path, colored: Path, tmp_path: Path, capsys: Capture
) -> None:
    with Image.open(colored / "val" / "red" / "0.png") as image:
        for name in ("a.png", "a.bmp"):
            image.save(tmp_path / name)
    predictions = answer(capsys, "predict", trained, tmp_path / "a.png", tmp_path / "a.bmp", "--out", tmp_path / "out")
    assert [p["label"] for p in predictions] == ["red", "red"]
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == 3


def test_interrupted_predictions_are_kept_beside_the_earlier_ones(
    trained: Path, colored: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classifier = load(trained)
    results = classifier(sorted((colored / "val" / "red").iterdir())[:2])
    classifier.save(results, tmp_path)
    before = (tmp_path / "predictions.csv").read_text()

    def interrupted() -> Iterator[Any]:
        yield results[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        classifier.save(interrupted(), tmp_path)
    assert (tmp_path / "predictions.csv").read_text() == before
    assert {path.name for path in tmp_path.iterdir()} == {
        "predictions.csv",
        "predictions.partial.csv",
        "predictions.png",
    }
    assert (tmp_path / "predictions.partial.csv").read_text().splitlines() == before.splitlines()[:2]
    assert f"{tmp_path / 'predictions.partial.csv'}: the results of the images before the interruption" in caplog.text

    def failed() -> Iterator[Any]:
        raise RuntimeError
        yield

    with pytest.raises(RuntimeError):
        classifier.save(failed(), tmp_path)
    assert (tmp_path / "predictions.partial.csv").exists()  # there is nothing better
    classifier.save(results, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"predictions.csv", "predictions.png"}


def test_the_table_of_many_predictions_is_in_the_files(
    trained: Path, colored: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "MAX_ROWS", 2)
    images = sorted((colored / "val").rglob("*.png"))[:5]
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"")
    assert run("predict", trained, *images, damaged, "--out", tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert (str(images[1]) in text, str(images[2]) in text, str(damaged) in text) == (True, False, True)
    assert "\nimages in the files only: 3\n" in text
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == 7
    assert len(answer(capsys, "predict", trained, *images, "--out", tmp_path / "out")) == 5
    assert run("predict", trained, *images) == 0
    assert str(images[4]) in capsys.readouterr().out


def test_predict_out_without_readable_images(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    assert run("predict", trained, tmp_path / "a.png", "--out", tmp_path / "out") == 1
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == 2


def test_save_from_python_with_pil_images(trained: Path, colored: Path, tmp_path: Path) -> None:
    classifier = smt_vision.load(trained)
    path = colored / "val" / "red" / "0.png"
    with Image.open(path) as image:
        results = classifier([image.convert("RGB"), path])
    written = classifier.save(results, tmp_path / "out")
    assert written == [tmp_path / "out" / "predictions.csv", tmp_path / "out" / "predictions.png"]
    with written[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["label"]) for row in rows] == [("0", "red"), (str(path), "red")]
    with Image.open(written[1]) as sheet:
        sheet.load()


def test_eval_reproduces_metrics_of_run(trained: Path, colored: Path, tmp_path: Path, capsys: Capture) -> None:
    stored = json.loads((trained / "metrics.json").read_text())
    metrics = answer(capsys, "eval", trained, "--workers", "0", "--batch_size", "4")
    assert {k: metrics[k] for k in stored} == stored
    assert run("eval", trained, "--data", colored, "--workers", "0", "--out", tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "100.00" in text
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"metrics.json", *CLASSIFICATION_PICTURES}
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["count"] == 12


def test_eval_of_unsplit_dataset_uses_all_images(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    data = write_images(tmp_path / "data", COLORS, [3, 1, 2], seed=5)
    metrics = answer(capsys, "eval", trained, "--data", data, "--workers", "0")
    assert [row["count"] for row in metrics["per_class"]] == [3, 1, 2]
    # Classes are matched by name, not by index.
    data = write_images(tmp_path / "two", {"red": COLORS["red"], "blue": COLORS["blue"]}, [2, 3], seed=6)
    metrics = answer(capsys, "eval", trained, "--data", data, "--workers", "0")
    assert metrics["top1"] == 100.0
    assert [row["count"] for row in metrics["per_class"]] == [3, 0, 2]


def test_info_of_run_and_of_model_name(trained: Path, capsys: Capture) -> None:
    info = answer(capsys, "info", trained)
    state = checkpoints.load(trained / "best.pt").weights
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert info["parameters"] == sum(v.numel() for k, v in state.items() if not k.endswith(statistics))
    assert info["input_size"] == [3, 32, 32]
    assert len(info["stages"]) == 6
    assert run("info", "smt_atto", "--size", "64", "96", "--model_args.stem_stride", "2") == 0
    text = capsys.readouterr().out
    assert "3 x 64 x 96" in text
    assert "96 x 4 x 6" in text  # 64 and 96 pixels, at stride 16
    assert "SA" in text


def test_recipes(capsys: Capture) -> None:
    assert [r["name"] for r in answer(capsys, "recipes")] == list(RECIPES)
    assert answer(capsys, "recipes", "cifar10") == RECIPES["cifar10"].to_dict()
    assert run("recipes") == 0
    lines = capsys.readouterr().out.splitlines()
    for name in RECIPES:
        assert sum(line.split()[:1] == [name] for line in lines) == 1


def test_recipes_print_only_fields_of_their_task(capsys: Capture) -> None:
    recipe = answer(capsys, "recipes", "bccd_retinanet")
    assert recipe["task"] == "detect"
    assert "detect" in recipe
    assert "segment" not in recipe
    assert not {"size", "crop_pct", "crop_mode"} & recipe["input"].keys()
    assert not {"mixup", "auto_augment", "label_smoothing"} & recipe["augment"].keys()


# Official weights


def write_official(variant: str, path: Path, **kwargs: Any) -> nn.Module:
    """Write random weights in the official release's layout; returns their model."""
    torch.manual_seed(0)
    model: Any = timm.create_model(variant, **kwargs).eval()
    torch.save({"model": to_official(model.state_dict())}, path)
    return model


@pytest.mark.parametrize("variant", ["smt_atto", "smt_tiny"])
def test_official_file_in_predict_and_info(variant: str, colored: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "weights.pth"
    model = write_official(variant, path, num_classes=5)
    image = colored / "val" / "red" / "0.png"
    (prediction,) = answer(capsys, "predict", path, image, "--top_k", "5")
    assert {label for label, _ in prediction["top"]} == set("01234")
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    with Image.open(image) as opened, torch.inference_mode():
        expected = model(transform(opened.convert("RGB"))[None]).softmax(-1)[0]
    for label, score in prediction["top"]:
        assert score == pytest.approx(float(expected[int(label)]), rel=1e-4)
    info = answer(capsys, "info", path)
    assert info["parameters"] == sum(p.numel() for p in model.parameters())


def test_convert_in_both_directions(tmp_path: Path, capsys: Capture) -> None:
    source, ours, back = tmp_path / "release.pth", tmp_path / "ours.safetensors", tmp_path / "back.pth"
    model = write_official("smt_atto", source, num_classes=5)
    report = answer(capsys, "convert", source, ours)
    assert (report["direction"], report["variant"], report["num_classes"]) == ("official -> ours", "smt_atto", 5)
    state = load_file(ours)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert run("convert", ours, back) == 0
    text = capsys.readouterr().out
    assert "ours -> official" in text
    assert "smt_atto" in text
    one, two = (torch.load(path, weights_only=True)["model"] for path in (source, back))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)
    torch.save({"weight": torch.ones(2)}, source)
    assert str(source) in refusal(capsys, 1, "convert", source, tmp_path / "no.pth")
    assert not (tmp_path / "no.pth").exists()


# The same metrics as timm's validation script


def timm_validation(
    model: nn.Module, root: Path, batch_size: int, class_map: dict[str, int] | None, **transform: Any
) -> tuple[float, float, float]:
    """Top-1, top-5 (averaged as in timm's validate.py) and the mean loss."""
    dataset = create_dataset("", root=str(root), class_map=class_map or "")
    loader = create_loader(dataset, batch_size=batch_size, use_prefetcher=False, num_workers=0, **transform)
    top1 = top5 = loss = count = 0.0
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "unclosed file", ResourceWarning)  # by timm's reader
        for images, target in loader:
            output = model(images)
            acc1, acc5 = accuracy(output, target, topk=(1, 5))
            top1 += acc1.item() * len(target)
            top5 += acc5.item() * len(target)
            loss += nn.functional.cross_entropy(output, target, reduction="none").sum(dtype=torch.float64).item()
            count += len(target)
    return top1 / count, top5 / count, loss / count


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
def test_eval_of_timm_model_matches_timm_validation(name: str, tmp_path: Path, capsys: Capture) -> None:
    colors = {f"c{i}": (20 * i, 255 - 30 * i, 90) for i in range(7)}
    data = tmp_path / "data"
    write_images(data / "train", colors, [2] * 7)
    write_images(data / "val", colors, [3, 1, 4, 1, 5, 2, 6], seed=1)
    recipe = tiny(data, model=name, model_args={}, input=dict(size=64, crop_pct=0.875, interpolation="bilinear"))
    train(recipe, tmp_path / "run", display=False, max_steps=3)
    weights = checkpoints.load(tmp_path / "run" / "last.pt").weights
    model = timm.create_model(name, num_classes=7).eval()
    model.load_state_dict(weights)
    config = model.pretrained_cfg
    expected = timm_validation(
        model, data / "val", 8, None, input_size=(3, 64, 64), interpolation="bilinear", crop_pct=0.875,
        mean=config["mean"], std=config["std"],
    )  # fmt: skip
    options = ["--data", data, "--batch_size", "8", "--workers", "0", "--input.exact", "true"]
    metrics = answer(capsys, "eval", tmp_path / "run" / "last.pt", *options)
    assert metrics["count"] == 22
    assert metrics["top1"] != metrics["top5"]
    assert (round(metrics["top1"], 4), round(metrics["top5"], 4)) == (round(expected[0], 4), round(expected[1], 4))
    assert metrics["loss"] == expected[2]


def test_eval_on_subset_of_imagenet_classes_matches_timm_validation(tmp_path: Path, capsys: Capture) -> None:
    # Folders named by WordNet ids, and their class indices in a model of 1000 classes.
    indices = {"n01440764": 0, "n02099601": 207, "n03888257": 701}
    data = tmp_path / "data"
    write_images(data / "val", {name: (80 * i, 100, 200 - 90 * i) for i, name in enumerate(indices)}, [3, 2, 4])
    write_images(data / "train", dict.fromkeys(indices, (0, 0, 0)), [1, 1, 1])
    model = write_official("smt_atto", tmp_path / "smt.pth")
    config = timm.data.resolve_data_config({}, model=model)
    expected = timm_validation(
        model, data / "val", 4, indices, input_size=(3, 96, 96), interpolation=config["interpolation"],
        crop_pct=config["crop_pct"], mean=config["mean"], std=config["std"],
    )  # fmt: skip
    options = ["--data", data, "--batch_size", "4", "--workers", "0", "--input.size", "96"]
    metrics = answer(capsys, "eval", tmp_path / "smt.pth", *options)
    counts = {i: row["count"] for i, row in enumerate(metrics["per_class"]) if row["count"]}
    assert counts == {0: 3, 207: 2, 701: 4}
    assert (metrics["top1"], metrics["top5"]) == expected[:2]
    assert metrics["loss"] == expected[2]


def test_eval_of_more_classes_than_the_model_raises(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    data = write_images(tmp_path / "data", {f"c{i}": (i, i, i) for i in range(4)}, [1] * 4)
    error = refusal(capsys, 1, "eval", trained, "--data", data, "--workers", "0")
    assert "4 classes" in error
    assert mentions(error, "3")


# Weights


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of empty caches, where nothing can be downloaded: an unknown host, and the Hub's offline mode."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def unknown_host(*_: Any, **__: Any) -> None:
        raise URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setattr("urllib.request.OpenerDirector.open", unknown_host)
    return tmp_path


@pytest.mark.parametrize("recipe", ["finetune", "nuclei_mask_rcnn", "camvid_upernet"])
@pytest.mark.parametrize(("model", "where"), [
    ("smt_tiny", "torch/hub/checkpoints/smt_tiny.pth"),
    ("resnet18", "models--timm--resnet18.a1_in1k to .*/hub;"),
    ("smt_atto", "No pretrained weights exist for smt_atto"),
])  # fmt: skip
def test_train_without_pretrained_weights_names_the_options_before_it_opens_data(
    recipe: str, model: str, where: str, offline: Path, capsys: Capture
) -> None:
    arguments = ["--model", model, "--pretrained", "true", "--data", offline / "absent", "--run", offline / "run"]
    error = refusal(capsys, 1, "train", recipe, *arguments)
    message = error.splitlines()[-1]
    assert re.search(rf"smt train: error: .*{where}.*--checkpoint FILE.*--pretrained false", message)
    assert "pretrained_cfg_overlay" not in error
    assert not (offline / "run").exists()


@pytest.mark.parametrize("command", [
    ["predict", "MODEL", "IMAGE"], ["eval", "MODEL", "--data", "absent"], ["export", "MODEL", "--format", "onnx"]
], ids=lambda words: words[0])  # fmt: skip
@pytest.mark.parametrize(("model", "remedy"), [
    ("smt_large.in22k", r"torch/hub/checkpoints/smt_large_22k\.pth; or pass .* file of weights instead of smt_large\."),
    ("resnet18", r"models--timm--resnet18\.a1_in1k to .*/hub; or pass local-dir:FOLDER instead of resnet18"),
])  # fmt: skip
def test_use_without_pretrained_weights_names_the_options(
    command: list[str], model: str, remedy: str, colored: Path, offline: Path, capsys: Capture
) -> None:
    image = next((colored / "val").rglob("*.png"))
    error = refusal(capsys, 1, *({"MODEL": model, "IMAGE": image}.get(word, word) for word in command))
    assert re.search(rf"smt {command[0]}: error: .*{remedy}", error)
    assert "pretrained_cfg_overlay" not in error


def test_weights_without_a_head(colored: Path, tmp_path: Path, capsys: Capture) -> None:
    model = timm.create_model("smt_atto", num_classes=0)
    path = tmp_path / "headless.pth"
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in to_official(model.state_dict()).items()}}, path)
    for arguments in (
        ["predict", path, colored],
        ["eval", path, "--data", colored],
        ["export", path, "--format", "onnx"],
    ):
        error = refusal(capsys, 1, *arguments)
        assert re.search(r"headless\.pth: weights of smt_atto without a classifier.*--checkpoint.*backbone", error)
    assert answer(capsys, "info", path)["parameters"] == sum(p.numel() for p in model.parameters())
    assert run("convert", path, tmp_path / "converted.safetensors") == 0
    assert load_file(tmp_path / "converted.safetensors").keys() == model.state_dict().keys()


def test_checkpoints_of_other_programs_in_commands(colored: Path, tmp_path: Path, capsys: Capture) -> None:
    model = timm.create_model("smt_atto", num_classes=3).eval()
    state = {f"module.{k}": v for k, v in to_official(model.state_dict()).items()}
    path = tmp_path / "model_best.pth.tar"
    torch.save({"state_dict": state, "args": Namespace(lr=0.1), "epoch": 3}, path)
    image = next((colored / "val").rglob("*.png"))
    (result,) = answer(capsys, "predict", path, image)
    (expected,) = smt_vision.load(path)([image])
    assert (result["label"], result["score"]) == (expected.label, expected.score)


def test_weights_for_gray_images(colored: Path, tmp_path: Path, capsys: Capture) -> None:
    model = timm.create_model("smt_atto", num_classes=3, in_chans=1).eval()
    path = tmp_path / "gray.pth"
    torch.save(to_official(model.state_dict()), path)
    image = next((colored / "val").rglob("*.png"))
    (result,) = answer(capsys, "predict", path, image)
    predictor = smt_vision.load(path)
    assert (predictor.spec.input.channels, predictor.spec.input.mean) == (1, (pytest.approx(0.449),))
    assert result["label"] == predictor([Image.open(image).convert("L")])[0].label
    assert answer(capsys, "info", path)["input_size"] == [1, 224, 224]
    torch.save(timm.create_model("smt_atto", in_chans=4).state_dict(), path)
    assert "gray.pth: weights for images of 4 channels" in refusal(capsys, 1, "predict", path, image)


@pytest.mark.parametrize("command", [["info", "MISSING"], ["predict", "MISSING", "IMAGE"]], ids=lambda words: words[0])
def test_a_missing_file_is_no_model(command: list[str], colored: Path, capsys: Capture) -> None:
    words = {"MISSING": "missing.pth", "IMAGE": next((colored / "val").rglob("*.png"))}
    error = refusal(capsys, 1, *(words.get(word, word) for word in command))
    assert "'missing.pth' is neither a file or folder nor a model" in error


@pytest.mark.parametrize("model", ["smt_atto", "resnet18"])
def test_gray_training_starts_from_weights_for_color(model: str, colored: Path, tmp_path: Path) -> None:
    source = timm.create_model(model, num_classes=5)
    torch.save(source.state_dict(), tmp_path / "color.pth")
    recipe = tiny(colored, model=model, model_args={}, checkpoint=str(tmp_path / "color.pth"))
    gray = replace(recipe, input=replace(recipe.input, channels=1))
    first = f"{source.pretrained_cfg['first_conv']}.weight"
    own = get_task("classify").training(gray).model.state_dict()
    torch.testing.assert_close(own[first], source.state_dict()[first].sum(1, keepdim=True))


@pytest.mark.parametrize("model", ["smt_atto", "resnet18"])
def test_training_starts_from_a_prefixed_file(model: str, colored: Path, tmp_path: Path) -> None:
    source = timm.create_model(model, num_classes=5)
    state = {f"backbone.{k}": v for k, v in source.state_dict().items()}
    torch.save({"state_dict": {**state, "neck.weight": torch.ones(1)}, "meta": {}}, tmp_path / "other.pth")
    recipe = tiny(colored, model=model, model_args={}, checkpoint=str(tmp_path / "other.pth"))
    training = get_task("classify").training(recipe)
    own, heads = training.model.state_dict(), ("head.fc.", "fc.")
    for key, value in source.state_dict().items():
        assert key.startswith(heads) or torch.equal(own[key], value), key


def test_a_resumed_run_needs_no_initial_weights(colored: Path, tmp_path: Path, capsys: Capture) -> None:
    initial, folder = tmp_path / "initial.pth", tmp_path / "run"
    recipe = tiny(colored, checkpoint=str(initial))
    torch.save(timm.create_model(recipe.model, num_classes=3, **recipe.model_args).state_dict(), initial)
    whole = train(recipe, tmp_path / "whole", display=False)
    train(recipe, folder, display=False, max_steps=2)
    initial.unlink()
    assert answer(capsys, "train", "--resume", folder)["step"] == whole.total_steps
    resumed = checkpoints.load(folder / "last.pt")
    assert resumed.state["recipe"]["checkpoint"] == str(initial)
    expected = checkpoints.load(tmp_path / "whole" / "last.pt").weights
    assert all(torch.equal(value, expected[key]) for key, value in resumed.weights.items())


def test_detectors_and_segmenters_start_from_a_prefixed_file(shapes: Path, scenes: Path, tmp_path: Path) -> None:
    for recipe in (shapes_recipe(shapes), scenes_recipe(scenes)):
        source = timm.create_model(recipe.model, num_classes=5, **recipe.model_args)
        state = {f"net.encoder.{k}": v for k, v in to_official(source.state_dict()).items()}
        torch.save({**state, "decoder.weight": torch.ones(1)}, tmp_path / "other.pth")
        training = get_task(recipe.task).training(replace(recipe, checkpoint=str(tmp_path / "other.pth")))
        own = {key.rpartition("net.model.")[2]: value for key, value in training.model.state_dict().items()}
        for key, value in source.state_dict().items():
            assert key.startswith("head.") or torch.equal(own[key], value), key


def test_the_early_look_at_pretrained_weights_changes_no_random_numbers(colored: Path) -> None:
    """Weights that ship with the package: the model built before the data is opened draws from its own generator."""
    recipe = tiny(colored, model="smt_femto.cifar10", model_args={}, pretrained=True)
    torch.manual_seed(0)
    head = get_task("classify").training(recipe).model.get_classifier().weight
    torch.manual_seed(0)
    model = timm.create_model("smt_femto.cifar10", pretrained=True, num_classes=3, in_chans=3)
    assert torch.equal(head, model.get_classifier().weight)
