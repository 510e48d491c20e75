"""Progress of a command: written to standard error, and only if that is a terminal."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .console import styled

T = TypeVar("T")


@contextmanager
def progress_callback(description: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar that is updated by calling the yielded function with the number done and the total.

    The bar is drawn in these calls only, not by a background thread, so that it does not disturb timings.
    """
    with _progress_bar(auto_refresh=False) as bar:
        task = bar.add_task(description, total=None)

        def on_progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, refresh=True)

        yield on_progress


def track(iterable: Iterable[T], total: int, description: str) -> Iterator[T]:
    """Iterate with a progress bar over ``total`` items."""
    with _progress_bar() as bar:
        yield from bar.track(iterable, total=total, description=description)


@contextmanager
def status_callback() -> Iterator[Callable[[str], None]]:
    """Show a status line that is set by calling the yielded function with the step that begins."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    with Console(stderr=True).status("") as status:
        yield lambda text: status.update(styled(text))


def _progress_bar(auto_refresh: bool = True) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        auto_refresh=auto_refresh,
        transient=True,
        disable=not sys.stderr.isatty(),
    )
