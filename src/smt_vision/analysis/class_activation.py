"""Class activation maps: where the last feature map is evidence for a class.

Source: Selvaraju et al., "Grad-CAM", ICCV 2017, computed with Captum.

Shapes: an image of ``H W`` pixels, a feature map of ``h w`` cells, ``K`` classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..extras import require
from ..modes import evaluation_mode
from .blocks import NotDefined, feature_map, prefix_tokens, require_one_image

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ClassActivation:
    """Class activation map of an image.

    Attributes:
        class_id: Index of the class.
        score: Softmax score of the class.
        predicted_id: Index of the class with the highest score.
        map: ``(h, w)``: the last feature map, each channel weighted by the mean gradient of the class's logit, summed
            over channels. Negative values are evidence against the class.
        upsampled: ``(H, W)``: the positive part, bilinearly interpolated to the image.
    """

    class_id: int
    score: float
    predicted_id: int
    map: Floats
    upsampled: Floats

    @property
    def predicted(self) -> bool:
        """Whether the class is the one with the highest score."""
        return self.class_id == self.predicted_id

    def arrays(self) -> dict[str, Any]:
        """The arrays by name, for an npz file."""
        return {
            "class_id": np.array(self.class_id),
            "predicted_id": np.array(self.predicted_id),
            "score": np.array(self.score),
            "map": self.map,
            "upsampled": self.upsampled,
        }


class LastMap(nn.Module):
    """A timm classifier whose last feature map passes through a module of its own, :attr:`map`, as ``(B, C, h, w)``.

    Args:
        classifier: A timm model; images to ``(B, K)`` logits.

    Shape: ``(B, 3, H, W) -> (B, K)``.
    """

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.classifier = classifier
        self.map = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        features: Any = self.classifier.forward_features(x)
        if not isinstance(features, Tensor):  # e.g. CrossViT's, of two branches
            raise NotDefined("there are no class activation maps: the network has several last feature maps")
        channels_last = features.ndim == 4 and features.shape[-1] == self.classifier.num_features
        before = feature_map(features, x.shape, channels_last, "forward_features", prefix_tokens(self.classifier))
        map = self.map(before)
        if features.ndim == 3:
            others = features.shape[1] - before[0, 0].numel()
            features = torch.cat([features[:, :others], map.flatten(2).transpose(1, 2)], dim=1)
        else:
            features = map if before is features else map.permute(0, 2, 3, 1)
        logits: Tensor = self.classifier.forward_head(features)
        return logits


def class_activation(
    classifier: nn.Module,
    x: Tensor,
    class_id: int | None = None,
    scores: Callable[[Tensor], Tensor] = lambda logits: logits.float().softmax(-1),
) -> ClassActivation:
    """Grad-CAM at the last feature map, the input of the classifier's pooling.

    Args:
        classifier: A timm classifier.
        x: An image ``(1, C, H, W)``.
        class_id: Index of the class; ``None`` for the predicted one.
        scores: Scores ``(1, K)`` from logits ``(1, K)``, as a predictor computes them.

    Raises:
        ImportError: Captum is not installed.
        NotDefined: The model has no feature map before its pooling, or its classifier does not read it.
    """
    require_one_image(x)
    attr = require("captum.attr", "analysis")
    model = LastMap(classifier)
    with evaluation_mode(classifier):
        with torch.no_grad():
            found = scores(model(x))[0]
        predicted = int(found.argmax())
        target = predicted if class_id is None else class_id
        with torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            map = attr.LayerGradCam(model, model.map).attribute(x, target=target).detach().float()
    if not map.any():
        raise NotDefined(
            "the class activation map is zero: the logit has no gradient with respect to the last feature map, e.g. "
            "because the classifier reads the class token only, or because its weights are zero"
        )
    upsampled = attr.LayerAttribution.interpolate(map.relu(), tuple(x.shape[-2:]), "bilinear")
    return ClassActivation(
        target,
        float(found[target]),
        predicted,
        map[0, 0].cpu().numpy(),
        upsampled[0, 0].cpu().numpy(),
    )


def require_classifier(model: Any) -> None:
    """Raise if a model has no feature map that is pooled and classified.

    Raises:
        NotDefined: It is not a timm classifier.
    """
    if not hasattr(model, "forward_features") or not getattr(model, "num_classes", 0):
        raise NotDefined("there are no class activation maps: the model is not a classifier")
