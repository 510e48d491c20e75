"""Inference of a segmenter on images of any size: in one pass or in sliding windows, at several scales, flipped.

Values of all classes are computed in rows, from top to bottom, and only the rows that are still needed are kept: those
of all pixels of a photograph would take gigabytes.

Shapes: B images of h x w pixels as the model sees them and of H x W pixels as stored, K classes.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ....data.padding import group_by_size, padded
from ..config import SegmentConfig
from .upernet import resize

BAND = 1 << 22  # values per band of rows, 16 MB
Network = Callable[[Tensor], Tensor]  # images (B, C, H, W) to logits (B, K, H, W)
MAX_PIXELS = 1 << 22  # of images that go through the model together; a larger image goes alone


def segment(
    model: Network, image: Tensor, sizes: Tensor, originals: Sequence[tuple[int, int]], config: SegmentConfig
) -> list[Tensor | None]:
    """Label maps or object probabilities of images, at their original size.

    An image's result does not depend on the other images of its batch: batch padding is removed first, and images of
    equal size go through the model together, up to 4 million pixels.

    Args:
        model: Maps ``(B, 3, H, W)`` to logits ``(B, K, H, W)``; in evaluation mode.
        image: Normalized images ``(B, 3, h, w)``, possibly padded on the right and bottom.
        sizes: ``(B, 2)``, height and width of each image without padding.
        originals: Height and width of each image as stored.
        config: ``kind``, ``test``, ``test_scales`` and ``test_flip`` are used; see :func:`probability_rows`.

    Returns:
        Per image the most probable class of each pixel, ``(H, W)`` int16; with ``config.kind`` ``binary`` the object
        probabilities, ``(H, W)`` float32. Logits are resized to this size, or where they are averaged over scales or
        flips, probabilities; labels never. ``None`` for an image whose logits are infinite or not a number.
    """
    single = len(config.test_scales) == 1 and not config.test_flip
    by_row: dict[int, Tensor | None] = {}
    for same_size, (height, width) in group_by_size(sizes):
        together = max(1, MAX_PIXELS // (height * width))
        for start in range(0, len(same_size), together):
            rows = same_size[start : start + together]
            size = height, width
            maps = [_OutputMap(size, originals[row], config.is_binary, single, image.device) for row in rows]
            checked = _CheckedNetwork(model)
            for scores in probability_rows(checked, image[rows, :, :height, :width], config, logits=single):
                for output, values in zip(maps, scores, strict=True):
                    output.add(values)
            for row, output, finite in zip(rows, maps, checked.finite(), strict=True):
                by_row[row] = output.values if finite else None
    return [by_row[row] for row in range(len(sizes))]


class _CheckedNetwork:
    """A network of which is known afterwards whether all logits of each image of its batches were finite."""

    def __init__(self, model: Network) -> None:
        self._model = model
        self._checks: list[Tensor] = []

    def __call__(self, image: Tensor) -> Tensor:
        logits = self._model(image)
        self._checks.append(logits.isfinite().flatten(1).all(dim=1))
        return logits

    def finite(self) -> list[bool]:
        return torch.stack(self._checks).all(dim=0).tolist()


def probability_rows(model: Network, image: Tensor, config: SegmentConfig, *, logits: bool = False) -> Iterator[Tensor]:
    """Yield the class probabilities of images of one size, from top to bottom: ``(B, K, n, w)`` for n rows each.

    Args:
        model: As in :func:`segment`.
        image: ``(B, 3, h, w)``.
        config: Probabilities, sigmoid if ``kind`` is ``binary`` and else softmax, are averaged over ``test_scales`` and
            ``test_flip``. With ``slide``, logits are averaged where windows overlap. Scales are relative to ``image``,
            not to the size of the file.
        logits: Yield the logits instead; for one scale without flips.
    """
    variants = [
        _variant_rows(model, image, scale, flipped, config, logits)
        for scale, flipped in itertools.product(config.test_scales, (False, True) if config.test_flip else (False,))
    ]
    if config.test == "slide" or len(variants) == 1:
        for first, *others in zip(*variants, strict=True):
            yield sum(others, first) / len(variants)
        return
    # A pass returns the logits of all pixels: those of one variant at a time are in memory.
    total: Tensor | None = None
    for variant in variants:
        top = 0
        for rows in variant:
            if total is None:
                total = rows.new_zeros(*rows.shape[:2], *image.shape[-2:])
            total[..., top : top + rows.shape[-2], :] += rows
            top += rows.shape[-2]
    assert total is not None
    yield total.div_(len(variants))


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Start of each window: every ``stride`` pixels. The last window ends at the image border and overlaps more."""
    last = max(length - crop, 0)
    return [*range(0, last, stride), last]


