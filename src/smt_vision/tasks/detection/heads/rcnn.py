"""Multi-stage detectors: Faster R-CNN, Mask R-CNN and Cascade Mask R-CNN, built from torchvision's modules.

Regions are proposed from every level of the feature pyramid. A box head, and with masks a mask head, processes each
region. A cascade has three such stages; each stage starts from the boxes of the previous one.

Sources: Ren et al., NeurIPS 2015; He et al., ICCV 2017; Cai and Vasconcelos, CVPR 2018. The cascade's heads (four
convolutions with BatchNorm and a linear layer, a box per class, one mask head per stage) follow the configurations of
the paper's runs.

Shapes: B images, K classes, C channels of the pyramid; N, R boxes ``(x1, y1, x2, y2)`` in pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image, generalized_box_iou_loss
from torchvision.ops.poolers import initLevelMapper

from ..config import DetectConfig
from .class_loss import WeightsClasses, region_class_loss
from .pyramid import Pyramid, StridedAnchors, candidates, head_norm, in_float32

RATIOS = (0.5, 1.0, 2.0)  # height / width of the anchors
BOX_SIZE, MASK_SIZE = 7, 14  # sides of the pooled features of a region, for box and mask heads
GIOU_WEIGHT = 10.0  # as in the configurations: compensates that GIoU losses are smaller than L1 losses
FLOPS_BOXES, FLOPS_MASKS = 1000, 100  # regions per image in published GMACs


@dataclass(frozen=True)
class StageConfig:
    """Training targets and loss weight of a stage.

    Args:
        iou: IoU from which a region is assigned to an object.
        weight: Weight of the losses.
        stds: Standard deviations of the regression targets (x, y, width, height).
    """

    iou: float
    weight: float
    stds: tuple[float, float, float, float]


SINGLE_STAGE = (StageConfig(0.5, 1.0, (0.1, 0.1, 0.2, 0.2)),)
CASCADE = (
    *SINGLE_STAGE,
    StageConfig(0.6, 0.5, (0.05, 0.05, 0.1, 0.1)),
    StageConfig(0.7, 0.25, (0.033, 0.033, 0.067, 0.067)),
)


class RCNN(WeightsClasses):
    """Region proposals, followed by one or more stages of box and mask heads.

    Args:
        pyramid: Feature pyramid of five levels.
        num_classes: Number of classes K.
        config: Kind of detector, its sizes and thresholds.

    Shape: see :class:`smt_vision.tasks.detection.heads.detectors.Detector`. The losses are ``objectness`` and
        ``proposal`` of the proposals, and ``class``, ``box`` and ``mask`` of the heads; those of a cascade have the
        stage's number, 1 to 3, as suffix.
    """

    def __init__(self, pyramid: Pyramid, num_classes: int, config: DetectConfig) -> None:
        super().__init__()
        cascade = config.head == "cascade_mask_rcnn"
        self.has_masks = config.has_masks
        self.pyramid = pyramid
        anchors = StridedAnchors(pyramid.strides, tuple((side,) for side in config.anchor_sizes), RATIOS)
        self.rpn = RegionProposalNetwork(
            anchors,
            in_float32(RPNHead(config.fpn_channels, anchors.num_anchors_per_location()[0]), "cls_logits", "bbox_pred"),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n=dict(training=2000, testing=candidates(config)),
            post_nms_top_n=dict(training=2000 if cascade else 1000, testing=candidates(config)),
            nms_thresh=0.7,
        )
        make_stage = _cascade_stage if cascade else _single_stage
        stages = CASCADE if cascade else SINGLE_STAGE
        self.weights = [stage.weight for stage in stages]
        self.giou = config.box_loss == "giou"
        self.stages: Any = nn.ModuleList(make_stage(stage, self.pyramid, num_classes, config) for stage in stages)

    def forward(
        self, image: Tensor, sizes: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        shapes = [(h, w) for h, w in sizes.tolist()]
        if not self.training:
            return self.detect(image, shapes)
        levels = self.pyramid(image)
        proposals, proposal_losses = self.rpn(ImageList(image, shapes), levels, targets)
        assert targets is not None  # the RPN has checked it
        # torchvision reserves label 0 for background.
        targets = [{**target, "labels": target["labels"] + 1} for target in targets]
        return {
            "objectness": proposal_losses["loss_objectness"],
            "proposal": proposal_losses["loss_rpn_box_reg"],
            **self._losses(levels, proposals, shapes, targets),
        }

    def detect(self, image: Tensor, shapes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        levels = self.pyramid(image)
        proposals, _ = self.rpn(ImageList(image, shapes), levels)
        return self._detect(levels, proposals, shapes)

    def forward_flops(self, image: Tensor) -> None:
        """The part that published GMACs count: the pyramid, and the heads on 1000 boxes and 100 masks per stage.

        The number of regions depends on the image; published tables (mmdetection's) assume these numbers. Runs on the
        meta device, without data.
        """
        levels = self.pyramid(image)
        self.rpn.head(list(levels.values()))
        for stage in self.stages:
            regions = image.new_zeros(FLOPS_BOXES, self.pyramid.out_channels, BOX_SIZE, BOX_SIZE)
            stage.box_predictor(stage.box_head(regions))
            if self.has_masks:
                regions = image.new_zeros(FLOPS_MASKS, self.pyramid.out_channels, MASK_SIZE, MASK_SIZE)
                stage.mask_predictor(stage.mask_head(regions))

    def _losses(
        self,
        levels: dict[str, Tensor],
        proposals: list[Tensor],
        shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for i, (stage, weight) in enumerate(zip(self.stages, self.weights, strict=True)):
            # The ground-truth boxes are added to the regions of each stage, so that every stage has positive samples;
            # what a stage makes of them is not a region of the next one.
            proposals, matched, labels, box_targets = stage.select_training_samples(proposals, targets)
            scores, deltas = _box_outputs(stage, levels, proposals, shapes)
            if self.giou:
                box_loss = giou_loss(stage, deltas, proposals, labels, box_targets)
            else:
                _, box_loss = fastrcnn_loss(scores, deltas, labels, box_targets)
            class_loss = region_class_loss(scores, torch.cat(labels), self.class_weights)
            stage_losses = {"class": class_loss, "box": box_loss}
            if self.has_masks:
                stage_losses["mask"] = _mask_loss(stage, levels, proposals, shapes, targets, matched, labels)
            suffix = str(i + 1) if len(self.stages) > 1 else ""
            losses |= {name + suffix: weight * loss for name, loss in stage_losses.items()}
            if i + 1 < len(self.stages):
                label = torch.cat(labels)
                refined = _refine(stage, deltas, label.where(label > 0, _best_class(scores)), proposals, shapes)
                proposals = [
                    new[~_rows_in(old, target["boxes"])]
                    for new, old, target in zip(refined, proposals, targets, strict=True)
                ]
        return losses

    def _detect(
        self, levels: dict[str, Tensor], proposals: list[Tensor], shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        logits: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            scores, deltas = _box_outputs(stage, levels, proposals, shapes)
            logits.append(scores)
            if i + 1 < len(self.stages):
                proposals = _refine(stage, deltas, _best_class(scores), proposals, shapes)
        mean = torch.stack(logits).mean(dim=0)
        boxes, scores, labels = self.stages[-1].postprocess_detections(mean, deltas, proposals, shapes)
        detections = [{"boxes": b, "scores": s, "labels": k - 1} for b, s, k in zip(boxes, scores, labels, strict=True)]
        if self.has_masks:
            per_stage = [
                maskrcnn_inference(_mask_logits(stage, levels, boxes, shapes), labels) for stage in self.stages
            ]
            for image_detections, *masks in zip(detections, *per_stage, strict=True):
                image_detections["masks"] = torch.stack(masks).mean(dim=0)[:, 0]
        return detections


class ClassAgnosticPredictor(nn.Module):
    """Class scores and a single class-agnostic box, from which the next stage of a cascade starts.

    Args:
        in_channels: Features F of the box head.
        num_outputs: Number of classes K + 1, including background.

    Shape: ``(R, F)`` to ``(R, K + 1)`` and ``(R, 4 (K + 1))``, the box repeated per class, as torchvision expects it.
    """

    def __init__(self, in_channels: int, num_outputs: int) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.cls_score = nn.Linear(in_channels, num_outputs)
        self.bbox_pred = nn.Linear(in_channels, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x), self.bbox_pred(x).repeat(1, self.num_outputs)


def giou_loss(
    stage: RoIHeads, deltas: Tensor, proposals: list[Tensor], labels: list[Tensor], box_targets: list[Tensor]
) -> Tensor:
    """Box loss: the generalized IoU (Rezatofighi et al., CVPR 2019) of decoded boxes, averaged over the regions.

    Args:
        stage: Heads with the box coder.
        deltas: Encoded boxes (R, 4 (K + 1)).
        proposals: Regions, one tensor per image, R in total.
        labels: Classes of the regions, one tensor per image, 0 for background.
        box_targets: Encoded ground-truth boxes (R, 4), one tensor per image.
    """
    label = torch.cat(labels)
    positive = torch.where(label > 0)[0]
    regions = torch.cat(proposals)[positive]
    positive_deltas = deltas.reshape(len(deltas), -1, 4)[positive, label[positive]]
    boxes = stage.box_coder.decode_single(positive_deltas, regions)
    truth = stage.box_coder.decode_single(torch.cat(box_targets)[positive], regions)
    return GIOU_WEIGHT * generalized_box_iou_loss(boxes, truth, reduction="sum") / label.numel()


def _box_outputs(
    stage: RoIHeads, levels: dict[str, Tensor], boxes: list[Tensor], shapes: list[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Class logits (R, K + 1) and encoded boxes (R, 4 (K + 1)) of the regions of all images."""
    return stage.box_predictor(stage.box_head(stage.box_roi_pool(levels, boxes, shapes)))


def _mask_logits(
    stage: RoIHeads, levels: dict[str, Tensor], boxes: list[Tensor], shapes: list[tuple[int, int]]
) -> Tensor:
    """Mask logits (R, K + 1, 28, 28) of the regions of all images."""
    if torch.jit.is_tracing():  # ONNX programs cannot normalize no region: one more is computed, and dropped
        boxes = [*boxes[:-1], torch.cat([boxes[-1], boxes[-1].new_ones(1, 4)])]
    logits = stage.mask_predictor(stage.mask_head(stage.mask_roi_pool(levels, boxes, shapes)))
    return logits[:-1] if torch.jit.is_tracing() else logits


def _mask_loss(
    stage: RoIHeads,
    levels: dict[str, Tensor],
    proposals: list[Tensor],
    shapes: list[tuple[int, int]],
    targets: list[dict[str, Tensor]],
    matched: list[Tensor],
    labels: list[Tensor],
) -> Tensor:
    """Cross-entropy of the class's mask, over the regions assigned to an object."""
    positive = [torch.where(label > 0)[0] for label in labels]
    regions = [boxes[i] for boxes, i in zip(proposals, positive, strict=True)]
    logits = _mask_logits(stage, levels, regions, shapes)
    # Of the objects of these regions only: torchvision converts all it is given to float32, in the image's size.
    used = [m[i].unique(return_inverse=True) for m, i in zip(matched, positive, strict=True)]
    masks = [target["masks"][objects] for target, (objects, _) in zip(targets, used, strict=True)]
    classes = [target["labels"][objects] for target, (objects, _) in zip(targets, used, strict=True)]
    # torchvision samples the targets with the center of pixel i at i, where boxes and `paste_masks` have it at i + 0.5.
    aligned = [boxes - 0.5 for boxes in regions]
    return maskrcnn_loss(logits, aligned, masks, classes, [rows for _, rows in used])


def _best_class(scores: Tensor) -> Tensor:
    """The most probable class (R,) of regions with class logits (R, K + 1), other than background, which is 0."""
    return scores[:, 1:].argmax(dim=1) + 1


def _rows_in(boxes: Tensor, others: Tensor) -> Tensor:
    """Whether each box (R, 4) is one of the others (N, 4)."""
    return (boxes[:, None] == others.to(boxes)).all(dim=2).any(dim=1)


@torch.no_grad()
def _refine(
    stage: RoIHeads, deltas: Tensor, labels: Tensor, proposals: list[Tensor], shapes: list[tuple[int, int]]
) -> list[Tensor]:
    """Decode the boxes of a stage: the regions of the next stage.

    Args:
        stage: Heads with the box coder.
        deltas: Encoded boxes (R, 4 (K + 1)).
        labels: The class (R,) whose box is taken.
        proposals: Regions, one tensor per image, R in total.
        shapes: Height and width of each image.
    """
    chosen = deltas.unflatten(1, (-1, 4)).gather(1, labels[:, None, None].expand(-1, 1, 4))[:, 0]
    boxes = stage.box_coder.decode_single(chosen, torch.cat(proposals))
    if stage.training:  # the loss of this stage says that they are not finite; RoIAlign would fail
        boxes = boxes.nan_to_num(0.0)
    parts = boxes.split([p.shape[0] for p in proposals])  # tracing would record len() as a constant
    return [clip_boxes_to_image(part, shape) for part, shape in zip(parts, shapes, strict=True)]


def _single_stage(stage: StageConfig, pyramid: Pyramid, num_classes: int, config: DetectConfig) -> RoIHeads:
    """Heads of the only stage: two linear layers, and one box per class."""
    C, F = config.fpn_channels, config.head_channels
    return _roi_heads(
        stage, pyramid, num_classes, config, TwoMLPHead(C * BOX_SIZE**2, F), FastRCNNPredictor(F, num_classes + 1)
    )


def _cascade_stage(stage: StageConfig, pyramid: Pyramid, num_classes: int, config: DetectConfig) -> RoIHeads:
    """Heads of a cascade's stage: four convolutions and a linear layer, and a box per class or one for all."""
    C, F = config.fpn_channels, config.head_channels
    head = FastRCNNConvFCHead((C, BOX_SIZE, BOX_SIZE), [C] * 4, [F], norm_layer=nn.BatchNorm2d)
    predictor = FastRCNNPredictor if config.cascade_boxes == "class" else ClassAgnosticPredictor
    return _roi_heads(stage, pyramid, num_classes, config, head, predictor(F, num_classes + 1))


def _roi_heads(
    stage: StageConfig, pyramid: Pyramid, num_classes: int, config: DetectConfig, head: nn.Module, predictor: nn.Module
) -> RoIHeads:
    C = config.fpn_channels
    masks: dict[str, nn.Module] = {}
    if config.has_masks:
        masks = dict(
            mask_roi_pool=_roi_align(MASK_SIZE, pyramid.strides, config.roi_aligned),
            mask_head=MaskRCNNHeads(C, (C,) * 4, dilation=1, norm_layer=head_norm(config)),
            mask_predictor=in_float32(MaskRCNNPredictor(C, C, num_classes + 1), "mask_fcn_logits"),
        )
    x, y, w, h = stage.stds
    return RoIHeads(
        _roi_align(BOX_SIZE, pyramid.strides, config.roi_aligned),
        head,
        in_float32(predictor, "cls_score", "bbox_pred"),
        fg_iou_thresh=stage.iou,
        bg_iou_thresh=stage.iou,
        batch_size_per_image=config.rois,
        positive_fraction=0.25,
        bbox_reg_weights=(1 / x, 1 / y, 1 / w, 1 / h),
        score_thresh=config.score_threshold,
        nms_thresh=config.nms_threshold,
        detections_per_img=config.max_detections,
        **masks,
    )


class AlignedRoIAlign(MultiScaleRoIAlign):
    """torchvision's RoIAlign, with the center of a cell at half a stride, where boxes have it.

    torchvision's own has it at the cell's upper left corner, so that regions are pooled half a cell too far to the
    lower right: an eighth of the side of a region of 16 pixels.
    """

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        mapper: Any = self.map_levels
        shifts = boxes[0].new_tensor([0.5 / scale for scale in self.scales or ()])[mapper(boxes)][:, None]
        parts = shifts.split([part.shape[0] for part in boxes])  # tracing would record len() as a constant
        pooled: Tensor = super().forward(x, [part - by for part, by in zip(boxes, parts, strict=True)], image_shapes)
        return pooled


def _roi_align(size: int, strides: Sequence[int], aligned: bool) -> MultiScaleRoIAlign:
    """RoIAlign to ``size`` x ``size``, from the level that fits the region's scale; the coarsest level is not used."""
    kind = AlignedRoIAlign if aligned else MultiScaleRoIAlign
    pool = kind([str(i) for i in range(len(strides) - 1)], size, sampling_ratio=2)
    # Set explicitly: torchvision infers strides from the first batch, and wrongly if that is mostly padding.
    pool.scales = [1 / stride for stride in strides[:-1]]
    pool.map_levels = initLevelMapper(int(math.log2(strides[0])), int(math.log2(strides[-2])))
    return pool
