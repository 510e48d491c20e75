"""Detection task: losses, training, metrics, pictures and checkpoints, on drawn shapes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import timm
import torch
from torch import Tensor, nn

from drawn_sets import shapes_recipe, write_shapes
from smt_vision import checkpoints
from smt_vision.data.loaders import TrainLoader
from smt_vision.engine.launch import launch
from smt_vision.engine.loop import train
from smt_vision.recipe import Engine, Input
from smt_vision.spec import ModelSpec
from smt_vision.tasks import get_task, read_recipe, read_spec
from smt_vision.tasks.build import build_backbone
from smt_vision.tasks.detection.config import DetectConfig
from smt_vision.tasks.detection.task import DetectionTraining as Task


def batch_of(task: Task) -> Any:
    loader: TrainLoader = task.train_loader(0, 1)  # type: ignore[assignment]
    return next(iter(loader.epoch(0)))


def test_losses_decrease(shapes: Path) -> None:
    task = Task(shapes_recipe(shapes))
    batch = batch_of(task)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
    losses = []
    for step in range(10):
        torch.manual_seed(step)
        loss = torch.stack(list(task.loss(task.model.train(), batch).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_run_writes_checkpoint_metrics_summary_and_pictures(shapes: Path, tmp_path: Path) -> None:
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

    # The spec and the weights are all that it takes to use the model.
    best = checkpoints.load(run.folder / "best.pt")
    spec = read_spec(best.spec)
    assert (spec.task, spec.classes, spec.category_ids) == ("detect", ("square", "triangle"), (1, 4))
    get_task("detect").build_model(spec).load_state_dict(best.weights)
    assert read_recipe(best.state["recipe"]).to_dict() == run.recipe.to_dict()


def test_run_with_ema_and_bfloat16(shapes: Path, tmp_path: Path) -> None:
    recipe = shapes_recipe(shapes, "retinanet", ema=0.9)
    run = train(replace(recipe, engine=replace(recipe.engine, precision="bf16-mixed")), tmp_path / "run", display=False)
    assert run.ema is not None
    assert 0 <= run.metrics["box_ap"] <= 100
    assert "mask_ap" not in run.metrics


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_boxes_are_not_cast_to_bfloat16(precision: Literal["bf16-mixed", "32-true"]) -> None:
    """bfloat16 has a spacing of 2 at 300, so that a box of 1 pixel would have no height and a loss of NaN."""
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
def test_backbone_starts_from_classifier_checkpoint(name: str, shapes: Path, tmp_path: Path) -> None:
    """``features_only`` renames modules; the maps equal the classifier's."""
    classifier: Any = timm.create_model(name, num_classes=5).eval()
    torch.save({"model": classifier.state_dict()}, tmp_path / "classifier.pth")
    spec = ModelSpec("detect", name, ("square", "triangle"), Input(), head=DetectConfig())
    path = tmp_path / "classifier.pth"
    backbone = build_backbone(spec, pretrained=False, checkpoint=checkpoints.load(path)).eval()
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = classifier.forward_intermediates(x, indices=4, intermediates_only=True)
        for theirs, own in zip(expected, backbone(x), strict=True):
            torch.testing.assert_close(own, theirs)
    torch.save({"model": {"w": torch.ones(1)}}, tmp_path / "classifier.pth")
    with pytest.raises(ValueError, match=r"classifier\.pth.*model_args"):
        build_backbone(spec, pretrained=False, checkpoint=checkpoints.load(path))


@pytest.fixture
def shapes_and_stars(shapes: Path, tmp_path: Path) -> Path:
    """The same images with one more class."""
    root = tmp_path / "stars"
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / split).symlink_to(shapes / split)
        name = f"instances_{split}.json"
        content = json.loads((shapes / "annotations" / name).read_text())
        content["categories"].append({"id": 9, "name": "star"})
        (root / "annotations" / name).write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("kind", ["run", ".pt", ".safetensors"])
def test_detector_starts_from_detector_checkpoint(
    kind: str, detector_run: Path, shapes: Path, shapes_and_stars: Path, tmp_path: Path
) -> None:
    """With other classes, layers with an output per class keep their initialization."""
    saved = checkpoints.load(detector_run).weights
    source = {"run": detector_run, ".pt": detector_run / "best.pt"}.get(kind, tmp_path / "detector.safetensors")
    if kind == ".safetensors":
        best = checkpoints.load(detector_run)
        checkpoints.save({"spec": best.spec, "model": best.weights}, source)
    recipe = replace(shapes_recipe(shapes), checkpoint=str(source))
    state = Task(recipe).model.state_dict()
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[name], saved[name]) for name in state)

    state = Task(replace(recipe, data=str(shapes_and_stars))).model.state_dict()
    initialized = {name for name in state if state[name].shape != saved[name].shape}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in initialized} == {
        "cls_score", "bbox_pred", "mask_fcn_logits"
    }  # fmt: skip
    assert all(torch.equal(state[name], saved[name]) for name in state.keys() - initialized)
    with pytest.raises(ValueError, match=f"{source.name}.*model_args"):
        Task(replace(recipe, detect=replace(recipe.detect, fpn_channels=16)))


def test_checkpoint_of_another_task(segmenter_run: Path, shapes: Path) -> None:
    with pytest.raises(ValueError, match=r"'segment'.*'detect'"):
        Task(replace(shapes_recipe(shapes), checkpoint=str(segmenter_run)))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mask_rcnn", "cascade_mask_rcnn"])
def test_overfits_four_images(shapes: Path, tmp_path: Path, head: str) -> None:
    run = train(shapes_recipe(shapes, head, epochs=100, eval_every=100), tmp_path / "run", display=False)
    assert run.metrics["box_ap"] >= 90
    assert run.metrics["mask_ap"] >= 90


def test_metric_of_ground_truth(shapes: Path) -> None:
    """The ground truth as detections has a box AP of 100 and, with masks of 28 x 28, a slightly lower mask AP."""
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
    assert [row[3] for row in tables[0].rows] == ["no objects"] * 4  # no object is larger than 96 x 96
    assert [row[:2] for row in tables[1].rows] == [("square", 4), ("triangle", 4)]


def test_samples_show_ground_truth_and_predictions(shapes: Path) -> None:
    task = Task(shapes_recipe(shapes))
    picture = task.samples(task.model.eval(), torch.device("cpu"))
    assert picture is not None
    assert picture.width > 2 * 480  # ground truth and prediction, side by side
    assert picture.height > 4 * 400


def test_cost_is_reported_at_800_x_1280(shapes: Path) -> None:
    recipe = shapes_recipe(shapes)
    task = Task(replace(recipe, detect=replace(recipe.detect, short_side=800, long_side=1333)))
    _, size = get_task("detect").flops_model(task.model, task.spec)
    assert size == (3, 800, 1280)


# --- errors before a run starts ---


def test_head_with_masks_requires_masks(tmp_path: Path) -> None:
    boxes = write_shapes(tmp_path / "boxes", images=1, masks=False)
    with pytest.raises(ValueError, match="segmentation"):
        Task(shapes_recipe(boxes, "mask_rcnn"))
    assert Task(shapes_recipe(boxes, "faster_rcnn")).primary_metric == "box_ap"


def test_splits_with_different_classes(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "set", images=1)
    file = folder / "annotations" / "instances_val.json"
    file.write_text(file.read_text().replace("triangle", "wedge"))
    with pytest.raises(ValueError, match=r"square, triangle.*square, wedge"):
        Task(shapes_recipe(folder))
