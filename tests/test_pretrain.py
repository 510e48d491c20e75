"""Self-supervised pretraining: folders without labels, views, metrics, and weights that other tasks start from."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

from blank_pictures import without_report
from drawn_sets import scenes_recipe, shapes_recipe
from processes import run_on_processes
from same_run import assert_same_run
from smt_vision import RECIPES, calibrate, checkpoints, evaluate, load
from smt_vision.cli import main
from smt_vision.data.fingerprint import UsedImages
from smt_vision.embedding.embeddings import embed
from smt_vision.engine.loop import train
from smt_vision.recipe import Recipe
from smt_vision.tasks import get_task
from smt_vision.tasks.backbone import find_backbone
from smt_vision.tasks.classification.config import ClassificationDistill, LabelsConfig
from smt_vision.tasks.pretraining.config import PretrainConfig, PretrainingRecipe
from smt_vision.tasks.pretraining.data import open_images
from smt_vision.tasks.pretraining.task import NeighborMetric, PretrainingTraining
from tiny_run import COLORS, TINY, tiny, write_images, write_split

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def colored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_split(tmp_path_factory.mktemp("pretrain") / "data", train=4, val=2)


@pytest.fixture(scope="module")
def unlabeled(colored: Path) -> Path:
    """The training images in one folder, and some in subfolders."""
    folder = colored.parent / "unlabeled"
    for i, path in enumerate(sorted((colored / "train").rglob("*.png"))):
        target = folder / ("2024/may" if i % 3 == 0 else ".") / f"{i}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return folder


def small(data: Path, **fields: Any) -> PretrainingRecipe:
    shared = {name: getattr(TINY, name) for name in ("model", "model_args", "input", "optim", "engine", "batch_size")}
    base = replace(RECIPES["pretrain"], **shared, epochs=2, pretrain=PretrainConfig(hidden=16, dim=8))
    recipe = replace(base, data=str(data), **fields)
    assert isinstance(recipe, PretrainingRecipe)
    return recipe


@pytest.fixture(scope="module")
def pretrained(unlabeled: Path) -> Path:
    folder = unlabeled.parent / "run"
    with without_report():
        train(small(unlabeled), folder, display=False)
    return folder


# --- data


def test_folder_without_labels_has_all_images_once(unlabeled: Path) -> None:
    train_set, val_set = open_images(small(unlabeled))
    names = [images.id(i) for images in (train_set, val_set) for i in range(len(images))]
    assert sorted(names) == sorted(str(p.relative_to(unlabeled)) for p in unlabeled.rglob("*.png"))
    assert len(val_set) == 1  # a tenth of 12, at least one
    assert train_set.classes == ("image",)


def test_class_folders_keep_their_split(colored: Path) -> None:
    train_set, val_set = open_images(small(colored))
    assert (len(train_set), len(val_set), len(train_set.classes)) == (12, 6, 3)


def test_splits_without_classes_are_one_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train/a.png", "train/b.png", "val/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    assert sum(map(len, open_images(small(tmp_path)))) == 3
    assert "3 images without labels, because" in caplog.text


def test_only_a_folder_without_class_folders_has_no_labels(tmp_path: Path) -> None:
    """Other errors are not a reason to train on the validation images, too."""
    write_images(tmp_path / "set" / "train", COLORS, [2, 2, 2])
    write_images(tmp_path / "set" / "val", {"other": COLORS["red"]}, [2])
    with pytest.raises(ValueError, match=r"class folders in val/ that are not in train/: other"):
        open_images(small(tmp_path / "set"))
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "train-0.tar").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"train-0\.tar: "):
        open_images(small(tmp_path / "shards"))


@pytest.mark.parametrize(
    "rows", ["path,label\na.png,cat|dog\nb.png,cat\nc.png,", "file_name,text\na.png,a cat\nb.png,a dog\nc.png,both"]
)
@pytest.mark.parametrize("as_file", [False, True])
def test_paths_of_label_files_whose_labels_are_not_classes(
    rows: str, as_file: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "abcd":
        Image.new("RGB", (40, 40)).save(tmp_path / f"{name}.png")
    (tmp_path / "metadata.csv").write_text(f"{rows}\n")
    train_set, val_set = open_images(small(tmp_path / "metadata.csv" if as_file else tmp_path))
    names = [images.id(i) for images in (train_set, val_set) for i in range(len(images))]
    assert sorted(names) == ["a.png", "b.png", "c.png"]
    assert train_set.classes == ("image",)
    assert "3 images without labels, because" in caplog.text


@pytest.mark.parametrize("labels", [("cat", "cat", "dog"), ("cat", "cat|dog", "")])
def test_label_files_with_other_columns(labels: tuple[str, ...], tmp_path: Path) -> None:
    """Also where the labels are not one class per image."""
    for name in "abc":
        Image.new("RGB", (40, 40)).save(tmp_path / f"{name}.png")
    rows = [f"{name}\t{label}" for name, label in zip("abc", labels, strict=True)]
    (tmp_path / "list.tsv").write_text("\n".join(["scan\tfinding", *rows]))
    way = LabelsConfig(path="scan", label="finding", suffix=".png")
    sets = open_images(small(tmp_path / "list.tsv", labels=way))
    assert sorted(images.id(i) for images in sets for i in range(len(images))) == ["a.png", "b.png", "c.png"]


def test_many_validation_images_are_sampled(
    colored: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Their comparison takes time by the square of their number."""
    monkeypatch.setattr("smt_vision.tasks.pretraining.task.MAX_EVALUATED", 3)
    caplog.set_level("INFO")
    task = PretrainingTraining(small(colored))
    batches = list(task.eval_loader(0, 1))
    assert sum(len(batch["index"]) for batch in batches) == 3
    assert sorted(torch.cat([batch["target"] for batch in batches]).tolist()) == [0, 1, 2]
    assert len(task.val_set) == 6  # none of the others is trained on
    assert "evaluating 3 of 6 images" in caplog.text


