"""The segmentation task: losses, learning, metrics at the images' own size, pictures; on made-up scenes."""

import json
from collections.abc import Callable
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

from drawn_sets import CLASSES, COLORS, SIZES, scenes_recipe, write_scenes
from smt_vision.engine.loop import run_evaluation, train
from smt_vision.recipe import Augment, Recipe
from smt_vision.tasks import build_task
from smt_vision.tasks.segmentation.losses import binary_losses, class_losses
from smt_vision.tasks.segmentation.task import SegmentationMetric, SegmentationTraining


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("masks"), binary=True)


# --- losses ---


def test_class_losses_are_of_the_labelled_pixels_at_their_size():
    logits = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    label = torch.arange(2 * 16 * 24).view(2, 16, 24) % 3
    label[:, :5] = 255
    large = F.interpolate(logits, (16, 24), mode="bilinear")
    log_probability = large.log_softmax(1)[:, :, 5:].gather(1, label[:, None, 5:])
    assert class_losses(logits, label)["cross_entropy"] == pytest.approx(-float(log_probability.mean()), abs=1e-5)
    assert class_losses(logits.to(torch.bfloat16), label)["cross_entropy"].dtype == torch.float32
    label[:] = 255
    assert class_losses(logits, label)["cross_entropy"] == 0


def test_binary_losses_known_answers():
    label = torch.zeros(2, 8, 8, dtype=torch.long)
    label[:, :4] = 1
    label[:, :, -1] = 255
    sure = torch.where(label == 1, 50.0, -50.0)[:, None]
    assert {k: float(v) for k, v in binary_losses(sure, label).items()} == pytest.approx({"bce": 0, "iou": 0}, abs=1e-6)
    wrong = {k: float(v) for k, v in binary_losses(-sure, label).items()}
    assert wrong["bce"] == pytest.approx(50)
    assert wrong["iou"] == pytest.approx(1 - 1 / 57)  # 56 pixels count, none in both
    half = {k: float(v) for k, v in binary_losses(torch.zeros(2, 1, 8, 8), label).items()}
    assert half["bce"] == pytest.approx(np.log(2))
    assert half["iou"] == pytest.approx(1 - (14 + 1) / (28 + 14 + 1))
    empty = binary_losses(-sure.abs(), torch.zeros_like(label))
    assert float(empty["iou"]) == pytest.approx(0, abs=1e-6)


def test_the_auxiliary_loss_is_weighted(scenes):
    losses = {}
    for weight in (0.4, 0.2, 0.0):
        torch.manual_seed(0)
        task = build_task(scenes_recipe(scenes, aux_weight=weight, dropout=0.0))
        found = task.loss(task.model.train(), next(task.train_loader(0, 1).epoch(0)))
        losses[weight] = {name: loss.item() for name, loss in found.items()}
    assert set(losses[0.4]) == {"cross_entropy", "auxiliary"}
    assert set(losses[0.0]) == {"cross_entropy"}
    assert losses[0.4]["auxiliary"] == pytest.approx(2 * losses[0.2]["auxiliary"], rel=1e-5)
    assert losses[0.4]["auxiliary"] == pytest.approx(0.4 * np.log(3), rel=0.2)  # untrained: all classes alike


# --- learning ---


def learn(task: Any, steps: int = 60, lr: float = 1.5e-2) -> dict[str, Any]:
    """Train on the whole set as one batch, and evaluate on it."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    task.model.train()
    train = task.train_loader(0, 1)
    for step in range(steps):
        (batch,) = train.epoch(step)
        torch.stack(list(task.loss(task.model, batch).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return run_evaluation(
        lightning_fabric.Fabric(accelerator="cpu", devices=1), task, task.model, task.eval_loader(0, 1)
    )


@pytest.fixture(scope="module")
def learnt(scenes: Path) -> tuple[SegmentationTraining, dict[str, Any]]:
    torch.manual_seed(0)
    task = SegmentationTraining(scenes_recipe(scenes))
    return task, learn(task)


def test_four_images_are_learnt(learnt):
    _, metrics = learnt
    assert metrics["miou"] >= 90
    assert metrics["count"] == 4
    assert [row["class"] for row in metrics["per_class"]] == list(CLASSES)
    assert sum(map(sum, metrics["confusion"])) == sum(h * w - 2 * w for h, w in SIZES)  # at the files' own sizes


def test_objects_are_learnt(masks):
    torch.manual_seed(0)
    metrics = learn(SegmentationTraining(scenes_recipe(masks, kind="binary")))
    assert metrics["s_measure"] >= 95
    assert metrics["weighted_f"] >= 85
    assert metrics["mae"] <= 3
    assert "confusion" not in metrics


def test_a_run_leaves_what_it_should(scenes, tmp_path):
    run = train(scenes_recipe(scenes), tmp_path / "run", display=False, command="smt train tiny")
    found = {file.name for file in run.folder.rglob("*.*")}
    assert {"best.pt", "last.pt", "metrics.json", "summary.md", "confusion.png", "worst.png", "epoch_001.png"} <= found
    assert "mIoU" in (run.folder / "summary.md").read_text()
    assert json.loads((run.folder / "metrics.json").read_text())["miou"] == run.metrics["miou"]
    card = torch.load(run.folder / "best.pt", weights_only=True)["card"]
    assert card["task"] == "segment"
    assert card["classes"] == list(CLASSES)
    assert card["segment"]["crop"] == (64, 64)


# --- prediction ---


class Truth(nn.Module):
    """Logits that say a pixel's class by its color."""

    def forward(self, image: Tensor) -> Tensor:
        colors = (torch.from_numpy(COLORS / 255.0).float() - 0.45) / 0.22
        return -(image[:, None] - colors[None, :, :, None, None]).square().sum(2)


