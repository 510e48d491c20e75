"""Style of all pictures; figures are created without pyplot's global state and need no display.

matplotlib is imported by the first picture: prediction imports this module and draws none.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_atomic
from ..text import printable

if TYPE_CHECKING:
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
    "pdf.fonttype": 42,  # TrueType: publishers reject Type 3 fonts
    "ps.fonttype": 42,
    "svg.hashsalt": "smt-vision",  # the same picture is the same file
    "text.parse_math": False,  # class and file names may contain a $
}
WITHOUT_DATE: dict[str, dict[str, None]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
TRAIN, EVAL, BEST, GRAY = "#3b6fb6", "#d1662b", "#2a8f5b", "#666f7a"


def save(draw: Callable[[], "Figure"], path: Path) -> "Figure":
    """Create a figure by calling ``draw`` in the package's style, and write it to ``path``."""
    from matplotlib import rc_context

    with rc_context(STYLE), warnings.catch_warnings():
        # Names may be in a script that the font lacks; its characters are drawn as boxes.
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from font")
        figure = draw()
        metadata = WITHOUT_DATE.get(path.suffix)
        write_atomic(path, lambda part: figure.savefig(part, metadata=metadata))
    return figure


def short(name: str, length: int = 22) -> str:
    """A name for a picture: printable, and a long one shortened in the middle, because fine-grained class names and
    file names differ at their ends."""
    name = printable(name)
    if len(name) <= length:
        return name
    head = length // 3
    return f"{name[:head]}…{name[head + 1 - length :]}"
