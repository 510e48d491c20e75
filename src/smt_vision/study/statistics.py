"""Differences between the variants of a study, with intervals, corrected p-values and verdicts.

Two variants are compared by the paired t test over the seeds that both have. It assumes nothing of other variants,
whose results may vary more or less: a variance of all cells together would be too small for the one and too large for
the other. Holm's method corrects the p-values for all comparisons of a study at a budget.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from math import nan
from typing import NamedTuple

import numpy as np

from .paired import LEVEL, MIN_PAIRS, Interval, correct_p_values, detectable_difference, paired_interval
from .results import CellResult, under_same_conditions
from .study import Claim, Study, names_same_images


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
        results: The results of ``claim.better`` and of ``than`` for each seed of which both have one.
        interval: Mean and interval of the difference, not corrected for the number of comparisons: positive if
            ``claim.better`` has the higher metric.
        failed: Number of cells of the two variants that failed and have no result.
        p_value: Two-sided p-value of no difference, corrected by Holm's method; NaN where ``interval`` has none, where
            a verdict is not possible, and at a budget that the study does not judge.
    """

    claim: Claim
    budget: str
    than: str
    results: Mapping[int, tuple[CellResult, CellResult]]
    interval: Interval
    failed: int = 0
    p_value: float = nan

    @property
    def by_seed(self) -> dict[int, float]:
        """The difference for each seed."""
        return {seed: one.value - other.value for seed, (one, other) in self.results.items()}

    @property
    def pairs(self) -> int:
        """Number of seeds for which both variants have a result."""
        return len(self.results)

    @cached_property
    def mixed(self) -> int:
        """Number of pairs whose two cells were trained on different hardware, or with other versions of PyTorch or of
        this package, which pairing by seed does not remove."""
        return sum(not under_same_conditions(pair) for pair in self.results.values())

    @property
    def can_decide(self) -> bool:
        """Whether there are four pairs, and no cell failed: the seeds that remain are not a random choice."""
        return self.pairs >= MIN_PAIRS and not self.failed

    @property
    def verdict(self) -> Verdict:
        """``supported`` or ``contradicted`` by the sign of the difference, if the corrected p-value is below 0.05."""
        if not self.p_value < LEVEL:
            return Verdict.UNDECIDED
        return Verdict.SUPPORTED if self.interval.mean > 0 else Verdict.CONTRADICTED

    @property
    def published(self) -> float | None:
        """The published difference in percentage points, if there is one."""
        return self.claim.published.get(self.than)


@dataclass(frozen=True)
class Trend:
    """How a difference changes from one budget to a later one.

    Args:
        claim: The claim.
        than: The variant that ``claim.better`` is compared with.
        first, later: Names of the budgets.
        change: Difference at the later budget less that at the first, over the seeds that both have.
        pairs: Number of these seeds.
        mixed: Number of seeds whose four cells were not trained on the same hardware with the same versions.
        p_value: Two-sided p-value of no change, corrected by Holm's method for all planned trends to the later budget;
            NaN where ``change`` has none, with fewer than four pairs, and if cells failed.
    """

    claim: Claim
    than: str
    first: str
    later: str
    change: Interval
    pairs: int
    mixed: int
    p_value: float = nan


class Precision(NamedTuple):
    """What comparisons at a budget can find, in percentage points.

    Args:
        deviation: Standard deviation of the differences of pairs, the median over the comparisons.
        kept: Variance of the differences of pairs over the sum of the variances of the two variants: 1 if pairing by
            seed removes nothing.
        pairs: Number of pairs that the next two are for.
        single: True difference that is found with a probability of 80 % by a single test.
        corrected: The same as the most significant of the planned comparisons of the study; may be infinite.
    """

    deviation: float
    kept: float
    pairs: int
    single: float
    corrected: float


