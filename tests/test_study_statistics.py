"""Statistics of studies on made-up results whose right verdicts are known."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats
from statsmodels.stats.multitest import multipletests

from smt_vision.study import pictures
from smt_vision.study.report import verdict_table
from smt_vision.study.results import CellResult
from smt_vision.study.statistics import BudgetSummary, Verdict, correct_p_values, decisive_summary, summarize, trends
from smt_vision.study.studies import CIFAR10
from smt_vision.study.study import Claim, Study
from study_results import made_up_result

BETTER = Claim("a is better than b", "a", ("b",), {"b": 1.5})
BEST = Claim("a is better than c and d", "a", ("c", "d"))
STUDY = Study(
    "made_up",
    "Which?",
    CIFAR10,
    {name: {"model_args.drop_path_rate": rate} for name, rate in zip("abcd", (0.0, 0.1, 0.2, 0.3), strict=True)},
    (BETTER, BEST),
    {"short": {"epochs": 1}, "long": {"epochs": 9}},
)


def made_up(
    study: Study, budget: str, means: dict[str, float], noise: float = 0.1, seeds: int = 4, rng: int = 0
) -> dict[str, CellResult]:
    """Results with large effects of the seeds, which pairing must remove, and normal noise."""
    generator = np.random.default_rng(rng)
    effects = generator.normal(0, 5, seeds)
    rows = [
        made_up_result(study.cell(budget, variant, seed), mean + effects[seed] + generator.normal(0, noise))
        for variant, mean in means.items()
        for seed in range(seeds)
    ]
    return {row.key: row for row in rows}


def summary(**means: float) -> BudgetSummary:
    return summarize(STUDY, made_up(STUDY, "long", means))[0]


def test_verdicts() -> None:
    found = summary(a=80, b=78, c=81, d=80)
    assert [(c.than, c.verdict) for c in found.comparisons] == [
        ("b", Verdict.SUPPORTED),
        ("c", Verdict.CONTRADICTED),
        ("d", Verdict.UNDECIDED),
    ]
    assert found.verdict(BETTER) == Verdict.SUPPORTED
    assert found.verdict(BEST) == Verdict.CONTRADICTED
    assert summary(a=80, b=80, c=78, d=80).verdict(BEST) == Verdict.UNDECIDED
    assert summary(a=80, b=80, c=78, d=77).verdict(BEST) == Verdict.SUPPORTED


def test_a_claim_is_undecided_until_all_its_variants_have_results() -> None:
    found = summary(a=80, b=78, c=78)
    assert (found.missing, found.verdict(BEST), found.verdict(BETTER)) == (4, Verdict.UNDECIDED, Verdict.SUPPORTED)


def test_two_variants_equal_the_paired_t_test() -> None:
    study = replace(STUDY, claims=(BETTER,), variants={name: STUDY.variants[name] for name in "ab"})
    results = made_up(study, "long", dict(a=80, b=79.9), noise=0.3, seeds=6)
    (comparison,) = summarize(study, results)[0].comparisons
    values = {name: [results[study.cell("long", name, seed).key].value for seed in range(6)] for name in study.variants}
    expected = stats.ttest_rel(values["a"], values["b"])
    low, high = expected.confidence_interval(0.95)
    assert comparison.difference == pytest.approx(np.mean(values["a"]) - np.mean(values["b"]))
    assert (comparison.low, comparison.high) == (pytest.approx(low), pytest.approx(high))
    assert comparison.p_value == pytest.approx(expected.pvalue)
    assert (comparison.pairs, comparison.degrees, comparison.published) == (6, 5, 1.5)


def test_the_layout_equals_the_analysis_by_hand() -> None:
    """A complete layout: residuals without the means of variants and seeds, (4 - 1) (4 - 1) degrees of freedom."""
    results = made_up(STUDY, "long", dict(a=80, b=79, c=80, d=80), noise=0.5)
    values = np.array([[results[STUDY.cell("long", v, s).key].value for s in range(4)] for v in "abcd"])
    residuals = values - values.mean(1, keepdims=True) - values.mean(0, keepdims=True) + values.mean()
    error = math.sqrt((residuals**2).sum() / 9 * 2 / 4)
    comparison = summarize(STUDY, results)[0].comparisons[0]
    difference = values[0].mean() - values[1].mean()
    assert comparison.degrees == 9
    assert comparison.difference == pytest.approx(difference)
    assert comparison.high - comparison.low == pytest.approx(2 * stats.t.ppf(0.975, 9) * error)
    raw = [2 * stats.t.sf(abs(values[0].mean() - values[i].mean()) / error, 9) for i in (1, 2, 3)]
    ordered = np.maximum.accumulate(np.sort(raw) * [3, 2, 1]).clip(max=1)  # Holm
    expected = ordered[np.argsort(np.argsort(raw))]
    found = [c.p_value for c in summarize(STUDY, results)[0].comparisons]
    assert found == pytest.approx(list(expected))


@pytest.mark.parametrize("p_values", [[0.03], [0.5, 0.01, 0.02, 0.02, 1.0], [1e-9, 0.049, 0.9, 0.9]])
def test_holm_equals_statsmodels(p_values: list[float]) -> None:
    expected = multipletests(p_values, method="holm")[1]
    assert correct_p_values(np.array(p_values)).tolist() == pytest.approx(expected.tolist(), rel=1e-12)


def test_missing_cells_keep_the_pairs() -> None:
    """A missing cell of a seed with a large effect must not move the difference."""
    results = made_up(STUDY, "long", dict(a=80, b=78, c=80, d=80), noise=0.01)
    del results[STUDY.cell("long", "a", 0).key]
    comparison = summarize(STUDY, results)[0].comparisons[0]
    assert comparison.pairs == 3
    assert comparison.difference == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize(("seeds", "verdict"), [(3, Verdict.UNDECIDED), (4, Verdict.SUPPORTED)])
def test_a_verdict_needs_four_pairs(seeds: int, verdict: Verdict) -> None:
    """Also where the other variants have enough cells for a narrow interval."""
    results = made_up(STUDY, "long", dict(a=80, c=79, d=79), seeds=6)
    results |= made_up(STUDY, "long", dict(b=75), seeds=seeds)
    comparison = summarize(STUDY, results)[0].comparisons[0]
    assert (comparison.than, comparison.pairs, comparison.verdict) == ("b", seeds, verdict)
    assert comparison.low > 0


def test_one_seed_has_no_interval_and_no_verdict() -> None:
    found = summarize(STUDY, made_up(STUDY, "long", dict(a=80, b=70), noise=0, seeds=1))[0]
    (comparison,) = found.comparisons
    assert comparison.difference == pytest.approx(10)
    assert math.isnan(comparison.low)
    assert comparison.verdict == Verdict.UNDECIDED
    assert math.isnan(found.variants[0].deviation)


def test_equal_results_are_undecided() -> None:
    found = summarize(STUDY, made_up(STUDY, "long", dict(a=80, b=80), noise=0, seeds=3))[0]
    assert found.comparisons[0].verdict == Verdict.UNDECIDED


def test_seeds_beyond_the_study_count() -> None:
    results = made_up(STUDY, "long", dict(a=80, b=78), seeds=7)
    assert len(summarize(STUDY, results)[0].variants[0].results) == 7
    assert len(summarize(STUDY, results, seeds=2)[0].variants[0].results) == 2


def test_trend() -> None:
    results = made_up(STUDY, "short", dict(a=60, b=60), noise=0.01)
    results |= made_up(STUDY, "long", dict(a=80, b=78), noise=0.01)
    short, long = summarize(STUDY, results)
    (trend,) = trends([short, long])
    assert (trend.first, trend.later, trend.than) == ("short", "long", "b")
    assert trend.change == pytest.approx(2, abs=0.05)
    widths = [summary.comparisons[0].high - summary.comparisons[0].low for summary in (short, long)]
    assert trend.half_width == pytest.approx(math.hypot(*widths) / 2)
    assert trends([short]) == []


def test_a_claim_is_judged_by_the_last_budget_with_four_pairs_of_all_its_comparisons() -> None:
    def budget(claim: Claim, **results: dict[str, CellResult]) -> str:
        found = decisive_summary(
            claim, summarize(STUDY, {key: row for rows in results.values() for key, row in rows.items()})
        )
        assert found is not None
        return found.budget

    four = made_up(STUDY, "short", dict(a=60, b=60, c=60, d=60))
    assert budget(BETTER, short=four, long=made_up(STUDY, "long", dict(a=60, b=60), seeds=3)) == "short"
    assert budget(BETTER, short=four, long=made_up(STUDY, "long", dict(a=60, b=60), seeds=4)) == "long"
    assert budget(BEST, short=four, long=made_up(STUDY, "long", dict(a=60, c=60), seeds=6)) == "short"
    two = made_up(STUDY, "short", dict(a=60, b=60), seeds=2)
    assert budget(BETTER, short=two, long=made_up(STUDY, "long", dict(a=60, b=60), seeds=1)) == "short"
    assert budget(BETTER, short=two, long=made_up(STUDY, "long", dict(a=60, b=60), seeds=2)) == "long"
    assert decisive_summary(BEST, summarize(STUDY, two)) is None


def test_the_short_table_names_other_budgets_that_decide() -> None:
    results = made_up(STUDY, "short", dict(a=60, b=55)) | made_up(STUDY, "long", dict(a=80, b=80))
    study = replace(STUDY, claims=(BETTER,))
    (row,) = verdict_table([study], {STUDY.name: summarize(study, results)}, decisive=True)[2:]
    assert row.endswith("| **undecided at this scale**; supported at short |")
    assert "long" in row
    everything = verdict_table([study], {STUDY.name: summarize(study, results)})
    assert not any(";" in row for row in everything)


def test_pictures_of_budgets_with_different_variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(pictures, "_save", lambda draw, path: figures.append(draw()))
    results = made_up(STUDY, "short", dict(a=60, d=50)) | made_up(STUDY, "long", dict(a=60, b=58, c=54, d=50))
    summaries = summarize(STUDY, results)
    pictures.draw_differences(summaries, "top1 (%)", tmp_path / "differences.svg")
    short, long = figures[0].axes
    names = [label.get_text() for label in short.get_yticklabels()]
    assert names == ["a - b", "a - c", "a - d"]
    for axes, expected in ((short, {"a - d": 10}), (long, {"a - b": 2, "a - c": 6, "a - d": 10})):
        points = [line.get_xydata() for line in axes.lines if line.get_marker() == "o"]
        assert {names[round(y)]: round(x) for ((x, y),) in points} == expected
    pictures.draw_curves(summaries, list(STUDY.variants), "top1 (%)", tmp_path / "curves.svg")
    short, long = figures[1].axes
    legend = long.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c", "d"]
    assert [line.get_color() for line in short.lines] == [long.lines[0].get_color(), long.lines[3].get_color()]


def test_verdicts_are_corrected_for_all_planned_comparisons() -> None:
    """Results of others must not decide whether a comparison is significant."""
    alone = summarize(replace(STUDY, claims=(BETTER,)), made_up(STUDY, "long", dict(a=80, b=79.6)))[0].comparisons[0]
    planned = summarize(STUDY, made_up(STUDY, "long", dict(a=80, b=79.6)))[0].comparisons[0]
    assert planned.p_value == pytest.approx(3 * alone.p_value)


def test_cells_of_planned_seeds_are_missing_but_none_of_others() -> None:
    means = dict(a=80, b=78, c=77, d=76)
    results = made_up(STUDY, "long", means)
    assert summarize(STUDY, results)[0].missing == 0
    extra = made_up_result(STUDY.cell("long", "a", 4), 80.0)
    assert summarize(STUDY, results | {extra.key: extra})[0].missing == 0
    assert summarize(STUDY, made_up(STUDY, "long", means, seeds=3))[0].missing == 4


def test_no_results() -> None:
    assert summarize(STUDY, {}) == []