def test_predictions_are_of_the_files_size(scenes):
    task = SegmentationTraining(scenes_recipe(scenes, short_side=32, long_side=40))
    for batch in task.eval_loader(0, 1):
        predictions = task.predict(Truth(), batch)
        assert [tuple(p.shape) for p in predictions] == list(SIZES)
        for prediction, label in zip(predictions, batch["label"], strict=True):
            known = label != 255
            assert float((prediction == label)[known].float().mean()) > 0.9


def test_two_processes_are_as_one(learnt):
    task, whole = learnt
    processes = [task.metric(torch.device("cpu")) for _ in range(2)]
    task.model.eval()
    with torch.inference_mode():
        for rank, metric in enumerate(processes):
            for batch in task.eval_loader(rank, 2):
                metric.update(task.predict(task.model, batch), batch)
    sums = sum(metric.sums._sums for metric in processes)
    worst = torch.stack([metric.worst for metric in processes])
    for metric in processes:
        metric.reduce(lambda _: sums, lambda _: worst)
        assert metric.compute() == whole


def test_the_worst_images_are_kept_worst_first():
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


def open_picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_pictures_are_of_the_evaluation(learnt, tmp_path):
    task, metrics = learnt
    drawn = task.pictures(tmp_path, metrics)
    assert [path.name for path in drawn] == ["confusion.png", "worst.png"]
    assert open_picture(drawn[1]).shape[1] > 3 * 80
    table = task.tables(metrics)[0]
    assert table.rows[0][0] in CLASSES
    assert sum(row[1] for row in table.rows) == pytest.approx(100)


@pytest.mark.parametrize("kind", ["classes", "binary"])
def test_samples_hold_three_panels_an_image(kind, scenes, masks):
    task = SegmentationTraining(scenes_recipe(masks if kind == "binary" else scenes, kind=kind))
    picture = task.samples(task.model.eval(), torch.device("cpu"))
    assert picture.width > 3 * max(width for _, width in SIZES)
    assert picture.height > sum(height for height, _ in SIZES)


# --- what cannot work ---


def test_numbers_that_cannot_work_are_refused_before_data_is_opened():
    def refused(words: str, change: Callable[[Recipe], Recipe]) -> None:
        with pytest.raises(ValueError, match=words):
            build_task(change(scenes_recipe(Path("nowhere"))))

    refused("batch_size=1: .*two images a batch", lambda r: replace(r, batch_size=1))
    for change in (dict(test="slide", stride=(65, 64)), dict(test="slide", stride=(0, 64))):
        refused(r"segment.stride=.* must be from 1 to", lambda r, c=change: replace(r, segment=replace(r.segment, **c)))
    refused("test_scales", lambda r: replace(r, segment=replace(r.segment, test_scales=())))


def test_camvid_trains_and_is_measured(shared):
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


def test_a_segmenter_s_checkpoint_starts_another(segmenter_run: Path, scenes: Path, tmp_path: Path) -> None:
    """All of it; where the classes are others, all but the two layers that tell them."""
    plan = replace(scenes_recipe(scenes), checkpoint=str(segmenter_run))
    saved = torch.load(segmenter_run / "best.pt", weights_only=True)["model"]
    own = SegmentationTraining(plan).model.state_dict()
    assert all(torch.equal(own[name], saved[name]) for name in own.keys() | saved.keys())
    for name in ("images", "labels"):
        (tmp_path / name).symlink_to(scenes / name)
    (tmp_path / "classes.json").write_text(json.dumps([*CLASSES, "cloud"]))
    own = SegmentationTraining(replace(plan, data=str(tmp_path))).model.state_dict()
    others = {name for name in own if own[name].shape != saved[name].shape}
    assert len(others) == 4
    assert all(torch.equal(own[name], saved[name]) for name in own.keys() - others)
