"""Differences between the variants of a study, with intervals, corrected p-values and verdicts.

Two variants are compared by the paired t test over the seeds that both have. It assumes nothing of other variants,
whose results may vary more or less: a variance of all cells together would be too small for the one and too large for
the other. Holm's method corrects the p-values for all comparisons of a study at a budget.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import product
from math import isnan, nan

import numpy as np
import numpy.typing as npt

from ..extras import require
from .results import CellResult
from .study import Claim, Study, names_same_images

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


@dataclass(frozen=True)
class Comparison:
    """The difference of two variants at one budget, in percentage points of the primary metric.

    Args:
        claim: The claim that the comparison belongs to.
        budget: Name of the budget.
        than: The variant that ``claim.better`` is compared with.
        by_seed: The difference for each seed of which both variants have a result: positive if ``claim.better`` has the
            higher metric.
        interval: Mean and interval of the difference, not corrected for the number of comparisons.
        p_value: Two-sided p-value of no difference, corrected by Holm's method; NaN where ``interval`` has none.
        failed: Number of cells of the two variants that failed and have no result.
        mixed: Number of pairs whose two cells were trained on different hardware, or with other versions of PyTorch or
            of this package, which pairing by seed does not remove.
    """

    claim: Claim
    budget: str
    than: str
    by_seed: Mapping[int, float]
    interval: Interval
    p_value: float = nan
    failed: int = 0
    mixed: int = 0

    @property
    def pairs(self) -> int:
        """Number of seeds for which both variants have a result."""
        return len(self.by_seed)

    @property
    def verdict(self) -> Verdict:
        """``supported`` or ``contradicted`` by the sign of the difference, if the corrected p-value is below 0.05.

        ``undecided`` with fewer than four pairs, and if cells failed: the seeds that remain are not a random choice.
        """
        if self.pairs < MIN_PAIRS or self.failed or not self.p_value < 1 - CONFIDENCE:
            return Verdict.UNDECIDED
        return Verdict.SUPPORTED if self.interval.mean > 0 else Verdict.CONTRADICTED

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
        failed: Labels of the cells that failed and have no result.
        incomplete: The variants that the missing cells are of.
        incomparable: Seeds at which two variants of a claim were evaluated on different images, or trained on different
            images or labels although their recipes name the same; these are not pairs.
    """

    budget: str
    variants: tuple[VariantSummary, ...]
    comparisons: tuple[Comparison, ...]
    missing: int
    failed: tuple[str, ...] = ()
    incomplete: tuple[str, ...] = ()
    incomparable: tuple[int, ...] = ()

    def verdict(self, claim: Claim) -> Verdict:
        """The verdict of a claim: contradicted by any of its comparisons, or supported by all of them."""
        verdicts = {c.than: c.verdict for c in self.comparisons if c.claim == claim}
        if Verdict.CONTRADICTED in verdicts.values():
            return Verdict.CONTRADICTED
        supported = all(verdicts.get(than) == Verdict.SUPPORTED for than in claim.than)
        return Verdict.SUPPORTED if supported else Verdict.UNDECIDED

    def mixed(self, claim: Claim) -> int:
        """Number of mixed pairs of the comparison of a claim that has the most."""
        return max((c.mixed for c in self.comparisons if c.claim == claim), default=0)

    def pairs(self, claim: Claim) -> int:
        """Number of pairs of the comparison of a claim that has the fewest."""
        pairs = {c.than: c.pairs for c in self.comparisons if c.claim == claim}
        return min(pairs.get(than, 0) for than in claim.than)


@dataclass(frozen=True)
class Trend:
    """How a difference changes from one budget to a later one.

    Args:
        claim: The claim.
        than: The variant that ``claim.better`` is compared with.
        first, later: Names of the budgets.
        change: Difference at the later budget less that at the first, over the seeds that both have.
        p_value: Two-sided p-value of no change, corrected by Holm's method for all trends of the study; NaN
            where ``change`` has none.
    """

    claim: Claim
    than: str
    first: str
    later: str
    change: Interval
    p_value: float = nan


def summarize(
    study: Study, results: Mapping[str, CellResult], seeds: int | None = None, failed: Collection[str] = ()
) -> list[BudgetSummary]:
    """Summaries of all budgets that have results.

    Args:
        study: The study.
        results: Results by key, of this and other studies.
        seeds: Number of seeds; ``None`` for all that have a result or a cell that failed, at least the study's.
        failed: Keys of cells that failed. Those with a result count as finished.
    """
    summaries = []
    for budget in study.budgets:
        count = _tried_seeds(study, budget, results, failed) if seeds is None else seeds
        table = {
            variant: tuple(
                results[key] for seed in range(count) if (key := study.cell(budget, variant, seed).key) in results
            )
            for variant in study.variants
        }
        if not any(table.values()):
            continue
        planned = study.seeds if seeds is None else seeds
        absent = [
            cell
            for variant in study.variants
            for seed in range(count)
            if (cell := study.cell(budget, variant, seed)).key not in results
        ]
        waiting = [cell for cell in absent if cell.recipe.seed < planned]
        lost = [cell for cell in absent if cell.key in failed]
        comparisons, incomparable = _compare(study, budget, table, [cell.variant for cell in lost])
        summaries.append(
            BudgetSummary(
                budget,
                variants=tuple(VariantSummary(variant, rows) for variant, rows in table.items() if rows),
                comparisons=comparisons,
                missing=len(waiting),
                incomplete=tuple(dict.fromkeys(cell.variant for cell in waiting)),
                failed=tuple(cell.label for cell in lost),
                incomparable=incomparable,
            )
        )
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
        enough = [min(c.pairs, MIN_PAIRS) for c in summary.comparisons if c.claim == claim]
        return min(summary.pairs(claim), MIN_PAIRS), sum(enough)

    compared = [summary for summary in reversed(summaries) if evidence(summary)[1]]
    return max(compared, key=evidence, default=None)


