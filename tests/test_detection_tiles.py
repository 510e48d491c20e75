"""Detection in tiles: each object is found once, also one that crosses the border of tiles."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning_fabric
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dense_sets import annotation, write_coco
from smt_vision.engine.evaluation_loop import run_evaluation
from smt_vision.recipe import Input
from smt_vision.spec import ModelSpec
from smt_vision.tasks.detection.config import DetectConfig
from smt_vision.tasks.detection.predictor import Detector
from smt_vision.tasks.detection.task import open_evaluation
from smt_vision.tasks.detection.tiles import TILES_AT_ONCE, _suppress, plan_tiles

TILE = 100
# Tiles overlap by 50 pixels: objects up to 40 are found in the tiles.
CONFIG = DetectConfig(head="mask_rcnn", short_side=TILE, long_side=4 * TILE, tiles=TILE, tile_overlap=0.5)
INPUT = Input(interpolation="nearest", mean=(0.0,) * 3, std=(1.0,) * 3)
Box = tuple[int, int, int, int]


class ColorDetector(nn.Module):
    """Detects each region of one color that is not black, exactly; the smaller a region, the higher its score."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, image: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        self.batches.append(len(image))
        found = []
        for pixels, (h, w) in zip(image, sizes.tolist(), strict=True):
            values = (pixels[:, :h, :w] * 255).round().long()
            colors = values[0] * 65536 + values[1] * 256 + values[2]
            boxes = []
            for color in colors.unique().tolist():
                y, x = (colors == color).nonzero(as_tuple=True)
                if color:
                    boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
            box = torch.tensor(boxes).float().reshape(-1, 4)
            scores = 1 / (2 + (box[:, 2:] - box[:, :2]).prod(1))
            order = scores.argsort(descending=True)
            labels = torch.zeros(len(box), dtype=torch.int64)
            masks = torch.ones(len(box), 28, 28)
            found.append({"boxes": box[order], "scores": scores[order], "labels": labels, "masks": masks})
        return found


def detector(**changes: Any) -> Detector:
    spec = ModelSpec("detect", "color", ("thing",), INPUT, head=replace(CONFIG, **changes), category_ids=(1,))
    return Detector(ColorDetector(), spec)


