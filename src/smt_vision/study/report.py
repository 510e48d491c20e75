"""The report of studies: one page of Markdown and one of HTML, which contains its pictures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import groupby
from math import isfinite, isnan
from pathlib import Path
from typing import Any

from ..pages import html_page, table_lines
from ..text import Markdown, code, markdown, shell_word
from .paired import MIN_PAIRS, Interval
from .pictures import draw_cost, draw_curves, draw_differences
from .results import FAILURES, CellResult, under_same_conditions
from .statistics import (
    BudgetSummary,
    Comparison,
    Precision,
    Trend,
    Verdict,
    decisive_summary,
    significant_together,
)
from .study import Claim, Study, changed_fields, inference_key

METHOD = """\
Every cell is one training run; its result is the metric of the weights at the end of training (their moving average, if
the recipe has one), not of the best epoch. The cells of one seed have the same data order and augmentation. Two
variants are compared by the paired t test over the seeds that both have; the 95 % interval is its t interval, not
corrected for the number of comparisons. A verdict needs four pairs and a two-sided p-value below 0.05 after Holm's
correction for all comparisons of the study at that budget, so that the level of 5 % holds for each study and budget:
`supported` or `contradicted` by the sign of the difference, otherwise `undecided at this scale`, which does not mean
that the variants are equal. A claim about several variants is supported by all of its comparisons, and contradicted by
any. Studies with the same base share its runs, and some share variants: their differences vary together. Intervals
cover variation over training seeds, on one set of validation images, not over images. Differences that are equal for
all seeds have no variance to estimate, and so no p-value and no verdict. The number of seeds should be fixed in
advance: checking for a verdict after every additional seed gives too many false positives. Published differences are
shown for comparison; they were measured in other conditions. In the pictures of differences, green is supported, orange
contradicted, gray undecided; an arrow is an interval that extends beyond the panel.
"""
METRIC_NAMES = {"top1": "top-1", "map": "mAP", "miou": "mIoU", "box_ap": "box AP", "mask_ap": "mask AP"}


def write_report(
    studies: Sequence[Study],
    summaries: Mapping[str, Sequence[BudgetSummary]],
    folder: Path,
    *,
    throughput: Mapping[str, Any],
    command: str,
) -> list[Path]:
    """Write ``studies.md``, ``studies.html`` and the pictures of the first into a folder.

    Args:
        studies: The studies; those without results are named as such.
        summaries: Summaries of each study, by its name; see :func:`smt_vision.study.statistics.summarize`.
        folder: Folder to write to.
        throughput: Content of ``throughput.json``; see :mod:`smt_vision.study.throughput`.
        command: The command that trains the cells, for the page.

    Returns:
        The files written.

    Raises:
        ValueError: No study has results.
    """
    if not any(summaries.values()):
        raise ValueError(f"no results of {', '.join(summaries)}; train cells first: smt study NAME --run FOLDER")
    folder.mkdir(parents=True, exist_ok=True)
    speeds = throughput["images_per_s"]
    page = ["# Studies", "", *verdict_table(studies, summaries), "", *_together(summaries), METHOD]
    pictures: list[Path] = []
    for study in studies:
        page += ["", f"## {study.name}", "", study.about, ""]
        if summaries[study.name]:
            drawn = _draw(study, summaries[study.name], speeds, folder)
            page += _section(study, summaries[study.name], speeds, drawn)
            pictures += drawn
        else:
            page += ["No results yet.", ""]
    used = {result.key: result for study in studies for summary in summaries[study.name]
            for variant in summary.variants for result in variant.results}  # fmt: skip
    page += _conditions(list(used.values()), throughput, command)
    text = "\n".join(page) + "\n"
    files = folder / "studies.md", folder / "studies.html"
    files[0].write_text(text, encoding="utf-8")
    files[1].write_text(html_page("Studies", text, folder), encoding="utf-8")
    return [*files, *pictures]


def training_commands(
    studies: Sequence[Study],
    summaries: Mapping[str, Sequence[BudgetSummary]],
    words: Mapping[str, str],
    options: Sequence[str] = (),
    data: Mapping[str, str] | None = None,
) -> list[str]:
    """The commands that train the cells that have results: one for all studies that have results at every budget, and
    one for each other study.

    Args:
        studies: The studies.
        summaries: Summaries of each study, by its name.
        words: What ``smt study`` calls each study, by its name: the name or a file.
        options: Further options.
        data: Path of each dataset, by the name that recipes have for it.
    """
    groups: dict[tuple[str, ...], list[Study]] = {}
    for study in studies:
        found = tuple(each.budget for each in summaries[study.name] if each.comparisons or not study.claims)
        if found:
            groups.setdefault(() if len(found) == len(study.budgets) else (study.name, *found), []).append(study)
    commands = []
    for budgets, group in groups.items():
        words_of_one = [words[study.name] for study in group]
        words_of_one += ["--budgets", *budgets[1:]] if budgets else []
        used = dict.fromkeys(cell.recipe.data for study in group for cell in study.cells(seeds=1))
        paths = [f"{name}={data[name]}" for name in used if data and name in data]
        words_of_one += [*options, *(["--data", *paths] if paths else [])]
        commands.append(f"smt study {' '.join(map(shell_word, words_of_one))}")
    return commands


def verdict_table(
    studies: Sequence[Study], summaries: Mapping[str, Sequence[BudgetSummary]], *, decisive: bool = False
) -> list[str]:
    """Markdown table of the claims with their differences and verdicts.

    Args:
        studies: The studies.
        summaries: Summaries of each study, by its name.
        decisive: Of the budgets that follow each other, only the one that a claim is judged by
            (:func:`smt_vision.study.statistics.decisive_summary`), with the names of the others at which the verdict is
            another one and not undecided, or at which cells failed.
    """
    rows = []
    for study in studies:
        for claim in study.claims:
            judged = [each for each in summaries[study.name] if each.judged]
            following = [each for each in judged if each.budget not in study.trend_from]
            decides = decisive_summary(claim, following) if decisive else None
            for summary in judged:
                if decisive and summary in following and summary is not decides:
                    continue
                if found := summary.of(claim):
                    where = ", ".join(filter(None, [study.name, summary.budget]))
                    measured = "; ".join(f"{c.than}: {_difference(c)}" for c in found)
                    published = "; ".join(f"{c.than}: {c.published:+.1f}" for c in found if c.published is not None)
                    elsewhere = _elsewhere(claim, summary, following) if summary is decides else ""
                    rows.append(
                        [claim.text, where, measured, published, Markdown(_verdict(claim, summary) + elsewhere)]
                    )
    return table_lines(["claim", "study", "difference in points (95 % interval)", "published", "verdict"], rows)


def _together(summaries: Mapping[str, Sequence[BudgetSummary]]) -> list[str]:
    """What remains significant after a correction for all comparisons of the page."""
    found, count = significant_together(summaries)
    if count < 2:
        return []
    groups = groupby(found, key=lambda entry: ", ".join(filter(None, [entry[0], entry[1].budget])))
    names = "; ".join(
        markdown(f"{where} ({', '.join(f'{c.claim.better} - {c.than}' for _, c in group)})") for where, group in groups
    )
    about = f"After a correction for all {count} different comparisons on this page together"
    return [f"{about}, these remain significant: {names}." if names else f"{about}, none is significant.", ""]


def _section(
    study: Study, summaries: Sequence[BudgetSummary], speeds: Mapping[str, float], drawn: Sequence[Path]
) -> list[str]:
    label = metric_label(summaries)
    lines = [f"- {claim.text}: {_verdicts(claim, summaries)}" for claim in study.claims]
    for source in dict.fromkeys(claim.source for claim in study.claims if claim.source):
        theirs = "; ".join(claim.text for claim in study.claims if claim.source == source)
        lines += ["", f"From {source}: {theirs}."]
    lines += ["", _recipe(study), ""]
    if waiting := study.budgets.keys() - {summary.budget for summary in summaries}:
        names = ", ".join(markdown(budget) for budget in study.budgets if budget in waiting)
        lines += [f"No results yet at: {names}.", ""]
    for summary in summaries:
        lines += [f"### {summary.budget or 'Results'}", ""]
        if summary.missing:
            seeds = (
                "Means and curves are over the seeds that a variant has, which may be others than those of the variant "
                "in the next row; differences are of the seeds that both have."
            )
            lines += [f"{summary.missing} cells have no result yet. {seeds}", ""]
        if summary.failed:
            lines += [
                f"{len(summary.failed)} cells failed: {markdown(', '.join(summary.failed))}. Their variants get no "
                "verdict: the remaining seeds are not a random choice.",
                "",
            ]
        if summary.retried:
            lines += [
                f"{len(summary.retried)} cells failed and finished when they were tried again: "
                f"{markdown(', '.join(summary.retried))}. The reasons are in `{FAILURES}`.",
                "",
            ]
        if summary.incomparable:
            lines += [
                f"Cells of seed {', '.join(map(str, summary.incomparable))} were trained or evaluated on different "
                "images or labels; those are not compared.",
                "",
            ]
        if mixed := _seeds_of_several_machines(summary):
            lines += [
                f"Not all cells of seed {', '.join(map(str, mixed))} were trained on the same hardware, with the same "
                "versions of PyTorch and of this package; pairing by seed does not remove what these change. Pairs of "
                "such cells are called mixed.",
                "",
            ]
        lines += [*_variant_table(study, summary, label, speeds), *_comparison_table(summary)]
        if summary.judged and (precision := summary.precision):
            lines += [_precision(precision, summary.planned), ""]
    if changes := [trend for summary in summaries for trend in summary.trends]:
        lines += ["### Trend", "", *_trend_table(changes)]
    lines += [line for path in drawn for line in (f"![{path.stem.replace('_', ' ')}]({path.name})", "")]
    return lines


def _recipe(study: Study) -> str:
    """The base recipe, as far as it differs from the task's defaults, and what each budget changes."""
    base = study.base
    values = {"engine.precision": base.engine.precision, **changed_fields(base)}
    changed = ", ".join(code(f"{name}={value}") for name, value in values.items() if name not in ("name", "data"))
    budgets = "; ".join(
        f"{markdown(name)}: {', '.join(code(f'{field}={value}') for field, value in overrides.items())}"
        for name, overrides in study.budgets.items() if overrides
    )  # fmt: skip
    about = f"Recipe: {code(base.name)} on {code(base.data)}; other values than the task's defaults: {changed}."
    return f"{about} Budgets: {budgets}." if budgets else about


