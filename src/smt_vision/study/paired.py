"""The paired t test, Holm's correction for several tests, and what they can find."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, nan

import numpy as np
import numpy.typing as npt

from ..extras import require

CONFIDENCE = 0.95
LEVEL = 1 - CONFIDENCE
POWER = 0.8
MIN_PAIRS = 4  # seeds of both variants that a verdict needs
MAX_NONCENTRALITY = 35.0  # SciPy's distribution is not a number at much larger ones


@dataclass(frozen=True)
class Interval:
    """The mean of paired differences, in percentage points, with its t interval.

    Args:
        mean: Mean of the differences.
        low, high: 95 % interval; NaN with one difference.
        p_value: Two-sided p-value of a mean of zero; NaN likewise, and where all differences are equal and not zero,
            since a sample without variance has no t statistic.
    """

    mean: float
    low: float = nan
    high: float = nan
    p_value: float = nan


def paired_interval(differences: Sequence[float]) -> Interval:
    """The mean of paired differences, its 95 % t interval and the p-value of a mean of zero."""
    values = np.round(differences, 9)  # so that equal results differ by nothing, and not by rounding errors
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean)
    if np.ptp(values) == 0:
        return Interval(mean, mean, mean, 1.0 if mean == 0 else nan)
    test = require("scipy.stats", "study").ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(CONFIDENCE)
    return Interval(mean, float(low), float(high), float(test.pvalue))


def correct_p_values(p_values: Sequence[float], planned: int) -> list[float]:
    """The p-values of tests, corrected by Holm's method.

    Args:
        p_values: The p-values; NaN for tests that have none or that cannot be significant for another reason.
        planned: Number of planned tests. Those without a p-value count as the least significant ones, so that which
            tests have results does not decide whether another one is significant.

    Returns:
        The corrected p-values, NaN where there was none.
    """
    ordered: npt.NDArray[np.float64] = np.ones(max(planned, len(p_values)))
    ordered[: len(p_values)] = np.nan_to_num(p_values, nan=1.0)
    order = np.argsort(ordered)
    corrected = np.empty_like(ordered)
    corrected[order] = np.maximum.accumulate(ordered[order] * np.arange(len(ordered), 0, -1)).clip(max=1)
    return [nan if np.isnan(raw) else float(p) for raw, p in zip(p_values, corrected, strict=False)]


def detectable_difference(deviation: float, pairs: int, tests: int = 1) -> float:
    """The smallest true mean difference that the two-sided t test finds, with its sign, with a probability of 80 %.

    From the noncentral t distribution of the test statistic.

    Args:
        deviation: Standard deviation of the paired differences, in percentage points.
        pairs: Number of pairs, at least 2.
        tests: Number of tests: the level of 5 % is divided by it, as Holm's method does for the smallest p-value.

    Returns:
        The difference in percentage points; infinity if it is more than some tens of standard errors.
    """
    stats = require("scipy.stats", "study")
    level = LEVEL / tests
    threshold = stats.t.ppf(1 - level / 2, pairs - 1)

    def excess(shift: float) -> float:
        return float(stats.nct.sf(threshold, pairs - 1, shift)) - POWER

    if not excess(MAX_NONCENTRALITY) > 0:
        return inf
    shift = require("scipy.optimize", "study").brentq(excess, 0.0, MAX_NONCENTRALITY)
    return deviation * float(shift) / pairs**0.5
