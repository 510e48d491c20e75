"""Statistics of studies on made-up results whose right verdicts are known."""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from smt_vision.study import pictures
from smt_vision.study.paired import correct_p_values, detectable_difference
from smt_vision.study.report import training_commands, verdict_table
from smt_vision.study.results import CellResult, add_result, read_failures, read_results
from smt_vision.study.statistics import BudgetSummary, Verdict, decisive_summary, significant_together, summarize
from smt_vision.study.studies import CIFAR10
from smt_vision.study.study import Claim, Study, with_overrides
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


def test_comparisons_are_paired_t_tests() -> None:
    """Whatever the other variants do: d varies twenty times as much."""
    results = made_up(STUDY, "long", dict(a=80, b=79.9, c=80.1), noise=0.3, seeds=6)
    results |= made_up(STUDY, "long", dict(d=80), noise=6, seeds=6, rng=1)
    comparisons = summarize(STUDY, results)[0].comparisons
    values = {name: [results[STUDY.cell("long", name, s).key].value for s in range(6)] for name in "abcd"}
    assert [c.than for c in comparisons] == ["b", "c", "d"]
    raw = []
    for comparison in comparisons:
        expected = stats.ttest_rel(values["a"], values[comparison.than])
        interval, (low, high) = comparison.interval, expected.confidence_interval(0.95)
        assert interval.mean == pytest.approx(np.mean(values["a"]) - np.mean(values[comparison.than]))
        assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))
        assert interval.p_value == pytest.approx(expected.pvalue, abs=1e-6)
        assert comparison.pairs == 6
        raw.append(expected.pvalue)
    ordered = np.maximum.accumulate(np.sort(raw) * [3, 2, 1]).clip(max=1)  # Holm
    assert [c.p_value for c in comparisons] == pytest.approx(list(ordered[np.argsort(np.argsort(raw))]), abs=1e-5)
    assert comparisons[0].published == 1.5


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.01, 0.02, 0.02, 1.0], [1.0, 0.05, 0.08, 0.08, 1.0]),
    ],
)
def test_holm(p_values: list[float], expected: list[float]) -> None:
    assert correct_p_values(p_values, len(p_values)) == pytest.approx(expected)
    absent = correct_p_values([*p_values, math.nan], len(p_values) + 1)  # counts as the least significant one
    assert absent[:-1] == pytest.approx(correct_p_values([*p_values, 1.0], 0)[:-1])
    assert math.isnan(absent[-1])


@pytest.mark.parametrize(("pairs", "tests"), [(4, 1), (4, 5), (8, 8)])
def test_what_a_test_can_find(pairs: int, tests: int) -> None:
    """A simulation with the difference that should be found four times of five."""
    difference = detectable_difference(0.5, pairs, tests)
    samples = np.random.default_rng(0).normal(difference, 0.5, (20_000, pairs))
    found = stats.ttest_1samp(samples, 0, axis=1)
    assert np.mean((found.pvalue < 0.05 / tests) & (found.statistic > 0)) == pytest.approx(0.8, abs=0.01)
    assert detectable_difference(0.5, 2, 50) == math.inf