def _seeds_of_several_machines(summary: BudgetSummary) -> list[int]:
    by_seed: dict[int, list[CellResult]] = {}
    for variant in summary.variants:
        for result in variant.results:
            by_seed.setdefault(result.seed, []).append(result)
    return sorted(seed for seed, results in by_seed.items() if not under_same_conditions(results))


def _verdicts(claim: Claim, summaries: Sequence[BudgetSummary]) -> str:
    by_budget = [
        _verdict(claim, summary) + (f" ({summary.budget})" if summary.budget else "")
        for summary in summaries
        if summary.judged and summary.of(claim)
    ]
    compared = {claim.better, *claim.than}
    have_results = any(len(compared & {each.variant for each in summary.variants}) > 1 for summary in summaries)
    return ", ".join(by_budget) or ("no results that can be compared" if have_results else "no results yet")


def _verdict(claim: Claim, summary: BudgetSummary) -> str:
    """The verdict in bold, and what limits it: seeds, pairs that were trained under other conditions, and cells."""
    verdict, pairs, mixed = summary.verdict(claim), summary.pairs(claim), summary.mixed(claim)
    waiting = {claim.better, *claim.than} & {*summary.incomplete}
    notes = [
        *([f"{pairs} of {MIN_PAIRS} seeds"] if pairs < MIN_PAIRS else []),
        *([f"up to {mixed} of {pairs} pairs mixed"] if mixed else []),
        *([f"{pairs} seeds, {summary.seeds} planned"] if pairs > summary.seeds else []),
        *(["preliminary: not all of its cells have a result yet"] if waiting and verdict != Verdict.UNDECIDED else []),
        *(["cells failed"] if any(comparison.failed for comparison in summary.of(claim)) else []),
    ]
    return f"**{verdict}**" + (f" ({'; '.join(notes)})" if notes else "")


