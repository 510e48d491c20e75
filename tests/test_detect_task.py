"""Detection as a task: what a run learns, metric_formats, shows and leaves to be used."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import timm
import torch
from torch import Tensor, nn

from drawn_sets import shapes_recipe, write_shapes
from smt_vision.checkpoints import load
from smt_vision.data.loaders import TrainLoader
from smt_vision.engine.launch import launch
from smt_vision.engine.loop import train
from smt_vision.recipe import Engine, from_plain
from smt_vision.tasks.backbone import build_backbone
from smt_vision.tasks.build import build_features
from smt_vision.tasks.detection.config import DetectConfig
from smt_vision.tasks.detection.heads.detectors import build_detector
from smt_vision.tasks.detection.task import DetectionTraining as Task


def batch_of(task: Task) -> Any:
    loader: TrainLoader = task.train_loader(0, 1)  # type: ignore[assignment]
    return next(iter(loader.epoch(0)))


def test_the_losses_go_down(shapes: Path) -> None:
    task = Task(shapes_recipe(shapes))
    batch = batch_of(task)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
    seen = []
    for step in range(10):
        torch.manual_seed(step)
        loss = torch.stack(list(task.loss(task.model.train(), batch).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[-1] < 0.6 * seen[0]


def test_a_run_from_data_to_checkpoint(shapes: Path, tmp_path: Path) -> None:
    run = train(shapes_recipe(shapes, "mask_rcnn"), tmp_path / "run", display=False)
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    (step,) = [line for line in lines if line["kind"] == "train"]
    parts = ("objectness", "proposal", "class", "box", "mask")
    assert step["loss"] == pytest.approx(sum(step[f"loss/{name}"] for name in parts), rel=1e-5)
    (evaluation,) = [line for line in lines if line["kind"] == "eval"]
    assert 0 <= evaluation["mask_ap"] <= evaluation["mask_ap50"] <= 100
    assert (run.folder / "samples" / "epoch_001.png").is_file()
    summary = (run.folder / "summary.md").read_text()
    assert "mask AP (%)" in summary
    assert "triangle" in summary

    # The card is all that it takes to use the weights.
    best = load(run.folder / "best.pt")
    card = json.loads(json.dumps(best["card"]))
    assert (card["task"], card["classes"]) == ("detect", ["square", "triangle"])
    backbone = build_backbone(card["model"], card["model_args"], channels=card["input"]["channels"])
    model = build_detector(backbone, len(card["classes"]), from_plain(DetectConfig, card["detect"]))
    model.load_state_dict(best["model"])


def test_a_run_with_averaged_weights_and_bfloat16(shapes: Path, tmp_path: Path) -> None:
    plan = shapes_recipe(shapes, "retinanet", ema=0.9)
    run = train(replace(plan, engine=replace(plan.engine, precision="bf16-mixed")), tmp_path / "run", display=False)
    assert run.ema is not None
    assert 0 <= run.metrics["box_ap"] <= 100
    assert "mask_ap" not in run.metrics


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_boxes_reach_the_model_as_they_are(precision: Literal["bf16-mixed", "32-true"]) -> None:
    """bfloat16 has steps of 2 at 300: a box of 1 pixel there would have no height, and its loss be no number."""
    seen = []

    class Model(nn.Module):
        def forward(self, image: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
            seen.append(targets[0]["boxes"])
            return image

    fabric = launch(Engine(accelerator="cpu", precision=precision))
    boxes = torch.tensor([[300.3, 300.3, 301.4, 301.4]])
    fabric.setup_module(Model())(torch.ones(1), [{"boxes": boxes}])
    assert torch.equal(seen[0], boxes)
    assert seen[0].dtype == torch.float32


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", "smt_atto"])
def test_a_classifier_s_checkpoint_starts_any_backbone(name: str, shapes: Path, tmp_path: Path) -> None:
    """``features_only`` gives modules names of their own; the maps are those of the classifier all the same."""
    classifier: Any = timm.create_model(name, num_classes=5).eval()
    torch.save({"model": classifier.state_dict()}, tmp_path / "classifier.pth")
    plan = replace(shapes_recipe(shapes), model=name, model_args={}, checkpoint=str(tmp_path / "classifier.pth"))
    backbone = build_features(plan).eval()
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = classifier.forward_intermediates(x, indices=4, intermediates_only=True)
        for theirs, own in zip(expected, backbone(x), strict=True):
            torch.testing.assert_close(own, theirs)
    torch.save({"model": {"w": torch.ones(1)}}, tmp_path / "classifier.pth")
    with pytest.raises(ValueError, match=r"classifier\.pth does not fit the model"):
        build_features(plan)


def test_a_detector_s_checkpoint_starts_another(detector_run: Path, shapes: Path, tmp_path: Path) -> None:
    """All of it; where the classes are others, all but the layers that have an output a class."""
    plan = replace(shapes_recipe(shapes), checkpoint=str(detector_run))
    saved = torch.load(detector_run / "best.pt", weights_only=True)
    own = Task(plan).model.state_dict()
    assert own.keys() == saved["model"].keys()
    assert all(torch.equal(own[name], saved["model"][name]) for name in own)

    other = tmp_path / "other"
    (other / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (other / split).symlink_to(shapes / split)
        name = f"instances_{split}.json"
        told = json.loads((shapes / "annotations" / name).read_text())
        told["categories"].append({"id": 9, "name": "star"})
        (other / "annotations" / name).write_text(json.dumps(told))
    own = Task(replace(plan, data=str(other))).model.state_dict()
    others = {name for name in own if own[name].shape != saved["model"][name].shape}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in others} == {
        "cls_score", "bbox_pred", "mask_fcn_logits"
    }  # fmt: skip
    assert all(torch.equal(own[name], saved["model"][name]) for name in own.keys() - others)
    with pytest.raises(ValueError, match="does not fit the model; check model, model_args and the head"):
        Task(replace(plan, detect=replace(plan.detect, fpn_channels=16)))


def test_a_checkpoint_of_another_task(segmenter_run: Path, shapes: Path) -> None:
    with pytest.raises(ValueError, match="is of a model that does segment, and shapes does detect"):
        Task(replace(shapes_recipe(shapes), checkpoint=str(segmenter_run)))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mask_rcnn", "cascade_mask_rcnn"])
def test_four_images_are_learnt_by_heart(shapes: Path, tmp_path: Path, head: str) -> None:
    run = train(shapes_recipe(shapes, head, epochs=100, eval_every=100), tmp_path / "run", display=False)
    assert run.metrics["box_ap"] >= 90
    assert run.metrics["mask_ap"] >= 90


def test_the_metric_takes_what_the_model_gives(shapes: Path) -> None:
    """The truth itself, as a detector of these images would give it, scores 100 in boxes and almost so in masks."""
    task = Task(shapes_recipe(shapes))
    metric = task.metric(torch.device("cpu"))
    for batch in task.eval_loader(0, 1):
        output = []
        for row, (h, w) in zip(batch["index"].tolist(), batch["sizes"].tolist(), strict=True):
            _, target, _ = task.val_set.read(row)
            H, W = target["size"]
            square, triangle = torch.ones(28, 28), torch.ones(28, 28)
            rows, columns = torch.meshgrid(torch.arange(28) + 0.5, torch.arange(28) + 0.5, indexing="ij")
            triangle[(columns - 14).abs() > rows / 2] = 0
            output.append(
                {
                    "boxes": torch.from_numpy(target["boxes"]) * torch.tensor([w / W, h / H, w / W, h / H]),
                    "scores": torch.tensor([0.9, 0.8]),
                    "labels": torch.from_numpy(target["labels"]),
                    "masks": torch.stack([square, triangle]),
                }
            )
        metric.update(output, batch)
    metric.reduce(lambda x: x, lambda x: x[None])
    out = metric.compute()
    assert out["count"] == 4
    assert out["box_ap"] == pytest.approx(100.0)
    assert out["mask_ap50"] == 100.0
    assert out["mask_ap"] > 90
    tables = task.tables(out)
    assert [row[3] for row in tables[0].rows] == ["no objects"] * 4  # none is above 96 x 96
    assert [row[:2] for row in tables[1].rows] == [("square", 4), ("triangle", 4)]


def test_samples_show_every_image(shapes: Path) -> None:
    task = Task(shapes_recipe(shapes))
    picture = task.samples(task.model.eval(), torch.device("cpu"))
    assert picture is not None
    assert picture.width > 2 * 480  # truth and prediction, side by side
    assert picture.height > 4 * 400


def test_cost_is_told_for_the_shape_of_the_tables(shapes: Path) -> None:
    plan = shapes_recipe(shapes)
    _, size = Task(replace(plan, detect=replace(plan.detect, short_side=800, long_side=1333))).flops_model()
    assert size == (3, 800, 1280)


# --- what cannot work, said before a run begins ---


def test_masks_are_asked_for_at_once(tmp_path: Path) -> None:
    boxes = write_shapes(tmp_path / "boxes", images=1, masks=False)
    with pytest.raises(ValueError, match="no segmentation"):
        Task(shapes_recipe(boxes, "mask_rcnn"))
    assert Task(shapes_recipe(boxes, "faster_rcnn")).primary_metric == "box_ap"


def test_both_splits_have_the_same_classes(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "set", images=1)
    file = folder / "annotations" / "instances_val.json"
    file.write_text(file.read_text().replace("triangle", "wedge"))
    with pytest.raises(ValueError, match="classes square, triangle, the validation images square, wedge"):
        Task(shapes_recipe(folder))