@dataclass(frozen=True)
class BudgetSummary:
    """The results of a study at one budget.

    Args:
        budget: Name of the budget.
        variants: The variants that have results.
        comparisons: All comparisons whose two variants have results.
        planned: Number of comparisons of the study.
        seeds: Number of planned seeds.
        missing: Number of cells without a result, among the seeds that are planned.
        failed: Labels of the cells that failed and have no result.
        retried: Labels of the cells that failed and have finished since.
        incomplete: The variants that the missing cells are of.
        incomparable: Seeds at which two variants of a claim were evaluated on different images, or trained on different
            images or labels although their recipes name the same; these are not pairs.
        trends: Changes of the differences from an earlier budget.
        judged: Whether the study has verdicts at this budget; see ``Study.reference_budgets``.
    """

    budget: str
    variants: tuple[VariantSummary, ...]
    comparisons: tuple[Comparison, ...]
    planned: int
    seeds: int
    missing: int
    failed: tuple[str, ...] = ()
    retried: tuple[str, ...] = ()
    incomplete: tuple[str, ...] = ()
    incomparable: tuple[int, ...] = ()
    trends: tuple[Trend, ...] = ()
    judged: bool = True

    def of(self, claim: Claim) -> list[Comparison]:
        """The comparisons of a claim."""
        return [comparison for comparison in self.comparisons if comparison.claim == claim]

    def verdict(self, claim: Claim) -> Verdict:
        """The verdict of a claim: contradicted by any of its comparisons, or supported by all of them."""
        verdicts = {c.than: c.verdict for c in self.of(claim)}
        if Verdict.CONTRADICTED in verdicts.values():
            return Verdict.CONTRADICTED
        supported = all(verdicts.get(than) == Verdict.SUPPORTED for than in claim.than)
        return Verdict.SUPPORTED if supported else Verdict.UNDECIDED

    def mixed(self, claim: Claim) -> int:
        """Number of mixed pairs of the comparison of a claim that has the most."""
        return max((c.mixed for c in self.of(claim)), default=0)

    def pairs(self, claim: Claim) -> int:
        """Number of pairs of the comparison of a claim that has the fewest."""
        pairs = {c.than: c.pairs for c in self.of(claim)}
        return min(pairs.get(than, 0) for than in claim.than)

    @property
    def precision(self) -> Precision | None:
        """What the comparisons with four pairs or more can find; ``None`` if there are none, or without variance."""
        enough = [comparison for comparison in self.comparisons if comparison.pairs >= MIN_PAIRS]
        values = [np.array([[each.value for each in pair] for pair in c.results.values()]) for c in enough]
        deviation = float(np.median([np.std(v[:, 0] - v[:, 1], ddof=1) for v in values])) if values else 0.0
        if not deviation > 0:
            return None
        kept = sum(np.var(v[:, 0] - v[:, 1]) for v in values) / sum(v.var(0).sum() for v in values)
        pairs = min(comparison.pairs for comparison in enough)
        single, corrected = (detectable_difference(deviation, pairs, tests) for tests in (1, self.planned))
        return Precision(deviation, float(kept), pairs, single, corrected)


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
    summaries: list[BudgetSummary] = []
    for budget in study.budgets:
        count = _tried_seeds(study, budget, results, failed) if seeds is None else seeds
        cells = [study.cell(budget, variant, seed) for variant in study.variants for seed in range(count)]
        table = {
            variant: tuple(results[cell.key] for cell in cells if cell.variant == variant and cell.key in results)
            for variant in study.variants
        }
        if not any(table.values()):
            continue
        planned = study.seeds if seeds is None else seeds
        absent = [cell for cell in cells if cell.key not in results]
        waiting = [cell for cell in absent if cell.recipe.seed < planned]
        lost = [cell for cell in absent if cell.key in failed]
        comparisons, incomparable = _compare(study, budget, table, [cell.variant for cell in lost])
        summaries.append(
            BudgetSummary(
                budget,
                variants=tuple(VariantSummary(variant, rows) for variant, rows in table.items() if rows),
                comparisons=comparisons,
                planned=_planned(study),
                seeds=planned,
                missing=len(waiting),
                incomplete=tuple(dict.fromkeys(cell.variant for cell in waiting)),
                failed=tuple(cell.label for cell in lost),
                retried=tuple(cell.label for cell in cells if cell.key in failed and cell.key in results),
                incomparable=incomparable,
                judged=budget not in study.reference_budgets,
            )
        )
    by_budget = {summary.budget: summary for summary in summaries}
    for index, later in enumerate(summaries):
        first = by_budget.get(study.trend_from.get(later.budget, summaries[0].budget))
        if later.judged and first is not None and first.budget != later.budget:
            summaries[index] = replace(later, trends=_trends(study, first, later))
    return summaries