def _elsewhere(claim: Claim, shown: BudgetSummary, summaries: Sequence[BudgetSummary]) -> str:
    """The budgets that decide a claim otherwise than the one shown, or at which cells failed."""
    others = [
        each
        for each in summaries
        if each.verdict(claim) not in (Verdict.UNDECIDED, shown.verdict(claim))
        or (each is not shown and any(comparison.failed for comparison in each.of(claim)))
    ]
    return "".join(
        f"; {_verdict(claim, summary).replace('**', '')} at {markdown(summary.budget)}" for summary in others
    )


def _variant_table(study: Study, summary: BudgetSummary, label: str, speeds: Mapping[str, float]) -> list[str]:
    header = ["variant", "changed", "seeds", f"{label}, mean", "SD", "parameters (M)", "GMAC", "images/s"]
    speed_of = _by_variant(study, summary, speeds)
    rows = []
    for variant in summary.variants:
        first = variant.results[0]
        speed = speed_of.get(variant.variant)
        changed = ", ".join(code(f"{name}={value}") for name, value in study.variants[variant.variant].items())
        rows.append(
            [variant.variant, Markdown(changed), str(len(variant.results)), f"{variant.mean:.2f}",
             _number(variant.deviation),
             f"{first.parameters / 1e6:.3f}", f"{first.gmac:.4f}", "" if speed is None else f"{speed:.0f}"]
        )  # fmt: skip
    return [*table_lines(header, rows), ""]


