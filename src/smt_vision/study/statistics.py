"""Differences between the variants of a study, with intervals, corrected p-values and verdicts.

The results of one budget form a two-way layout of variants and seeds. The difference of two variants is estimated by
least squares with an effect for each variant and each seed, which pairs the variants by seed; its t interval has the
residual variance of all cells, hence (variants - 1) x (seeds - 1) degrees of freedom where no cell is missing.
statsmodels computes this. Holm's method corrects the p-values for all comparisons of a study at a budget.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import hypot, nan

import numpy as np
import numpy.typing as npt

from ..extras import require
from .results import CellResult
from .study import Claim, Study

CONFIDENCE = 0.95
MIN_PAIRS = 4  # seeds of both variants that a verdict needs


class Verdict(StrEnum):
    """What the results say of a claim."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided at this scale"


@dataclass(frozen=True)
class VariantSummary:
    """The results of one variant at one budget.

    Args:
        variant: Name of the variant.
        results: One result per seed, in the order of the seeds.
    """

    variant: str
    results: tuple[CellResult, ...]

    @property
    def mean(self) -> float:
        """Mean of the primary metric over the seeds, in percent."""
        return float(np.mean([result.value for result in self.results]))

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds; NaN with one seed."""
        values = [result.value for result in self.results]
        return float(np.std(values, ddof=1)) if len(values) > 1 else nan


@dataclass(frozen=True)
class Comparison:
    """The difference of two variants at one budget, in percentage points of the primary metric.

    Args:
        claim: The claim that the comparison belongs to.
        budget: Name of the budget.
        than: The variant that ``claim.better`` is compared with.
        pairs: Number of seeds for which both variants have a result.
        difference: Estimated difference: positive if ``claim.better`` has the higher metric.
        low, high: 95 % interval of the difference, not corrected for the number of comparisons; NaN where there are
            too few results for one.
        degrees: Degrees of freedom of the interval.
        p_value: Two-sided p-value of no difference, corrected by Holm's method; NaN likewise.
    """

    claim: Claim
    budget: str
    than: str
    pairs: int
    difference: float
    low: float = nan
    high: float = nan
    degrees: int = 0
    p_value: float = nan

    @property
    def verdict(self) -> Verdict:
        """``supported`` or ``contradicted`` by the sign of the difference, if the corrected p-value is below 0.05.

        With fewer than four pairs ``undecided``: the residual variance would be that of other variants.
        """
        if self.pairs < MIN_PAIRS or not self.p_value < 1 - CONFIDENCE:
            return Verdict.UNDECIDED
        return Verdict.SUPPORTED if self.difference > 0 else Verdict.CONTRADICTED

    @property
    def published(self) -> float | None:
        """The published difference in percentage points, if there is one."""
        return self.claim.published.get(self.than)


@dataclass(frozen=True)
class BudgetSummary:
    """The results of a study at one budget.

    Args:
        budget: Name of the budget.
        variants: The variants that have results.
        comparisons: All comparisons whose two variants have results.
        missing: Number of cells without a result, among the seeds that are planned.
    """

    budget: str
    variants: tuple[VariantSummary, ...]
    comparisons: tuple[Comparison, ...]
    missing: int

    def verdict(self, claim: Claim) -> Verdict:
        """The verdict of a claim: contradicted by any of its comparisons, or supported by all of them."""
        verdicts = {c.than: c.verdict for c in self.comparisons if c.claim == claim}
        if Verdict.CONTRADICTED in verdicts.values():
            return Verdict.CONTRADICTED
        supported = all(verdicts.get(than) == Verdict.SUPPORTED for than in claim.than)
        return Verdict.SUPPORTED if supported else Verdict.UNDECIDED


@dataclass(frozen=True)
class Trend:
    """How a difference changes from a study's first budget with results to a later one.

    Args:
        claim: The claim.
        than: The variant that ``claim.better`` is compared with.
        first, later: Names of the budgets.
        change: Difference at the later budget less that at the first, in percentage points.
        half_width: Half the width of its 95 % interval; NaN where a budget has no interval.
    """

    claim: Claim
    than: str
    first: str
    later: str
    change: float
    half_width: float


def summarize(study: Study, results: Mapping[str, CellResult], seeds: int | None = None) -> list[BudgetSummary]:
    """Summaries of all budgets that have results.

    Args:
        study: The study.
        results: Results by key, of this and other studies.
        seeds: Number of seeds; ``None`` for all seeds from 0 that have a result, at least the study's.
    """
    summaries = []
    for budget in study.budgets:
        count = _seeds_with_results(study, budget, results) if seeds is None else seeds
        table = {
            variant: tuple(
                results[key] for seed in range(count) if (key := study.cell(budget, variant, seed).key) in results
            )
            for variant in study.variants
        }
        found = sum(map(len, table.values()))
        if found:
            variants = tuple(VariantSummary(variant, rows) for variant, rows in table.items() if rows)
            comparisons = _compare(study, budget, {v.variant: v.results for v in variants})
            planned = study.seeds if seeds is None else seeds
            missing = sum(
                study.cell(budget, variant, seed).key not in results
                for variant in study.variants
                for seed in range(planned)
            )
            summaries.append(BudgetSummary(budget, variants, comparisons, missing))
    return summaries


def decisive_summary(claim: Claim, summaries: Sequence[BudgetSummary]) -> BudgetSummary | None:
    """The summary that a claim is judged by.

    It is that of the last budget at which every comparison of the claim has the four pairs that a verdict needs;
    without one, that of the budget whose comparisons have the most pairs. Differences have no influence.

    Args:
        claim: The claim.
        summaries: Summaries of its study.

    Returns:
        The summary, or ``None`` if no comparison of the claim has results.
    """

    def evidence(summary: BudgetSummary) -> tuple[int, int]:
        pairs = {c.than: c.pairs for c in summary.comparisons if c.claim == claim}
        enough = [min(pairs.get(than, 0), MIN_PAIRS) for than in claim.than]
        return min(enough), sum(enough)

    compared = [summary for summary in reversed(summaries) if evidence(summary)[1]]
    return max(compared, key=evidence, default=None)


def trends(summaries: Sequence[BudgetSummary]) -> list[Trend]:
    """Trends of all comparisons, from the first budget to each later one."""
    return [
        Trend(
            later.claim,
            later.than,
            first.budget,
            later.budget,
            later.difference - first.difference,
            hypot(first.high - first.low, later.high - later.low) / 2,
        )
        for summary in summaries[1:]
        for later in summary.comparisons
        for first in summaries[0].comparisons
        if (first.claim, first.than) == (later.claim, later.than)
    ]


def _seeds_with_results(study: Study, budget: str, results: Mapping[str, CellResult]) -> int:
    count = study.seeds
    while any(study.cell(budget, variant, count).key in results for variant in study.variants):
        count += 1
    return count


def _compare(study: Study, budget: str, table: Mapping[str, Sequence[CellResult]]) -> tuple[Comparison, ...]:
    comparisons = []
    for claim in study.claims:
        for than in claim.than:
            if claim.better in table and than in table:
                seeds = [{result.seed for result in table[variant]} for variant in (claim.better, than)]
                comparisons.append(Comparison(claim, budget, than, len(seeds[0] & seeds[1]), nan))
    comparisons = [comparison for comparison in comparisons if comparison.pairs]
    if not comparisons:
        return ()
    return _estimate(comparisons, table, sum(len(claim.than) for claim in study.claims))


def _estimate(
    comparisons: Sequence[Comparison], table: Mapping[str, Sequence[CellResult]], planned: int
) -> tuple[Comparison, ...]:
    """The comparisons with their estimates, intervals and p-values, corrected for all that are planned."""
    regression = require("statsmodels.regression.linear_model", "study")
    variants = list(table)
    seeds = sorted({result.seed for rows in table.values() for result in rows})
    cells = [(variants.index(variant), result) for variant, rows in table.items() for result in rows]
    design = np.zeros((len(cells), len(variants) + len(seeds)))
    for row, (column, result) in enumerate(cells):
        design[row, column] = 1
        design[row, len(variants) + seeds.index(result.seed)] = 1
    design = design[:, : len(variants) + len(seeds) - 1]  # the effect of the last seed is that of the variants
    contrasts = np.zeros((len(comparisons), design.shape[1]))
    for row, comparison in enumerate(comparisons):
        contrasts[row, variants.index(comparison.claim.better)] = 1
        contrasts[row, variants.index(comparison.than)] = -1
    fit = regression.OLS(np.array([result.value for _, result in cells]), design).fit()
    degrees = len(cells) - np.linalg.matrix_rank(design)
    if degrees < 1:
        differences = contrasts @ fit.params
        return tuple(replace(c, difference=float(d)) for c, d in zip(comparisons, differences, strict=True))
    test = fit.t_test(contrasts)
    # Those without results count as the least significant ones, so that results of others do not make a verdict.
    p_values = np.append(np.atleast_1d(test.pvalue), np.ones(planned - len(comparisons)))
    corrected = correct_p_values(p_values)
    intervals = test.conf_int(alpha=1 - CONFIDENCE)
    return tuple(
        replace(
            comparison,
            difference=float(np.atleast_1d(test.effect)[i]),
            low=float(intervals[i, 0]),
            high=float(intervals[i, 1]),
            degrees=int(degrees),
            p_value=float(corrected[i]),
        )
        for i, comparison in enumerate(comparisons)
    )


def correct_p_values(p_values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The p-values (n,) of n tests, corrected by Holm's method.

    Equal to statsmodels' ``multipletests``, which collects garbage in every call: half a second, once per budget.
    """
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.empty_like(p_values)
    corrected[order] = np.maximum.accumulate(p_values[order] * factors).clip(max=1)
    return corrected