def test_the_rate_of_false_verdicts_is_that_of_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal variants whose results vary by very different amounts, as those of the studies do."""
    study = replace(STUDY, claims=(Claim("a is best", "a", ("b", "c", "d")),))
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(400, 4, 4)) * np.array([0.2, 0.2, 0.3, 2.5])[:, None]
    cells = [[study.cell("long", variant, seed) for seed in range(4)] for variant in "abcd"]
    cell = functools.cache(study.cell)  # each has its hash once
    monkeypatch.setattr(Study, "cell", lambda _, budget, variant, seed: cell(budget, variant, seed))
    wrong = 0
    for values in noise:
        rows = [made_up_result(cells[v][s], 80 + values[v, s]) for v in range(4) for s in range(4)]
        (found,) = summarize(study, {row.key: row for row in rows})
        wrong += any(comparison.verdict != Verdict.UNDECIDED for comparison in found.comparisons)
    assert wrong / len(noise) < 0.05 + 2 * math.sqrt(0.05 * 0.95 / len(noise))


def test_missing_cells_keep_the_pairs() -> None:
    """A missing cell of a seed with a large effect must not move the difference."""
    results = made_up(STUDY, "long", dict(a=80, b=78, c=80, d=80), noise=0.01)
    del results[STUDY.cell("long", "a", 0).key]
    comparison = summarize(STUDY, results)[0].comparisons[0]
    assert comparison.pairs == 3
    assert comparison.interval.mean == pytest.approx(2, abs=0.05)


def test_cells_that_were_evaluated_on_different_images_are_no_pairs() -> None:
    results = made_up(STUDY, "long", dict(a=80, b=78), seeds=5)
    results = {
        key: replace(result, val_images="one" if result.seed or "/ a /" in result.cell else "other")
        for key, result in results.items()
    }
    found = summarize(STUDY, results)[0]
    assert found.incomparable == (0,)
    assert found.comparisons[0].by_seed.keys() == {1, 2, 3, 4}
    unknown = made_up_result(STUDY.cell("long", "b", 0), 78.0)  # of an earlier version
    assert summarize(STUDY, results | {unknown.key: unknown})[0].comparisons[0].pairs == 5


def test_cells_that_were_trained_with_different_labels_are_no_pairs() -> None:
    results = {
        key: replace(result, listing="one" if "/ a /" in result.cell else "other")
        for key, result in made_up(STUDY, "long", dict(a=80, b=78)).items()
    }
    (found,) = summarize(STUDY, results)
    assert (found.incomparable, found.comparisons) == ((0, 1, 2, 3), ())


def test_variants_may_have_different_training_images() -> None:
    study = replace(STUDY, variants={**STUDY.variants, "b": {"train_fraction": 0.5}})
    results = {
        key: replace(result, val_images="same", listing="all" if "/ a /" in result.cell else "half")
        for key, result in made_up(study, "long", dict(a=80, b=78)).items()
    }
    (found,) = summarize(study, results)
    assert (found.incomparable, found.comparisons[0].pairs) == ((), 4)


def test_a_variant_with_failed_cells_gets_no_verdict() -> None:
    results = made_up(STUDY, "long", dict(a=80, b=78, c=77, d=76), seeds=6)
    lost = STUDY.cell("long", "b", 3)
    del results[lost.key]
    assert summarize(STUDY, results, failed=[])[0].verdict(BETTER) == Verdict.SUPPORTED
    found = summarize(STUDY, results, failed=[lost.key])[0]
    assert (found.failed, found.verdict(BETTER), found.verdict(BEST)) == (
        (lost.label,),
        Verdict.UNDECIDED,
        Verdict.SUPPORTED,
    )
    again = made_up_result(lost, 78.0)
    assert summarize(STUDY, results | {lost.key: again}, failed=[lost.key])[0].verdict(BETTER) == Verdict.SUPPORTED


def test_a_seed_that_failed_beyond_the_planned_ones_counts() -> None:
    results = made_up(STUDY, "long", dict(a=80, b=78, c=77, d=76), seeds=7)
    lost = [STUDY.cell("long", variant, seed) for variant in "abcd" for seed in (5, 7)]
    for cell in lost:  # seeds 0 to 4 and 6 are done
        results.pop(cell.key, None)
    found = summarize(STUDY, results)[0]
    assert (len(found.variants[0].results), found.missing, found.failed) == (6, 0, ())
    lost = [cell for cell in lost if cell.variant == "b"]
    for cells in (lost[:1], lost[1:], lost):
        found = summarize(STUDY, results, failed=[cell.key for cell in cells])[0]
        assert found.failed == tuple(cell.label for cell in cells)
        assert found.missing == 0


@pytest.mark.parametrize(("seeds", "verdict"), [(3, Verdict.UNDECIDED), (4, Verdict.SUPPORTED)])
def test_a_verdict_needs_four_pairs(seeds: int, verdict: Verdict) -> None:
    results = made_up(STUDY, "long", dict(a=80, b=75, c=79, d=79), seeds=6)
    for seed in range(seeds, 6):
        del results[STUDY.cell("long", "b", seed).key]
    comparison = summarize(STUDY, results)[0].comparisons[0]
    assert (comparison.than, comparison.pairs, comparison.verdict) == ("b", seeds, verdict)
    assert comparison.interval.low > 0


def test_one_seed_has_no_interval_and_no_verdict() -> None:
    found = summarize(STUDY, made_up(STUDY, "long", dict(a=80, b=70), noise=0, seeds=1))[0]
    (comparison,) = found.comparisons
    assert comparison.interval.mean == pytest.approx(10)
    assert math.isnan(comparison.interval.low)
    assert math.isnan(comparison.p_value)
    assert comparison.verdict == Verdict.UNDECIDED
    assert math.isnan(found.variants[0].deviation)


@pytest.mark.parametrize("seeds", [4, 6, 8])
def test_equal_results_are_undecided(seeds: int) -> None:
    """Also where the results differ by rounding errors only."""
    found = summarize(STUDY, made_up(STUDY, "long", dict(a=80.1, b=80.1, c=80.1, d=80.1), noise=1e-14, seeds=seeds))[0]
    assert {(c.verdict, c.p_value, c.interval.mean) for c in found.comparisons} == {(Verdict.UNDECIDED, 1.0, 0.0)}


def test_equal_differences_are_an_interval_of_no_width_and_no_verdict() -> None:
    """As of a hundred images, of which one variant has one more right at every seed."""
    (comparison,) = summarize(STUDY, made_up(STUDY, "long", dict(a=80, b=79), noise=0))[0].comparisons
    interval = comparison.interval
    assert (interval.mean, interval.low, interval.high) == (1.0, 1.0, 1.0)
    assert math.isnan(interval.p_value)
    assert math.isnan(comparison.p_value)
    assert comparison.verdict == Verdict.UNDECIDED


def test_seeds_beyond_the_study_count() -> None:
    results = made_up(STUDY, "long", dict(a=80, b=78), seeds=7)
    assert len(summarize(STUDY, results)[0].variants[0].results) == 7
    assert len(summarize(STUDY, results, seeds=2)[0].variants[0].results) == 2


def test_trend() -> None:
    results = made_up(STUDY, "short", dict(a=60, b=60), noise=0.01)
    results |= made_up(STUDY, "long", dict(a=80, b=78), noise=0.01, rng=1)
    short, long = summarize(STUDY, results)
    (trend,) = long.trends
    assert (trend.first, trend.later, trend.than) == ("short", "long", "b")
    assert trend.change.mean == pytest.approx(2, abs=0.05)
    changes = [long.comparisons[0].by_seed[seed] - short.comparisons[0].by_seed[seed] for seed in range(4)]
    expected = stats.ttest_1samp(changes, 0).confidence_interval(0.95)
    assert (trend.change.low, trend.change.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert trend.p_value == pytest.approx(min(3 * trend.change.p_value, 1))  # of the three that are planned
    assert (trend.pairs, trend.mixed, short.trends) == (4, 0, ())
    moved = STUDY.cell("long", "a", 2).key
    elsewhere = results | {moved: replace(results[moved], hardware="another machine")}
    assert summarize(STUDY, elsewhere)[1].trends[0].mixed == 1
    lost = STUDY.cell("short", "b", 4).key
    for few in (summarize(STUDY, results, seeds=3), summarize(STUDY, results, failed=[lost])):
        assert math.isnan(few[1].trends[0].p_value)


def test_trends_start_at_the_budget_that_the_study_names_and_are_corrected() -> None:
    budgets = {"short": {"epochs": 1}, "long": {"epochs": 2}, "wide": {"epochs": 2, "batch_size": 4}}
    study = replace(STUDY, budgets=budgets, trend_from={"wide": "long"})
    results: dict[str, CellResult] = {}
    for rng, (budget, b) in enumerate((("short", 60), ("long", 58), ("wide", 57))):
        results |= made_up(study, budget, dict(a=60, b=b), noise=0.5, rng=rng)
    found = [trend for summary in summarize(study, results) for trend in summary.trends]
    assert [(trend.first, trend.later) for trend in found] == [("short", "long"), ("long", "wide")]
    for trend in found:  # whatever other budgets have results
        assert trend.p_value == pytest.approx(min(3 * trend.change.p_value, 1))
    with pytest.raises(ValueError, match="trend_from has 'other', which is not a budget"):
        replace(STUDY, trend_from={"other": "short"})


def test_differences_that_other_studies_judge_have_no_verdict() -> None:
    study = replace(STUDY, reference_budgets=("short",))
    results = made_up(study, "short", dict(a=60, b=50)) | made_up(study, "long", dict(a=80, b=70), rng=1)
    short, long = summarize(study, results)
    assert [(each.judged, each.verdict(BETTER)) for each in (short, long)] == [
        (False, Verdict.UNDECIDED),
        (True, Verdict.SUPPORTED),
    ]
    assert math.isnan(short.comparisons[0].p_value)
    assert long.trends[0].first == "short"
    for decisive in (False, True):
        (row,) = verdict_table([study], {STUDY.name: [short, long]}, decisive=decisive)[2:]
        assert "made_up, long" in row
    assert decisive_summary(BETTER, [short]) is None
    with pytest.raises(ValueError, match="reference_budgets has 'other', which is not a budget"):
        replace(STUDY, reference_budgets=("other",))


def exact(study: Study, variant: str, values: Sequence[float]) -> dict[str, CellResult]:
    rows = [made_up_result(study.cell("long", variant, seed), value) for seed, value in enumerate(values)]
    return {row.key: row for row in rows}


def test_what_is_significant_together() -> None:
    """The same difference in several studies counts once."""
    study = replace(STUDY, claims=(BETTER,))
    rates = (1.0, 2.0, 3.0)
    equal = [replace(study, name=f"n{r}", base=with_overrides(CIFAR10, {"optim.lr": r})) for r in rates]
    results = exact(study, "a", [81, 82, 81, 82]) | exact(study, "b", [80, 80, 80, 80])  # p = 0.014
    for each in equal:
        results |= exact(each, "a", [81, 79, 80, 80]) | exact(each, "b", [80, 80, 80, 80])
    summaries = {each.name: summarize(each, results) for each in (study, *equal)}
    summaries["again"] = summarize(replace(study, name="again"), results)
    for names, expected in (
        (("made_up", "again"), ([("made_up", "b")], 1)),
        (("made_up", "again", "n1.0", "n2.0"), ([("made_up", "b")], 3)),
        (("made_up", "again", "n1.0", "n2.0", "n3.0"), ([], 4)),
    ):
        found, count = significant_together({name: summaries[name] for name in names})
        assert ([(name, comparison.than) for name, comparison in found], count) == expected


def test_what_comparisons_can_find() -> None:
    """Of results with large effects of the seeds, which pairing removes."""
    precision = summary(a=80, b=78, c=81, d=80).precision
    assert precision is not None
    assert precision.kept < 0.01
    assert precision.pairs == 4
    assert precision.single == pytest.approx(detectable_difference(precision.deviation, 4))
    assert precision.corrected == pytest.approx(detectable_difference(precision.deviation, 4, 3))
    assert summarize(STUDY, made_up(STUDY, "long", dict(a=80, b=78), seeds=3))[0].precision is None
    assert summarize(STUDY, made_up(STUDY, "long", dict(a=80, b=78), noise=0))[0].precision is None


def test_more_seeds_than_planned_are_said() -> None:
    results = made_up(STUDY, "long", dict(a=80, b=70, c=60, d=60), seeds=6)
    table = verdict_table([STUDY], {STUDY.name: summarize(STUDY, results)})
    assert table[-2].endswith("| **supported** (6 seeds, 4 planned) |")


def test_a_comparison_without_a_verdict_is_the_least_significant_one() -> None:
    """Its p-value, of the seeds that remain, must not lower the bar for the others."""
    study = replace(STUDY, claims=(Claim("a is best", "a", ("b", "c")),))
    results = exact(study, "a", [81, 82, 81, 82]) | exact(study, "b", [80, 80, 80, 80])
    results |= exact(study, "c", [60, 61, 60, 61.1, 60])
    assert [c.p_value for c in summarize(study, results)[0].comparisons] == pytest.approx([0.0138, 0.0], abs=1e-4)
    lost = study.cell("long", "c", 5).key
    failed = summarize(study, results, failed=[lost])[0].comparisons
    assert failed[0].p_value == pytest.approx(2 * 0.0138, abs=1e-4)
    assert math.isnan(failed[1].p_value)


def test_cells_that_failed_before_they_finished_are_named() -> None:
    results = made_up(STUDY, "long", dict(a=80, b=78))
    cell = STUDY.cell("long", "b", 1)
    assert summarize(STUDY, results, failed=[cell.key])[0].retried == (cell.label,)


def test_commands_train_what_has_results() -> None:
    other = replace(STUDY, name="other")
    all_of_it = made_up(STUDY, "short", dict(a=60, b=60)) | made_up(STUDY, "long", dict(a=60, b=60))
    summaries = {
        "made_up": summarize(STUDY, all_of_it),
        "other": summarize(other, made_up(other, "long", dict(a=1, b=2))),
    }
    lines = training_commands([STUDY, other], summaries, {"made_up": "my study.py", "other": "other"}, ["--run", "x"],
                              {"torch/cifar10": "PATH"})  # fmt: skip
    assert lines == [
        "smt study 'my study.py' --run x --data torch/cifar10=PATH",
        "smt study other --budgets long --run x --data torch/cifar10=PATH",
    ]
    two = replace(STUDY, variants={**STUDY.variants, "b": {"data": "cifar100"}})
    found = {"made_up": summarize(two, made_up(two, "short", dict(a=60, b=60)) | made_up(two, "long", dict(a=1, b=1)))}
    (line,) = training_commands([two], found, {"made_up": "two"}, data={"torch/cifar10": "A", "cifar100": "B"})
    assert line == "smt study two --data torch/cifar10=A cifar100=B"


def test_pairs_of_different_conditions_are_counted() -> None:
    results = {
        key: replace(r, code="1" if r.seed == 3 else "") for key, r in made_up(STUDY, "long", dict(a=80, b=70)).items()
    }
    elsewhere = dict(hardware="another machine"), dict(torch="9.0"), dict(version="9.9"), dict(code="2")
    keys = [STUDY.cell("long", "a", seed).key for seed in range(4)]
    moved = {key: replace(results[key], **change) for key, change in zip(keys, elsewhere, strict=True)}
    plain, mixed = (summarize(STUDY, each)[0] for each in (results, results | moved))
    assert (plain.comparisons[0].mixed, mixed.comparisons[0].mixed) == (0, 4)
    assert (plain.mixed(BETTER), mixed.mixed(BETTER)) == (0, 4)
    unknown = {keys[0]: replace(results[keys[0]], code="2")}  # the other cell of the pair does not record it
    assert summarize(STUDY, results | unknown)[0].mixed(BETTER) == 0


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
    few = verdict_table([study], {STUDY.name: summarize(study, made_up(STUDY, "long", dict(a=80, b=75), seeds=2))})
    assert few[-1].endswith("| **undecided at this scale** (2 of 4 seeds) |")
    later = verdict_table([study], {STUDY.name: summarize(replace(study, seeds=5), results)}, decisive=True)[-1]
    assert later.endswith("; supported (preliminary: not all of its cells have a result yet) at short |")
    everything = verdict_table([study], {STUDY.name: summarize(study, results)})
    assert not any("; supported" in row for row in everything)


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
    few = made_up(STUDY, "short", dict(a=60, b=58), noise=9, seeds=2) | made_up(STUDY, "long", dict(a=60, b=58))
    pictures.draw_differences(summarize(STUDY, few), "top1 (%)", tmp_path / "differences.svg")
    low, high = figures.pop().axes[0].get_xlim()
    assert -20 < low < 0 < 2 < high < 20  # an interval of two pairs does not set the scale
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
    assert 0 < alone.p_value < 0.3
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


def test_results_that_are_not_numbers_are_read(tmp_path: Path) -> None:
    """And a file of which a copy was appended to another."""
    row = made_up_result(STUDY.cell("long", "a", 0), math.nan)
    for _ in range(2):
        add_result(tmp_path / "results.jsonl", row)
    assert list(read_results([tmp_path / "results.jsonl"])) == [row.key]
    (tmp_path / "failures.jsonl").write_text('\n{"key": "a", "cell": "b", "reason": "c"}\n\n')
    assert list(read_failures([tmp_path / "failures.jsonl"])) == ["a"]
