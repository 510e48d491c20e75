"""Pictures of a run (curves, confusions, worst mistakes, predictions), and of models: accuracy against throughput.

Drawn on matplotlib's figures as objects, so that no global state of pyplot is touched and no display is needed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox
from PIL import Image
from torch import Tensor

STYLE: dict[Any, Any] = {
    "figure.dpi": 120,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.edgecolor": "#8a8f98",
    "grid.color": "#e3e6ea",
    "legend.frameon": False,
    "text.parse_math": False,  # a class or a file may have a $ in its name
}
TRAIN, EVAL, BEST, GREY = "#3b6fb6", "#d1662b", "#2a8f5b", "#666f7a"
MOST_NUMBERED = 20  # classes of a confusion matrix with numbers in its cells
MOST_CLASSES = 40  # classes of a confusion matrix
GRID = 25  # images of a grid
COLUMNS = 5
# Where a point's label may stand: points of distance, and the direction.
LABEL_PLACES = tuple(
    product((7, 14, 22, 32, 44), ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)))
)


@dataclass(frozen=True)
class Prediction:
    """What the model said of an image.

    Args:
        image: as read, or as the model saw it.
        prediction: name of the most probable class.
        confidence: its probability, in [0, 1].
        id: of the image, as its file.
    """

    image: Image.Image
    prediction: str
    confidence: float
    id: str

    @property
    def caption(self) -> str:
        """What is written above the image."""
        return f"{_short(self.prediction)} ({100 * self.confidence:.0f} %)"


@dataclass(frozen=True)
class Mistake:
    """An image that the model put into the wrong class.

    Args:
        image: as read, or as the model saw it.
        target: name of the true class.
        prediction: name of the class it was put into.
        confidence: the probability given to that class, in [0, 1].
        id: of the image, as its file.
    """

    image: Image.Image
    target: str
    prediction: str
    confidence: float
    id: str

    @property
    def caption(self) -> str:
        """What is written above the image."""
        return f"said {_short(self.prediction)} ({100 * self.confidence:.0f} %),\nis {_short(self.target)}"


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


def curves(log: list[dict[str, Any]], path: Path, title: str) -> Figure:
    """Draws how training went: loss, top-1 and learning rate by epoch.

    Args:
        log: lines as ``read_log`` gives them.
        path: the image file to write.
        title: above it all.

    Returns:
        The figure, as written.
    """
    train = [line for line in log if line["kind"] == "train"]
    evals = [line for line in log if line["kind"] == "eval"]

    def draw() -> Figure:
        figure = Figure(figsize=(13, 4))
        figure.suptitle(title, fontsize=12, fontweight="bold")
        loss, top1, rate = figure.subplots(1, 3)
        epochs, losses = _series(train, "loss")
        loss.plot(epochs, losses, color=TRAIN, alpha=0.25, linewidth=0.8, label="training")
        loss.plot(epochs, _smooth(losses), color=TRAIN, linewidth=1.8, label="training, smoothed")
        loss.plot(*_series(evals, "loss"), color=EVAL, linewidth=1.8, marker="o", markersize=3.5, label="evaluation")
        _dress(loss, "Loss", "loss (nats)", drawn=bool(train or evals))
        if train or evals:
            loss.legend()

        epochs, percent = _series(evals, "top1")
        top1.plot(epochs, percent, color=EVAL, linewidth=1.8, marker="o", markersize=3.5)
        if np.isfinite(percent).any():
            best = int(np.nanargmax(percent))
            top1.plot(epochs[best], percent[best], "*", color=BEST, markersize=14, zorder=3)
            top1.set_title(f"best {percent[best]:.2f} %, epoch {epochs[best]:g}", loc="right", color=BEST, fontsize=9.5)
        _dress(top1, "Accuracy", "top-1 (%)", drawn=bool(evals))

        rate.plot(*_series(train, "lr"), color=TRAIN, linewidth=1.8)
        rate.yaxis.set_major_formatter(lambda value, position: f"{value:g}")
        _dress(rate, "Learning rate", "learning rate", drawn=bool(train))
        return figure

    return _save(draw, path)


def confusion(matrix: Tensor | np.ndarray, classes: Sequence[str], path: Path) -> Figure:
    """Draws which classes are taken for which, in percent of each true class's images.

    Up to 20 classes have their numbers written; of more than 40, the 40 with most errors are drawn.

    Args:
        matrix: (K, K) counts, true classes as rows.
        classes: K names.
        path: the image file to write.

    Returns:
        The figure, as written.

    Raises:
        ValueError: the matrix is not square, or has not one name for each row.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(f"the matrix is {counts.shape} and there are {len(classes)} names: expected (K, K) and K")
    images = counts.sum(axis=1, keepdims=True)
    percent = np.divide(100 * counts, images, out=np.full_like(counts, np.nan), where=images > 0)
    names, title = list(classes), "Confusion"
    if len(names) > MOST_CLASSES:
        errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
        kept = np.sort(np.argsort(-errors, kind="stable")[:MOST_CLASSES])
        title = f"Confusion: the {MOST_CLASSES} of {len(names)} classes with most errors (rows count all classes)"
        percent, names = percent[np.ix_(kept, kept)], [names[index] for index in kept]

    def draw() -> Figure:
        side = 3.5 + min(6.5, 0.45 * len(names))
        figure = Figure(figsize=(side + 1, side))
        axes = figure.subplots()
        # the square root lets the small numbers be seen, which are the confusions
        drawn = axes.imshow(percent, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
        axes.set_facecolor("#eeeeee")
        size = 9 if len(names) <= MOST_NUMBERED else 6.5
        labels = [_short(name) for name in names]
        turned = 90 if max(map(len, labels)) > 3 else 0
        axes.set_xticks(range(len(names)), labels, rotation=turned, fontsize=size)
        axes.set_yticks(range(len(names)), labels, fontsize=size)
        axes.set(title=title, xlabel="predicted class", ylabel="true class")
        axes.grid(visible=False)
        if len(names) <= MOST_NUMBERED:
            for row, column in np.argwhere(percent > 0):
                value = percent[row, column]
                text = f"{value:.1f}" if len(names) <= 10 else f"{value:.0f}"
                colour = "white" if value > 35 else "#1b2430"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
        figure.colorbar(drawn, ax=axes, label="images of the true class (%)", shrink=0.8, ticks=[0, 1, 5, 20, 50, 100])
        return figure

    return _save(draw, path)


def mistakes(items: Sequence[Mistake], path: Path) -> Figure:
    """Draws the worst mistakes, the most confident first.

    Args:
        items: any number of them, in any order; 25 at most are drawn.
        path: the image file to write.

    Returns:
        The figure, as written.
    """
    worst = sorted(items, key=lambda item: -item.confidence)
    return _grid(worst, path, "Worst mistakes", "No mistakes: every image was put into its class.")


def predictions(items: Sequence[Prediction], path: Path) -> Figure:
    """Draws images with what the model said of them.

    Args:
        items: in the order to draw; the first 25 are.
        path: the image file to write.

    Returns:
        The figure, as written.
    """
    return _grid(items, path, "Predictions", "No images.")


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

    return _save(draw, path)


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


def _grid(items: Sequence[Mistake | Prediction], path: Path, title: str, empty: str) -> Figure:
    items = items[:GRID]

    def draw() -> Figure:
        if not items:
            figure = Figure(figsize=(6, 2))
            figure.text(0.5, 0.5, empty, ha="center", va="center", fontsize=12)
            return figure
        columns = min(COLUMNS, len(items))
        rows = math.ceil(len(items) / columns)
        figure = Figure(figsize=(max(2.2 * columns, 4), 2.5 * rows + 0.4))
        figure.suptitle(title, fontsize=12, fontweight="bold")
        grid = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes in grid[len(items) :]:
            axes.axis("off")
        for axes, item in zip(grid, items, strict=False):
            axes.set(xticks=[], yticks=[], anchor="N")
            axes.spines[:].set_visible(False)
            image = item.image.convert("RGB")
            image.thumbnail((320, 320))
            small = max(image.size) < 160
            axes.imshow(np.asarray(image), interpolation="nearest" if small else "antialiased")
            axes.set_title(item.caption, fontsize=8.5, fontweight="normal", loc="center")
            axes.set_xlabel(_short(item.id, 36), fontsize=7, color=GREY)
        return figure

    return _save(draw, path)


def _save(draw: Callable[[], Figure], path: Path) -> Figure:
    with rc_context(STYLE):
        figure = draw()
        figure.savefig(path)
    return figure


def _series(lines: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values of the lines that hold the name; an infinite value becomes NaN, a gap in the curve."""
    points = [(line["epoch"], float(line[name])) for line in lines if name in line]
    epochs, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return epochs, np.where(np.isfinite(values), values, np.nan)


def _smooth(values: np.ndarray) -> np.ndarray:
    """The moving average, exponential over a thirtieth of the run and right from the first value on."""
    keep = 1 - 1 / max(len(values) / 30, 1)
    smoothed = np.full_like(values, np.nan)
    total = weight = 0.0
    for index, value in enumerate(values):
        if not np.isnan(value):
            total, weight = keep * total + value, keep * weight + 1
            smoothed[index] = total / weight
    return smoothed


def _dress(axes: Axes, title: str, unit: str, *, drawn: bool) -> None:
    axes.set(title=title, xlabel="epoch", ylabel=unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not drawn:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "nothing logged", transform=axes.transAxes, ha="center", va="center", color=GREY)


def _short(name: str, length: int = 22) -> str:
    """The name without its middle where it is long: names of fine classes, and files, differ at their ends."""
    if len(name) <= length:
        return name
    head = length // 3
    return f"{name[:head]}…{name[head + 1 - length :]}"
