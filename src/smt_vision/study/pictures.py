"""Pictures of a study: differences with intervals, learning curves, and the metric against cost."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import CARETLEFT, CARETRIGHT
from matplotlib.ticker import MaxNLocator

from ..pictures.style import BEST, EVAL, GRAY, save
from .statistics import BudgetSummary, Comparison, Verdict

COLORS = (
    "#3b6fb6", "#d1662b", "#2a8f5b", "#8a63b8", "#2f9ca6", "#b5852a", "#b6507d", "#6f8f3a", "#5c6b7a", "#20304f",
    "#c94f4f", "#8bb7e0",
)  # fmt: skip
COLUMNS = 3
VERDICT_COLORS = {Verdict.SUPPORTED: BEST, Verdict.CONTRADICTED: EVAL, Verdict.UNDECIDED: GRAY}


def draw_differences(summaries: Sequence[BudgetSummary], label: str, path: Path) -> None:
    """One panel per budget: the difference of each comparison with its 95 % interval, and the published one.

    An interval of two pairs, which is many times as wide as others, may extend beyond the panel: it ends in an arrow.
    """

    def draw() -> Figure:
        fullest_first = sorted(summaries, key=lambda summary: -len(summary.comparisons))
        names = list(dict.fromkeys(_name(c) for summary in fullest_first for c in summary.comparisons))
        figure, panels = _panels(len(summaries), 3.6, 1.3 + 0.38 * len(names), sharex=True, sharey=True)
        limits = _limits([c for s in summaries for c in s.comparisons])
        for axes, summary in zip(panels, summaries, strict=True):
            for comparison in summary.comparisons:
                _draw_interval(axes, names.index(_name(comparison)), comparison, limits)
            axes.axvline(0, color="#8a8f98", linewidth=1, zorder=0)
            axes.set(title=summary.budget or "All cells", xlabel=f"difference in {label.removesuffix(' (%)')} (points)")
        panels[0].set(ylim=(len(names) - 0.5, -0.5), xlim=limits)
        for axes in panels[::COLUMNS]:
            axes.set(yticks=range(len(names)), yticklabels=names)
        return figure

    _save(draw, path)


def _limits(comparisons: Sequence[Comparison]) -> tuple[float, float]:
    """The range of the differences, of 0, of the published ones, and of the intervals of three pairs or more."""
    shown = [0.0]
    for comparison in comparisons:
        shown += [comparison.interval.mean, *filter(None, [comparison.published])]
        if comparison.pairs > 2:
            shown += [comparison.interval.low, comparison.interval.high]
    margin = 0.06 * (max(shown) - min(shown)) or 1.0
    return min(shown) - margin, max(shown) + margin


def _name(comparison: Comparison) -> str:
    return f"{comparison.claim.better} - {comparison.than}"


def _draw_interval(axes: Axes, row: int, comparison: Comparison, limits: tuple[float, float]) -> None:
    color = VERDICT_COLORS[comparison.verdict]
    interval = comparison.interval
    if np.isfinite(interval.low):
        axes.plot([interval.low, interval.high], [row, row], color=color, linewidth=2.2, solid_capstyle="butt")
        if interval.low < limits[0]:
            axes.plot(limits[0], row, marker=CARETLEFT, color=color, markersize=8, clip_on=False)
        if interval.high > limits[1]:
            axes.plot(limits[1], row, marker=CARETRIGHT, color=color, markersize=8, clip_on=False)
    axes.plot(interval.mean, row, "o", color=color, markersize=6)
    if comparison.published is not None:
        axes.plot(comparison.published, row, "D", color="black", markerfacecolor="none", markersize=6)
        axes.annotate("published", (comparison.published, row), xytext=(0, 7), textcoords="offset points", ha="center",
                      fontsize=7.5)  # fmt: skip


def draw_curves(summaries: Sequence[BudgetSummary], variants: Sequence[str], label: str, path: Path) -> None:
    """One panel per budget: the mean metric of each variant over epochs, and its range over the seeds.

    Args:
        summaries: The results at each budget.
        variants: All variants of the study, which decide the colors.
        label: Axis label of the metric.
        path: File to write.
    """

    def draw() -> Figure:
        figure, panels = _panels(len(summaries), 4.4, 4.0)
        colors, lines = _colors(variants), {}
        for axes, summary in zip(panels, summaries, strict=True):
            for variant in summary.variants:
                color = colors[variant.variant]
                curves = [dict(zip(result.epochs, result.by_epoch, strict=True)) for result in variant.results]
                epochs = sorted(set.intersection(*map(set, curves)))  # some may have been evaluated more often
                values = np.array([[curve[epoch] for epoch in epochs] for curve in curves])
                lines[variant.variant] = axes.plot(
                    epochs, values.mean(0), color=color, linewidth=1.6, marker="o" if len(epochs) == 1 else None
                )[0]
                axes.fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.12, linewidth=0)
            axes.set(title=summary.budget or "All cells", xlabel="epoch", ylabel=label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            early = [np.mean([r.by_epoch[len(r.by_epoch) // 3] for r in v.results]) for v in summary.variants]
            last = [np.mean([r.by_epoch[-1] for r in v.results]) for v in summary.variants]
            bottom = float(min(*early, *last))
            top = max(max(r.by_epoch) for v in summary.variants for r in v.results)
            axes.set_ylim(bottom, top + 0.03 * (top - bottom) + 1e-3)
        shown = [name for name in variants if name in lines]
        panels[min(len(panels), COLUMNS) - 1].legend(
            [lines[name] for name in shown], shown, loc="center left", bbox_to_anchor=(1.0, 0.5)
        )
        return figure

    _save(draw, path)


def draw_cost(
    summary: BudgetSummary, variants: Sequence[str], label: str, throughput: Mapping[str, float], path: Path
) -> None:
    """The metric of each variant against parameters, GMAC and, where it was measured, throughput.

    Args:
        summary: The results at one budget.
        variants: All variants of the study, which decide the colors.
        label: Axis label of the metric.
        throughput: Images per second by variant.
        path: File to write.
    """

    def draw() -> Figure:
        axis_values = {
            "parameters (M)": {v.variant: v.results[0].parameters / 1e6 for v in summary.variants},
            "GMAC": {v.variant: v.results[0].gmac for v in summary.variants},
            "inference (images/s)": dict(throughput),
        }
        shown = {name: values for name, values in axis_values.items() if values}
        figure, panels = _panels(len(shown), 3.9, 4.0, sharey=True)
        colors = _colors(variants)
        for axes, (name, values) in zip(panels, shown.items(), strict=True):
            for variant in summary.variants:
                if variant.variant in values:
                    spread = 0.0 if np.isnan(variant.deviation) else variant.deviation
                    axes.errorbar(values[variant.variant], variant.mean, yerr=spread, fmt="o", markersize=6, capsize=3,
                                  color=colors[variant.variant], label=variant.variant)  # fmt: skip
            axes.set(xlabel=name)
            axes.xaxis.set_major_locator(MaxNLocator(4))
        panels[0].set(ylabel=label)
        panels[0].set_title(f"{summary.budget or 'All cells'}: mean and standard deviation over seeds")
        # Those of the first panel: throughput may not have been measured for all.
        panels[-1].legend(*panels[0].get_legend_handles_labels(), loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure

    _save(draw, path)


def _save(draw: Callable[[], Figure], path: Path) -> None:
    """Save a picture; the text of an SVG stays text, at a third of the size."""
    with rc_context({"svg.fonttype": "none"}):
        save(draw, path)


def _panels(count: int, width: float, height: float, **share: Any) -> tuple[Figure, list[Axes]]:
    """A figure with panels of this size in inches, at most :data:`COLUMNS` per row."""
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(1.6 + width * columns, height * rows))
    panels = figure.subplots(rows, columns, **share, squeeze=False).flatten().tolist()
    for axes in panels[count:]:
        axes.remove()
    for axes in panels[:count]:
        axes.tick_params(labelbottom=True)  # a shared axis has its numbers in the last row only, which may be removed
    return figure, panels[:count]


def _colors(variants: Sequence[str]) -> dict[str, str]:
    return {variant: COLORS[index % len(COLORS)] for index, variant in enumerate(variants)}
