"""Validation of COCO segmentations. Shapes: M annotations; boxes ``(x1, y1, x2, y2)`` in pixels.

Everything that training and evaluation decode later is checked here, when a dataset is opened: coordinates of polygons,
and the run lengths of RLE masks, compressed or not. The checks run on arrays of many annotations at once.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ....data.validation import ValidationReport
from .fields import are_finite, parse_integer, shown

CHUNK = 20_000  # annotations per array, which limits the memory
EMPTY = "mask training ignores these objects, mask evaluation counts them as missed"
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Segmentations(NamedTuple):
    """Valid segmentations and their measures.

    Args:
        values: M segmentations: polygons, an RLE mask, or ``None``.
        boxes: Bounding boxes (M, 4); nan without a segmentation, or if it is empty.
        areas: Areas (M,) in square pixels; nan without a segmentation.
    """

    values: list[Any]
    boxes: Floats
    areas: Floats


def check_segmentations(
    report: ValidationReport, stored: Sequence[Any], sizes: Ints, case: Callable[[int], str]
) -> Segmentations:
    """Check segmentations and measure the valid ones.

    Args:
        report: Report to add to.
        stored: M segmentations as stored. ``None``, and empty lists, texts and dicts stand for none.
        sizes: Height and width of the image of each annotation (M, 2).
        case: Function from a row to its name in messages.
    """
    values: list[Any] = [None] * len(stored)
    polygons, masks, runs = list[int](), list[int](), list[str | list[int]]()
    for m, value in enumerate(stored):
        if not value:
            continue
        if isinstance(value, dict):
            height, width = sizes[m].tolist()
            counts = _check_rle(report, value, height, width, partial(case, m))
            if counts is not None:
                values[m] = value if _is_plain(value) else {"size": [height, width], "counts": counts}
                masks.append(m)
                runs.append(counts)
        elif _check_polygons(report, value, partial(case, m)):
            values[m] = [polygon for polygon in value if polygon] or None
            if values[m]:
                polygons.append(m)

    boxes, areas = np.full((len(stored), 4), np.nan), np.full(len(stored), np.nan)
    for start in range(0, len(polygons), CHUNK):
        rows = polygons[start : start + CHUNK]
        boxes[rows], areas[rows] = _measure_polygons([values[m] for m in rows])
    for start in range(0, len(masks), CHUNK):
        rows = masks[start : start + CHUNK]
        boxes[rows], areas[rows], valid = _measure_masks(runs[start : start + CHUNK], sizes[rows])
        for m in np.array(rows)[~valid].tolist():
            report.error(
                "RLE masks whose counts are invalid",
                f"{case(m)} {shown(values[m]['counts'])}",
                "expected COCO's run lengths, which add up to the image's height times width",
            )
    for m in np.flatnonzero(areas == 0).tolist():
        if isinstance(values[m], dict):
            report.warning("RLE masks without a pixel", case(m), EMPTY)
    return Segmentations(values, boxes, areas)


def _check_polygons(report: ValidationReport, value: Any, case: Callable[[], str]) -> bool:
    if (
        not isinstance(value, list)
        or any(not isinstance(p, list) or len(p) % 2 for p in value)
        or (len(value) > 2 and all(len(p) == 2 for p in value))  # [[x, y], [x, y], ...], a list of points
    ):
        kind = "segmentations that are neither polygons nor RLE masks"
        report.error(kind, f"{case()} {shown(value)}", "expected [[x, y, x, y, ...]] or an RLE mask")
        return False
    if not all(map(are_finite, value)):
        report.error(
            "polygons whose coordinates are not numbers", f"{case()} {shown(value)}", "expected x, y in pixels"
        )
        return False
    if any(value) and all(len(polygon) < 6 for polygon in value):
        report.warning("polygons of fewer than three points", case(), EMPTY)
    return True


def _check_rle(
    report: ValidationReport, value: dict[str, Any], height: int, width: int, case: Callable[[], str]
) -> str | list[int] | None:
    """The counts of an RLE mask of the image's size; ``None``, reported as an error, for an invalid one."""
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, list) or size != [height, width] or counts is None:
        report.error(
            "RLE masks whose size is not that of the image",
            f"{case()} {shown(size)} for {[height, width]}",
            "expected counts, and a size of the image's height and width",
        )
        return None
    if isinstance(counts, str) and counts:
        return counts
    if isinstance(counts, list) and counts:
        plain = set(map(type, counts)) == {int}
        numbers = counts if plain else [None if isinstance(n, str) else parse_integer(n) for n in counts]
        valid = [n for n in numbers if n is not None and 0 <= n <= height * width]
        if len(valid) == len(counts):
            return valid
    report.error("RLE masks whose counts are invalid", f"{case()} {shown(counts)}", "expected a text, or integers")
    return None


def _is_plain(value: dict[str, Any]) -> bool:
    """Whether the library that decodes RLE masks accepts it as stored: it requires ``int``, not ``float``."""
    counts = value["counts"]
    return set(map(type, value["size"])) == {int} and (isinstance(counts, str) or set(map(type, counts)) == {int})


