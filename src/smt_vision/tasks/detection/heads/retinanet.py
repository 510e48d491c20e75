"""RetinaNet: a single-stage detector (Lin et al., ICCV 2017), built from torchvision's modules."""

from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead

from ..config import DetectConfig
from .pyramid import head_norm, in_float32

RATIOS = (0.5, 1.0, 2.0)  # height / width of the anchors
OCTAVES = tuple(2 ** (i / 3) for i in range(3))


class RetinaNet(TorchvisionRetinaNet):
    """torchvision's RetinaNet for images that are already resized, normalized and padded.

    Args:
        pyramid: Feature pyramid of five levels.
        num_classes: Number of classes K.
        config: Anchors, channels, loss and thresholds.

    Shape: see :class:`smt_vision.tasks.detection.heads.detectors.Detector`; no masks. The losses are ``class`` (focal)
        and ``box``.
    """

    has_masks = False

    def __init__(self, pyramid: Any, num_classes: int, config: DetectConfig) -> None:
        sizes = tuple(tuple(side * octave for octave in OCTAVES) for side in config.anchor_sizes)
        anchors = AnchorGenerator(sizes, (RATIOS,) * len(sizes))
        head = RetinaNetHead(config.fpn_channels, anchors.num_anchors_per_location()[0], num_classes, head_norm(config))
        head.regression_head._loss_type = config.box_loss
        super().__init__(
            pyramid,
            num_classes,
            anchor_generator=anchors,
            head=in_float32(head),
            score_thresh=config.score_threshold,
            nms_thresh=config.nms_threshold,
            detections_per_img=config.max_detections,
        )
        self.transform = nn.Identity()  # done by the data loaders

    def forward(
        self, image: Tensor, sizes: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        shapes = [(h, w) for h, w in sizes.tolist()]
        if not self.training:
            return self.detect(image, shapes)
        levels, outputs = self._forward_heads(image)
        losses = self.compute_loss(targets, outputs, self.anchor_generator(ImageList(image, shapes), levels))
        return {"class": losses["classification"], "box": losses["bbox_regression"]}

    def detect(self, image: Tensor, shapes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        levels, outputs = self._forward_heads(image)
        anchors_per_cell = self.anchor_generator.num_anchors_per_location()
        counts = [level.shape[2] * level.shape[3] * n for level, n in zip(levels, anchors_per_cell, strict=True)]
        split = {name: list(output.split(counts, dim=1)) for name, output in outputs.items()}
        anchors = self.anchor_generator(ImageList(image, shapes), levels)
        return self.postprocess_detections(split, [list(a.split(counts)) for a in anchors], shapes)

    def forward_flops(self, image: Tensor) -> dict[str, Tensor]:
        """Pyramid and head, the part whose cost depends only on the image size; published GMACs count this part."""
        return self._forward_heads(image)[1]

    def _forward_heads(self, image: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The levels, and for their A anchors ``cls_logits`` (B, A, K) and ``bbox_regression`` (B, A, 4)."""
        levels = list(self.backbone(image).values())
        return levels, self.head(levels)