class ResizedRows:
    """:func:`resize` of maps that arrive in rows; values differ from it by rounding at most.

    Args:
        size: Height h and width w of the maps.
        target: Height H and width W to resize to.
    """

    def __init__(self, size: tuple[int, int], target: tuple[int, int]) -> None:
        self.size = size
        self.target = target
        # The formula of bilinear resizing without aligned corners, in float32 as PyTorch computes it.
        scale = torch.tensor(size[0], dtype=torch.float32) / target[0]
        position = (scale * (torch.arange(target[0], dtype=torch.float32) + 0.5) - 0.5).clamp(min=0)
        self._above = position.long().clamp(max=size[0] - 1)
        self._below = (self._above + 1).clamp(max=size[0] - 1)
        self._weight = (position - self._above)[:, None]  # of the row below
        self._kept: Tensor | None = None  # rows from _top on that have arrived and are needed
        self._top = 0
        self._done = 0

    def add(self, rows: Tensor) -> Iterator[Tensor]:
        """Add ``(B, K, n, w)`` and yield the rows ``(B, K, m, W)`` that are complete with them."""
        kept = rows if self._kept is None else torch.cat([self._kept, rows], dim=-2)
        self._kept = None
        height, width = self.target
        band = _rows_per_band(kept, width)
        while self._done < height:
            stop = min(self._done + band, height)
            if int(self._below[stop - 1]) >= self._top + kept.shape[-2]:
                first = min(int(self._above[self._done]) - self._top, kept.shape[-2])
                self._kept = kept[..., first:, :].clone()
                self._top += first
                return
            yield self._resize(kept, slice(self._done, stop))
            self._done = stop

    def _resize(self, kept: Tensor, band: slice) -> Tensor:
        if self.size == self.target:
            return kept[..., band.start - self._top : band.stop - self._top, :]
        pair = torch.stack([self._above[band], self._below[band]])
        needed, index = (pair - self._top).to(kept.device).unique(return_inverse=True)
        wide = resize(kept[..., needed, :], (len(needed), self.target[1]))
        weight = self._weight[band].to(wide)
        return torch.addcmul(wide[..., index[1], :] * weight, wide[..., index[0], :], 1 - weight)


class _OutputMap:
    """The label map or object probabilities of an image, from its class probabilities or logits in rows.

    Args:
        size: Height h and width w of the image as the model sees it.
        original: Height H and width W of the image as stored.
        binary: Whether there is one class, whose probabilities are the result.
        logits: Whether the rows are logits.
        device: Device of the rows.
    """

    def __init__(
        self, size: tuple[int, int], original: tuple[int, int], binary: bool, logits: bool, device: torch.device
    ) -> None:
        self.values = torch.empty(original, dtype=torch.float32 if binary else torch.int16, device=device)
        self._binary = binary
        self._logits = logits
        self._rows = ResizedRows(size, original)
        self._top = 0

    def add(self, scores: Tensor) -> None:
        """Add rows of class probabilities or logits ``(K, n, w)``."""
        for rows in self._rows.add(scores[None]):
            part = self.values[self._top : self._top + rows.shape[-2]]
            if self._binary:
                part.copy_(rows[0, 0].sigmoid() if self._logits else rows[0, 0])
            else:
                part.copy_(rows[0].max(dim=0).indices)
            self._top += len(part)


def _variant_rows(
    model: Network, image: Tensor, scale: float, flipped: bool, config: SegmentConfig, only_logits: bool
) -> Iterator[Tensor]:
    """Yield the probabilities, or logits, of a scale, flipped or not, in rows of the same number for all scales."""
    size = (image.shape[-2], image.shape[-1])
    scaled_size = size
    if scale != 1:
        scaled_size = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        image = F.interpolate(image, scaled_size, mode="bilinear", align_corners=False, antialias=True)
    resized = ResizedRows(scaled_size, size)
    for logits in _logit_rows(model, image.flip(-1) if flipped else image, config):
        for rows in resized.add(logits.flip(-1) if flipped else logits):
            if only_logits:
                yield rows
            else:
                yield rows.sigmoid() if config.is_binary else rows.softmax(dim=1)
            del rows
        del logits  # otherwise kept while the next are computed


def _logit_rows(model: Network, image: Tensor, config: SegmentConfig) -> Iterator[Tensor]:
    """Yield the logits of images of one size, ``(B, K, n, w)`` float32, in one pass or in windows."""
    height, width = image.shape[-2:]
    sides = padded(height), padded(width)
    if config.test == "slide":  # the last windows end at the border of the image, unless it is smaller than a window
        sides = max(height, min(config.crop[0], sides[0])), max(width, min(config.crop[1], sides[1]))
    image = F.pad(image, (0, sides[1] - width, 0, sides[0] - height))
    if config.test == "whole":
        logits = model(image)[..., :height, :width]
        for rows in logits.split(_rows_per_band(logits, width), dim=-2):
            yield rows.float()
    else:
        top = 0
        for rows in _slide(model, image, config.crop, config.stride):
            yield rows[..., : height - top, :width]
            top += rows.shape[-2]
            del rows


def _slide(model: Network, image: Tensor, crop: tuple[int, int], stride: tuple[int, int]) -> Iterator[Tensor]:
    """Yield the mean logits of overlapping windows, ``(B, K, n, w)`` float32, when no window below covers the rows."""
    height, width = image.shape[-2:]
    tops, lefts = (window_starts(*lengths) for lengths in zip((height, width), crop, stride, strict=True))
    rows, columns = (
        _windows_over(length, starts, side, image)
        for length, starts, side in zip((height, width), (tops, lefts), crop, strict=True)
    )
    below: Tensor | None = None  # sums of the rows that the next windows cover as well
    for top, following in itertools.pairwise([*tops, height]):
        total: Tensor | None = None
        for left in lefts:
            logits = model(image[..., top : top + crop[0], left : left + crop[1]]).float()
            if total is None:
                total = logits.new_zeros(*logits.shape[:3], width)
                if below is not None:
                    total[..., : below.shape[-2], :] = below
            total[..., left : left + crop[1]] += logits
        assert total is not None
        below = total[..., following - top :, :].clone()
        yield total[..., : following - top, :].div_(rows[top:following, None] * columns)


def _windows_over(length: int, starts: Sequence[int], side: int, like: Tensor) -> Tensor:
    """Number of windows over each pixel of an axis (length,)."""
    count = torch.zeros(length, device=like.device)
    for start in starts:
        count[start : start + side] += 1
    return count


def _rows_per_band(maps: Tensor, width: int) -> int:
    """Rows of a band of maps ``(B, K, n, w)`` at a width."""
    return max(1, BAND // (maps.shape[0] * maps.shape[1] * width))
