"""How near a program comes to the model it was made of.

Shapes: B images of H x W pixels, K classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .exported import Program

SMALLEST_SIDE = 32
NEAR = 1e-3  # of the image's longer side: boxes nearer than that can be the same


def logits_parity(model: nn.Module, program: Program, images: Tensor, dynamic_image_size: bool) -> dict[str, Any]:
    """How near the logits come, in batches of several sizes, of images of several heights and widths.

    Args:
        model: what the program was made of.
        program: gives logits, as the model does; classes are along the second axis.
        images: ``(B, C, size, size)``; other heights and widths are resized from them.
        dynamic_image_size: whether to look at others.

    Returns:
        ``max_difference``, of a logit, as a share of the largest (or of 1); ``agreement``, the share of images, or
        pixels, with the same class; ``cases``, by shape, with how many there are and agree.
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
        # Twice: a runtime may have one program for a shape that is new to it and another for one that it knows.
        actual = [program(batch) for _ in range(2)]
        difference = (torch.stack(actual) - expected).abs().max() / expected.abs().max().clamp(min=1)
        same = _class(actual[-1]) == _class(expected)
        cases.append(_case(batch, float(difference), int(same.sum()), same.numel()))
    return _together(cases)


def detection_parity(model: nn.Module, program: Program, images: Sequence[Tensor]) -> dict[str, Any]:
    """How near the detections come: of each image, and of the first one at other sizes.

    Args:
        model: a :class:`smt_vision.heads.whole.Whole`.
        program: gives what it gives.
        images: each ``(C, H, W)``, of any size.

    Returns:
        As :func:`logits_parity`. The same are two detections of one class, with boxes nearer than a thousandth of the image's
        longer side; differences are those of scores, of masks, and of boxes as a share of that side.
    """
    _, height, width = images[0].shape
    more = [(height + height // 4 + 1, width), (max(height // 2, SMALLEST_SIDE), max(width // 2, SMALLEST_SIDE))]
    batches = [image[None] for image in images] + [_resized(images[0][None], *size) for size in more]
    cases = []
    for batch in batches:
        expected, *actual = model(batch), program(batch), program(batch)
        compared = [_compare(expected, found, max(batch.shape[2:])) for found in actual]
        differences, pairs, counts = zip(*compared, strict=True)
        cases.append(_case(batch, float(np.max(differences)), min(pairs), max(counts)))
    return _together(cases)


def _compare(expected: tuple[Tensor, ...], actual: tuple[Tensor, ...], side: int) -> tuple[float, int, int]:
    """The largest difference of detections that are the same, how many are, and how many there are on either side."""
    boxes, scores, labels, *masks = expected
    other_boxes, other_scores, other_labels, *other_masks = actual
    pairs = []
    if len(boxes) and len(other_boxes):
        far = (boxes[:, None] - other_boxes[None]).abs().amax(dim=2) / side
        far[labels[:, None] != other_labels[None]] = torch.inf
        for i, row in enumerate(far):
            nearest = int(row.argmin())
            if row[nearest] <= NEAR:
                pairs.append((i, nearest))
                far[:, nearest] = torch.inf
    ours, theirs = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    parts = [(boxes / side, other_boxes / side), (scores, other_scores), *zip(masks, other_masks, strict=True)]
    differences = [(a[ours] - b[theirs]).abs().flatten() for a, b in parts]
    largest = float(torch.cat([*differences, torch.zeros(1)]).max())
    return largest, len(pairs), max(len(boxes), len(other_boxes))


def _resized(batch: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(batch, (height, width), mode="bicubic", antialias=True)


def _class(logits: Tensor) -> Tensor:
    """The class that logits are largest for; where there is one map of them, whether they say yes."""
    return logits.argmax(1) if logits.shape[1] > 1 else logits > 0


def _case(batch: Tensor, difference: float, agree: int, of: int) -> dict[str, Any]:
    return {"shape": list(batch.shape), "max_difference": difference, "agree": agree, "of": of}


def _together(cases: list[dict[str, Any]]) -> dict[str, Any]:
    count = sum(case["of"] for case in cases)
    return {
        "max_difference": float(np.max([case["max_difference"] for case in cases])),  # nan, if one is
        "agreement": sum(case["agree"] for case in cases) / count if count else 0.0,
        "cases": cases,
    }
