"""What all pictures share: colors, and figures that touch no global state of pyplot and need no display."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

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


def save(draw: Callable[[], Figure], path: Path) -> Figure:
    """Write the figure that ``draw`` makes, in the package's style."""
    with rc_context(STYLE):
        figure = draw()
        figure.savefig(path)
    return figure


def short(name: str, length: int = 22) -> str:
    """The name without its middle where it is long: names of fine classes, and files, differ at their ends."""
    if len(name) <= length:
        return name
    head = length // 3
    return f"{name[:head]}…{name[head + 1 - length :]}"
