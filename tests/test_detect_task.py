"""Detection as a task: what a run learns, measures, shows and leaves to be used."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from debug_model import DEBUG
from smt_vision.data import TrainLoader
from smt_vision.engine.checkpoint import load
from smt_vision.engine.launch import launch
from smt_vision.engine.loop import fit
from smt_vision.heads.detectors import build_detector
from smt_vision.heads.features import build_backbone
from smt_vision.recipes import Detect, Engine, Input, Optim, Recipe, from_plain
from smt_vision.tasks.detect import Detect as Task
from tiny_run import PLAIN

SIDE = 96  # pixels of the images
CATEGORIES = [{"id": 1, "name": "square"}, {"id": 4, "name": "triangle"}]


def write_shapes(folder: Path, images: int = 4, masks: bool = True) -> Path:
    """A set in COCO's form: a red square and a green triangle an image, the same images to train and to validate."""
    rng = np.random.default_rng(0)
    content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": CATEGORIES}
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
    for i in range(images):
        picture = Image.fromarray(rng.integers(0, 60, (SIDE, SIDE + 16 * (i % 2), 3), dtype=np.uint8))
        pen = ImageDraw.Draw(picture)
        for k in range(2):
            s = int(rng.integers(24, 40))
            x, y = 4 + (i + k) % 2 * (picture.width // 2), int(rng.integers(2, SIDE - s - 2))
            corners = (
                ((x, y), (x + s, y), (x + s, y + s), (x, y + s))
                if k == 0
                else ((x, y + s), (x + s, y + s), (x + s / 2, y))
            )
            pen.polygon([(u, v) for u, v in corners], fill=((220, 60, 60), (60, 200, 80))[k])
            polygon = {"segmentation": [[c for corner in corners for c in corner]]} if masks else {}
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": i + 1,
                    "category_id": CATEGORIES[k]["id"],
                    "bbox": [x, y, s, s],
                    "area": s * s / (k + 1),
                    "iscrowd": 0,
                    **polygon,
                }
            )
        for split in ("train", "val"):
            picture.save(folder / split / f"{i}.png")
        content["images"].append(
            {"id": i + 1, "file_name": f"{i}.png", "width": picture.width, "height": picture.height}
        )
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "set")


def recipe(data: Path, head: str = "mask_rcnn", epochs: int = 1, **engine: Any) -> Recipe:
    return Recipe(
        name="shapes",
        about="for tests",
        task="detect",
        model="smt_atto",
        model_args=DEBUG,
        data=str(data),
        epochs=epochs,
        batch_size=4,
        hardware="any",
        citation="none",
        input=Input(interpolation="bilinear", workers=0),
        augment=PLAIN,
        optim=Optim(lr=5e-3, lr_batch=None, warmup_epochs=0.1 * epochs, weight_decay=0.0),
        detect=Detect(
            head=head,  # type: ignore[arg-type]
            short_side=SIDE,
            long_side=2 * SIDE,
            train_short_sides=(SIDE,),
            anchor_sizes=(8, 16, 32, 64, 128),
            fpn_channels=32,
            head_channels=64,
            rois=64,
        ),
        engine=Engine(accelerator="cpu", precision="32-true", log_every=1, **engine),
    )


def batch_of(task: Task) -> Any:
    loader: TrainLoader = task.train_loader(0, 1)  # type: ignore[assignment]
    return next(iter(loader.epoch(0)))


def test_the_losses_go_down(shapes: Path) -> None:
    task = Task(recipe(shapes))
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
    run = fit(recipe(shapes, "mask_rcnn"), tmp_path / "run", display=False)
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
    model = build_detector(backbone, len(card["classes"]), from_plain(Detect, card["detect"]))
    model.load_state_dict(best["model"])


def test_a_run_with_averaged_weights_and_bfloat16(shapes: Path, tmp_path: Path) -> None:
    plan = recipe(shapes, "retinanet", ema=0.9)
    run = fit(replace(plan, engine=replace(plan.engine, precision="bf16-mixed")), tmp_path / "run", display=False)
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


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mask_rcnn", "cascade_mask_rcnn"])
def test_four_images_are_learnt_by_heart(shapes: Path, tmp_path: Path, head: str) -> None:
    run = fit(recipe(shapes, head, epochs=100, eval_every=100), tmp_path / "run", display=False)
    assert run.metrics["box_ap"] >= 90
    assert run.metrics["mask_ap"] >= 90


def test_the_metric_takes_what_the_model_gives(shapes: Path) -> None:
    """The truth itself, as a detector of these images would give it, scores 100 in boxes and almost so in masks."""
    task = Task(recipe(shapes))
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
    task = Task(recipe(shapes))
    picture = task.samples(task.model.eval(), torch.device("cpu"))
    assert picture is not None
    assert picture.width > 2 * 480  # truth and prediction, side by side
    assert picture.height > 4 * 400


def test_cost_is_told_for_the_shape_of_the_tables(shapes: Path) -> None:
    plan = recipe(shapes)
    _, size = Task(replace(plan, detect=replace(plan.detect, short_side=800, long_side=1333))).countable()
    assert size == (3, 800, 1280)


# --- what cannot work, said before a run begins ---


def test_masks_are_asked_for_at_once(tmp_path: Path) -> None:
    boxes = write_shapes(tmp_path / "boxes", images=1, masks=False)
    with pytest.raises(ValueError, match="no segmentation"):
        Task(recipe(boxes, "mask_rcnn"))
    assert Task(recipe(boxes, "faster_rcnn")).headline == "box_ap"


def test_both_splits_have_the_same_classes(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "set", images=1)
    file = folder / "annotations" / "instances_val.json"
    file.write_text(file.read_text().replace("triangle", "wedge"))
    with pytest.raises(ValueError, match="classes square, triangle, the validation images square, wedge"):
        Task(recipe(folder))


def test_the_backbone_starts_from_a_classifiers_weights(shapes: Path, tmp_path: Path) -> None:
    classifier = timm.create_model("smt_atto", **DEBUG, num_classes=7)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pt")
    task: Any = Task(replace(recipe(shapes), checkpoint=str(tmp_path / "classifier.pt")))
    own = task.model.pyramid.backbone.network.state_dict()
    assert own
    assert all(torch.equal(value, classifier.state_dict()[key]) for key, value in own.items())
