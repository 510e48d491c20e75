"""Bootstrap intervals: how much a metric would vary with other images of the same kind."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

LEVEL = 95  # percent of the resampled values that are in the interval
VALUES = 1 << 24  # random numbers at a time, which limits the memory
Values = npt.NDArray[np.float64]


def bootstrap_generator() -> np.random.Generator:
    """The random numbers of an interval: the same in every call, on every process."""
    return np.random.default_rng(0)


def resampled_counts(images: int, resamples: int) -> Iterator[npt.NDArray[np.int64]]:
    """How often each of N images is drawn when N images are drawn with replacement.

    Args:
        images: Number of images N.
        resamples: Number of resamples.

    Yields:
        Counts (R, N), each row with sum N; the rows of all arrays are the resamples.
    """
    generator = bootstrap_generator()
    rows = max(1, VALUES // images)
    for start in range(0, resamples, rows):
        drawn = generator.integers(0, images, (min(rows, resamples - start), images))
        yield np.stack([np.bincount(row, minlength=images) for row in drawn])


def percentile_interval(values: npt.ArrayLike) -> tuple[float, float]:
    """The interval that has 95 % of the values, with as many below as above."""
    low, high = np.nanpercentile(np.asarray(values, dtype=np.float64), [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


def as_interval(metric: str, bounds: tuple[float, float], resamples: int) -> dict[str, str | int | float]:
    """An interval as evaluations return it: plain data."""
    return {"metric": metric, "low": bounds[0], "high": bounds[1], "level": LEVEL, "resamples": resamples}
