"""Plot of published accuracy against measured throughput."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from ..pictures.style import BEST, EVAL, GRAY, TRAIN, save
from ..registry import VARIANTS
from .compare import Result
from .model_spec import parse_spec
from .published import PUBLISHED

# Positions of a label relative to its point, in order of preference: distance in typographic points, and direction.
LABEL_OFFSETS = tuple(
    product((7, 14, 22, 32, 44), ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)))
)
SMT_COLOR, OTHER_COLOR = EVAL, TRAIN
FOOTNOTE_WIDTH = 115  # characters below a panel


@dataclass(frozen=True)
class SpeedPoint:
    """A model in the plot.

    Args:
        label: Text beside the point.
        images_per_s: Measured throughput.
        top1: Published accuracy in percent.
        is_smt: Whether the model is an SMT.
    """

    label: str
    images_per_s: float
    top1: float
    is_smt: bool


def speed_points(results: Sequence[Result]) -> dict[str, list[SpeedPoint]]:
    """Points by batch size, of the classifiers that were run at the size of their published accuracy."""
    panels: dict[str, list[SpeedPoint]] = {}
    for result in results:
        source, variants = parse_spec(result.model)
        architecture = source.partition(".")[0]
        published = PUBLISHED.get(architecture)
        if published and "features" not in variants and result.input_size == (3, published.size, published.size):
            label = " ".join((published.label, *variants))
            point = SpeedPoint(label, result.images_per_s, published.top1, architecture in VARIANTS)
            panels.setdefault(f"batch {result.batch_size}", []).append(point)
    return panels


def plot_accuracy_and_throughput(
    panels: Mapping[str, Sequence[SpeedPoint]], path: Path, title: str, footnote: str
) -> Figure:
    """Plot top-1 against throughput with the Pareto front, one panel per batch size.

    Args:
        panels: Points by panel title.
        path: Image file to write.
        title: Title of the figure.
        footnote: Line below the figure, e.g. the conditions of the measurement.

    Returns:
        The figure, as written.
    """

    def draw() -> Figure:
        figure = Figure(figsize=(6.5 * len(panels), 5.2))
        figure.suptitle(title, fontsize=12, fontweight="bold")
        figure.supxlabel(textwrap.fill(footnote, FOOTNOTE_WIDTH * len(panels)), fontsize=7.5, color=GRAY)
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (name, points) in zip(grid, panels.items(), strict=True):
            _plot_panel(axes, name, points)
        figure.draw_without_rendering()  # fixes the layout: labels are placed in pixels
        for axes, points in zip(grid, panels.values(), strict=True):
            _add_labels(axes, points)
        return figure

    return save(draw, path)


def pareto_front(points: Sequence[SpeedPoint]) -> list[SpeedPoint]:
    """Points that no other point matches or exceeds in both speed and accuracy, in order of decreasing speed."""
    front: list[SpeedPoint] = []
    for point in sorted(points, key=lambda p: (-p.images_per_s, -p.top1)):
        if not front or point.top1 > front[-1].top1:
            front.append(point)
    return front


def _plot_panel(axes: Axes, name: str, points: Sequence[SpeedPoint]) -> None:
    front = pareto_front(points)
    style: dict[str, Any] = dict(color=BEST, linewidth=6, alpha=0.25, solid_capstyle="round", label="Pareto front")
    axes.plot([p.images_per_s for p in front], [p.top1 for p in front], **style)
    for is_smt, color, label in ((True, SMT_COLOR, "SMT"), (False, OTHER_COLOR, "other models")):
        group = [p for p in points if p.is_smt == is_smt]
        speeds = [p.images_per_s for p in group]
        axes.scatter(speeds, [p.top1 for p in group], s=42, color=color, label=label, zorder=3)
    axes.set(title=name, xlabel="measured throughput (images/s)", ylabel="published ImageNet-1K top-1 (%)")
    axes.margins(0.16, 0.12)
    axes.legend(loc="lower left", fontsize=8.5)


def _add_labels(axes: Axes, points: Sequence[SpeedPoint]) -> None:
    """Put each label at the nearest position that overlaps no other label, no point and not the legend."""
    dots = axes.transData.transform([(p.images_per_s, p.top1) for p in points])
    legend = axes.get_legend()
    assert legend is not None
    occupied = [legend.get_window_extent(), *(Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in dots)]
    frame = axes.get_window_extent()
    for point in points:
        for distance, (dx, dy) in LABEL_OFFSETS:
            text = axes.annotate(
                point.label,
                (point.images_per_s, point.top1),
                (distance * dx, distance * dy),
                textcoords="offset points",
                ha=("center", "left", "right")[dx],
                va=("center", "bottom", "top")[dy],
                fontsize=8.5,
                color=SMT_COLOR if point.is_smt else OTHER_COLOR,
                in_layout=False,
            )
            box = text.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in occupied):
                break
            text.remove()
        else:
            axes.add_artist(text)  # no free position: an overlapping label is better than none
        occupied.append(box)
