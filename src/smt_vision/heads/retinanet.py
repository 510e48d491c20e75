"""RetinaNet: classes and boxes straight from the feature pyramid (Lin et al., ICCV 2017), by torchvision's parts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead

from ..recipes import Detect
from .features import head_norm, in_float32

RATIOS = (0.5, 1.0, 2.0)  # height / width of the anchors
BOX = 4  # numbers of a box
OCTAVES = tuple(2 ** (i / 3) for i in range(3))


class RetinaNet(TorchvisionRetinaNet):
    """torchvision's RetinaNet on images that are resized, normalised and padded already.

    Args:
        pyramid: five levels.
        num_classes: K.
        config: anchors, channels, loss and thresholds.

    Shape: see :class:`smt_vision.heads.detectors.Detector`; no masks. The losses are ``class`` (focal) and ``box``.
    """

    has_masks = False

    def __init__(self, pyramid: Any, num_classes: int, config: Detect) -> None:
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
        self.transform = nn.Identity()  # the loaders' work
        self.strides: Sequence[int] = pyramid.strides

    def forward(
        self, image: Tensor, sizes: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        shapes = [(h, w) for h, w in sizes.tolist()]
        grids = [image.new_zeros(1, 1, *_grid(image.shape[-2:], stride)) for stride in self.strides]
        anchors = self.anchor_generator(ImageList(image, shapes), grids)
        dense = self.dense(image)
        outputs = {"cls_logits": dense[..., :-BOX], "bbox_regression": dense[..., -BOX:]}
        if self.training:
            losses = self.compute_loss(targets, outputs, anchors)
            return {"class": losses["classification"], "box": losses["bbox_regression"]}
        per_place = self.anchor_generator.num_anchors_per_location()
        counts = [grid.shape[2] * grid.shape[3] * n for grid, n in zip(grids, per_place, strict=True)]
        split = {name: list(output.split(counts, dim=1)) for name, output in outputs.items()}
        return self.postprocess_detections(split, [list(a.split(counts)) for a in anchors], shapes)

    def dense(self, image: Tensor) -> Tensor:
        """The network, without what depends on what is in the image: ``(B, 3, H, W) -> (B, A, K + 4)``.

        Of each of the A anchors K logits and the encoded box, from the finest level to the coarsest.
        """
        outputs = self.head(list(self.backbone(image).values()))
        return torch.cat([outputs["cls_logits"], outputs["bbox_regression"]], dim=-1)

    def forward_counted(self, image: Tensor) -> Tensor:
        """The work that depends on the image's size alone, all that tables of cost count: pyramid and head."""
        return self.dense(image)


class Dense(nn.Module):
    """:meth:`RetinaNet.dense` as a forward pass, classes along the second axis: what an export has.

    Shape: ``(B, 3, H, W) -> (B, K + 4, A)``.
    """

    def __init__(self, detector: RetinaNet) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> Tensor:
        return self.detector.dense(image).transpose(1, 2)


class RetinaNetOf(RetinaNet):
    """A RetinaNet whose dense part is a program of another runtime; for evaluation alone.

    Args:
        program: :class:`Dense`.
        strides: of the pyramid's levels.
        num_classes: K.
        config: that it was made with.
    """

    def __init__(self, program: nn.Module, strides: Sequence[int], num_classes: int, config: Detect) -> None:
        nowhere: Any = nn.Identity()
        nowhere.out_channels, nowhere.strides = config.fpn_channels, strides
        super().__init__(nowhere, num_classes, config)
        self.head = nn.Identity()
        self.program = program

    def dense(self, image: Tensor) -> Tensor:
        return self.program(image).transpose(1, 2)


def _grid(size: Sequence[int], stride: int) -> tuple[int, int]:
    """Height and width of the level of a stride: each stride-2 convolution rounds up."""
    return -(-size[0] // stride), -(-size[1] // stride)