def _measure_polygons(segmentations: list[list[list[float]]]) -> tuple[Floats, Floats]:
    """Bounding boxes (n, 4) and areas (n,) of n lists of polygons."""
    polygons = list(chain.from_iterable(segmentations))
    lengths = np.array([len(polygon) // 2 for polygon in polygons])
    xy = np.fromiter(chain.from_iterable(polygons), np.float64, 2 * int(lengths.sum())).reshape(-1, 2)
    first = np.cumsum(lengths) - lengths  # of each polygon, among all points
    following = np.arange(1, len(xy) + 1)
    following[first + lengths - 1] = first  # polygons are closed
    # Relative to a point of the polygon, which keeps the precision far from the image's corner.
    x, y = (xy - xy[np.repeat(first, lengths)]).T
    areas = np.abs(np.add.reduceat(x * y[following] - x[following] * y, first)) / 2
    of_segmentation = np.cumsum([0, *map(len, segmentations[:-1])])
    first = first[of_segmentation]
    boxes = np.concatenate([np.minimum.reduceat(xy, first), np.maximum.reduceat(xy, first)], axis=1)
    return boxes, np.add.reduceat(areas, of_segmentation)


def _measure_masks(masks: list[str | list[int]], sizes: Ints) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """Bounding boxes (n, 4), areas (n,) and validity (n,) of the counts of n RLE masks."""
    compressed = [i for i, counts in enumerate(masks) if isinstance(counts, str)]
    decoded, well_formed = _decode([masks[i] for i in compressed])  # type: ignore[misc]
    runs = [np.zeros(0, np.int64) if isinstance(counts, str) else np.array(counts, np.int64) for counts in masks]
    valid = np.ones(len(masks), dtype=bool)
    for i, counts, good in zip(compressed, decoded, well_formed, strict=True):
        runs[i], valid[i] = counts, good

    # A run covers the pixels from start to end - 1, counted down the columns; every second one belongs to the object.
    lengths = np.array([len(counts) for counts in runs])
    run, first, owner = np.concatenate(runs), np.cumsum(lengths) - lengths, np.repeat(np.arange(len(runs)), lengths)
    total = np.bincount(owner, run, len(runs))
    shortest = np.full(len(runs), 0)
    np.minimum.at(shortest, owner, run)
    valid &= (shortest >= 0) & (total == sizes.prod(1))
    end = np.cumsum(run)
    start = end - run
    start, end = start - start[first[owner]], end - start[first[owner]]
    inside = ((np.arange(len(run)) - first[owner]) % 2 == 1) & (run > 0) & valid[owner]
    start, last, owner = start[inside], end[inside] - 1, owner[inside]
    height = sizes[owner, 0]
    spans = start // height < last // height  # runs over several columns touch the top and the bottom
    corners = (
        (start // height, np.where(spans, 0, start % height)),
        (
            last // height + 1,
            np.where(spans, height, last % height + 1),
        ),
    )
    boxes = np.full((len(runs), 4), np.nan)
    for column, values in enumerate(corners[0]):
        boxes[:, column] = _reduce(np.minimum, values, owner, len(runs))
    for column, values in enumerate(corners[1], start=2):
        boxes[:, column] = _reduce(np.maximum, values, owner, len(runs))
    areas = np.bincount(owner, run[inside], len(runs))
    return boxes, np.where(valid, areas, np.nan), valid


def _reduce(function: np.ufunc, values: Ints, owner: Ints, count: int) -> Floats:
    """Reduce the values of each owner (sorted); nan for owners without values."""
    out = np.full(count, np.nan)
    owners, first = np.unique(owner, return_index=True)
    if len(owners):
        out[owners] = function.reduceat(values, first)
    return out


def _decode(masks: list[str]) -> tuple[list[Ints], npt.NDArray[np.bool_]]:
    """Decode compressed counts, and tell for each mask whether they are well formed.

    A number is stored in groups of five bits, lowest first, one character each: 48 plus the bits, plus 32 if another
    group follows. Bit 16 of the last group is the sign. From the fourth number on, the difference from the number two
    places before is stored.
    """
    if not masks:
        return [], np.zeros(0, dtype=bool)
    data = [counts.encode("utf-8", "surrogatepass") for counts in masks]
    lengths = np.array([len(counts) for counts in data])
    code = np.frombuffer(b"".join(data), dtype=np.uint8).astype(np.int64) - 48
    mask = np.repeat(np.arange(len(data)), lengths)
    final = code & 32 == 0
    ends = np.cumsum(lengths) - 1  # last character of each mask
    begins = np.concatenate([[True], final[:-1]])
    begins[np.cumsum(lengths)[:-1]] = True
    first = np.flatnonzero(begins)  # first character of each number
    number = np.cumsum(begins) - 1  # of each character
    group = np.arange(len(code)) - first[number]
    well_formed = final[ends]
    well_formed[np.unique(mask[(code < 0) | (code > 63) | (group > 6)])] = False
    group = group.clip(max=6)
    value = np.add.reduceat((code & 31) << 5 * group, first)
    last = np.concatenate([first[1:], [len(code)]]) - 1
    value -= np.where(code[last] & 16, np.int64(1) << 5 * (group[last] + 1), 0)

    owner = mask[first]
    place = np.arange(len(first)) - np.searchsorted(owner, owner)  # of a number in its mask
    for chain_of in (place % 2 == 1, (place % 2 == 0) & (place > 0)):  # sums over every second number
        part, owners = value[chain_of], owner[chain_of]
        sums = np.cumsum(part)
        value[chain_of] = sums - (sums - part)[np.searchsorted(owners, owners)]
    return np.split(value, np.searchsorted(owner, np.arange(1, len(data)))), well_formed
