"""Numerical parity between an exported program and its source model.

Shapes: ``B`` batch, ``C`` channels, ``H W`` image size.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .exported import Program

SMALLEST_SIDE = 32  # smallest image side that is compared, in pixels; an SMT takes no smaller one
# Largest coordinate difference of matching boxes, as a fraction of the image's longer side.
BOX_TOLERANCE = 1e-3
ROUNDED_BOX_TOLERANCE = 2e-2  # in bfloat16 and 8 bits: the boxes are of the same object


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
        shapes += [(3, long, short), (1, short, long)]
        if _takes(model, _resized(images[:1], SMALLEST_SIDE, SMALLEST_SIDE)):
            shapes += [(2, SMALLEST_SIDE, SMALLEST_SIDE)]
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


def detection_parity(
    model: nn.Module,
    program: Program,
    images: Sequence[Tensor],
    batch_size: int,
    split: Callable[[Sequence[Tensor], int], list[tuple[Tensor, ...]]],
    box_tolerance: float = BOX_TOLERANCE,
) -> dict[str, Any]:
    """Compare the detections of a program with the model's, in each image, and in some at two other sizes.

    At another size, the image is the one with the most detections among those in which the model detects something at
    this size. Detections match if they have the same class, and boxes that differ by at most ``box_tolerance``.

    Args:
        model: A :class:`~smt_vision.tasks.detection.export.DetectorForExport`.
        program: Exported program with the same outputs.
        images: Images ``(C, H, W)`` of any size.
        batch_size: Number of images that model and program take.
        split: Function from their outputs and the batch size to the detections of each image: boxes, scores, labels
            and, with masks, masks.
        box_tolerance: Largest coordinate difference of matching boxes, as a fraction of the image's longer side.

    Returns:
        ``max_difference``: largest difference between matching detections, of scores, mask probabilities, or box
        coordinates as a fraction of the longer side. ``agreement``: fraction of detections that match. ``cases``: the
        same for each batch, as counts, with the indices of its images; ``of`` is 0 if neither detects anything.
    """

    def detections(run: Callable[[Tensor], Any], batch: Tensor) -> list[tuple[Tensor, ...]]:
        return split(run(batch), batch_size)

    def case(i: int, batch: Tensor, expected: list[tuple[Tensor, ...]]) -> dict[str, Any]:
        compared = [
            _compare(own, theirs, max(batch.shape[2:]), box_tolerance)
            for found in (detections(program, batch) for _ in range(2))
            for own, theirs in zip(expected, found, strict=True)
        ]
        differences, matches, counts = np.array(compared).reshape(2, batch_size, 3).transpose(2, 0, 1)
        agree, of = matches.sum(axis=1).min(), counts.sum(axis=1).max()
        indices = [(i * batch_size + k) % len(images) for k in range(batch_size)]
        return {**_case(batch, float(np.max(differences)), int(agree), int(of)), "images": indices}

    batches = list(batches_of_one_size(images, batch_size))
    found = [detections(model, batch) for batch in batches]
    cases = [case(i, batch, expected) for i, (batch, expected) in enumerate(zip(batches, found, strict=True))]
    best_first = sorted(range(len(batches)), key=lambda i: -_count(found[i]))
    for size_of in (_higher, _halved):
        attempts = []
        for i in best_first:
            batch = _resized(batches[i], *size_of(*batches[i].shape[2:]))
            attempts.append((i, batch, detections(model, batch)))
            if _count(attempts[-1][2]):
                break
        cases.append(case(*max(attempts, key=lambda attempt: _count(attempt[2]))))
    return _summary(cases)


def _higher(height: int, width: int) -> tuple[int, int]:
    return height + height // 4 + 1, width


def _halved(height: int, width: int) -> tuple[int, int]:
    return max(height // 2, SMALLEST_SIDE), max(width // 2, SMALLEST_SIDE)


def _count(found: Sequence[tuple[Tensor, ...]]) -> int:
    return sum(len(boxes) for boxes, *_ in found)


def batches_of_one_size(images: Sequence[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Batches ``(B, C, H, W)`` of images ``(C, H, W)``, which are resized to the size of the batch's first image.

    The last batch is completed with the first images. With B = 1 the images are as they were.
    """
    for start in range(0, len(images), batch_size):
        part = [images[(start + i) % len(images)] for i in range(batch_size)]
        _, height, width = part[0].shape
        yield torch.cat([x[None] if x.shape == part[0].shape else _resized(x[None], height, width) for x in part])


def _compare(
    expected: tuple[Tensor, ...], actual: tuple[Tensor, ...], side: int, tolerance: float
) -> tuple[float, int, int]:
    """The largest difference of matching detections, their number, and the larger number of detections."""
    boxes, scores, labels, *masks = expected
    actual_boxes, actual_scores, actual_labels, *actual_masks = actual
    pairs = []
    if len(boxes) and len(actual_boxes):
        distances = (boxes[:, None] - actual_boxes[None]).abs().amax(dim=2) / side
        distances[labels[:, None] != actual_labels[None]] = torch.inf
        for index, row in enumerate(distances):
            nearest = int(row.argmin())
            if row[nearest] <= tolerance:
                pairs.append((index, nearest))
                distances[:, nearest] = torch.inf
    i, j = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    compared = [(boxes / side, actual_boxes / side), (scores, actual_scores), *zip(masks, actual_masks, strict=True)]
    differences = [(a[i] - b[j]).abs().flatten() for a, b in compared]
    largest = float(torch.cat([*differences, torch.zeros(1)]).max())
    return largest, len(pairs), max(len(boxes), len(actual_boxes))


def _takes(model: nn.Module, batch: Tensor) -> bool:
    """Whether a model can reduce images of this size to its feature maps; some, e.g. Inception, need larger ones."""
    try:
        model(batch)
    except (RuntimeError, ValueError, AssertionError):
        return False
    return True


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
