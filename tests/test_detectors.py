"""Detectors: losses, detections, backbones, and parameters and GMAC as the paper has them."""

import math
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_loss, project_masks_on_boxes
from torchvision.ops import FrozenBatchNorm2d, roi_align, sigmoid_focal_loss

from debug_model import DEBUG, images
from smt_vision.recipe import Input
from smt_vision.spec import ModelSpec
from smt_vision.tasks import RECIPES
from smt_vision.tasks.backbone import Backbone
from smt_vision.tasks.build import build_backbone
from smt_vision.tasks.detection import box_masks
from smt_vision.tasks.detection.box_masks import BoxMasks, paste_masks
from smt_vision.tasks.detection.config import DetectConfig
from smt_vision.tasks.detection.heads import dino, rcnn
from smt_vision.tasks.detection.heads.class_loss import (
    CellHead,
    region_class_loss,
    set_class_weights,
    weighted_focal_terms,
)
from smt_vision.tasks.detection.heads.detectors import FlopsView, build_detector, is_finite, run_detector, to_original
from smt_vision.tasks.detection.heads.dino import DINO
from smt_vision.tasks.detection.heads.pyramid import Pyramid, checked_outputs, group_norm, in_float32
from smt_vision.tasks.detection.heads.rcnn import GIOU_WEIGHT, giou_loss
from smt_vision.tasks.processes import mean_count

HEADS: tuple[Any, ...] = ("retinanet", "fcos", "faster_rcnn", "dino", "mask_rcnn", "cascade_mask_rcnn")
SMALL = DetectConfig(
    fpn_channels=16, head_channels=32, layers=2, queries=50, rois=32, anchor_sizes=(8, 16, 32, 64, 128)
)
STAGE_LOSSES = ("class", "box", "mask")
LOSSES = {
    "retinanet": {"class", "box"},
    "fcos": {"class", "box", "centerness"},
    "faster_rcnn": {"objectness", "proposal", "class", "box"},
    "dino": {"class", "box", "giou", "denoising"},
    "mask_rcnn": {"objectness", "proposal", "class", "box", "mask"},
    "cascade_mask_rcnn": {"objectness", "proposal", *(f"{name}{i}" for name in STAGE_LOSSES for i in (1, 2, 3))},
}
STRIDES = (4, 8, 16, 32)
SIZES = torch.tensor([[60, 96], [64, 70]])  # of the two images without padding


def create_backbone(model: str, **model_args: Any) -> Backbone:
    """A timm model as a backbone, with random weights."""
    spec = ModelSpec("detect", model, (), Input(), model_args, SMALL)
    return build_backbone(spec, pretrained=False, checkpoint=None)


def detector(head: str = "mask_rcnn", **changes: Any) -> Any:
    torch.manual_seed(0)
    return build_detector(create_backbone("smt_atto", **DEBUG), 3, replace(SMALL, head=head, **changes))  # type: ignore[arg-type]


def batch() -> tuple[Tensor, Tensor]:
    return images(2, 3, 64, 96), SIZES


def objects() -> list[dict[str, Tensor]]:
    """Two objects in the first image, none in the second."""
    masks = torch.zeros(2, 60, 96, dtype=torch.uint8)
    masks[0, 10:40, 5:45] = masks[1, 20:56, 50:90] = 1
    two = {
        "boxes": torch.tensor([[5.0, 10, 45, 40], [50, 20, 90, 56]]),
        "labels": torch.tensor([0, 2]),
        "masks": masks,
    }
    return [two, no_objects(64, 70)]


def no_objects(height: int, width: int) -> dict[str, Tensor]:
    return {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, height, width, dtype=torch.uint8),
    }


