"""DINO (Zhang et al., ICLR 2023): a detection transformer, built from the layers of Deformable DETR in transformers.

An encoder of deformable attention over four levels proposes boxes; the best are the initial boxes of the queries, which
a decoder refines layer by layer. In training, noisy copies of the objects are queries too (contrastive denoising).
Queries are matched with objects one to one, so no non-maximum suppression is needed.

Padded cells are masked, and coordinates are fractions of the image without its padding.

Shapes: B images of H x W pixels, K classes, D channels, Q queries; T cells of all levels; boxes are (center x,
center y, width, height) as fractions of the image, or their logits.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import _topk_min
from torchvision.ops import box_convert, clip_boxes_to_image, generalized_box_iou_loss, sigmoid_focal_loss

from ....extras import require
from ...backbone import Backbone
from ...processes import mean_count
from ..config import DetectConfig
from .class_loss import WeightsClasses, weighted_focal_terms
from .pyramid import group_norm, in_float32

ATTENTION_HEADS, LEVELS = 8, 4
DENOISING_QUERIES = 100  # noisy copies, at least one of each object; and as many negatives
LABEL_NOISE, BOX_NOISE = 0.5, 1.0
COSTS = {"class_cost": 2, "bbox_cost": 5, "giou_cost": 2}  # of matching queries and objects
BOX_WEIGHT, GIOU_WEIGHT = 5.0, 2.0  # of the losses
FOCAL_ALPHA, PRIOR = 0.25, 0.01
PROPOSAL_SIDE = 0.05  # of the finest level, as a fraction of the image; twice that on each further level
BORDER = 0.01  # proposals whose center is closer to the border are not used
MAP_TEMPERATURE, QUERY_TEMPERATURE = 20, 10_000  # of the sine embeddings of cells and of boxes


class Cells(NamedTuple):
    """The cells of all levels.

    Args:
        shapes: Height and width of each level.
        centers: Center (x, y) of each cell (B, T, 2) as a fraction of the image without padding; above 1
            in the padding.
        ratios: Width and height of the image without padding as a fraction of each level's (B, levels, 2).
        inside: Whether a cell is not padding (B, T).
        sides: Sides of the proposals (T,).
    """

    shapes: list[tuple[int, int]]
    centers: Tensor
    ratios: Tensor
    inside: Tensor
    sides: Tensor


class Prediction(NamedTuple):
    """Class logits (B, Q, K) and boxes (B, Q, 4)."""

    logits: Tensor
    boxes: Tensor


class DINO(WeightsClasses):
    """A backbone with the DINO head ("4-scale": the last three maps and one of twice the last stride).

    Args:
        backbone: Backbone of four feature maps.
        num_classes: Number of classes K.
        config: ``fpn_channels`` D, ``head_channels`` of the feed-forward layers, ``layers`` and ``queries``.

    Shape: see :class:`smt_vision.tasks.detection.heads.detectors.Detector`; no masks. The losses are ``class`` (focal),
        ``box`` (L1) and ``giou``, summed over the proposals and the decoder's layers, and ``denoising``, the sum of the
        three for the noisy copies.

    Raises:
        ImportError: transformers or scipy is not installed.
        ValueError: ``fpn_channels`` is not a multiple of the number of attention heads.
    """

    has_masks = False

    def __init__(self, backbone: Backbone, num_classes: int, config: DetectConfig) -> None:
        super().__init__()
        dim = config.fpn_channels
        if dim % ATTENTION_HEADS:
            raise ValueError(
                f"invalid detect.fpn_channels={dim}: detect.head=dino needs a multiple of {ATTENTION_HEADS}, its "
                "number of attention heads, e.g. 256"
            )
        require("scipy", "detr")  # transformers matches queries and objects with it
        require("transformers", "detr")
        layers = require("transformers.models.deformable_detr.modeling_deformable_detr", "detr")
        self.backbone = backbone
        self.num_classes = num_classes
        self.max_detections = config.max_detections
        self.score_threshold = config.score_threshold
        strides = backbone.feature_info.reduction()[1:]
        self.strides: list[int] = [*strides, 2 * strides[-1]]
        maps = backbone.feature_info.channels()[1:]
        projections = [nn.Conv2d(channels, dim, 1) for channels in maps]
        projections.append(nn.Conv2d(maps[-1], dim, 3, stride=2, padding=1))
        self.projections = nn.ModuleList(nn.Sequential(conv, group_norm(dim)) for conv in projections)
        self.level_embed = nn.Parameter(torch.empty(LEVELS, dim))
        settings = layers.DeformableDetrConfig(
            d_model=dim, encoder_layers=config.layers, decoder_layers=config.layers, dropout=0.0,
            encoder_attention_heads=ATTENTION_HEADS, decoder_attention_heads=ATTENTION_HEADS,
            encoder_ffn_dim=config.head_channels, decoder_ffn_dim=config.head_channels, num_feature_levels=LEVELS,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the speed of a CUDA kernel that is not used
            self.encoder = layers.DeformableDetrEncoder(settings).layers
            self.decoder = layers.DeformableDetrDecoder(settings).layers
        mlp = layers.DeformableDetrMLPPredictionHead
        self.proposal = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim))
        self.queries = nn.Embedding(config.queries, dim)
        self.query_position = mlp(2 * dim, dim, dim, num_layers=2)
        self.denoising_class = nn.Embedding(num_classes + 1, dim, padding_idx=num_classes)
        # One of each per decoder layer, and the last for the proposals.
        self.classifiers: Any = nn.ModuleList(in_float32(nn.Linear(dim, num_classes)) for _ in range(config.layers + 1))
        self.box_heads: Any = nn.ModuleList(
            in_float32(mlp(dim, dim, 4, num_layers=3), "layers.2") for _ in range(config.layers + 1)
        )
        self._init_weights()
        losses = require("transformers.loss.loss_deformable_detr", "detr")
        self.match = losses.DeformableDetrHungarianMatcher(**COSTS)
        self.noisy_copies = require(
            "transformers.models.rt_detr_v2.modeling_rt_detr_v2", "detr"
        ).get_contrastive_denoising_training_group

    def _init_weights(self) -> None:
        """Xavier initialization, except of what decides where deformable attention looks (by transformers)."""
        for part in (self.projections, self.encoder, self.decoder, self.proposal, self.query_position, self.box_heads):
            for name, parameter in part.named_parameters():
                if parameter.dim() > 1 and "sampling_offsets" not in name and "attention_weights" not in name:
                    nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.level_embed)
        for box_head in self.box_heads:
            nn.init.zeros_(box_head.layers[-1].weight)
            nn.init.zeros_(box_head.layers[-1].bias)
        for classifier in self.classifiers:
            nn.init.constant_(classifier.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(
        self, image: Tensor, sizes: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        shapes = [(h, w) for h, w in sizes.tolist()]
        if not self.training:
            return self.detect(image, shapes)
        assert targets is not None
        objects = [
            {"class_labels": t["labels"], "boxes": _relative(t["boxes"], shape)}
            for t, shape in zip(targets, shapes, strict=True)
        ]
        noise = self.noisy_copies(
            objects, self.num_classes, self.queries.num_embeddings, self.denoising_class, DENOISING_QUERIES,
            LABEL_NOISE, BOX_NOISE,
        )  # fmt: skip
        return self._losses(*self._predict(image, shapes, noise), objects, noise[3])

    def detect(self, image: Tensor, shapes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        _, predictions = self._predict(image, shapes)
        return [
            self._select(logits.sigmoid(), boxes, shape)
            for logits, boxes, shape in zip(*predictions[-1], shapes, strict=True)
        ]

    def forward_flops(self, image: Tensor) -> Prediction:
        """Everything but the selection of detections."""
        height, width = image.shape[-2:]
        return self._predict(image, [(height, width)] * len(image))[1][-1]

    def _select(self, scores: Tensor, boxes: Tensor, shape: tuple[int, int]) -> dict[str, Tensor]:
        """The best detections of an image, from scores (Q, K) and boxes (Q, 4)."""
        scores, index = scores.flatten().topk(_topk_min(scores.flatten(), self.max_detections, 0))
        kept = scores > self.score_threshold
        scores, index = scores[kept], index[kept]
        query = torch.div(index, self.num_classes, rounding_mode="floor")
        corners = box_convert(boxes[query], "cxcywh", "xyxy") * _scale(shape, boxes)
        return {"boxes": clip_boxes_to_image(corners, shape), "scores": scores, "labels": index % self.num_classes}

    def _predict(
        self, image: Tensor, shapes: list[tuple[int, int]], noise: Sequence[Any] = (None, None, None, None)
    ) -> tuple[Prediction, list[Prediction]]:
        """The proposals, and the predictions of each decoder layer; those of the noisy copies come first."""
        maps = self.backbone(image)[1:]
        maps = [projection(x) for projection, x in zip(self.projections, [*maps, maps[-1]], strict=True)]
        cells = self._cells(maps, shapes)
        memory = self._encode(maps, cells)
        proposals, reference, content = self._propose(memory, cells)
        classes, boxes, mask, _ = noise
        if classes is not None:
            reference = torch.cat([boxes.to(reference), reference], dim=1)
            content = torch.cat([classes.to(content), content], dim=1)
            mask = mask[: content.shape[1], : content.shape[1]]  # small images have fewer cells than queries
        return proposals, self._decode(memory, cells, reference.sigmoid(), content, mask)

    def _cells(self, maps: list[Tensor], shapes: list[tuple[int, int]]) -> Cells:
        device = maps[0].device
        # Not torch.tensor(shapes): exporters would record the sizes as constants.
        sizes = torch.stack([torch.as_tensor(side, device=device) for shape in shapes for side in shape[::-1]])
        sizes = sizes.view(len(shapes), 1, 2).float()  # width and height
        centers, ratios, sides = [], [], []
        for level, (x, stride) in enumerate(zip(maps, self.strides, strict=True)):
            height, width = x.shape[-2:]
            row, column = torch.meshgrid(
                torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
            )
            position = torch.stack([column, row], dim=-1).reshape(1, -1, 2)
            centers.append((position + 0.5) * stride / sizes)
            extent = torch.stack([torch.as_tensor(side, device=device) for side in (width, height)])
            ratios.append(sizes / (extent * stride))
            sides.append(torch.full_like(centers[-1][0, :, 0], PROPOSAL_SIDE * 2**level))
        center = torch.cat(centers, dim=1)
        # A cell is inside if any of its pixels is, hence if its first is.
        stride_of = torch.cat([torch.full_like(side, stride) for side, stride in zip(sides, self.strides, strict=True)])
        inside = (center * sizes - 0.5 * stride_of[:, None] < sizes).all(dim=-1)
        map_shapes = [(x.shape[-2], x.shape[-1]) for x in maps]
        return Cells(map_shapes, center, torch.cat(ratios, dim=1), inside, torch.cat(sides))

    def _encode(self, maps: list[Tensor], cells: Cells) -> Tensor:
        """Flattened maps after the encoder (B, T, D)."""
        x = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
        position = _sine(cells.centers, x.shape[-1] // 2, MAP_TEMPERATURE)
        counts = [height * width for height, width in cells.shapes]
        level = [self.level_embed[i].expand(1, count, -1) for i, count in enumerate(counts)]
        position = position + torch.cat(level, dim=1)
        reference = cells.centers[:, :, None] * cells.ratios[:, None]
        for layer in self.encoder:
            x = layer(
                x, cells.inside, spatial_position_embeddings=position, reference_points=reference,
                **_attention_arguments(cells),
            )  # fmt: skip
        return x

    def _propose(self, memory: Tensor, cells: Cells) -> tuple[Prediction, Tensor, Tensor]:
        """The best proposals, and of each query the logits of its initial box (B, Q, 4) and its content (B, Q, D)."""
        usable = cells.inside & ((cells.centers > BORDER) & (cells.centers < 1 - BORDER)).all(dim=-1)
        x = self.proposal(memory * usable[..., None])
        sides = cells.sides[None, :, None].expand(len(memory), -1, 2)
        anchors = _logit(torch.cat([cells.centers, sides], dim=-1))
        logits = self.classifiers[-1](x)
        boxes = self.box_heads[-1](x) + anchors
        best = logits.max(dim=-1).values.masked_fill(~usable, -torch.inf)
        index = best.topk(_topk_min(best, self.queries.num_embeddings, 1), dim=1).indices[..., None]
        boxes = boxes.gather(1, index.expand(-1, -1, 4))
        logits = logits.gather(1, index.expand(-1, -1, self.num_classes))
        content = self.queries(torch.arange(index.shape[1], device=index.device)).expand(len(memory), -1, -1)
        return Prediction(logits, boxes.sigmoid()), boxes.detach(), content

    def _decode(
        self, memory: Tensor, cells: Cells, reference: Tensor, x: Tensor, mask: Tensor | None
    ) -> list[Prediction]:
        """Refine the boxes of the queries, which have content ``x``; a layer's loss reaches the layer before it too."""
        predictions = []
        ratios = cells.ratios.repeat(1, 1, 2)[:, None]
        previous = reference
        for layer, classifier, box_head in zip(self.decoder, self.classifiers, self.box_heads, strict=False):
            position = self.query_position(_sine(reference, x.shape[-1] // 2, QUERY_TEMPERATURE))
            x = layer(
                x, position, reference[:, :, None] * ratios, encoder_hidden_states=memory,
                encoder_attention_mask=cells.inside, attention_mask=None if mask is None else mask[None, None].to(x),
                **_attention_arguments(cells),
            )  # fmt: skip
            delta = box_head(x)
            predictions.append(Prediction(classifier(x), (delta + _logit(previous)).sigmoid()))
            previous = (delta + _logit(reference)).sigmoid()
            reference = previous.detach()
        return predictions

    def _losses(
        self,
        proposals: Prediction,
        predictions: list[Prediction],
        objects: list[dict[str, Tensor]],
        noise: dict[str, Any] | None,
    ) -> dict[str, Tensor]:
        objects_in_batch = torch.tensor(sum(len(o["boxes"]) for o in objects), device=proposals.logits.device)
        count = mean_count(objects_in_batch).item()  # as published
        copies = 0 if noise is None else noise["dn_num_split"][0]
        total = proposals.logits.new_zeros(3)
        for logits, boxes in (proposals, *(Prediction(p.logits[:, copies:], p.boxes[:, copies:]) for p in predictions)):
            # The matcher refuses what is not finite; the losses say it.
            finite = {"logits": logits.detach().nan_to_num(), "pred_boxes": boxes.detach().nan_to_num(0.5)}
            pairs = self.match(finite, objects)
            total = total + _loss(logits, boxes, objects, pairs, count, self.class_weights)
        if noise is None:  # without objects; a sum of 0, since a parameter without gradient would block other processes
            denoising = 0 * self.denoising_class.weight.sum()
        else:
            groups = noise["dn_num_group"]
            pairs = [
                (positive, torch.arange(len(o["boxes"]), device=positive.device).repeat(groups))
                for positive, o in zip(noise["dn_positive_idx"], objects, strict=True)
            ]
            terms = [
                _loss(p.logits[:, :copies], p.boxes[:, :copies], objects, pairs, count * groups, self.class_weights)
                for p in predictions
            ]
            denoising = torch.stack(terms).sum()
        return {"class": total[0], "box": total[1], "giou": total[2], "denoising": denoising}


def _loss(
    logits: Tensor,
    boxes: Tensor,
    objects: list[dict[str, Tensor]],
    pairs: Sequence[tuple[Tensor, Tensor]],
    count: float,
    weights: Tensor | None,
) -> Tensor:
    """The three losses (3,) of predictions that are matched with objects.

    Args:
        logits: Class logits (B, Q, K).
        boxes: Boxes (B, Q, 4).
        objects: Per image ``class_labels`` (N,) and ``boxes`` (N, 4).
        pairs: Per image the indices of matched queries and objects.
        count: Divisor of the sums.
        weights: Weights of the classes (K,), or ``None``.
    """
    image = torch.cat([torch.full_like(query, i) for i, (query, _) in enumerate(pairs)]).to(logits.device)
    query = torch.cat([query for query, _ in pairs]).to(logits.device)
    matched = [(o, index.to(logits.device)) for o, (_, index) in zip(objects, pairs, strict=True)]
    truth = torch.cat([o["boxes"][index] for o, index in matched])
    target = torch.zeros_like(logits)
    labels = torch.cat([o["class_labels"][index] for o, index in matched])
    target[image, query, labels] = 1
    class_loss = sigmoid_focal_loss(logits, target, FOCAL_ALPHA, reduction="sum")
    if weights is not None:
        class_loss = class_loss + weighted_focal_terms(logits[image, query], labels, weights, FOCAL_ALPHA)
    found = boxes[image, query]
    corners = (box_convert(b, "cxcywh", "xyxy") for b in (found, truth))
    losses = (
        class_loss,
        BOX_WEIGHT * (found - truth).abs().sum(),
        GIOU_WEIGHT * generalized_box_iou_loss(*corners, reduction="sum"),
    )
    return torch.stack(losses) / count


def _attention_arguments(cells: Cells) -> dict[str, Any]:
    sides = [torch.as_tensor(side, device=cells.centers.device) for shape in cells.shapes for side in shape]
    return {"spatial_shapes": torch.stack(sides).view(-1, 2), "spatial_shapes_list": cells.shapes}


def _logit(fraction: Tensor) -> Tensor:
    """The inverse of the sigmoid, finite at 0 and 1; exporters do not support ``torch.logit``."""
    fraction = fraction.clamp(1e-5, 1 - 1e-5)
    return (fraction / (1 - fraction)).log()


def _sine(position: Tensor, features: int, temperature: float) -> Tensor:
    """Sine embedding of coordinates in [0, 1]: (B, N, C) to (B, N, C * features)."""
    exponent = torch.arange(features // 2, device=position.device) * (2 / features)
    angle = position[..., None] * (2 * math.pi / temperature**exponent)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-3)


def _scale(shape: tuple[int, int], like: Tensor) -> Tensor:
    """Width, height, width and height of an image."""
    return torch.stack([torch.as_tensor(side, device=like.device) for side in (*shape[::-1], *shape[::-1])]).to(like)


def _relative(boxes: Tensor, shape: tuple[int, int]) -> Tensor:
    """Boxes ``(x1, y1, x2, y2)`` in pixels, as fractions of the image."""
    return box_convert(boxes / _scale(shape, boxes), "xyxy", "cxcywh")
