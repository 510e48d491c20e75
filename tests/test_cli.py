"""The command line as a user meets it: help, errors, exit codes, JSON, and the way from images to a model in use."""

import csv
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_dataset, create_loader
from timm.utils import accuracy
from torch import nn

from command import answer, refusal, run
from smt_vision import checkpoints as checkpoint
from smt_vision._version import __version__
from smt_vision.cli import COMMANDS
from smt_vision.cli.train import _free_folder
from smt_vision.engine.loop import train
from smt_vision.model.official import to_official
from smt_vision.recipe import Recipe
from smt_vision.tasks import RECIPES
from tiny_run import COLORS, tiny, write_config, write_images

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """The recipes that ``smt train`` would have trained."""
    given: list[Recipe] = []

    def remember(recipe: Recipe, *args: Any, **kwargs: Any) -> None:
        given.append(recipe)
        raise RuntimeError("enough")

    monkeypatch.setattr("smt_vision.engine.loop.train", remember)
    return given


# --- help


def test_help_of_all(capsys: Capture) -> None:
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
def test_help_of_each(command: str, capsys: Capture) -> None:
    assert run(command, "--help") == 0
    text = capsys.readouterr().out
    assert f"smt {command}" in text.splitlines()[0]
    assert "--json" in text
    assert text.count(f"smt {command} ") >= 2  # its usage, and an example at least
    assert max(map(len, text.splitlines())) < 400


def test_help_explains_every_field_with_the_recipes_value(capsys: Capture) -> None:
    assert run("train", "cifar10", "--help") == 0
    text = capsys.readouterr().out
    for field in ("--optim.lr LR", "--augment.random_erasing", "--engine.ema", "--input.mean", "--model_args"):
        assert field in text
    assert "0.002" in text  # cifar10's rate
    assert "areas of rrc" in text.replace("``", "")


# --- wrong usage


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trian"], "did you mean train?"),
        (["train", "quickstrat"], "did you mean quickstart?"),
        (["train"], "name a recipe"),
        (["recipes", "finetun"], "did you mean finetune?"),
        (["train", "quickstart", "--optim.lrr", "1"], "did you mean --optim.lr?"),
        (["train", "quickstart", "--lr", "1"], "did you mean --optim.lr?"),
        (["train", "quickstart", "--epoch", "1"], "did you mean --epochs?"),
        (["predict", "x", "y", "--topp", "1"], "did you mean --top?"),
        (["eval", "x", "--batchsize", "1"], "did you mean --batch_size?"),
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
def test_wrong_words(words: list[str], told: str, capsys: Capture) -> None:
    assert told in refusal(capsys, 2, *words)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("epoch: 3", "did you mean epochs?"),
        ("optim: {lrr: 1}", "did you mean optim.lr?"),
        ("optm: {lr: 1}", "did you mean optim.lr?"),
        ("epochs: many", "epochs"),
        ("optim: [1", "config"),
    ],
)
def test_wrong_keys_in_a_file(text: str, told: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "my.yaml").write_text(text)
    assert told in refusal(capsys, 2, "train", "quickstart", "--config", tmp_path / "my.yaml")


# --- failures


def test_what_is_missing_is_named(trained: Path, colored: Path, tmp_path: Path, capsys: Capture) -> None:
    nothing = tmp_path / "nothing"
    empty = tmp_path / "empty"
    empty.mkdir()
    image = colored / "val" / "red" / "0.png"
    for command, words, told in (
        ("train", ["quickstart", "--data", nothing, "--run", tmp_path / "run"], "nothing' does not exist"),
        ("train", ["--resume", nothing], "nothing holds no run"),
        ("train", ["quickstart", "--model", "smt_tinny", "--run", tmp_path / "run", "--data", colored], "smt_tiny"),
        ("eval", [trained, "--data", nothing], "nothing' does not exist"),
        ("eval", ["no_such_model", "--data", colored], "no_such_model"),
        ("predict", [nothing, image], "nothing"),
        ("predict", [empty, image], "no best.pt"),
        ("predict", [trained, nothing], "nothing"),
        ("predict", [trained, empty], "no image in the folder"),
        ("predict", [trained, image, "--top", "0"], "at least 1"),
        ("info", ["smt_tinny"], "smt_tiny"),
        ("info", ["smt_tiny", "--size", "1", "2", "3"], "height and width"),
        ("convert", [nothing.with_suffix(".pth"), tmp_path / "a.safetensors"], "nothing.pth"),
    ):
        error = refusal(capsys, 1, command, *words)
        assert error.startswith(f"smt {command}: error: ")
        assert told in error, (command, words)
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