def test_validation_labels_beyond_those_of_training(colored: Path) -> None:
    task = PretrainingTraining(small(colored))
    task.train_set = copy.copy(task.train_set)
    task.train_set.classes = task.train_set.classes[:2]  # as a dataset of numbers may have
    assert task.metric(torch.device("cpu")).classes == 3


def test_data_that_is_no_set_of_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images"):
        open_images(small(tmp_path))
    (tmp_path / "labels.csv").write_text("path,label\nmissing.png,cat\n")
    with pytest.raises(ValueError, match=r"labels\.csv"):
        open_images(small(tmp_path))
    with pytest.raises(ValueError, match="does not exist"):
        open_images(small(tmp_path / "missing"))


def test_views_of_an_epoch_are_a_function_of_the_seed(unlabeled: Path) -> None:
    def views(seed: int, epoch: int) -> torch.Tensor:
        task = PretrainingTraining(small(unlabeled, seed=seed))
        batch = next(iter(task.train_loader(0, 1).epoch(epoch)))
        assert batch["image"].shape == (8, 3, 32, 32)  # two views of four images
        assert batch["index"].shape == batch["target"].shape == (4,)
        return batch["image"]

    first = views(0, 0)
    assert torch.equal(first, views(0, 0))
    assert not torch.equal(first, views(0, 1))
    assert not torch.equal(first, views(1, 0))
    assert not torch.equal(*first.chunk(2))


# --- metric


def test_metric_of_known_features() -> None:
    """Four images on a circle: two per class, one of which is nearer to the other class."""
    angle = torch.tensor([0.0, 0.1, 1.0, 0.25])
    images = torch.stack([angle.cos(), angle.sin()], dim=1)
    metric = NeighborMetric(torch.device("cpu"), neighbors=1, classes=2)
    order = torch.tensor([2, 0, 3, 1])
    views = images[[0, 1, 2, 0]]  # the view of the last image is that of the first
    for rows in (order[:3], order[3:]):
        batch = {"index": rows, "target": torch.tensor([0, 0, 1, 1])[rows]}
        metric.update(torch.cat([images[rows], views[rows]]), batch)
    metric.reduce(lambda value: value, lambda value: value[None])
    assert metric.compute() == {"count": 4, "retrieval": 75.0, "knn": 75.0}