def _by_variant(study: Study, summary: BudgetSummary, speeds: Mapping[str, float]) -> dict[str, float]:
    """The measured images per second of the variants, from those by model."""
    keys = {v.variant: inference_key(study.cell(summary.budget, v.variant, 0).recipe) for v in summary.variants}
    return {variant: speeds[key] for variant, key in keys.items() if key in speeds}


def _comparison_table(summary: BudgetSummary) -> list[str]:
    if not summary.comparisons:
        return []
    header = ["difference in points", "pairs", "measured", "95 % interval", "published", "p (Holm)", "verdict"]
    rows = [
        [f"{c.claim.better} - {c.than}", _pairs(c), f"{c.interval.mean:+z.2f}", _shown(c.interval),
         "" if c.published is None else f"{c.published:+.1f}", _p_value(c.p_value),
         str(c.verdict) if summary.judged else "judged in other studies"]
        for c in summary.comparisons
    ]  # fmt: skip
    return [*table_lines(header, rows), ""]


def _trend_table(changes: Sequence[Trend]) -> list[str]:
    header = ["difference in points", "from", "to", "pairs", "change", "95 % interval", "p (Holm)"]
    rows = [
        [f"{trend.claim.better} - {trend.than}", trend.first, trend.later, _pairs(trend),
         f"{trend.change.mean:+z.2f}", _shown(trend.change), _p_value(trend.p_value)]
        for trend in changes
    ]  # fmt: skip
    return [*table_lines(header, rows), ""]


def _pairs(compared: Comparison | Trend) -> str:
    return f"{compared.pairs}, {compared.mixed} of them mixed" if compared.mixed else str(compared.pairs)


