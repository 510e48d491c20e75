"""Numerical parity between an exported program and its source model.

Shapes: ``B`` batch, ``C`` channels, ``H W`` image size.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .exported import Program

SMALLEST_SIDE = 32  # smallest image side that is compared, in pixels; an SMT takes no smaller one
BOX_TOLERANCE = 1e-3  # largest coordinate difference of matching boxes, as a fraction of the image's longer side


def logits_parity(model: nn.Module, program: Program, images: Tensor, dynamic_image_size: bool) -> dict[str, Any]:
    """Compare the logits of a program with the model's, for several batch and image sizes.

    Args:
        model: Source model.
        program: Exported program; its output is the model's, with classes along the second axis.
        images: Images ``(B, C, size, size)``; other sizes are resized from them.
        dynamic_image_size: Whether to compare other image sizes too.

    Returns:
        ``max_difference``: largest difference of a logit, as a fraction of max(largest logit, 1). ``agreement``:
        fraction of images, or pixels, with the same class. ``cases``: the same for each shape, as counts.
    """
    size = images.shape[-1]
    shapes = [(len(images), size, size), (1, size, size)]
    if dynamic_image_size:
        long, short = size + size // 4 + 1, max(size - size // 4 - 1, SMALLEST_SIDE + 1)
        shapes += [(3, long, short), (1, short, long), (2, SMALLEST_SIDE, SMALLEST_SIDE)]
    cases = []
    for count, height, width in shapes:
        batch = images[:count]
        if (height, width) != (size, size):
            batch = _resized(batch, height, width)
        expected = model(batch)
        # Twice: a runtime may compile another program when a shape occurs again.
        actual = [program(batch) for _ in range(2)]
        difference = (torch.stack(actual) - expected).abs().max() / expected.abs().max().clamp(min=1)
        same = _predicted_class(actual[-1]) == _predicted_class(expected)
        cases.append(_case(batch, float(difference), int(same.sum()), same.numel()))
    return _summary(cases)


def detection_parity(model: nn.Module, program: Program, images: Sequence[Tensor]) -> dict[str, Any]:
    """Compare the detections of a program with the model's, in each image, and in the first one at other sizes.

    Detections match if they have the same class, and boxes that differ by at most ``BOX_TOLERANCE`` of the image's
    longer side.

    Args:
        model: A :class:`~smt_vision.tasks.detection.export.DetectorForExport`.
        program: Exported program with the same outputs.
        images: Images ``(C, H, W)`` of any size.

    Returns:
        ``max_difference``: largest difference between matching detections, of scores, mask probabilities, or box
        coordinates as a fraction of the longer side. ``agreement``: fraction of detections that match. ``cases``: the
        same for each image, as counts.
    """
    _, height, width = images[0].shape
    sizes = [(height + height // 4 + 1, width), (max(height // 2, SMALLEST_SIDE), max(width // 2, SMALLEST_SIDE))]
    batches = [image[None] for image in images] + [_resized(images[0][None], *size) for size in sizes]
    cases = []
    for batch in batches:
        expected, *actual = model(batch), program(batch), program(batch)
        compared = [_compare(expected, detections, max(batch.shape[2:])) for detections in actual]
        differences, matches, counts = zip(*compared, strict=True)
        cases.append(_case(batch, float(np.max(differences)), min(matches), max(counts)))
    return _summary(cases)


def _compare(expected: tuple[Tensor, ...], actual: tuple[Tensor, ...], side: int) -> tuple[float, int, int]:
    """The largest difference of matching detections, their number, and the larger number of detections."""
    boxes, scores, labels, *masks = expected
    actual_boxes, actual_scores, actual_labels, *actual_masks = actual
    pairs = []
    if len(boxes) and len(actual_boxes):
        distances = (boxes[:, None] - actual_boxes[None]).abs().amax(dim=2) / side
        distances[labels[:, None] != actual_labels[None]] = torch.inf
        for index, row in enumerate(distances):
            nearest = int(row.argmin())
            if row[nearest] <= BOX_TOLERANCE:
                pairs.append((index, nearest))
                distances[:, nearest] = torch.inf
    i, j = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    compared = [(boxes / side, actual_boxes / side), (scores, actual_scores), *zip(masks, actual_masks, strict=True)]
    differences = [(a[i] - b[j]).abs().flatten() for a, b in compared]
    largest = float(torch.cat([*differences, torch.zeros(1)]).max())
    return largest, len(pairs), max(len(boxes), len(actual_boxes))


def _resized(batch: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(batch, (height, width), mode="bicubic", antialias=True)


def _predicted_class(logits: Tensor) -> Tensor:
    """The class with the largest logit; for a single logit per pixel, whether it is positive."""
    return logits.argmax(1) if logits.shape[1] > 1 else logits > 0


def _case(batch: Tensor, difference: float, agree: int, of: int) -> dict[str, Any]:
    return {"shape": list(batch.shape), "max_difference": difference, "agree": agree, "of": of}


def _summary(cases: list[dict[str, Any]]) -> dict[str, Any]:
    count = sum(case["of"] for case in cases)
    return {
        "max_difference": float(np.max([case["max_difference"] for case in cases])),  # np.max propagates NaN
        "agreement": sum(case["agree"] for case in cases) / count if count else 0.0,
        "cases": cases,
    }