def test_metric_of_processes_of_which_one_has_no_image() -> None:
    generator = torch.Generator().manual_seed(0)
    features, views = torch.randn(2, 3, 5, generator=generator)

    def work(rank: int, all_gather: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
        metric = NeighborMetric(torch.device("cpu"), neighbors=1, classes=2)
        if rank == 0:
            batch = {"index": torch.arange(3), "target": torch.tensor([0, 1, 1])}
            metric.update(torch.cat([features, views]), batch)
        metric.reduce(lambda value: value, all_gather)
        return metric.compute()

    first, second = run_on_processes(work, 2)
    assert first == second
    assert first["count"] == 3


# --- runs


@pytest.mark.parametrize("fields", [{}, dict(engine=replace(TINY.engine, ema=0.9))])
def test_resumed_equals_uninterrupted(unlabeled: Path, tmp_path: Path, fields: dict[str, Any], no_report: None) -> None:
    recipe = small(unlabeled, **fields)
    train(recipe, tmp_path / "whole", display=False)
    train(recipe, tmp_path / "halves", display=False, max_steps=1)
    run = train(recipe, tmp_path / "halves", display=False)
    assert run.step == run.total_steps == 4
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


def test_images_are_embedded_as_the_label_file_was_read(tmp_path: Path, no_report: None) -> None:
    rows = []
    for i in range(12):
        Image.new("RGB", (40, 40), (20 * i, 90, 0)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}\t{'cat' if i % 2 else 'dog'}")
    (tmp_path / "list.tsv").write_text("\n".join(["scan\tfinding", *rows]))
    way = LabelsConfig(path="scan", label="finding", suffix=".png")
    train(small(tmp_path / "list.tsv", labels=way, epochs=1), tmp_path / "run", display=False)
    found = embed(tmp_path / "run", tmp_path / "list.tsv")
    assert sorted(found.ids) == sorted(f"{i}.png" for i in range(12))
    assert {name for name, id in zip(found.labels, found.ids, strict=True) if int(id[:-4]) % 2} == {"cat"}
    assert set(found.splits) == {"train", "val"}


def test_weights_of_the_latest_evaluation_are_kept(
    unlabeled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the metric was higher before."""
    values = iter([100.0, 60.0, 80.0])
    monkeypatch.setattr(NeighborMetric, "compute", lambda self: {"count": 1, "retrieval": next(values)})
    train(small(unlabeled, epochs=3), tmp_path / "run", max_steps=4)
    run = train(small(unlabeled, epochs=3), tmp_path / "run")
    best, last = (checkpoints.load(tmp_path / "run" / name) for name in ("best.pt", "last.pt"))
    assert (run.best_epoch, best.state["epoch"], best.state["metrics"]["retrieval"]) == (3, 3, 80.0)
    assert all(torch.equal(last.weights[name], value) for name, value in best.weights.items())
    assert "retrieval of views 80.00 %   best 100.00 %" in capsys.readouterr().out
    assert "with the weights of epoch 3 of 3." in (tmp_path / "run" / "summary.md").read_text()


def test_best_weights_are_those_of_a_network_without_classifier(pretrained: Path) -> None:
    best, last = checkpoints.load(pretrained), checkpoints.load(pretrained / "last.pt")
    network = timm.create_model("smt_atto", num_classes=0, **TINY.model_args)
    assert best.weights.keys() == network.state_dict().keys()
    assert any(name.startswith("head.fc.layers.") for name in last.weights)
    predictor = load(pretrained, require_classes=False)
    assert predictor.model(torch.zeros(1, 3, 32, 32)).shape == (1, 64)
    with pytest.raises(ValueError, match=r"without a classifier.*initial weights"):
        load(pretrained)


@pytest.mark.parametrize("name", [".", "last.pt"])
def test_classifier_starts_from_the_weights(
    name: str, colored: Path, pretrained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = get_task("classify").training(tiny(colored, checkpoint=str(pretrained / name))).model
    state = model.state_dict()
    for name, value in checkpoints.load(pretrained).weights.items():
        assert torch.equal(state[name], value), name
    assert state["head.fc.weight"].shape == (3, 64)
    assert "reinitialized" not in caplog.text  # there was no classifier


def test_images_of_pretraining_are_not_images_of_training(tmp_path: Path, no_report: None) -> None:
    """A temperature may be fitted on held-out images that were seen without labels; an evaluation tells them."""
    data = write_images(tmp_path / "data", COLORS, [12, 12, 12])
    train(small(data, input=replace(small(data).input, val_fraction=0.05)), tmp_path / "pretrained", display=False)
    recipe = tiny(data, checkpoint=str(tmp_path / "pretrained"), input=dict(val_fraction=0.3))
    train(recipe, tmp_path / "run", display=False)
    metrics = evaluate(tmp_path / "run", workers=0)
    assert metrics["trained_on"] == 0
    assert 0 < metrics["pretrained_on"] <= metrics["count"]
    with pytest.raises(ValueError, match="no temperature fits"):  # to images that are all classified correctly
        calibrate(tmp_path / "run", workers=0)
    again = UsedImages.of_initial_weights(checkpoints.load(tmp_path / "run"))
    assert again is not None
    assert len(again.train) > 0
    assert len(again.unlabeled) > 0


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_backbone_of_a_dense_task_starts_from_the_weights(
    task: str, shapes: Path, scenes: Path, pretrained: Path
) -> None:
    recipe: Recipe = shapes_recipe(shapes) if task == "detect" else scenes_recipe(scenes)
    recipe = replace(recipe, model="smt_atto", model_args=dict(TINY.model_args), checkpoint=str(pretrained))
    backbone = find_backbone(get_task(task).training(recipe).model)
    assert backbone is not None
    weight = backbone.network.state_dict()["stages.0.blocks.0.ffn.fc1.weight"]
    assert torch.equal(weight, checkpoints.load(pretrained).weights["stages.0.blocks.0.ffn.fc1.weight"])


@pytest.mark.parametrize(
    ("model", "layer"), [("test_resnet", "fc."), ("test_vit", "head."), ("test_convnext", "head.fc.")]
)
def test_other_models(unlabeled: Path, model: str, layer: str) -> None:
    arguments = {"img_size": 32} if model == "test_vit" else {}
    task = PretrainingTraining(small(unlabeled, model=model, model_args=arguments))
    assert task.training_modules == (layer,)
    batch = next(iter(task.train_loader(0, 1).epoch(0)))
    assert torch.isfinite(task.loss(task.model, batch)["loss"])
    assert task.predict(task.model, batch).shape[0] == 8


def test_command(colored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--model", "smt_atto", "--model_args", "{stem_stride: 2, embed_dims: [8, 16, 32, 64]}",
        "--input.size", "32", "--input.workers", "0", "--batch_size", "4", "--epochs", "1",
    ]  # fmt: skip
    assert main(["train", "pretrain", "--data", str(colored), "--run", str(tmp_path / "run"), *arguments]) == 0
    out = capsys.readouterr().out
    assert "% (epoch 1), " in out
    assert "knn" in out
    assert f"smt train finetune --checkpoint {tmp_path / 'run'}" in out
    assert "smt predict" not in out
    assert "nearest neighbors" in (tmp_path / "run" / "summary.md").read_text()
    assert main(["predict", str(tmp_path / "run"), str(colored / "val")]) == 1
    assert "initial weights (smt train RECIPE --checkpoint FILE)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(batch_size=1), "batch_size=1"),
        (dict(distill=ClassificationDistill(teacher="runs/x")), "pretraining has no teacher"),
        (dict(engine=replace(TINY.engine, patience=3)), r"engine\.patience=3"),
        (dict(input=replace(TINY.input, channels=4)), r"augment\.color_jitter=1\.0"),
        (dict(model="test_nfnet", model_args={"num_classes": 0}), "without.*num_classes"),
    ],
)
def test_impossible_settings(unlabeled: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PretrainingTraining(small(unlabeled, **fields))
