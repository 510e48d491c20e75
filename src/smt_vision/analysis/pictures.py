"""Pictures of what is analyzed, for reports and papers.

Maps are drawn over the extent of the image, bilinearly interpolated between their cells, except those on small grids.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image

from ..pictures.drawing import PALETTE
from ..pictures.style import EVAL, GRAY, TRAIN, save, short
from ..text import printable
from .attention import AttentionMaps
from .class_activation import ClassActivation
from .modulation import ModulationMaps
from .receptive_field import ReceptiveField, uniform_radii
from .spectrum import BlockSpectrum

DPI = 200
CELL = 1.35  # inches, width of a map in a grid
MAX_HEADS = 8  # attention heads drawn per block
MAX_BLOCKS = 8  # modulation blocks drawn per model in a comparison
SMALL_GRID = 16  # cells along the longer side, up to which they are drawn as they are
MAP_COLORS, FIELD_COLORS = "viridis", "magma"
SMALLEST_SHOWN = 1e-3  # of a receptive field, relative to its maximum
MARKERS = {"S": "o", "A": "s"}  # by mixer; others have a triangle
Picture = npt.NDArray[np.uint8]


def modulation_picture(picture: Picture, maps: Sequence[ModulationMaps], title: str, path: Path) -> Figure:
    """Draw the maps of every modulation block: each head, their mean, and the modulator.

    Heads and mean of a block have one scale, the modulator has its own.

    Args:
        picture: The image ``(H, W, 3)``.
        maps: Maps of the blocks, one per row.
        title: Title of the figure.
        path: Path of the image file to write.
    """

    def draw() -> Figure:
        heads = max(len(block.heads) for block in maps)
        caption = (
            "Absolute value, averaged over channels: of each head's convolution, by kernel size, and of the modulator"
        )
        figure, grid = _grid(len(maps), heads + 3, picture, title, caption)
        for row, block in zip(grid, maps, strict=True):
            _image(row[0], picture, _two_lines(block.name))
            top = float(block.heads.max()) or 1.0
            cells = [
                *zip([f"{k} × {k}" for k in block.kernels], block.heads, strict=True),
                ("mean of heads", block.mean),
            ]
            drawn = [*row[1 : len(cells)], row[-2]]
            for axes, (name, values) in zip(drawn, cells, strict=True):
                shown = _map(axes, values, picture, name, top)
            for axes in row[len(cells) : -2]:
                axes.axis("off")
            _colorbar(figure, shown, drawn[-1])
            _colorbar(figure, _map(row[-1], block.modulator, picture, "modulator"), row[-1])
        return figure

    return save(draw, path)


def modulators_picture(
    models: Sequence[tuple[str, tuple[Picture, Sequence[ModulationMaps]]]], title: str, path: Path
) -> Figure:
    """Draw the modulators of several models, one row per model and one column per modulation block.

    Of more than eight blocks, eight are drawn, evenly spaced. Each map has its own scale, from 0 to its maximum.

    Args:
        models: Name of each model, with an image as the model sees it and the maps of its blocks.
        title: Title of the figure.
        path: Path of the image file to write.
    """

    def draw() -> Figure:
        most = min(MAX_BLOCKS, max(len(maps) for _, (_, maps) in models))
        caption = "Modulator: absolute value, averaged over channels, from 0 (dark) to the maximum of each map"
        figure, grid = _grid(len(models), most + 1, models[0][1][0], title, caption)
        for row, (name, (picture, maps)) in zip(grid, models, strict=True):
            _image(row[0], picture, short(name, 26))
            chosen = np.linspace(0, len(maps) - 1, min(len(maps), most)).round().astype(int)
            for axes, block in zip(row[1:], [maps[i] for i in chosen], strict=False):
                kernels = ", ".join(map(str, block.kernels))
                shown = _map(axes, block.modulator, picture, f"{_without_leaf(block.name)}\nkernels {kernels}")
                _colorbar(figure, shown, axes)
            for axes in row[1 + len(chosen) :]:
                axes.axis("off")
        return figure

    return save(draw, path)


def attention_picture(picture: Picture, maps: Sequence[AttentionMaps], title: str, path: Path) -> Figure:
    """Draw the attention of every block: of a query, by head and on average, and averaged over all queries.

    Weights are relative to uniform attention over the cells that the query can attend to, which is 1. The heads of a
    block and their mean have one scale, the mean over queries has its own. Of more than eight heads, eight are drawn,
    evenly spaced.

    Args:
        picture: The image ``(H, W, 3)``.
        maps: Attention of the blocks, one per row.
        title: Title of the figure.
        path: Path of the image file to write.
    """

    def draw() -> Figure:
        most = min(MAX_HEADS, max(len(block.from_query) for block in maps))
        caption = (
            "Weights relative to uniform attention: averaged over all queries and heads, then of the query marked +"
        )
        figure, grid = _grid(len(maps), most + 3, picture, title, caption)
        for row, block in zip(grid, maps, strict=True):
            A, H, W = block.from_query.shape
            _image(row[0], picture, _two_lines(block.name))
            _query(row[0], block.query, (H, W), picture)
            shown = np.linspace(0, A - 1, min(A, most)).round().astype(int)
            relative = block.from_query * block.keys
            top = float(relative.max())
            over_all = _map(row[1], block.mean.mean(axis=0) * (H * W), picture, "all queries")
            _colorbar(figure, over_all, row[1])
            mean = _map(row[2], relative.mean(axis=0), picture, "mean of heads", top)
            _colorbar(figure, mean, row[2])
            for axes, head in zip(row[3:], shown, strict=False):
                _map(axes, relative[head], picture, f"head {head + 1} of {A}", top)
            for axes in row[3 + len(shown) :]:
                axes.axis("off")
        return figure

    return save(draw, path)


def distance_picture(models: Sequence[tuple[str, Sequence[AttentionMaps]]], title: str, path: Path) -> Figure:
    """Draw the mean attention distance of each head by block, one panel per model.

    Args:
        models: Name and blocks of each model.
        title: Title of the figure.
        path: Path of the image file to write.
    """

    def draw() -> Figure:
        widths = [max(4.6, 1.6 + 0.32 * len(blocks)) for _, blocks in models]
        figure = Figure(figsize=(sum(widths), 3.9), dpi=DPI)
        figure.suptitle(printable(title), fontsize=11, fontweight="bold")
        grid = figure.subplots(1, len(models), squeeze=False, width_ratios=widths, sharey=True)[0]
        for axes, (name, blocks) in zip(grid, models, strict=True):
            places = np.arange(len(blocks))
            for i, block in enumerate(blocks):
                axes.plot(np.full(len(block.distance), i), block.distance, "o", color=TRAIN, alpha=0.55, markersize=4)
            axes.plot([], [], "o", color=TRAIN, alpha=0.55, markersize=4, label="a head")
            axes.plot(
                places, [b.distance.mean() for b in blocks], "-", color=TRAIN, linewidth=1.6, label="mean of heads"
            )
            axes.plot(
                places, [b.uniform_distance for b in blocks], "_", color=GRAY, markersize=13, label="uniform attention"
            )
            axes.set_xticks(places, [_without_leaf(block.name) for block in blocks], rotation=90, fontsize=7)
            axes.set_xlim(-0.6, len(blocks) - 0.4)
            axes.set_title(short(name, 34))
            axes.grid(axis="x", visible=False)
        largest = max(float(block.distance.max()) for _, blocks in models for block in blocks)
        largest = max(largest, *(block.uniform_distance for _, blocks in models for block in blocks))
        grid[0].set_ylim(0, 1.06 * largest or 1)  # a single cell has distance 0
        grid[0].set_ylabel("mean attention distance (pixels)")
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
        return figure

    return save(draw, path)


def receptive_field_picture(models: Sequence[tuple[str, Sequence[ReceptiveField]]], title: str, path: Path) -> Figure:
    """Draw effective receptive fields, one row per model and one column per stage, with the 50 % and 95 % radii.

    Axes are in pixels of the network's input. For comparison, the radii of a uniform map are given.

    Args:
        models: Name and receptive fields of each model.
        title: Title of the figure.
        path: Path of the image file to write.
    """

    def draw() -> Figure:
        columns = max(len(fields) for _, fields in models)
        sizes = [fields[0].map.shape for _, fields in models]
        heights = [2.15 * h / w + 0.45 for h, w in sizes]
        figure = Figure(figsize=(2.15 * columns + 1.3, sum(heights) + 0.8), dpi=DPI)
        figure.suptitle(printable(title), fontsize=11, fontweight="bold")
        uniform = [
            f"{size[0]} × {size[1]}: {' / '.join(f'{radius:.3g}' for radius in uniform_radii(size))} px"
            for size in dict.fromkeys(sizes)
        ]
        figure.supxlabel(
            f"Axes: pixels of the network's input. Radii of 50 % / 95 % of a uniform map: {', '.join(uniform)}",
            fontsize=8.5,
        )
        grid = figure.subplots(len(models), columns, squeeze=False, height_ratios=heights)
        norm = LogNorm(SMALLEST_SHOWN, 1)
        for row, (name, fields) in zip(grid, models, strict=True):
            for axes in row[len(fields) :]:
                axes.axis("off")
            for axes, field in zip(row, fields, strict=False):
                values = np.maximum(field.map / field.map.max(), SMALLEST_SHOWN)
                height, width = values.shape
                extent = (0, width, height, 0)
                axes.imshow(values, cmap=FIELD_COLORS, norm=norm, interpolation="nearest", extent=extent)
                _bare(axes)
                axes.set(xticks=[0, width // 2, width], yticks=[0, height // 2, height])
                axes.tick_params(labelsize=6.5, length=2)
                for radius, style in ((field.radius50, "-"), (field.radius95, "--")):
                    center = (field.centroid[1] + 0.5, field.centroid[0] + 0.5)  # of the pixel
                    axes.add_patch(Circle(center, radius, fill=False, color="#7fd4ff", linestyle=style, linewidth=1.1))
                text = f"50 %: {field.radius50:.3g} px, 95 %: {field.radius95:.3g} px"
                axes.set_title(f"{_without_leaf(field.name)}\n{text}", fontsize=7.5, fontweight="normal", loc="center")
            row[0].set_ylabel(short(name, 34), fontsize=8)
        mappable = ScalarMappable(norm, FIELD_COLORS)
        bar = figure.colorbar(mappable, ax=grid, shrink=0.9, aspect=30, pad=0.01, format="{x:g}", extend="min")
        bar.set_label("gradient relative to its maximum", fontsize=8)
        bar.ax.tick_params(labelsize=7)
        return figure

    return save(draw, path)


def spectrum_picture(models: Sequence[tuple[str, Sequence[BlockSpectrum]]], title: str, path: Path) -> Figure:
    """Draw the amplitude of the highest frequency by depth for all models, and the spectrum of each.

    Args:
        models: Name and spectra of each model.
        title: Title of the figure.
        path: Path of the image file to write.
    """

    def draw() -> Figure:
        columns = min(3, len(models) + 1)
        rows = math.ceil((len(models) + 1) / columns)
        figure = Figure(figsize=(4.3 * columns, 3.6 * rows + 0.4), dpi=DPI)
        figure.suptitle(printable(title), fontsize=11, fontweight="bold")
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes in panels[len(models) + 1 :]:
            axes.axis("off")
        mixers: dict[str, str] = {}
        for i, (name, blocks) in enumerate(models):
            color = tuple(value / 255 for value in PALETTE[i % len(PALETTE)])
            depth, high = [block.depth for block in blocks], [block.high for block in blocks]
            panels[0].plot(depth, high, color=color, linewidth=1.5, label=short(name, 34))
            for block in blocks:
                marker = MARKERS.get(block.info.mixer, "^") if block.info.mixer else "."
                panels[0].plot(block.depth, block.high, marker, color=color, markersize=5)
                if block.info.mixer:
                    mixers[block.info.mixer] = marker
            _curves(figure, panels[1 + i], name, blocks)
        for mixer, marker in mixers.items():
            panels[0].plot(
                [], [], marker, color=GRAY, label={"S": "S: modulation", "A": "A: attention"}.get(mixer, mixer)
            )
        odd = any(block.complex_share > 0 for _, blocks in models for block in blocks)
        panels[0].set(
            title="Highest frequency by depth",
            xlabel="depth: 0 is the first block, 1 the last",
            ylabel="Δ log amplitude" + (", less ln(2)/2 on odd grids" if odd else " (natural logarithm)"),
        )
        panels[0].legend(fontsize=7.5)
        return figure

    return save(draw, path)


def class_activation_picture(
    picture: Picture, activation: ClassActivation, label: str, title: str, path: Path
) -> Figure:
    """Draw a class activation map beside and over its image.

    Args:
        picture: The image ``(H, W, 3)``.
        activation: The map.
        label: Name of its class.
        title: Title of the figure.
        path: Path of the image file to write.
    """

    def draw() -> Figure:
        height, width = picture.shape[:2]
        figure = Figure(figsize=(6.6, 2.75 * height / width + 0.75), dpi=DPI)
        figure.suptitle(printable(title), fontsize=10, fontweight="bold")
        left, right = figure.subplots(1, 2)
        _image(left, picture, "")
        left.set_title("image", fontsize=8.5, fontweight="normal", loc="center")
        right.imshow(picture, extent=(0, width, height, 0), alpha=0.55)
        shown = right.imshow(
            activation.upsampled, cmap="inferno", alpha=0.6, extent=(0, width, height, 0), vmin=0,
            interpolation="bilinear",
        )  # fmt: skip
        _bare(right)
        kind = "predicted" if activation.predicted else "given"
        right.set_title(f"{kind}: {short(label, 30)} ({100 * activation.score:.1f} %)", fontsize=8.5,
                        fontweight="normal", loc="center")  # fmt: skip
        _colorbar(figure, shown, right, "Grad-CAM")
        return figure

    return save(draw, path)


def neighbors_picture(
    rows: Sequence[tuple[Picture, str, Sequence[tuple[Image.Image, str]]]], title: str, path: Path
) -> Figure:
    """Draw images with their nearest neighbors.

    Args:
        rows: Per query: the image, its caption, and images and captions of its neighbors, nearest first.
        title: Title of the figure.
        path: Path of the image file to write.
    """

    def draw() -> Figure:
        columns = 1 + max(len(neighbors) for _, _, neighbors in rows)
        figure = Figure(figsize=(1.25 * columns + 0.2, 1.6 * len(rows) + 0.3), dpi=DPI)
        figure.suptitle(printable(title), fontsize=10, fontweight="bold")
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for line, (query, caption, neighbors) in zip(grid, rows, strict=True):
            for axes in line:
                axes.axis("off")
            cells: list[tuple[Any, str]] = [(query, caption), *((np.asarray(image), text) for image, text in neighbors)]
            for i, (axes, (image, text)) in enumerate(zip(line, cells, strict=False)):
                axes.axis("on")
                _bare(axes)
                axes.set_anchor("N")
                axes.imshow(image, interpolation=_interpolation(image))
                axes.set_title(text, fontsize=6.5, fontweight="normal", loc="center")
                if i == 0:
                    axes.spines[:].set(visible=True, color=EVAL, linewidth=2)
        return figure

    return save(draw, path)


def _grid(rows: int, columns: int, picture: Picture, title: str, caption: str) -> tuple[Figure, Any]:
    height, width = picture.shape[:2]
    size = (CELL * columns + 1.5, (CELL * height / width + 0.28) * rows + 0.7)
    figure = Figure(figsize=size, dpi=DPI)
    figure.suptitle(printable(title), fontsize=11, fontweight="bold")
    figure.supxlabel(caption, fontsize=8.5)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _interpolation(picture: Picture) -> str:
    """Small images are drawn with visible pixels."""
    return "nearest" if max(picture.shape[:2]) < 160 else "antialiased"


def _image(axes: Axes, picture: Picture, label: str) -> None:
    height, width = picture.shape[:2]
    axes.imshow(picture, extent=(0, width, height, 0), interpolation=_interpolation(picture))
    _bare(axes)
    axes.set_ylabel(label, fontsize=7.5)


def _map(axes: Axes, values: Any, picture: Picture, name: str, top: float | None = None) -> Any:
    height, width = picture.shape[:2]
    extent = (0, width, height, 0)
    interpolation = "nearest" if max(values.shape) <= SMALL_GRID else "bilinear"
    shown = axes.imshow(values, cmap=MAP_COLORS, extent=extent, interpolation=interpolation, vmin=0, vmax=top)
    _bare(axes)
    axes.set_title(name, fontsize=7.5, fontweight="normal", loc="center")
    return shown


def _query(axes: Axes, cell: tuple[int, int], grid: tuple[int, int], picture: Picture) -> None:
    """Mark the center of the query's cell."""
    height, width = picture.shape[:2]
    x, y = (cell[1] + 0.5) * width / grid[1], (cell[0] + 0.5) * height / grid[0]
    axes.plot(x, y, "+", color="white", markersize=11, markeredgewidth=3)
    axes.plot(x, y, "+", color="#d1262b", markersize=10, markeredgewidth=1.5)