def _planned(study: Study) -> int:
    """Number of comparisons at each budget."""
    return sum(len(claim.than) for claim in study.claims)


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
        enough = [min(comparison.pairs, MIN_PAIRS) for comparison in summary.of(claim)]
        return min(summary.pairs(claim), MIN_PAIRS), sum(enough)

    compared = [summary for summary in reversed(summaries) if summary.judged and evidence(summary)[1]]
    return max(compared, key=evidence, default=None)


def significant_together(summaries: Mapping[str, Sequence[BudgetSummary]]) -> tuple[list[tuple[str, Comparison]], int]:
    """The comparisons that remain significant after a correction for those of all studies and budgets together.

    A difference of the same cells that several studies have counts once.

    Args:
        summaries: Summaries by name of the study.

    Returns:
        The comparisons, each with the name of its study, and the number of all.
    """
    different: dict[frozenset[tuple[str, str]], tuple[str, Comparison]] = {}
    for name, of_study in summaries.items():
        for comparison in (c for summary in of_study if summary.judged for c in summary.comparisons):
            cells = frozenset((one.key, other.key) for one, other in comparison.results.values())
            different.setdefault(cells, (name, comparison))
    found = list(different.values())
    raw = [comparison.interval.p_value if comparison.can_decide else nan for _, comparison in found]
    corrected = correct_p_values(raw, len(found))
    return [entry for entry, p in zip(found, corrected, strict=True) if p < LEVEL], len(found)


def _trends(study: Study, first: BudgetSummary, later: BudgetSummary) -> tuple[Trend, ...]:
    """The changes of all comparisons between two budgets, with p-values that are corrected for all that are planned."""
    found, raw = [], []
    for after in later.comparisons:
        before = next((each for each in first.of(after.claim) if each.than == after.than), None)
        seeds = sorted(before.results.keys() & after.results.keys()) if before is not None else []
        if before is not None and seeds:
            change = paired_interval([after.by_seed[seed] - before.by_seed[seed] for seed in seeds])
            mixed = sum(not under_same_conditions((*before.results[s], *after.results[s])) for s in seeds)
            found.append(Trend(after.claim, after.than, first.budget, later.budget, change, len(seeds), mixed))
            can_decide = before.can_decide and after.can_decide and len(seeds) >= MIN_PAIRS
            raw.append(change.p_value if can_decide else nan)
    corrected = correct_p_values(raw, _planned(study))
    return tuple(replace(trend, p_value=p) for trend, p in zip(found, corrected, strict=True))


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
    found = []
    incomparable: set[int] = set()
    for claim in study.claims:
        for than in claim.than:
            pairs, others = _pairs(study, budget, table, claim.better, than)
            incomparable |= others
            if pairs:
                interval = paired_interval([one.value - other.value for one, other in pairs.values()])
                lost = sum(variant in (claim.better, than) for variant in failed)
                found.append(Comparison(claim, budget, than, pairs, interval, lost))
    judged = budget not in study.reference_budgets
    raw = [c.interval.p_value if judged and c.can_decide else nan for c in found]
    corrected = correct_p_values(raw, _planned(study))
    comparisons = tuple(replace(comparison, p_value=p) for comparison, p in zip(found, corrected, strict=True))
    return comparisons, tuple(sorted(incomparable))


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
