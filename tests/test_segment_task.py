"""Segmentation task: losses, training, metrics at the stored image size, pictures and checkpoints, on drawn scenes."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning_fabric
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import smt_vision
from drawn_sets import CHECKPOINT_FORMS, CLASSES, COLORS, SIZES, checkpoint_in_form, scenes_recipe, write_scenes
from smt_vision import checkpoints
from smt_vision.engine.loop import run_evaluation, train
from smt_vision.recipe import Augment
from smt_vision.tasks import get_task, read_recipe, read_spec
from smt_vision.tasks.segmentation.losses import binary_losses, class_losses
from smt_vision.tasks.segmentation.task import SegmentationMetric, SegmentationTraining


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes with binary masks of the car."""
    return write_scenes(tmp_path_factory.mktemp("masks"), binary=True)


def to_floats(losses: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: loss.item() for name, loss in losses.items()}


# --- losses ---


def test_class_losses_are_the_mean_over_labeled_pixels_at_label_size():
    logits = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    label = torch.arange(2 * 16 * 24).view(2, 16, 24) % 3
    label[:, :5] = 255
    resized = F.interpolate(logits, (16, 24), mode="bilinear")
    log_probability = resized.log_softmax(1)[:, :, 5:].gather(1, label[:, None, 5:])
    assert class_losses(logits, label)["cross_entropy"] == pytest.approx(-float(log_probability.mean()), abs=1e-5)
    assert class_losses(logits.to(torch.bfloat16), label)["cross_entropy"].dtype == torch.float32
    label[:] = 255
    assert class_losses(logits, label)["cross_entropy"] == 0


def test_binary_losses_known_answers():
    label = torch.zeros(2, 8, 8, dtype=torch.long)
    label[:, :4] = 1
    label[:, :, -1] = 255
    confident = torch.where(label == 1, 50.0, -50.0)[:, None]
    assert to_floats(binary_losses(confident, label)) == pytest.approx({"bce": 0, "iou": 0}, abs=1e-6)
    wrong = to_floats(binary_losses(-confident, label))
    assert wrong["bce"] == pytest.approx(50)
    assert wrong["iou"] == pytest.approx(1 - 1 / 57)  # 56 labeled pixels in the union, none in the intersection
    undecided = to_floats(binary_losses(torch.zeros(2, 1, 8, 8), label))
    assert undecided["bce"] == pytest.approx(np.log(2))
    assert undecided["iou"] == pytest.approx(1 - (14 + 1) / (28 + 14 + 1))
    background = binary_losses(-confident.abs(), torch.zeros_like(label))
    assert float(background["iou"]) == pytest.approx(0, abs=1e-6)


def test_auxiliary_loss_is_scaled_by_aux_weight(scenes: Path):
    losses = {}
    for weight in (0.4, 0.2, 0.0):
        torch.manual_seed(0)
        task = get_task("segment").training(scenes_recipe(scenes, aux_weight=weight, dropout=0.0))
        losses[weight] = to_floats(task.loss(task.model.train(), next(task.train_loader(0, 1).epoch(0))))
    assert set(losses[0.4]) == {"cross_entropy", "auxiliary"}
    assert set(losses[0.0]) == {"cross_entropy"}
    assert losses[0.4]["auxiliary"] == pytest.approx(2 * losses[0.2]["auxiliary"], rel=1e-5)
    assert losses[0.4]["auxiliary"] == pytest.approx(0.4 * np.log(3), rel=0.2)  # untrained: uniform probabilities


# --- training ---