def draw(size: tuple[int, int], boxes: list[Box]) -> Image.Image:
    pixels = np.zeros((*size, 3), dtype=np.uint8)
    for k, (left, top, right, bottom) in enumerate(boxes):
        pixels[top:bottom, left:right] = (k // 16 * 8 + 7, k % 16 * 8 + 7, 255)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("side", [1, 5, 35, 37, 40, 43, 50, 60, 75, 99, 130])
@pytest.mark.parametrize("upright", [False, True])
def test_object_that_crosses_a_border_is_found_once(side: int, upright: bool) -> None:
    found_in = detector(short_side=60, long_side=200)
    for start in range(21, 111, 6):
        box, size = (start, 10, start + side, 10 + min(side, 45)), (60, 260)
        if upright:
            box, size = (box[1], box[0], box[3], box[2]), (260, 60)
        (found,) = found_in([draw(size, [box])])
        assert len(found) == 1, start
        exact = side <= 35
        assert np.abs(found.boxes.numpy() - [box]).max() <= (0 if exact else 260 / 200)  # pixels of the whole image
        if exact:
            assert found.masks is not None
            expected = np.zeros((1, *size), dtype=bool)
            expected[0, box[1] : box[3], box[0] : box[2]] = True
            assert np.array_equal(found.masks.numpy(), expected)


def test_tiles_equal_the_whole_image_on_many_objects() -> None:
    rng = np.random.default_rng(0)
    boxes: list[Box] = []
    taken = np.zeros((330, 470), dtype=bool)
    while len(boxes) < 60:
        w, h = (int(side) for side in rng.integers(2, 120 if len(boxes) < 5 else 36, 2))
        left, top = int(rng.integers(0, 470 - w)), int(rng.integers(0, 330 - h))
        if not taken[top : top + h, left : left + w].any():
            taken[top : top + h, left : left + w] = True
            boxes.append((left, top, left + w, top + h))
    image = draw((330, 470), boxes)
    (whole,) = detector(tiles=0, short_side=330, long_side=470)([image])
    tiled_detector = detector()
    (tiled,) = tiled_detector([image])
    assert len(whole) == len(tiled) == 60
    ours, theirs = (sorted(map(tuple, found.boxes.round().tolist())) for found in (tiled, whole))
    large = [box for box in theirs if max(box[2] - box[0], box[3] - box[1]) > 36]
    assert 2 < len(large) < 6
    assert len([box for box in ours if box in theirs]) >= 60 - len(large)
    assert max(tiled_detector.model.batches) <= TILES_AT_ONCE  # type: ignore[arg-type, operator]
    assert len(detector(max_detections=7)([image])[0]) == 7


def test_image_of_one_tile_gives_the_result_without_tiles() -> None:
    image = draw((100, 90), [(0, 0, 30, 80), (50, 50, 60, 90)])
    (tiled,), (whole,) = detector()([image]), detector(tiles=0)([image])
    assert torch.equal(tiled.boxes, whole.boxes)
    assert torch.equal(tiled.scores, whole.scores)
    (none,) = detector()([draw((300, 300), [])])
    assert len(none) == 0
    assert none.masks is not None
    assert none.masks.shape == (0, 300, 300)


@pytest.mark.parametrize(("width", "height"), [(101, 20), (250, 100), (3000, 2000), (149, 151)])
@pytest.mark.parametrize("overlap", [0.05, 0.2, 0.75])
def test_tiles_cover_the_image_and_overlap(width: int, height: int, overlap: float) -> None:
    whole, *tiles = plan_tiles(width, height, replace(CONFIG, tile_overlap=overlap))
    assert whole.box == (0, 0, width, height)
    for side, low, high in ((width, 0, 2), (height, 1, 3)):
        spans = sorted({(tile.box[low], tile.box[high]) for tile in tiles})
        assert spans[0][0] == 0
        assert spans[-1][1] == side
        assert all(end - start == min(TILE, side) for start, end in spans)
        # Starts are rounded to pixels.
        assert all(end - start >= TILE * overlap - 1 for (_, end), (start, _) in pairwise(spans))
        assert len(spans) <= max(1, -(-side // (TILE * (1 - overlap) - 1)))


def test_large_jpeg_images_reach_the_tiles_decoded(tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval", reason="the extra detect is not installed")
    image = {"id": 1, "file_name": "a.jpg", "width": 1100, "height": 1000}
    objects = [annotation(1, 1, 1, (10, 10, 30, 30))]
    write_coco(tmp_path, {"images": [image], "annotations": objects, "categories": [{"id": 1, "name": "thing"}]}, "val")
    Image.new("RGB", (1100, 1000)).save(tmp_path / "val" / "a.jpg")
    model = detector(tiles=TILE)
    _, loader = open_evaluation(model, str(tmp_path), replace(INPUT, workers=0), 2, 0, 1)
    fabric = lightning_fabric.Fabric(accelerator="cpu", devices=1)
    (batch,) = [fabric.to_device(batch) for batch in loader]
    assert batch["image"][0].size == (1100, 1000)


def test_evaluation_in_tiles(tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval", reason="the extra detect is not installed")
    boxes = [(90, 95, 110, 105), (5, 5, 9, 8), (45, 60, 53, 64), (140, 100, 160, 110)]
    image = {"id": 1, "file_name": "a.png", "width": 220, "height": 180}
    objects = [annotation(k, 1, 1, (a, b, c - a, d - b)) for k, (a, b, c, d) in enumerate(boxes, 1)]
    content = {"images": [image], "annotations": objects, "categories": [{"id": 1, "name": "thing"}]}
    write_coco(tmp_path, content, "val")
    draw((180, 220), boxes).save(tmp_path / "val" / "a.png")
    fabric = lightning_fabric.Fabric(accelerator="cpu", devices=1)
    measured = {}
    for tiles in (0, TILE):
        model = detector(tiles=tiles)
        evaluation, loader = open_evaluation(model, str(tmp_path), replace(INPUT, workers=0), 2, 0, 1)
        measured[tiles] = run_evaluation(fabric, evaluation, model.model, loader)
    assert measured[TILE]["box_ap"] == measured[TILE]["mask_ap"] == pytest.approx(100)
    assert measured[0]["box_ap"] < 90  # the small objects are a few pixels, which are rounded


def test_detections_of_a_tile_do_not_suppress_each_other() -> None:
    """Two overlapping objects of the first tile stay; what the second tile found of one of them goes."""
    boxes = torch.tensor([[0.0, 0, 100, 100], [20, 0, 120, 100], [21, 0, 121, 100], [0, 0, 101, 100]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([1, 1, 1, 2])
    tile = torch.tensor([0, 0, 1, 1])
    assert _suppress(boxes, scores, labels, tile, 0.5).tolist() == [0, 1, 3]
    assert _suppress(boxes, scores, labels, torch.arange(4), 0.5).tolist() == [0, 3]
    assert _suppress(boxes, scores, labels, torch.zeros(4), 0.5).tolist() == [0, 1, 2, 3]