def trends(study: Study, summaries: Sequence[BudgetSummary]) -> list[Trend]:
    """Trends of all comparisons, to each budget from the one that ``study.trend_from`` names, or else from the first.

    Args:
        study: The study.
        summaries: Its summaries.
    """
    by_budget = {summary.budget: summary for summary in summaries}
    found = []
    for later in summaries[1:]:
        first = by_budget.get(study.trend_from.get(later.budget, summaries[0].budget))
        for before, after in product(first.comparisons if first is not None else (), later.comparisons):
            seeds = sorted(before.by_seed.keys() & after.by_seed.keys())
            if (before.claim, before.than) == (after.claim, after.than) and seeds:
                change = paired_interval([after.by_seed[seed] - before.by_seed[seed] for seed in seeds])
                found.append(Trend(after.claim, after.than, before.budget, after.budget, change))
    corrected = correct_p_values(np.nan_to_num([trend.change.p_value for trend in found], nan=1.0))
    return [
        trend if isnan(trend.change.p_value) else replace(trend, p_value=float(p))
        for trend, p in zip(found, corrected, strict=True)
    ]


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


def _tried_seeds(study: Study, budget: str, results: Mapping[str, CellResult], failed: Collection[str]) -> int:
    """One more than the largest seed that any variant has a result of or has failed with; at least the study's number.

    A seed that failed beyond the planned ones counts: without it, the others would be a choice by their results.
    """

    def tried(seed: int) -> bool:
        keys = [study.cell(budget, variant, seed).key for variant in study.variants]
        return any(key in results or key in failed for key in keys)

    last = max((result.seed for result in results.values()), default=-1)
    count = max([study.seeds, *(seed + 1 for seed in range(study.seeds, last + 1) if tried(seed))])
    while tried(count):
        count += 1
    return count


def _compare(
    study: Study, budget: str, table: Mapping[str, Sequence[CellResult]], failed: Sequence[str]
) -> tuple[tuple[Comparison, ...], tuple[int, ...]]:
    """All comparisons that have pairs, with p-values that are corrected for all that are planned; and the seeds whose
    results are of other images."""
    comparisons = []
    incomparable: set[int] = set()
    for claim in study.claims:
        for than in claim.than:
            pairs, others = _pairs(study, budget, table, claim.better, than)
            incomparable |= others
            if pairs:
                differences = {seed: one.value - other.value for seed, (one, other) in pairs.items()}
                interval = paired_interval(list(differences.values()))
                lost = sum(variant in (claim.better, than) for variant in failed)
                mixed = sum(one.conditions != other.conditions for one, other in pairs.values())
                comparisons.append(Comparison(claim, budget, than, differences, interval, failed=lost, mixed=mixed))
    planned = sum(len(claim.than) for claim in study.claims)
    # Those without results count as the least significant ones, so that results of others do not make a verdict.
    p_values = np.ones(planned)
    p_values[: len(comparisons)] = np.nan_to_num([c.interval.p_value for c in comparisons], nan=1.0)
    corrected = correct_p_values(p_values)
    with_p_values = tuple(
        comparison if isnan(comparison.interval.p_value) else replace(comparison, p_value=float(p))
        for comparison, p in zip(comparisons, corrected, strict=False)
    )
    return with_p_values, tuple(sorted(incomparable))


def _pairs(
    study: Study, budget: str, table: Mapping[str, Sequence[CellResult]], better: str, than: str
) -> tuple[dict[int, tuple[CellResult, CellResult]], set[int]]:
    """The results of two variants for each seed that both have, and the seeds whose results are of other images."""
    same_listing = names_same_images(*(study.cell(budget, variant, 0).recipe for variant in (better, than)))
    others = {result.seed: result for result in table[than]}
    both = {result.seed: (result, others[result.seed]) for result in table[better] if result.seed in others}
    pairs = {seed: pair for seed, pair in both.items() if _are_comparable(*pair, same_listing)}
    return pairs, both.keys() - pairs.keys()


def _are_comparable(one: CellResult, other: CellResult, same_listing: bool) -> bool:
    """Whether two results are of the same images, as far as they record them.

    Args:
        one, other: The results.
        same_listing: Whether their training images and labels should be the same, too.
    """
    recorded = [(one.val_images, other.val_images), *([(one.listing, other.listing)] if same_listing else [])]
    return all(a == b or not (a and b) for a, b in recorded)


def correct_p_values(p_values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The p-values (n,) of n tests, corrected by Holm's method."""
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.empty_like(p_values)
    corrected[order] = np.maximum.accumulate(p_values[order] * factors).clip(max=1)
    return corrected