def _colorbar(figure: Figure, shown: Any, axes: Axes, label: str = "") -> None:
    bar = figure.colorbar(shown, ax=axes, fraction=0.05, pad=0.03, label=label)
    bar.ax.tick_params(labelsize=6.5)
    bar.outline.set_visible(False)
    bar.ax.yaxis.label.set_fontsize(7.5)


def _curves(figure: Figure, axes: Axes, name: str, blocks: Sequence[BlockSpectrum]) -> None:
    norm = Normalize(0, 1)
    colors = ScalarMappable(norm, MAP_COLORS)
    for block in blocks:
        axes.plot(block.frequencies, block.log_amplitude, color=colors.cmap(norm(block.depth)), linewidth=1.1)
    axes.set(
        title=short(name, 34),
        xlabel="frequency on the diagonal (π per cell)",
        ylabel="Δ log amplitude (natural logarithm)",
    )
    bar = figure.colorbar(colors, ax=axes, pad=0.02)
    bar.set_label("depth", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _without_leaf(name: str) -> str:
    """The block's path without the name of its mixer."""
    head, _, leaf = name.rpartition(".")
    return head if head and not leaf.isdigit() else name


def _two_lines(name: str) -> str:
    stage, _, block = _without_leaf(name).rpartition(".blocks")
    return f"{stage}\nblocks{block}" if stage else _without_leaf(name)