def _precision(found: Precision, planned: int) -> str:
    """What the comparisons at a budget can find, in words."""
    text = (
        f"The differences of pairs have a standard deviation of {found.deviation:.2f} points (median); pairing by seed "
        f"leaves {100 * found.kept:.0f} % of the variance of unpaired ones. With {found.pairs} pairs, a single test "
        f"finds a true difference of {found.single:.1f} points with a probability of 80 %"
    )
    if planned < 2 or not isfinite(found.corrected):
        return f"{text}."
    return f"{text}; to be the most significant of {planned} comparisons, it must be {found.corrected:.1f}."


def _difference(comparison: Comparison) -> str:
    interval = _shown(comparison.interval)
    return f"{comparison.interval.mean:+z.2f}" + (f" ({interval})" if interval else " (one seed)")


def _shown(interval: Interval) -> str:
    return "" if isnan(interval.low) else f"{interval.low:+z.2f} to {interval.high:+z.2f}"


def metric_label(summaries: Sequence[BudgetSummary]) -> str:
    """Name and unit of the metric of a study, e.g. ``top-1 (%)``."""
    metric = summaries[0].variants[0].results[0].metric
    return f"{METRIC_NAMES.get(metric, metric)} (%)"


def _draw(study: Study, summaries: Sequence[BudgetSummary], speeds: Mapping[str, float], folder: Path) -> list[Path]:
    label = metric_label(summaries)
    drawn = []
    if compared := [summary for summary in summaries if summary.comparisons]:
        drawn.append(folder / f"{study.name}_differences.svg")
        draw_differences(compared, label, drawn[-1])
    drawn.append(folder / f"{study.name}_curves.svg")
    draw_curves(summaries, list(study.variants), label, drawn[-1])
    fullest = max(reversed(summaries), key=lambda summary: len(summary.variants))  # the last one of those
    drawn.append(folder / f"{study.name}_cost.svg")
    draw_cost(fullest, list(study.variants), label, _by_variant(study, fullest, speeds), drawn[-1])
    return drawn


def _conditions(used: Sequence[CellResult], throughput: Mapping[str, Any], command: str) -> list[str]:
    """How the results came about: number of cells, seeds, hardware, versions, time and command."""
    unknown = sum(not result.val_images for result in used)
    lines = [
        "",
        "## Conditions",
        "",
        f"- cells: {len(used)}, {timedelta(seconds=round(sum(r.seconds for r in used)))} of training in total",
        f"- seeds: {', '.join(str(seed) for seed in sorted({r.seed for r in used}))}",
        f"- hardware: {markdown('; '.join(sorted({r.hardware for r in used})))}",
        f"- versions: {markdown('; '.join(sorted({f'smt_vision {r.version}, torch {r.torch}' for r in used})))}",
        f"- dates: {markdown(min(r.date for r in used))} to {markdown(max(r.date for r in used))}",
    ]
    if unknown:
        lines.append(f"- {unknown} results do not record which images they are of, which is assumed to be the same")
    codes = Counter(result.code for result in used)
    if without := codes.pop("", 0):
        lines.append(f"- {without} results do not record the code of the package; development versions have one number")
    if codes:
        lines.append(f"- code: {', '.join(f'{code} ({count} cells)' for code, count in codes.most_common())}")
    if conditions := throughput.get("conditions"):
        lines.append(
            f"- images/s: inference, {markdown(conditions['precision'])}, batch {conditions['batch_size']:d}, in turn "
            f"in one process, {markdown(conditions['hardware'])}, torch {markdown(conditions['versions']['torch'])}, "
            f"{markdown(conditions['date'][:10])}"
        )
    if command:
        lines += ["", "```sh", command, "```"]
    return lines


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else _number(value, ".3f")


def _number(value: float, format_spec: str = ".2f") -> str:
    return "" if isnan(value) else format(value, format_spec)
