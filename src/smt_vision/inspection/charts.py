"""Charts of a dataset."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from ..pictures.style import BEST, EVAL, TRAIN, save, short

COLORS = (TRAIN, EVAL, BEST)  # of train, val and test
MAX_CLASSES = 40  # with more, the classes have no names in the chart
BINS, POINTS = 40, 2000  # points of a scatter plot per split
Values = npt.NDArray[Any]


def class_balance(names: Sequence[str], counts: Mapping[str, Sequence[float]], unit: str, path: Path) -> Figure:
    """Bars of a value per class and split, sorted by the first split; for many classes, curves."""
    first = np.asarray(next(iter(counts.values())), dtype=np.float64)
    order = np.argsort(-first, kind="stable")

    def draw() -> Figure:
        bars = len(names) <= MAX_CLASSES
        figure = Figure(figsize=(8, 1.2 + 0.12 * len(names) * (1 + len(counts)) if bars else 4))
        axes = figure.subplots()
        for k, (split, values) in enumerate(counts.items()):
            sorted_values = np.asarray(values, dtype=np.float64)[order]
            if bars:
                height = 0.8 / len(counts)
                places = np.arange(len(names)) + (k - (len(counts) - 1) / 2) * height
                axes.barh(places, sorted_values, height, color=COLORS[k % 3], label=split)
            else:
                axes.plot(np.arange(1, len(names) + 1), sorted_values, color=COLORS[k % 3], label=split)
        if bars:
            axes.set_yticks(range(len(names)), [short(names[k]) for k in order])
            axes.invert_yaxis()
            axes.grid(visible=False, axis="y")
            axes.set(title="Classes", xlabel=unit)
        else:
            axes.set(title="Classes, from the most to the least frequent", xlabel="class", ylabel=unit, yscale="symlog")
        axes.legend()
        return figure

    return save(draw, path)


def image_sizes(splits: Mapping[str, Values], path: Path) -> Figure:
    """Widths and heights, and aspect ratios; the values are those of ``MEASURES``."""

    def draw() -> Figure:
        figure = Figure(figsize=(10, 3.8))
        sizes, ratios = figure.subplots(1, 2)
        for k, (split, values) in enumerate(splits.items()):
            some = values[np.linspace(0, len(values) - 1, min(len(values), POINTS)).astype(int)]
            sizes.scatter(some["width"], some["height"], s=24, alpha=0.4, color=COLORS[k % 3], label=split, linewidth=0)
        sizes.set(title="Image sizes", xlabel="width (pixels)", ylabel="height (pixels)")
        sizes.margins(0.1)
        sizes.legend()
        _histogram(ratios, {split: np.log2(values["width"] / values["height"]) for split, values in splits.items()})
        ratios.set(title="Aspect ratios", xlabel="width / height", ylabel="images (%)")
        ratios.xaxis.set_major_formatter(lambda value, position: f"{2.0**value:.2g}")
        return figure

    return save(draw, path)


def brightness(splits: Mapping[str, Values], path: Path) -> Figure:
    """Brightness and contrast; the values are those of ``MEASURES``."""

    def draw() -> Figure:
        figure = Figure(figsize=(10, 3.4))
        panels = figure.subplots(1, 2)
        for axes, name, text in zip(
            panels,
            ("brightness", "contrast"),
            ("mean gray value", "standard deviation of the gray values"),
            strict=True,
        ):
            _histogram(axes, {split: values[name] for split, values in splits.items()})
            axes.set(title=name.capitalize(), xlabel=text, ylabel="images (%)")
        return figure

    return save(draw, path)


def objects(splits: Mapping[str, Mapping[str, Values]], centers: Values, path: Path) -> Figure:
    """Sizes of objects, objects per image, and where the centers of the boxes are."""

    def draw() -> Figure:
        figure = Figure(figsize=(12, 3.6))
        sizes, numbers, places = figure.subplots(1, 3)
        _histogram(sizes, {split: np.log2(arrays["object_side"].clip(0.5)) for split, arrays in splits.items()})
        sizes.xaxis.set_major_formatter(lambda value, position: f"{2.0**value:.3g}")
        for side in (32, 96):
            sizes.axvline(np.log2(side), color="#8a8f98", linestyle="--", linewidth=1)
        sizes.set(title="Object sizes", xlabel="square root of the area (pixels)", ylabel="objects (%)")
        _histogram(numbers, {split: arrays["objects_per_image"] for split, arrays in splits.items()})
        numbers.set(title="Objects per image", xlabel="objects", ylabel="images (%)")
        heat = places.imshow(centers, cmap="Blues", extent=(0, 1, 1, 0), vmin=0)
        places.grid(visible=False)
        places.set(title="Centers of the boxes", xlabel="x / width", ylabel="y / height")
        figure.colorbar(heat, ax=places, label="objects", shrink=0.8)
        return figure

    return save(draw, path)


def _histogram(axes: Any, splits: Mapping[str, Values]) -> None:
    """Outlines of a histogram per split, in percent of the split."""
    together = np.concatenate(list(splits.values()))
    if not len(together):
        return
    low, high = float(together.min()), float(together.max())
    margin = 0.5 if low == high else 0.0
    if together.dtype.kind == "i" and high - low < BINS:  # a bin per integer
        edges = np.arange(low, high + 2) - 0.5
    else:
        edges = np.linspace(low - margin, high + margin, BINS + 1)
    for k, (split, values) in enumerate(splits.items()):
        if len(values):
            weights = np.full(len(values), 100 / len(values))
            style = {"color": COLORS[k % 3], "label": split}
            axes.hist(values, edges, weights=weights, histtype="stepfilled", alpha=0.2, color=COLORS[k % 3])
            axes.hist(values, edges, weights=weights, histtype="step", linewidth=1.4, **style)
    axes.legend()
