"""Pictures and reports that take no time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from smt_vision.pictures import style

SAVE = Figure.savefig
LAYOUT = "figure.constrained_layout.use"  # takes half of the time of those that are written


@contextmanager
def no_pictures() -> Iterator[None]:
    """Write blank PNG files instead of figures, and other formats without matplotlib's constrained layout."""

    def savefig(figure: Figure, path: Any, **options: Any) -> None:
        if Path(path).suffix == ".png":
            Image.new("RGB", (8, 8)).save(path)
        else:
            SAVE(figure, path, **options)

    Figure.savefig, style.STYLE[LAYOUT] = savefig, False  # type: ignore[method-assign]
    try:
        yield
    finally:
        Figure.savefig, style.STYLE[LAYOUT] = SAVE, True  # type: ignore[method-assign]


@contextmanager
def without_report() -> Iterator[None]:
    """Runs end without pictures and a summary, which take as long as their training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smt_vision.engine.loop.write_report", lambda run, command: None)
        yield
