"""Pictures of models beside each other: accuracy against throughput."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from .style import BEST, EVAL, GREY, TRAIN, save

# Where a point's label may stand: points of distance, and the direction.
LABEL_PLACES = tuple(
    product((7, 14, 22, 32, 44), ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)))
)


@dataclass(frozen=True)
class SpeedPoint:
    """A model in the picture of accuracy against throughput.

    Args:
        label: what is written beside it.
        images_per_s: measured.
        top1: published, in percent.
        ours: whether it is an SMT.
    """

    label: str
    images_per_s: float
    top1: float
    ours: bool


def accuracy_and_throughput(panels: Mapping[str, Sequence[SpeedPoint]], path: Path, title: str, about: str) -> Figure:
    """Draws top-1 against throughput, a panel for each batch size, with the frontier.

    Args:
        panels: the points, by the panel's title.
        path: the image file to write.
        title: above it all.
        about: a line below it all: what was measured where, and what was not measured.

    Returns:
        The figure, as written.
    """

    def draw() -> Figure:
        figure = Figure(figsize=(6.5 * len(panels), 5.2))
        figure.suptitle(title, fontsize=12, fontweight="bold")
        figure.supxlabel(about, fontsize=7.5, color=GREY)
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (name, points) in zip(grid, panels.items(), strict=True):
            best = frontier(points)
            line = dict(color=BEST, linewidth=6, alpha=0.25, solid_capstyle="round", label="frontier")
            axes.plot([p.images_per_s for p in best], [p.top1 for p in best], **line)
            for ours, colour, who in ((True, EVAL, "SMT"), (False, TRAIN, "others")):
                drawn = [p for p in points if p.ours == ours]
                speeds = [p.images_per_s for p in drawn]
                axes.scatter(speeds, [p.top1 for p in drawn], s=42, color=colour, label=who, zorder=3)
            axes.set(title=name, xlabel="measured throughput (images/s)", ylabel="published ImageNet-1K top-1 (%)")
            axes.margins(0.16, 0.12)
            axes.legend(loc="lower left", fontsize=8.5)
        figure.draw_without_rendering()  # from here on, places in pixels are known
        for axes, points in zip(grid, panels.values(), strict=True):
            _label(axes, points)
        return figure

    return save(draw, path)


def frontier(points: Sequence[SpeedPoint]) -> list[SpeedPoint]:
    """The points that no other one is as fast and as accurate as; the fastest first."""
    best: list[SpeedPoint] = []
    for point in sorted(points, key=lambda p: (-p.images_per_s, -p.top1)):
        if not best or point.top1 > best[-1].top1:
            best.append(point)
    return best


def _label(axes: Axes, points: Sequence[SpeedPoint]) -> None:
    """Writes each point's label at the nearest place that no other label, no point and not the legend has taken."""
    dots = axes.transData.transform([(p.images_per_s, p.top1) for p in points])
    legend = axes.get_legend()
    assert legend is not None
    taken = [legend.get_window_extent(), *(Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in dots)]
    frame = axes.get_window_extent()
    for point in points:
        for distance, (dx, dy) in LABEL_PLACES:
            text = axes.annotate(
                point.label,
                (point.images_per_s, point.top1),
                (distance * dx, distance * dy),
                textcoords="offset points",
                ha=("center", "left", "right")[dx],
                va=("center", "bottom", "top")[dy],
                fontsize=8.5,
                color=EVAL if point.ours else TRAIN,
                in_layout=False,
            )
            box = text.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        else:
            axes.add_artist(text)  # no place is free: better over another than not at all
        taken.append(box)