def losses(model: Any, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    torch.manual_seed(1)  # region proposals are sampled
    return model.train()(*batch(), targets)


@pytest.fixture(params=HEADS)
def head(request: pytest.FixtureRequest) -> Iterator[str]:
    return request.param


@pytest.mark.parametrize(("box_loss", "head_norm"), [("l1", "none"), ("giou", "group")])
def test_every_parameter_has_a_gradient(head: str, box_loss: str, head_norm: str) -> None:
    model = detector(head, box_loss=box_loss, head_norm=head_norm)
    own_norm = head in ("fcos", "dino")  # as published
    assert any(isinstance(part, nn.GroupNorm) for part in model.modules()) == (own_norm or head_norm == "group")
    found = losses(model, objects())
    assert found.keys() == LOSSES[head]
    assert all(loss.dtype == torch.float32 and loss.isfinite() and loss > 0 for loss in found.values())
    torch.stack(list(found.values())).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_images_without_objects(head: str) -> None:
    model = detector(head)
    found = losses(model, [no_objects(60, 96), no_objects(64, 70)])
    positive = {name for name, loss in found.items() if loss > 0}
    assert positive == {name for name in LOSSES[head] if name.startswith(("class", "objectness"))}
    torch.stack(list(found.values())).sum().backward()
    # DistributedDataParallel would wait for a parameter without a gradient.
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_bfloat16_is_close_to_float32(head: str) -> None:
    model = detector(head)
    exact = losses(model, objects())
    with torch.autocast("cpu", torch.bfloat16):
        low = losses(model, objects())
    assert all(loss.dtype == torch.float32 for loss in low.values())
    # Where scores are nearly equal, other proposals may be sampled, so only the sums are close.
    torch.testing.assert_close(sum(low.values()), sum(exact.values()), rtol=0.1, atol=0.0)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        found = model.eval()(*batch())
    assert all(value.dtype == torch.float32 for f in found for key, value in f.items() if key != "labels")


def test_last_layers_compute_in_float32_under_autocast(head: str) -> None:
    model = detector(head).eval()
    outputs: list[Tensor] = []
    for part in model.modules():
        if getattr(part, "is_output_layer", False):
            part.register_forward_hook(lambda module, args, output: outputs.extend(tree_leaves(output)))
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        model(*batch())
    outputs = [x for x in outputs if x.any()]  # DINO's boxes start at 0
    assert len(outputs) >= 2
    for x in outputs:
        assert not torch.equal(x, x.bfloat16().float())


def test_detections(head: str) -> None:
    model = detector(head, score_threshold=0.0).eval()
    model.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        found = model(*batch())
    for f, (h, w) in zip(found, SIZES.tolist(), strict=True):
        assert f["boxes"].shape == (len(f["scores"]), 4)
        assert 0 < len(f["scores"]) <= 100
        assert f["scores"].diff().le(0).all()
        assert 0 <= f["labels"].min() <= f["labels"].max() <= 2
        assert (f["boxes"] >= 0).all()
        assert (f["boxes"] <= torch.tensor([w, h, w, h])).all()
        assert ("masks" in f) == ("mask" in head)
        if "masks" in f:
            assert f["masks"].shape == (len(f["scores"]), 28, 28)
            assert 0 <= f["masks"].min() <= f["masks"].max() <= 1


def test_no_detections(head: str) -> None:
    with torch.inference_mode():
        found = detector(head, score_threshold=1.0).eval()(*batch())
    original = to_original(found, SIZES, 2 * SIZES)
    assert [len(f["boxes"]) for f in found] == [0, 0]
    assert [f["boxes"].shape for f in original] == [(0, 4), (0, 4)]
    if "mask" in head:
        masks = [BoxMasks(f["masks"], f["boxes"], (120, 192)) for f in original]
        assert [(len(m), m.stacked().shape, list(m.chunks())) for m in masks] == [(0, (0, 120, 192), [])] * 2


def test_strides_are_independent_of_padding() -> None:
    """For an image of 40 pixels padded to 64, torchvision would infer a first stride of 2."""
    model = detector(score_threshold=0.0).eval()
    with torch.inference_mode():
        (found,) = model(images(1, 3, 64, 64), torch.tensor([[40, 40]]))
    assert model.stages[0].box_roi_pool.scales == [1 / stride for stride in STRIDES]
    assert found["boxes"].max() <= 40


@pytest.mark.parametrize("head", ["faster_rcnn", "retinanet", "fcos"])
def test_anchors_are_at_the_strides_for_any_padding(head: str) -> None:
    model: Any = detector(head)
    generator = (model.rpn if head == "faster_rcnn" else model).anchor_generator
    for height, width in ((64, 96), (160, 224)):  # no multiples of a stride of 64 or 128
        strides = model.pyramid.strides if head == "faster_rcnn" else model.backbone.strides
        maps = [torch.zeros(1, 1, -(-height // stride), -(-width // stride)) for stride in strides]
        anchors = generator(ImageList(torch.zeros(1, 3, height, width), [(height, width)]), maps)[0]
        counts = [m[0, 0].numel() * n for m, n in zip(maps, generator.num_anchors_per_location(), strict=True)]
        for stride, level, m in zip(strides, anchors.split(counts), maps, strict=True):
            centers = ((level[:, :2] + level[:, 2:]) / 2).unique(dim=0)
            offset = stride / 2 if head == "fcos" else 0
            assert centers[-1].tolist() == [(m.shape[side] - 1) * stride + offset for side in (3, 2)]


@pytest.mark.parametrize("side", [12.0, 40.0])
def test_a_mask_head_that_learned_its_targets_gives_the_masks(side: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets are sampled where pasting puts them."""
    rows, columns = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    centers = torch.tensor([[30.3, 40.8], [60.6, 55.1]])
    masks = torch.stack(
        [(rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2 < (side / 2) ** 2 for x, y in centers.tolist()]
    )
    boxes = torch.cat([centers - side / 2, centers + side / 2], dim=1)
    seen: dict[str, Any] = {}

    def keep(logits: Tensor, regions: list[Tensor], *rest: Any) -> Tensor:
        seen["regions"], seen["rest"] = regions, rest
        return logits.sum()

    monkeypatch.setattr(rcnn, "maskrcnn_loss", keep)
    monkeypatch.setattr(rcnn, "_mask_logits", lambda *args: torch.zeros(2, 4, 28, 28))
    target = {"masks": masks.to(torch.uint8), "labels": torch.tensor([1, 2])}
    matched, labels = torch.tensor([0, 1]), torch.tensor([1, 2])
    unused: Any = None
    rcnn._mask_loss(unused, {}, [boxes], [(96, 96)], [target], [matched], [labels])
    (regions,), (gt_masks, _, indices) = seen["regions"], seen["rest"]
    targets = project_masks_on_boxes(gt_masks[0], regions, indices[0], 28)
    pasted = paste_masks(targets, boxes, (96, 96))
    overlap = (pasted & masks).flatten(1).sum(1) / (pasted | masks).flatten(1).sum(1)
    assert overlap.min() > 0.97


@pytest.mark.parametrize("head", ["dino", "cascade_mask_rcnn"])
def test_losses_of_an_image_that_is_not_finite_are_not_finite(head: str) -> None:
    """Instead of an error of a matcher or of RoIAlign: `engine.on_nonfinite` decides."""
    x, sizes = batch()
    x[1] = torch.nan
    losses = detector(head).train()(x, sizes, [objects()[0], {**objects()[0]}])
    assert not torch.stack(list(losses.values())).sum().isfinite()


def test_dino_trains_on_images_with_fewer_cells_than_queries() -> None:
    losses = detector("dino", queries=300).train()(*batch(), objects())
    assert torch.stack(list(losses.values())).isfinite().all()


def test_groups_divide_the_channels() -> None:
    assert [group_norm(channels).num_groups for channels in (256, 200, 16, 3)] == [32, 25, 4, 1]  # type: ignore[attr-defined]


def test_one_stage_matches_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Except that torchvision's mask targets are half a pixel off."""

    def with_their_targets(logits: Tensor, regions: list[Tensor], *rest: Any) -> Tensor:
        return maskrcnn_loss(logits, [boxes + 0.5 for boxes in regions], *rest)

    monkeypatch.setattr(rcnn, "maskrcnn_loss", with_their_targets)
    model = detector("mask_rcnn")
    (heads,) = model.stages
    assert isinstance(heads, RoIHeads)
    image, _ = batch()
    shapes = [(60, 96), (64, 70)]
    levels = model.pyramid(image)
    proposals = [torch.tensor([[4.0, 8, 44, 42], [30, 10, 80, 50], [0, 0, 20, 20]])] * 2
    targets = [{**t, "labels": t["labels"] + 1} for t in objects()]

    torch.manual_seed(2)
    _, theirs = heads.train()(levels, list(proposals), shapes, targets)
    torch.manual_seed(2)
    ours = model._losses(levels, list(proposals), shapes, targets)
    assert [ours[name].item() for name in STAGE_LOSSES] == pytest.approx(
        [theirs[name].item() for name in ("loss_classifier", "loss_box_reg", "loss_mask")], rel=1e-6
    )

    model.eval()
    with torch.inference_mode():
        levels = model.pyramid(image)
        expected, _ = heads(levels, list(proposals), shapes)
        for own, other in zip(model._detect(levels, list(proposals), shapes), expected, strict=True):
            torch.testing.assert_close(own["boxes"], other["boxes"])
            torch.testing.assert_close(own["scores"], other["scores"])
            torch.testing.assert_close(own["labels"] + 1, other["labels"])
            torch.testing.assert_close(own["masks"], other["masks"][:, 0])


@pytest.mark.parametrize("boxes", ["class", "shared"])
def test_cascade_averages_its_stages(boxes: str) -> None:
    """Stages with constant class scores, each of which shifts boxes by a tenth of their width."""
    model = detector("cascade_mask_rcnn", cascade_boxes=boxes).eval()
    class_scores = torch.tensor([[0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 3.0, 0.0]])
    for stage, bias, std in zip(model.stages, class_scores, (0.1, 0.05, 0.033), strict=True):
        nn.init.zeros_(stage.box_predictor.cls_score.weight)
        nn.init.zeros_(stage.box_predictor.bbox_pred.weight)
        stage.box_predictor.cls_score.bias.data = bias
        stage.box_predictor.bbox_pred.bias.data = torch.tensor([0.1 / std, 0.0, 0.0, 0.0]).repeat(
            4 if boxes == "class" else 1
        )
    with torch.inference_mode():
        levels = model.pyramid(images(1, 3, 64, 96))
        (found,) = model._detect(levels, [torch.tensor([[10.0, 10, 50, 50]])], [(64, 96)])
    mean = class_scores.mean(dim=0).softmax(dim=-1)[1:]  # without the background
    scores, labels = mean.sort(descending=True)
    torch.testing.assert_close(found["scores"], scores)
    assert found["labels"].tolist() == labels.tolist()
    torch.testing.assert_close(found["boxes"], torch.tensor([[22.0, 10, 62, 50]]).expand(3, 4))


def test_next_stage_starts_from_the_box_of_a_class() -> None:
    """In training of the object's class, elsewhere of the most probable one; never of the background."""
    stage = detector("cascade_mask_rcnn").stages[0]
    regions = [torch.tensor([[10.0, 10, 50, 50]]).repeat(2, 1)]
    deltas = torch.zeros(2, 16)
    for k in range(4):
        deltas[:, 4 * k] = 0.1 * k / 0.1  # the box of class k is k tenths of the width to the right
    scores = torch.tensor([[9.0, 0.0, 0.0, 1.0], [9.0, 2.0, 0.0, 1.0]])
    assert rcnn._best_class(scores).tolist() == [3, 1]
    (found,) = rcnn._refine(stage, deltas, rcnn._best_class(scores), regions, [(64, 96)])
    torch.testing.assert_close(found[:, 0], torch.tensor([22.0, 14.0]))
    label = torch.tensor([2, 0])
    seen: list[torch.Tensor] = []

    def refine(stage: Any, deltas: Any, labels: torch.Tensor, proposals: Any, shapes: Any) -> Any:
        seen.append(labels)
        raise StopIteration

    model = detector("cascade_mask_rcnn").train()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rcnn, "_refine", refine)
        patch.setattr(rcnn, "_box_outputs", lambda *args: (scores.requires_grad_(), deltas.requires_grad_()))
        patch.setattr(rcnn, "_mask_loss", lambda *args: torch.zeros(()))
        patch.setattr(
            type(model.stages[0]), "select_training_samples",
            lambda *args: (regions, [torch.zeros(2, dtype=torch.int64)], [label], [torch.zeros(2, 4)]),
        )  # fmt: skip
        with pytest.raises(StopIteration):
            model._losses({}, regions, [(64, 96)], [{}])
    assert seen[0].tolist() == [2, 1]


def test_regions_of_a_cascade_do_not_descend_from_the_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stage makes of the ground-truth boxes is no region of the next one, which gets those boxes anew."""
    model = detector("cascade_mask_rcnn").train()
    truth = torch.tensor([[5.0, 10, 45, 40]])
    target = {"boxes": truth, "labels": torch.tensor([1]), "masks": torch.ones(1, 64, 96, dtype=torch.uint8)}
    regions: list[Tensor] = []
    select = RoIHeads.select_training_samples

    def record(stage: Any, proposals: Any, targets: Any) -> Any:
        regions.append(proposals[0])
        return select(stage, proposals, targets)

    monkeypatch.setattr(RoIHeads, "select_training_samples", record)
    for stage in model.stages:  # boxes stay as they are
        nn.init.zeros_(stage.box_predictor.bbox_pred.weight)
        nn.init.zeros_(stage.box_predictor.bbox_pred.bias)
    levels = model.pyramid(images(1, 3, 64, 96))
    model._losses(levels, [torch.tensor([[10.0, 10, 50, 50]])], [(64, 96)], [target])
    for found in regions:
        torch.testing.assert_close(found, torch.tensor([[10.0, 10, 50, 50]]))
    assert len(regions) == 3


def test_regions_are_pooled_where_boxes_are() -> None:
    """As RoIAlign with aligned coordinates, from the level of each region."""
    levels = {str(i): images(1, 4, 256 // stride, 256 // stride) for i, stride in enumerate((4, 8, 16, 32))}
    boxes = torch.tensor([[20.0, 30, 36, 50], [10, 10, 130, 140], [4, 8, 250, 240], [0, 0, 256, 256]])
    pool = rcnn._roi_align(7, (4, 8, 16, 32, 64), aligned=True)
    mapper: Any = pool.map_levels
    level = mapper([boxes])
    assert len(set(level.tolist())) > 1
    expected = [
        roi_align(levels[str(i)], [box[None]], 7, 1 / 4 / 2**i, sampling_ratio=2, aligned=True)[0]
        for i, box in zip(level.tolist(), boxes, strict=True)
    ]
    torch.testing.assert_close(pool(levels, [boxes], [(256, 256)]), torch.stack(expected))
    earlier = rcnn._roi_align(7, (4, 8, 16, 32, 64), aligned=False)(levels, [boxes], [(256, 256)])
    assert (earlier - torch.stack(expected)).abs().max() > 0.1


@pytest.mark.parametrize("head", ["retinanet", "fcos", "mask_rcnn"])
@pytest.mark.parametrize(("detections", "candidates"), [(100, 1000), (2000, 4000)])
def test_more_detections_need_more_candidates(head: str, detections: int, candidates: int) -> None:
    model = detector(head, max_detections=detections)
    if head != "mask_rcnn":
        assert model.topk_candidates == candidates
        return
    assert model.rpn._pre_nms_top_n["testing"] == candidates
    assert model.rpn._post_nms_top_n["testing"] == candidates


def test_outputs_that_are_not_finite_are_not_taken_for_no_objects(head: str) -> None:
    """The other images of the batch, one of which has the same size, keep their detections."""
    model = detector(head, score_threshold=0.0).eval()
    image, sizes = images(3, 3, 64, 96), torch.tensor([[64, 96], [64, 96], [32, 64]])
    with torch.inference_mode():
        expected = run_detector(model, image, sizes)
        image[1] = math.inf
        found = run_detector(model, image, sizes)
    assert [is_finite(own) for own in found] == [True, False, True]
    for own, theirs in zip(found[::2], expected[::2], strict=True):
        torch.testing.assert_close(own["boxes"], theirs["boxes"], atol=1e-3, rtol=1e-4)
    assert found[1].keys() == found[0].keys()


def test_giou_loss_known_answers() -> None:
    stage = detector("mask_rcnn").stages[0]
    regions = [torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30]])]
    labels = [torch.tensor([1, 2, 0])]  # the last is background
    truth = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [0, 0, 1, 1]])
    deltas_to_truth = [stage.box_coder.encode_single(truth, regions[0])]
    deltas = torch.zeros(3, 16)  # every box is its region
    box_loss = giou_loss(stage, deltas, regions, labels, deltas_to_truth)
    # The first fits; the second overlaps by a third and fills its hull: 1 - 1/3, over three regions.
    assert box_loss.item() == pytest.approx(GIOU_WEIGHT * (2 / 3) / 3, rel=1e-5)


# --- class weights ---


def test_class_weights_change_the_losses_of_classes_with_objects_only(head: str) -> None:
    """The objects are of classes 0 and 2; the loss is linear in the weights, and background has none."""
    model = detector(head)

    def weighted(*weights: float) -> dict[str, Tensor]:
        set_class_weights(model, torch.tensor(weights) if weights else None)
        return losses(model, objects())

    plain, ones = weighted(), weighted(1.0, 1.0, 1.0)
    for name, loss in plain.items():
        torch.testing.assert_close(ones[name], loss)
    others, first, third, both = weighted(1, 9, 1), weighted(3, 1, 1), weighted(1, 1, 3), weighted(2, 5, 3)
    changed = {name for name in plain if name.startswith(("class", "denoising"))}
    assert changed
    for name, loss in plain.items():
        torch.testing.assert_close(others[name], loss)
        if name in changed:
            assert first[name] > loss
            assert third[name] > loss
            torch.testing.assert_close(both[name] - loss, (first[name] - loss) / 2 + (third[name] - loss))
        else:
            torch.testing.assert_close(both[name], loss)
    set_class_weights(model, torch.ones(3))
    assert not [name for name in model.state_dict() if "class_weights" in name]
    empty = [no_objects(60, 96), no_objects(64, 70)]
    assert all(loss.isfinite() for loss in losses(model, empty).values())


def test_weighted_class_losses_are_those_of_the_elements() -> None:
    torch.manual_seed(0)
    weights, logits, labels = torch.tensor([0.5, 2.0, 3.0]), torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    target = F.one_hot(labels, 3).float()
    elements = sigmoid_focal_loss(logits, target)
    expected = (torch.where(target > 0, weights, 1.0) * elements).sum()
    torch.testing.assert_close(elements.sum() + weighted_focal_terms(logits, labels, weights), expected)
    scores, regions = torch.randn(5, 4), torch.tensor([0, 1, 3, 0, 2])  # 0 is background
    expected = F.cross_entropy(scores, regions, torch.tensor([1.0, *weights]), reduction="sum") / 5
    torch.testing.assert_close(region_class_loss(scores, regions, weights), expected)
    torch.testing.assert_close(region_class_loss(scores, regions, None), F.cross_entropy(scores, regions))


# --- FCOS ---


def test_fcos_has_one_anchor_per_cell_and_takes_no_anchor_sizes() -> None:
    model = detector("fcos", anchor_sizes=(1, 2))
    levels = list(model.backbone(batch()[0]).values())
    (anchors,) = model.anchor_generator(ImageList(batch()[0][:1], [(64, 96)]), levels)
    assert len(anchors) == sum(level[0, 0].numel() for level in levels)
    assert (anchors[:, 2] - anchors[:, 0]).unique().tolist() == [8, 16, 32, 64, 128]  # the strides


def test_points_of_fcos_are_the_centers_of_the_cells() -> None:
    for points, first in (("center", 4.0), ("corner", 0.0)):
        model = detector("fcos", fcos_points=points)
        levels = list(model.backbone(batch()[0]).values())
        (anchors,) = model.anchor_generator(ImageList(batch()[0][:1], [(64, 96)]), levels)
        centers = (anchors[:, :2] + anchors[:, 2:]) / 2
        assert centers[:2].tolist() == [[first, first], [first + 8, first]]
        assert centers[levels[0][0, 0].numel()].tolist() == [2 * first, 2 * first]  # of the next level


# --- DINO ---


def test_dino_cells_of_padded_images() -> None:
    """Two images of 60 x 96 and 64 x 70 pixels, padded to 64 x 96: levels of 8 x 12, 4 x 6, 2 x 3 and 1 x 2 cells."""
    cells = detector("dino")._cells([torch.zeros(2, 1, 8 // 2**i, -(-12 // 2**i)) for i in range(4)], SIZES.tolist())
    assert cells.shapes == [(8, 12), (4, 6), (2, 3), (1, 2)]
    assert cells.inside.sum(dim=1).tolist() == [12 * 8 + 6 * 4 + 3 * 2 + 2, 9 * 8 + 5 * 4 + 3 * 2 + 2]
    first, last = cells.centers[1, 0], cells.centers[1, -1]
    assert first.tolist() == pytest.approx([4 / 70, 4 / 64])
    assert last.tolist() == pytest.approx([96 / 70, 32 / 64])  # beyond the image, in the second cell of 64 pixels
    # What layers sample is relative to the padded level: the center of the first and of the last cell of each.
    where = (cells.centers[:, [95, 119, 125, 127]] * cells.ratios).tolist()
    for positions in where:
        assert positions == [
            pytest.approx(p) for p in ([23 / 24, 15 / 16], [11 / 12, 7 / 8], [5 / 6, 3 / 4], [3 / 4, 1 / 2])
        ]


def test_dino_ignores_what_is_in_the_padding() -> None:
    """With maps that do not spread the padding: averages, and projections without GroupNorm."""
    model = detector("dino", score_threshold=0.0).eval()

    class Averages(nn.Module):
        def forward(self, image: Tensor) -> list[Tensor]:
            wide = image.repeat(1, 128, 1, 1)
            return [F.avg_pool2d(wide[:, :c], s) for c, s in zip((16, 32, 64, 128), STRIDES, strict=True)]

    model.backbone = Averages()
    for projection in model.projections:
        projection[1] = nn.Identity()
    image = images(1, 3, 128, 192)
    other = image.clone()
    image[..., 64:, :] = image[..., 128:] = 0
    size = torch.tensor([[64, 128]])
    with torch.inference_mode():
        (one,), (two,) = model(image, size), model(other, size)
    # The level of stride 64 has a convolution over the border, so only nearly the same.
    assert two["boxes"].max() <= 128
    torch.testing.assert_close(one["scores"], two["scores"], rtol=0.05, atol=0.0)


def test_dino_losses_known_answers() -> None:
    objects = [
        {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])},
        {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
    ]
    logits = torch.zeros(2, 2, 3)
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2]).expand(2, 2, 4).clone()
    boxes[0, 1, 0] = 0.6  # half of the truth's width to the right
    pairs = [(torch.tensor([1]), torch.tensor([0])), (torch.zeros(0, dtype=torch.int64),) * 2]
    focal, l1, giou = dino._loss(logits, boxes, objects, pairs, 1, None).tolist()
    half = 0.25 * math.log(2)  # (1 - 0.5)^2 x cross-entropy of probability 0.5
    assert focal == pytest.approx(0.25 * half + 11 * 0.75 * half)
    assert l1 == pytest.approx(dino.BOX_WEIGHT * 0.1)
    assert giou == pytest.approx(dino.GIOU_WEIGHT * (1 - 1 / 3), rel=1e-5)  # 1/3 overlap, no gap in the hull


def test_dino_detects_at_most_its_queries() -> None:
    model = detector("dino", queries=3, score_threshold=0.0).eval()
    with torch.inference_mode():
        assert [len(f["boxes"]) for f in model(*batch())] == [9, 9]  # three classes each


def test_dino_needs_channels_for_its_attention_heads() -> None:
    with pytest.raises(ValueError, match=r"fpn_channels=20.*multiple of 8"):
        detector("dino", fpn_channels=20)


@pytest.mark.parametrize("module", ["transformers", "scipy"])
def test_dino_names_the_extra_that_is_missing(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"'{module}'.*smt-vision\[detr\]"):
        detector("dino")


# --- BatchNorm ---


def statistics(model: nn.Module) -> list[Tensor]:
    return [b.clone() for name, b in model.named_buffers() if name.endswith("running_mean")]


def test_frozen_batchnorm() -> None:
    model = detector("mask_rcnn", norm="frozen")
    assert any(isinstance(m, FrozenBatchNorm2d) for m in model.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    before = statistics(model)
    losses(model, objects())
    assert before
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(model), strict=True))


def test_batchnorm_trains_by_default() -> None:
    model = detector("mask_rcnn")
    before = statistics(model)
    losses(model, objects())
    assert not any(torch.equal(a, b) for a, b in zip(before, statistics(model), strict=True))


def test_sync_batchnorm_in_backbone_and_heads() -> None:
    model = detector("cascade_mask_rcnn", norm="sync")
    kinds = {type(m) for m in model.modules() if "BatchNorm" in type(m).__name__}
    assert kinds == {nn.SyncBatchNorm}
    assert isinstance(model.stages[0].box_head[0][1], nn.SyncBatchNorm)


# --- masks and boxes at the stored size ---


def test_paste_masks_with_fractional_boxes() -> None:
    full = torch.ones(3, 28, 28)
    boxes = torch.tensor([[2.0, 3, 6, 9], [1.4, 0.6, 4.6, 3.4], [-5, 8, 3, 20]])
    pasted = paste_masks(full, boxes, (12, 10))
    expected = torch.zeros(3, 12, 10, dtype=torch.bool)
    expected[0, 3:9, 2:6] = True
    expected[1, 1:3, 1:5] = True  # pixels with their center inside
    expected[2, 8:12, 0:3] = True
    assert torch.equal(pasted, expected)


def test_paste_half_mask() -> None:
    mask = torch.zeros(1, 28, 28)
    mask[:, :, :14] = 1
    pasted = paste_masks(mask, torch.tensor([[10.0, 10, 50, 30]]), (40, 60))[0]
    rows, columns = pasted.nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 29, 10, 29)
    assert pasted.sum() == 20 * 20


def test_paste_mask_outside_the_image() -> None:
    assert not paste_masks(torch.ones(1, 28, 28), torch.tensor([[30.0, 30, 40, 40]]), (20, 20)).any()


def test_masks_of_a_large_image_are_made_a_few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(5, 2, 2, generator=generator).sort(dim=1).values * torch.tensor([30.0, 20])
    masks = BoxMasks(torch.rand(5, 28, 28, generator=generator), corners.flatten(1), (20, 30))
    expected = paste_masks(masks.probabilities, masks.boxes, (20, 30))
    assert torch.equal(torch.stack(list(masks)), expected)
    assert torch.equal(masks[torch.tensor([False, True, False, False, True])].stacked(), expected[[1, 4]])
    for limit, counts in ((1, [1] * 5), (2 * 20 * 30, [2, 2, 1]), (64_000_000, [5])):
        monkeypatch.setattr(box_masks, "PIXELS_AT_ONCE", limit)
        chunks = list(masks.chunks())
        assert [len(chunk) for chunk in chunks] == counts
        assert torch.equal(torch.cat(chunks), expected)


def test_boxes_are_scaled_to_stored_size() -> None:
    found = [{"boxes": torch.tensor([[10.0, 20, 30, 40]]), "scores": torch.ones(1), "labels": torch.zeros(1)}]
    (original,) = to_original(found, torch.tensor([[50, 100]]), torch.tensor([[100, 50]]))
    assert original["boxes"].tolist() == [[5.0, 40.0, 15.0, 80.0]]


# --- backbones ---


@pytest.mark.parametrize(
    ("name", "args", "channels"),
    [
        ("smt_atto", {}, [12, 24, 48, 96]),
        ("resnet18", {}, [64, 128, 256, 512]),  # the last four of five maps
        ("swin_tiny_patch4_window7_224", {"strict_img_size": False}, [96, 192, 384, 768]),  # NHWC
        ("efficientnet_b0", {}, [24, 40, 112, 320]),
    ],
)
def test_timm_models_as_backbones(name: str, args: dict[str, Any], channels: list[int]) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name, **args)
        maps = backbone(torch.empty(1, 3, 64, 128))
    assert backbone.feature_info.channels() == channels
    assert backbone.feature_info.reduction() == list(STRIDES)
    assert [tuple(x.shape) for x in maps] == [(1, c, 64 // s, 128 // s) for c, s in zip(channels, STRIDES, strict=True)]


def test_stem_stride_2() -> None:
    backbone = create_backbone("smt_atto", **DEBUG, stem_stride=2)
    model: Any = build_detector(backbone, 1, SMALL)
    model.eval()(images(1, 3, 32, 64), torch.tensor([[32, 64]]))
    assert model.stages[0].box_roi_pool.scales == [1 / 2, 1 / 4, 1 / 8, 1 / 16]


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("vit_tiny_patch16_224", {}, r"\[16, 16, 16\]"),
        ("smt_nano", {}, "'smt_nano'"),
        ("smt_atto", {"depth": 3}, "'smt_atto'.*'depth': 3"),
    ],
)
def test_invalid_backbones(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_backbone(name, **args)


def test_anchor_sizes_and_classes() -> None:
    with pytest.raises(ValueError, match=r"anchor_sizes=\(8, 16\).*5"):
        detector(anchor_sizes=(8, 16))
    with pytest.raises(ValueError, match="num_classes=0"):
        build_detector(create_backbone("smt_atto", **DEBUG), 0, SMALL)


# --- cost ---


def build_on_meta(name: str, num_classes: int) -> nn.Module:
    recipe = RECIPES[name]
    with torch.device("meta"):
        return build_detector(create_backbone(recipe.model, **recipe.model_args), num_classes, recipe.detect)


def parameters(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


def test_parameters_of_dino_match_paper() -> None:
    assert parameters(build_on_meta("coco_dino_small", 80)) - 2.05 == pytest.approx(40, rel=0.002)


@pytest.mark.slow
def test_gmac_of_dino() -> None:
    """The paper states 309 without the image size; DINO's authors average over images of COCO."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = FlopsView(build_on_meta("coco_dino_small", 80)).eval()
        model(torch.empty(1, 3, 800, 1280, device="meta"))
    counts = counter.get_flop_counts()["Global"]
    assert sum(flops for op, flops in counts.items() if "bmm" not in str(op)) / 2e9 == pytest.approx(282.1, abs=0.1)


# The paper's SMT-S has 20.5 M parameters, the release's (and ours) 22.55 M: detectors have 2.05 M more.
@pytest.mark.parametrize(
    ("name", "ours", "paper", "more", "gmac"),
    [
        ("coco_mask_rcnn_3x_small", 42.19, 40, 2.05, 265),
        ("coco_mask_rcnn_3x_base", 51.68, 52, 0, 328),
        ("coco_cascade_3x_small", 80.04, 78, 2.05, 744),
        ("coco_retinanet_3x_small", 32.27, 30, 2.05, 247),
    ],
)
def test_parameters_and_gmac_match_paper(name: str, ours: float, paper: int, more: float, gmac: int) -> None:
    model = build_on_meta(name, 80)
    assert parameters(model) == pytest.approx(ours, abs=0.005)
    assert parameters(model) - more == pytest.approx(paper, abs=0.5)  # which is rounded
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        FlopsView(model).eval()(torch.empty(1, 3, 800, 1280, device="meta"))
    counts = {str(op): flops / 2e9 for op, flops in counter.get_flop_counts()["Global"].items()}
    # The paper counts modules only, without attention's two matrix products, which at 50 x 80 tokens equal the head.
    products = counts.pop("aten.bmm")
    blocks, tokens = (9 if "small" in name else 14), 4000
    assert products == pytest.approx((2 * blocks * tokens**2 * 256 + 2 * 2 * (tokens // 4) ** 2 * 512) / 1e9, rel=1e-6)
    assert sum(counts.values()) == pytest.approx(gmac, rel=0.01)


DETECTION = sorted(name for name, recipe in RECIPES.items() if recipe.task == "detect")


@pytest.mark.parametrize("name", DETECTION)
def test_recipes_build(name: str) -> None:
    model: Any = build_on_meta(name, 2)
    (backbone,) = (module for module in model.modules() if isinstance(module, Backbone))
    assert parameters(backbone) < parameters(model) < 100
    pyramids = [module for module in model.modules() if isinstance(module, Pyramid)]
    assert [p.out_channels for p in pyramids] == [RECIPES[name].detect.fpn_channels] * (not isinstance(model, DINO))


def beside_another_process(monkeypatch: pytest.MonkeyPatch, count: float) -> None:
    """As if a second process had this number of objects or pixels."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.add_(count))


def test_losses_are_divided_by_the_mean_count_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object counts the same wherever it is; the mean is at least 1."""
    zero, one, three = torch.tensor([0, 1, 3])
    assert (mean_count(zero), mean_count(three)) == (1, 3)
    beside_another_process(monkeypatch, 10)
    assert mean_count(one) == 5.5
    assert one == 1  # unchanged


@pytest.mark.parametrize("weighted", [False, True])
def test_fcos_counts_the_positive_points_of_all_processes(weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head = CellHead(32, 1, 3, num_convs=1)
    if weighted:
        head.class_weights = torch.tensor([1.0, 2.0, 3.0])
    anchors = [torch.tensor([[0.0, 0.0, 8.0, 8.0]]).repeat(4, 1)]
    outputs = {
        "cls_logits": torch.randn(1, 4, 3), "bbox_regression": torch.rand(1, 4, 4), "bbox_ctrness": torch.randn(1, 4, 1)
    }  # fmt: skip
    targets = [{"boxes": torch.tensor([[0.0, 0.0, 8.0, 8.0]]), "labels": torch.tensor([1])}]
    matched = [torch.tensor([0, 0, -1, -1])]
    alone = head.compute_loss(targets, outputs, anchors, matched)
    beside_another_process(monkeypatch, 6)
    shared = head.compute_loss(targets, outputs, anchors, matched)
    for name, loss in alone.items():
        assert float(shared[name]) == pytest.approx(float(loss) * 2 / 4)


def test_checks_of_outputs_are_those_of_the_own_thread() -> None:
    """An output of another thread that is not finite is none of its business."""
    layer = in_float32(nn.Linear(1, 1))
    with checked_outputs(layer) as checks, ThreadPoolExecutor(1) as pool:
        pool.submit(layer, torch.full((1,), torch.nan)).result()
        layer(torch.zeros(1))
    assert torch.stack(checks).tolist() == [True]