def overfit(task: SegmentationTraining, steps: int = 60, lr: float = 1.5e-2) -> dict[str, Any]:
    """Train on all images as one batch and evaluate on the same images."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    task.model.train()
    loader = task.train_loader(0, 1)
    for step in range(steps):
        (batch,) = loader.epoch(step)
        torch.stack(list(task.loss(task.model, batch).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    fabric = lightning_fabric.Fabric(accelerator="cpu", devices=1)
    return run_evaluation(fabric, task, task.model, task.eval_loader(0, 1))


@pytest.fixture(scope="module")
def overfitted(scenes: Path) -> tuple[SegmentationTraining, dict[str, Any]]:
    """A segmenter after training on the four scenes, and its metrics."""
    torch.manual_seed(0)
    task = SegmentationTraining(scenes_recipe(scenes))
    return task, overfit(task)


def test_overfits_four_images(overfitted):
    _, metrics = overfitted
    assert metrics["miou"] >= 90
    assert metrics["count"] == 4
    assert [row["class"] for row in metrics["per_class"]] == list(CLASSES)
    assert sum(map(sum, metrics["confusion"])) == sum(h * w - 2 * w for h, w in SIZES)  # at the stored image sizes


def test_overfits_four_binary_masks(masks: Path):
    torch.manual_seed(0)
    metrics = overfit(SegmentationTraining(scenes_recipe(masks, kind="binary")))
    assert metrics["s_measure"] >= 95
    assert metrics["weighted_f"] >= 85
    assert metrics["mae"] <= 3
    assert "confusion" not in metrics


def test_run_writes_checkpoints_metrics_summary_and_pictures(scenes: Path, tmp_path: Path):
    recipe = scenes_recipe(scenes)
    run = train(recipe, tmp_path / "run", display=False, command="smt train tiny")
    files = {file.name for file in run.folder.rglob("*.*")}
    assert {"best.pt", "last.pt", "metrics.json", "summary.md", "confusion.png", "worst.png", "epoch_001.png"} <= files
    assert "mIoU" in (run.folder / "summary.md").read_text()
    assert json.loads((run.folder / "metrics.json").read_text())["miou"] == run.metrics["miou"]

    best = checkpoints.load(run.folder)
    assert best.task == "segment"
    assert best.spec is not None
    spec = read_spec(best.spec)
    assert spec.classes == CLASSES
    assert spec.head == recipe.segment
    assert spec.head.crop == (64, 64)
    assert read_recipe(best.state["recipe"]).to_dict() == recipe.to_dict()


def test_run_without_validation_split_is_evaluated_on_what_it_held_out(masks: Path, tmp_path: Path):
    for folder in ("images", "masks"):
        shutil.copytree(masks / folder / "train", tmp_path / "set" / folder)
    recipe = scenes_recipe(tmp_path / "set", kind="binary")
    train(replace(recipe, input=replace(recipe.input, val_fraction=0.5)), tmp_path / "run", display=False)
    assert {"thresholds.png", "worst.png"} <= {file.name for file in (tmp_path / "run").iterdir()}
    metrics = smt_vision.evaluate(tmp_path / "run", workers=0)
    assert (metrics["count"], metrics.get("trained_on", 0)) == (2, 0)


def test_cost_is_reported_at_the_crop_size(scenes: Path):
    task = SegmentationTraining(scenes_recipe(scenes, crop=(64, 96)))
    model, input_size = get_task("segment").flops_model(task.model, task.spec)
    assert model is task.model
    assert input_size == (3, 64, 96)


# --- prediction ---


class ColorClassifier(nn.Module):
    """Logits from the distance of each pixel's color to the classes' colors."""

    def forward(self, image: Tensor) -> Tensor:
        colors = (torch.from_numpy(COLORS / 255.0).float() - 0.45) / 0.22
        return -(image[:, None] - colors[None, :, :, None, None]).square().sum(2)


def test_predictions_have_the_stored_image_size(scenes: Path):
    task = SegmentationTraining(scenes_recipe(scenes, short_side=32, long_side=40))
    for batch in task.eval_loader(0, 1):
        predictions = task.predict(ColorClassifier(), batch)
        assert [tuple(p.shape) for p in predictions] == list(SIZES)
        for prediction, label in zip(predictions, batch["label"], strict=True):
            labeled = label != 255
            assert float((prediction == label)[labeled].float().mean()) > 0.9


def test_two_processes_give_the_metrics_of_one(overfitted):
    task, expected = overfitted
    shards = [task.metric(torch.device("cpu")) for _ in range(2)]
    task.model.eval()
    with torch.inference_mode():
        for rank, metric in enumerate(shards):
            for batch in task.eval_loader(rank, 2):
                metric.update(task.predict(task.model, batch), batch)
    sums = sum(metric.sums._sums for metric in shards)
    worst = torch.stack([metric.worst for metric in shards])
    for metric in shards:
        metric.reduce(lambda _: sums, lambda _: worst)
        assert metric.compute() == expected


def test_metric_keeps_the_images_with_most_errors_in_order():
    metric = SegmentationMetric(("a", "b"), False, torch.device("cpu"))
    label = torch.zeros(300, 600, dtype=torch.long)
    for index in range(10):
        prediction = torch.zeros_like(label)
        prediction[:, : 60 * (index % 8)] = 1
        metric.update([prediction], {"label": [label], "index": torch.tensor([index])})
    worst = metric.compute()["worst"]
    assert [(row["index"], round(row["error"])) for row in worst] == [
        (7, 70), (6, 60), (5, 50), (4, 40), (3, 30), (2, 20)
    ]  # fmt: skip


# --- pictures ---


def read_rgb(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_pictures_and_tables_of_an_evaluation(overfitted, tmp_path: Path):
    task, metrics = overfitted
    paths = task.pictures(tmp_path, metrics)
    assert [path.name for path in paths] == ["confusion.png", "worst.png"]
    assert read_rgb(paths[1]).shape[1] > 3 * 80
    (table,) = task.tables(metrics)
    assert table.rows[0][0] in CLASSES
    assert sum(row[1] for row in table.rows) == pytest.approx(100)


@pytest.mark.parametrize("kind", ["classes", "binary"])
def test_samples_have_three_panels_per_image(kind: str, scenes: Path, masks: Path):
    task = SegmentationTraining(scenes_recipe(masks if kind == "binary" else scenes, kind=kind))
    picture = task.samples(task.model.eval(), torch.device("cpu"))
    assert picture is not None
    assert picture.width > 3 * max(width for _, width in SIZES)
    assert picture.height > sum(height for height, _ in SIZES)


# --- invalid recipes ---


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(test="slide", stride=(65, 64)), r"segment\.stride=\(65, 64\).*\(64, 64\)"),
        (dict(test="slide", stride=(0, 64)), r"segment\.stride=\(0, 64\)"),
        (dict(test_scales=()), r"segment\.test_scales=\(\)"),
        (dict(test_scales=(1.0, 0.0)), r"segment\.test_scales=\(1\.0, 0\.0\)"),
    ],
)
def test_invalid_recipe_is_refused(options, match: str):
    with pytest.raises(ValueError, match=match):
        scenes_recipe(Path("missing"), **options)


def test_batches_of_one_image_are_refused_before_data_is_opened():
    with pytest.raises(ValueError, match="batch_size=1"):
        get_task("segment").training(replace(scenes_recipe(Path("missing")), batch_size=1))


# --- data of the reference files ---


def test_camvid_trains_and_evaluates(shared: Path):
    data = shared / "data" / "camvid"
    if not data.is_dir():
        pytest.skip("camvid is not among the reference files")
    task = SegmentationTraining(replace(scenes_recipe(data, short_side=90, long_side=120), augment=Augment(hflip=0.5)))
    loader = task.train_loader(0, 1)
    assert loader.batches_per_epoch == 367 // 4
    losses = task.loss(task.model.train(), next(loader.epoch(0)))
    assert losses["cross_entropy"].item() == pytest.approx(np.log(11), rel=0.2)
    batch = next(iter(task.eval_loader(0, 1)))
    metric = task.metric(torch.device("cpu"))
    with torch.inference_mode():
        metric.update(task.predict(task.model.eval(), batch), batch)
    assert metric.compute()["count"] == 4
    assert {tuple(label.shape) for label in batch["label"]} == {(360, 480)}


# --- checkpoints ---


@pytest.fixture(params=CHECKPOINT_FORMS)
def checkpoint(request: pytest.FixtureRequest, segmenter_run: Path, tmp_path: Path) -> Path:
    """A trained segmenter in each form."""
    return checkpoint_in_form(request.param, segmenter_run, tmp_path)


def test_segmenter_starts_from_a_segmenter_checkpoint(checkpoint: Path, segmenter_run: Path, scenes: Path) -> None:
    saved = checkpoints.load(segmenter_run).weights
    state = SegmentationTraining(replace(scenes_recipe(scenes), checkpoint=str(checkpoint))).model.state_dict()
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[name], saved[name]) for name in state)


def test_other_classes_reinitialize_only_the_classifiers(
    checkpoint: Path, segmenter_run: Path, scenes: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("images", "labels"):
        (data / name).symlink_to(scenes / name)
    (data / "classes.json").write_text(json.dumps([*CLASSES, "cloud"]))
    saved = checkpoints.load(segmenter_run).weights
    state = SegmentationTraining(replace(scenes_recipe(data), checkpoint=str(checkpoint))).model.state_dict()
    new = {name for name in state if state[name].shape != saved[name].shape}
    layers = ("head.classifier", "auxiliary.classifier")
    assert new == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert all(torch.equal(state[name], saved[name]) for name in state.keys() - new)


def test_classifier_checkpoint_initializes_the_backbone(trained: Path, scenes: Path) -> None:
    classifier = checkpoints.load(trained).weights
    task = SegmentationTraining(replace(scenes_recipe(scenes), checkpoint=str(trained)))
    backbone = task.model.backbone.network.state_dict()
    assert backbone.keys() == {name for name in classifier if not name.startswith("head.")}
    assert all(torch.equal(backbone[name], classifier[name]) for name in backbone)


def test_detector_checkpoint_is_refused(segmenter_run: Path, scenes: Path, tmp_path: Path) -> None:
    best = checkpoints.load(segmenter_run)
    assert best.spec is not None
    path = tmp_path / "detector.pt"
    checkpoints.save({"spec": {**best.spec, "task": "detect"}, "model": best.weights}, path)
    with pytest.raises(ValueError, match=r"detector\.pt.*'detect'.*'segment'"):
        SegmentationTraining(replace(scenes_recipe(scenes), checkpoint=str(path)))


def test_checkpoint_of_another_model_is_refused(segmenter_run: Path, scenes: Path) -> None:
    recipe = replace(scenes_recipe(scenes, channels=24), checkpoint=str(segmenter_run))
    with pytest.raises(ValueError, match=r"best\.pt"):
        SegmentationTraining(recipe)
