"""Single-stage detectors over a feature pyramid, built from torchvision's modules.

RetinaNet (Lin et al., ICCV 2017) classifies anchors. FCOS (Tian et al., ICCV 2019) needs none: it classifies the cells
of the levels, and predicts the distances to the sides of each cell's object and the closeness to its center.
"""

from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FCOS as TorchvisionFCOS
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSRegressionHead
from torchvision.models.detection.image_list import ImageList

from ..config import DetectConfig
from .class_loss import AnchorHead, CellHead
from .pyramid import Pyramid, StridedAnchors, candidates, group_norm, head_norm, in_float32

RATIOS = (0.5, 1.0, 2.0)  # height / width of the anchors
OCTAVES = tuple(2 ** (i / 3) for i in range(3))
FCOS_CONVS = 4  # per branch of the head


class SingleStage(nn.Module):
    """What torchvision's single-stage detectors share, for images that are already resized, normalized and padded.

    Shape: see :class:`smt_vision.tasks.detection.heads.detectors.Detector`; no masks.
    """

    has_masks = False
    backbone: Any
    head: Any
    anchor_generator: Any
    compute_loss: Any
    postprocess_detections: Any

    def forward(
        self, image: Tensor, sizes: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        shapes = [(h, w) for h, w in sizes.tolist()]
        if not self.training:
            return self.detect(image, shapes)
        levels, outputs = self._forward_heads(image)
        anchors = self.anchor_generator(ImageList(image, shapes), levels)
        return self._losses(targets, outputs, anchors, self._anchors_per_level(levels))

    def detect(self, image: Tensor, shapes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        levels, outputs = self._forward_heads(image)
        counts = self._anchors_per_level(levels)
        split = {name: list(output.split(counts, dim=1)) for name, output in outputs.items()}
        anchors = self.anchor_generator(ImageList(image, shapes), levels)
        return self.postprocess_detections(split, [list(a.split(counts)) for a in anchors], shapes)

    def forward_flops(self, image: Tensor) -> dict[str, Tensor]:
        """Pyramid and head, the part whose cost depends only on the image size; published GMACs count this part."""
        return self._forward_heads(image)[1]

    def _losses(
        self, targets: Any, outputs: dict[str, Tensor], anchors: list[Tensor], counts: list[int]
    ) -> dict[str, Tensor]:
        """Losses by name; ``counts`` has the number of anchors of each level."""
        raise NotImplementedError

    def _anchors_per_level(self, levels: list[Tensor]) -> list[int]:
        anchors_per_cell = self.anchor_generator.num_anchors_per_location()
        return [level.shape[2] * level.shape[3] * n for level, n in zip(levels, anchors_per_cell, strict=True)]

    def _forward_heads(self, image: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The levels, and the head's outputs for their A anchors, e.g. ``cls_logits`` (B, A, K)."""
        levels = list(self.backbone(image).values())
        return levels, self.head(levels)


class RetinaNet(SingleStage, TorchvisionRetinaNet):
    """torchvision's RetinaNet; the losses are ``class`` (focal) and ``box``.

    Args:
        pyramid: Feature pyramid of five levels.
        num_classes: Number of classes K.
        config: Anchors, channels, loss and thresholds.
    """

    def __init__(self, pyramid: Pyramid, num_classes: int, config: DetectConfig) -> None:
        sizes = tuple(tuple(side * octave for octave in OCTAVES) for side in config.anchor_sizes)
        anchors = StridedAnchors(pyramid.strides, sizes, RATIOS)
        head: Any = AnchorHead(
            config.fpn_channels, anchors.num_anchors_per_location()[0], num_classes, head_norm(config)
        )
        head.regression_head._loss_type = config.box_loss
        super().__init__(
            pyramid,
            num_classes,
            anchor_generator=anchors,
            head=in_float32(head, "classification_head.cls_logits", "regression_head.bbox_reg"),
            score_thresh=config.score_threshold,
            nms_thresh=config.nms_threshold,
            detections_per_img=config.max_detections,
            topk_candidates=candidates(config),
        )
        self.transform = nn.Identity()  # done by the data loaders

    def _losses(
        self, targets: Any, outputs: dict[str, Tensor], anchors: list[Tensor], counts: list[int]
    ) -> dict[str, Tensor]:
        losses = self.compute_loss(targets, outputs, anchors)
        return {"class": losses["classification"], "box": losses["bbox_regression"]}


class FCOS(SingleStage, TorchvisionFCOS):
    """torchvision's FCOS; the losses are ``class`` (focal), ``box`` (GIoU) and ``centerness``.

    An object belongs to the cells near its center of the level for its size: the finest for distances up to 8 strides
    from a cell to the object's sides, each further level for twice that. The head has GroupNorm, and the point of a
    cell is its center, as published; torchvision's is its upper left corner.

    Args:
        pyramid: Feature pyramid of five levels.
        num_classes: Number of classes K.
        config: Channels and thresholds.
    """

    def __init__(self, pyramid: Pyramid, num_classes: int, config: DetectConfig) -> None:
        channels = config.fpn_channels
        head = CellHead(channels, 1, num_classes, num_convs=0)
        head.classification_head = FCOSClassificationHead(channels, 1, num_classes, FCOS_CONVS, norm_layer=group_norm)
        head.regression_head = FCOSRegressionHead(channels, 1, FCOS_CONVS, norm_layer=group_norm)
        super().__init__(
            pyramid,
            num_classes,
            anchor_generator=StridedAnchors(
                pyramid.strides,
                tuple((stride,) for stride in pyramid.strides),
                (1.0,),
                offset=0.5 if config.fcos_points == "center" else 0.0,
            ),
            head=in_float32(
                head, "classification_head.cls_logits", "regression_head.bbox_reg", "regression_head.bbox_ctrness"
            ),
            score_thresh=config.score_threshold,
            nms_thresh=config.nms_threshold,
            detections_per_img=config.max_detections,
            topk_candidates=candidates(config),
        )
        self.transform = nn.Identity()  # done by the data loaders

    def _losses(
        self, targets: Any, outputs: dict[str, Tensor], anchors: list[Tensor], counts: list[int]
    ) -> dict[str, Tensor]:
        losses = self.compute_loss(targets, outputs, anchors, counts)
        names = {"class": "classification", "box": "bbox_regression", "centerness": "bbox_ctrness"}
        return {name: losses[theirs] for name, theirs in names.items()}