# --- what reaches the recipe


def test_overrides_are_typed_and_reach_the_recipe(recipes: list[Recipe], tmp_path: Path, capsys: Capture) -> None:
    words = ["--optim.lr", "1e-2", "--input.mean", "[0.5]", "--input.std=[0.25]", "--epochs", "3", "--augment.scale",
             "[0.1, 0.9]", "--optim.clip_grad", "null", "--model_args.stem_stride", "1", "--pretrained", "true",
             "--engine.ema", "null", "--data", "MY/IMAGES"]  # fmt: skip
    assert run("train", "quickstart", "--run", tmp_path / "run", *words) == 1
    assert capsys.readouterr().err == "smt train: error: enough\n"
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


def test_one_model_argument_leaves_the_others(recipes: list[Recipe], tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("model_args: {stem_stride: 2, drop_path_rate: 0.2}")
    words = ["--config", tmp_path / "my.yaml", "--run", tmp_path / "run", "--model_args.stem_stride", "1"]
    run("train", "cifar10", *words)
    assert recipes[0].model_args == {"stem_stride": 1, "drop_path_rate": 0.2}


def test_file_goes_before_the_recipe_and_what_is_typed_later_before_both(recipes: list[Recipe], tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("epochs: 7\noptim: {lr: 0.5, betas: [0.8, 0.9]}\nmodel: smt_femto\n")
    config = ["--config", tmp_path / "my.yaml"]
    for words in (["--optim.lr", "0.25", *config], [*config, "--optim.lr", "0.25"]):
        run("train", "quickstart", "--run", tmp_path / "run", *words, "--epochs", "5")
    for given, lr in zip(recipes, (0.5, 0.25), strict=True):
        assert (given.epochs, given.optim.lr, given.optim.betas, given.model) == (5, lr, (0.8, 0.9), "smt_femto")
        assert given.optim.weight_decay == RECIPES["quickstart"].optim.weight_decay


def test_free_folder_is_numbered(tmp_path: Path) -> None:
    wanted = tmp_path / "runs" / "mine"
    assert _free_folder(wanted) == wanted
    for expected in ("mine-2", "mine-3"):
        taken = _free_folder(wanted)
        taken.mkdir(parents=True)
        (taken / "recipe.yaml").touch()
        assert _free_folder(wanted).name == expected


# --- from images to a model in use


@pytest.fixture(scope="module")
def used(colored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by the command line, in the working folder ``runs`` is made in."""
    folder = tmp_path_factory.mktemp("used")
    config = write_config(tiny(colored, epochs=6), folder / "tiny.yaml")
    words = ["-m", "smt_vision", "train", "quickstart", "--config", config]
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (folder / "out.txt").write_text(done.stdout)
    return folder


def test_train_says_how_it_went(used: Path) -> None:
    folder = used / "runs" / "quickstart"
    lines = (used / "out.txt").read_text().splitlines()
    evaluated = [line for line in lines if "train loss" in line]
    assert len(evaluated) == 6
    assert "top-1 100.00 %" in evaluated[-1]
    assert any(line.startswith("runs/quickstart: top1 100.00 %") for line in lines)
    assert lines[-1] == "use it: smt predict runs/quickstart IMAGE_OR_FOLDER"
    for name in ("recipe.yaml", "log.jsonl", "best.pt", "last.pt", "metrics.json", "summary.md", "curves.png",
                 "confusion.png", "mistakes.png"):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
        if name.endswith(".png"):
            with Image.open(folder / name) as picture:
                picture.load()
    summary = (folder / "summary.md").read_text()
    assert "smt train quickstart --config" in summary
    assert "**100.00 % top-1** on 12 images" in summary


def test_resume_of_a_finished_run(used: Path, capsys: Capture) -> None:
    folder = used / "runs" / "quickstart"
    before = checkpoint.load(folder / "last.pt")
    result = answer(capsys, "train", "--resume", folder)
    assert (result["step"], result["top1"]) == (36, 100.0)
    assert run("train", "--resume", folder) == 0
    assert "finished" in capsys.readouterr().out
    after = checkpoint.load(folder / "last.pt")
    assert all(torch.equal(before["model"][k], after["model"][k]) for k in before["model"])
    assert "another recipe: optim.lr" in refusal(capsys, 1, "train", "--resume", folder, "--optim.lr", "1")


def test_stopped_by_max_steps(colored: Path, tmp_path: Path, capsys: Capture) -> None:
    config = write_config(tiny(colored), tmp_path / "tiny.yaml")
    words = ["train", "quickstart", "--config", config, "--run", tmp_path / "run", "--max_steps", "2"]
    assert run(*words) == 0
    text = capsys.readouterr().out
    assert f"stopped after step 2 of 12, as --max_steps asks; go on with: smt train --resume {tmp_path}/run" in text
    assert "nan" not in text
    assert "no best.pt" in refusal(capsys, 1, "predict", tmp_path / "run", colored)
    predictions = answer(capsys, "predict", tmp_path / "run" / "last.pt", colored / "val")
    assert len(predictions) == 12


def test_predict_json(trained: Path, colored: Path, capsys: Capture) -> None:
    predictions = answer(capsys, "predict", trained, colored / "val", "--top", "2", "--batch_size", "5")
    assert [p["id"] for p in predictions] == sorted(str(p) for p in (colored / "val").rglob("*.png"))
    for p in predictions:
        assert p["label"] == Path(p["id"]).parent.name
        assert p["top"][0] == [p["label"], p["probability"]]
        assert len(p["top"]) == 2
        assert p["error"] is None


def test_predict_table_names_the_broken_one_and_tells_the_rest(
    trained: Path, colored: Path, tmp_path: Path, capsys: Capture
) -> None:
    images = [tmp_path / f"{name}.png" for name in ("a", "a name[red] so long that no terminal could hold it" * 3, "c")]
    images[0].write_bytes((colored / "val" / "red" / "0.png").read_bytes())
    images[1].write_bytes(b"rubbish")
    images[2].write_bytes((colored / "val" / "blue" / "1.png").read_bytes())
    assert run("predict", trained, *images) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for line, image, label in zip(lines[1:], images, ("red", "unreadable", "blue"), strict=True):
        assert str(image) in line
        assert label in line.replace(str(image), "")
    assert "not an image" in lines[2]
    errors = [p["error"] for p in answer(capsys, "predict", trained, *images)]
    assert errors[0] is errors[2] is None
    assert "not an image" in errors[1]
    assert run("predict", trained, images[1]) == 1  # nothing at all was read


def test_predict_csv_and_picture(trained: Path, colored: Path, tmp_path: Path, capsys: Capture) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    out, picture = tmp_path / "out.csv", tmp_path / "out.png"
    assert run("predict", trained, broken, colored / "val", "--csv", out, "--picture", picture) == 0
    assert f"13 predictions written to {out}" in capsys.readouterr().out
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [""] + [c for c in COLORS for _ in range(4)]
    assert rows[0]["image"] == str(broken)
    assert "empty file" in rows[0]["error"]
    assert 0.3 < float(rows[1]["probability"]) <= 1
    assert rows[1]["others"].count(";") == 1
    with Image.open(picture) as image:
        assert min(image.size) > 100


def test_eval_of_a_run_is_its_own_result_again(trained: Path, colored: Path, tmp_path: Path, capsys: Capture) -> None:
    stored = json.loads((trained / "metrics.json").read_text())
    metrics = answer(capsys, "eval", trained, "--workers", "0", "--batch_size", "4")
    assert {k: metrics[k] for k in stored} == stored
    assert run("eval", trained, "--data", colored, "--workers", "0", "--out", tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "100.00" in text
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"metrics.json", "confusion.png", "mistakes.png"}
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["count"] == 12


def test_eval_of_a_set_without_split_takes_all_of_it(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    data = write_images(tmp_path / "data", COLORS, [3, 1, 2], seed=5)
    metrics = answer(capsys, "eval", trained, "--data", data, "--workers", "0")
    assert [row["count"] for row in metrics["per_class"]] == [3, 1, 2]
    # classes are matched by name, not by number
    data = write_images(tmp_path / "two", {"red": COLORS["red"], "blue": COLORS["blue"]}, [2, 3], seed=6)
    metrics = answer(capsys, "eval", trained, "--data", data, "--workers", "0")
    assert metrics["top1"] == 100.0
    assert [row["count"] for row in metrics["per_class"]] == [3, 0, 2]


def test_info_of_a_run_and_of_a_name(trained: Path, capsys: Capture) -> None:
    info = answer(capsys, "info", trained)
    state = checkpoint.load(trained / "best.pt")["model"]
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert info["parameters"] == sum(v.numel() for k, v in state.items() if not k.endswith(statistics))
    assert info["input_size"] == [3, 32, 32]
    assert len(info["stages"]) == 6
    assert run("info", "smt_atto", "--size", "64", "96", "--model_args.stem_stride", "2") == 0
    text = capsys.readouterr().out
    assert "3 x 64 x 96" in text
    assert "96 x 4 x 6" in text  # 64 and 96 pixels, halved four times
    assert "SA" in text


def test_recipes_are_listed(capsys: Capture) -> None:
    assert [r["name"] for r in answer(capsys, "recipes")] == list(RECIPES)
    assert answer(capsys, "recipes", "cifar10") == RECIPES["cifar10"].to_dict()
    assert run("recipes") == 0
    lines = capsys.readouterr().out.splitlines()
    for name in RECIPES:
        assert sum(line.split()[:1] == [name] for line in lines) == 1


# --- the release's files


def released(variant: str, path: Path, **kwargs: Any) -> nn.Module:
    """A file in the release's layout, of random values; returns the model it is of."""
    torch.manual_seed(0)
    model: Any = timm.create_model(variant, **kwargs).eval()
    torch.save({"model": to_official(model.state_dict())}, path)
    return model


@pytest.mark.parametrize("variant", ["smt_atto", "smt_tiny"])
def test_released_file_is_used_as_it_is(variant: str, colored: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "weights.pth"
    model = released(variant, path, num_classes=5)
    image = colored / "val" / "red" / "0.png"
    (prediction,) = answer(capsys, "predict", path, image, "--top", "5")
    assert {label for label, _ in prediction["top"]} == set("01234")
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    with Image.open(image) as opened, torch.inference_mode():
        expected = model(transform(opened.convert("RGB"))[None]).softmax(-1)[0]
    for label, probability in prediction["top"]:
        assert probability == pytest.approx(float(expected[int(label)]), rel=1e-4)
    info = answer(capsys, "info", path)
    assert info["parameters"] == sum(p.numel() for p in model.parameters())


def test_convert_both_ways(tmp_path: Path, capsys: Capture) -> None:
    source, ours, back = tmp_path / "release.pth", tmp_path / "ours.safetensors", tmp_path / "back.pth"
    model = released("smt_atto", source, num_classes=5)
    report = answer(capsys, "convert", source, ours)
    assert (report["direction"], report["variant"], report["num_classes"]) == ("official -> ours", "smt_atto", 5)
    state = load_file(ours)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert run("convert", ours, back) == 0
    assert "ours -> official, smt_atto of 5 classes" in capsys.readouterr().out
    one, two = (torch.load(path, weights_only=True)["model"] for path in (source, back))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)
    torch.save({"weight": torch.ones(2)}, source)
    assert "not the weights of an SMT" in refusal(capsys, 1, "convert", source, tmp_path / "no.pth")
    assert not (tmp_path / "no.pth").exists()


# --- the same numbers as timm's own validation


def timm_validation(
    model: nn.Module, root: Path, batch_size: int, class_map: dict[str, int] | None, **transform: Any
) -> tuple[float, float, float]:
    """Top-1, top-5 (as timm's validate.py averages them) and the mean loss."""
    dataset = create_dataset("", root=str(root), class_map=class_map or "")
    loader = create_loader(dataset, batch_size=batch_size, use_prefetcher=False, num_workers=0, **transform)
    top1 = top5 = loss = count = 0.0
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "unclosed file", ResourceWarning)  # timm's reader leaves them to Python
        for images, target in loader:
            output = model(images)
            acc1, acc5 = accuracy(output, target, topk=(1, 5))
            top1 += acc1.item() * len(target)
            top5 += acc5.item() * len(target)
            loss += nn.functional.cross_entropy(output, target, reduction="none").sum(dtype=torch.float64).item()
            count += len(target)
    return top1 / count, top5 / count, loss / count


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
def test_eval_of_a_timm_model_is_timms_validation(name: str, tmp_path: Path, capsys: Capture) -> None:
    colors = {f"c{i}": (20 * i, 255 - 30 * i, 90) for i in range(7)}
    data = tmp_path / "data"
    write_images(data / "train", colors, [2] * 7)
    write_images(data / "val", colors, [3, 1, 4, 1, 5, 2, 6], seed=1)
    recipe = tiny(data, model=name, model_args={}, input=dict(size=64, crop_pct=0.875, interpolation="bilinear"))
    train(recipe, tmp_path / "run", display=False, max_steps=3)
    state = checkpoint.load(tmp_path / "run" / "last.pt")
    model = timm.create_model(name, num_classes=7).eval()
    model.load_state_dict(state["model"])
    config = model.pretrained_cfg
    expected = timm_validation(
        model, data / "val", 8, None, input_size=(3, 64, 64), interpolation="bilinear", crop_pct=0.875,
        mean=config["mean"], std=config["std"],
    )  # fmt: skip
    metrics = answer(
        capsys,
        "eval",
        tmp_path / "run" / "last.pt",
        "--data",
        data,
        "--batch_size",
        "8",
        "--workers",
        "0",
        "--input.exact",
        "true",
    )
    assert metrics["count"] == 22
    assert metrics["top1"] != metrics["top5"]
    assert (round(metrics["top1"], 4), round(metrics["top5"], 4)) == (round(expected[0], 4), round(expected[1], 4))
    assert metrics["loss"] == expected[2]


def test_eval_on_a_part_of_imagenets_classes_is_timms_validation(tmp_path: Path, capsys: Capture) -> None:
    # folders named by WordNet ids, numbered as a model of 1000 classes numbers them
    places = {"n01440764": 0, "n02099601": 207, "n03888257": 701}
    data = tmp_path / "data"
    write_images(data / "val", {name: (80 * i, 100, 200 - 90 * i) for i, name in enumerate(places)}, [3, 2, 4])
    write_images(data / "train", dict.fromkeys(places, (0, 0, 0)), [1, 1, 1])
    model = released("smt_atto", tmp_path / "smt.pth")
    config = timm.data.resolve_data_config({}, model=model)
    expected = timm_validation(
        model, data / "val", 4, places, input_size=(3, 96, 96), interpolation=config["interpolation"],
        crop_pct=config["crop_pct"], mean=config["mean"], std=config["std"],
    )  # fmt: skip
    words = ["--data", data, "--batch_size", "4", "--workers", "0", "--input.size", "96"]
    metrics = answer(capsys, "eval", tmp_path / "smt.pth", *words)
    counts = {i: row["count"] for i, row in enumerate(metrics["per_class"]) if row["count"]}
    assert counts == {0: 3, 207: 2, 701: 4}
    assert (metrics["top1"], metrics["top5"]) == expected[:2]
    assert metrics["loss"] == expected[2]


def test_eval_refuses_more_classes_than_the_model_has(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    data = write_images(tmp_path / "data", {f"c{i}": (i, i, i) for i in range(4)}, [1] * 4)
    assert "4 classes and the model 3" in refusal(capsys, 1, "eval", trained, "--data", data, "--workers", "0")
