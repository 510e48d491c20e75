"""Training progress on the standard output: live bars on a terminal, plain lines elsewhere. Writes no files."""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text
from torch import Tensor

from ..text import printable

LIVE_SECONDS = 0.25  # between two refreshes of a terminal
PLAIN_SECONDS = 30.0  # between two status lines where there is no terminal
FIRST_PLAIN_SECONDS = 5.0
LOSSES_SHOWN = 20  # the loss shown is the mean over this many of the latest steps


class PlainDisplay:
    """One status line every 30 seconds, and one line per evaluation and note: for log files, ``nohup`` and CI.

    Args:
        total_steps: Optimizer steps of the whole run.
        total_epochs: Epochs of the whole run.
        primary_metric: Name of the metric, in percent, that decides which evaluation is best.
        label: How the primary metric is displayed.
        start_step: The last step already done.
        best: The primary metric's best value so far; ``-inf`` for none.
    """

    def __init__(
        self, *, total_steps: int, total_epochs: int, primary_metric: str, label: str, start_step: int, best: float
    ) -> None:
        self._total_steps, self._total_epochs = total_steps, total_epochs
        self._primary_metric, self._label = primary_metric, label
        self._start_step = self._step = start_step
        self._best = best
        self._values: dict[str, float | Tensor] = {}  # the latest of each name
        self._losses: deque[float | Tensor] = deque(maxlen=LOSSES_SHOWN)  # since the last evaluation
        self._started = time.monotonic()
        self._next_refresh = self._started + FIRST_PLAIN_SECONDS

    def progress(self, step: int, **values: float | Tensor) -> None:
        """Show a step; cheap enough to call at every step.

        Args:
            step: Optimizer steps done.
            values: Any of ``loss``, ``lr`` and ``images_per_s``. A tensor of one element is read only when it is
                displayed, so that no step waits for the GPU.
        """
        self._step = step
        self._values.update(values)
        if "loss" in values:
            self._losses.append(values["loss"])
        if time.monotonic() >= self._next_refresh:
            self._refresh()

    def evaluation(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Print the result of an evaluation; a star marks a primary metric above all earlier ones."""
        self._step = step
        parts = [f"epoch {epoch:>{len(str(self._total_epochs))}}/{self._total_epochs}"]
        if self._losses:
            parts.append(f"train loss {self._mean_loss():.4f}")
            self._losses.clear()
        if "loss" in metrics:
            parts.append(f"eval loss {metrics['loss']:.4f}")
        if (value := metrics.get(self._primary_metric)) is not None:
            star = "*" if value > self._best else " "
            self._best = max(self._best, value)
            parts.append(f"{self._label} {value:.2f} %{star}")
            parts.append(f"best {self._best:.2f} %")
        parts.append(_clock(time.monotonic() - self._started))
        self.line("  ".join(parts))

    def line(self, text: str) -> None:
        """Print a line that stays."""
        print(printable(text), flush=True)

    @contextmanager
    def evaluating(self, total: int) -> Iterator[Callable[[int], None]]:
        """Show the progress of an evaluation; gives ``on_progress(n)``, to be called with the batches just done."""
        yield lambda n: None

    def close(self) -> None:
        """Leave the terminal as it was."""

    def _refresh(self) -> None:
        print(self._status(f"step {self._step}/{self._total_steps}"), flush=True)
        self._next_refresh = time.monotonic() + PLAIN_SECONDS

    def _mean_loss(self) -> float:
        losses = self._losses or [self._values["loss"]]  # just after an evaluation: the one before it
        return sum(float(loss) for loss in losses) / len(losses)

    def _status(self, *parts: str) -> str:
        """The run's state in one line, ``parts`` after the epoch."""
        done = self._step - self._start_step
        elapsed = time.monotonic() - self._started
        epoch = min(self._step * self._total_epochs // max(self._total_steps, 1) + 1, self._total_epochs)
        shown = [f"epoch {epoch}/{self._total_epochs}", *parts]
        if "loss" in self._values:
            shown.append(f"loss {self._mean_loss():.4f}")
        if "lr" in self._values:
            shown.append(f"lr {float(self._values['lr']):.2e}")
        if "images_per_s" in self._values:
            shown.append(f"{float(self._values['images_per_s']):.0f} images/s")
        if math.isfinite(self._best):
            shown.append(f"best {self._best:.2f} %")
        shown.append(_clock(elapsed))
        if done > 0 and self._step < self._total_steps:
            shown.append(f"{_clock(elapsed / done * (self._total_steps - self._step))} left")
        return "  ".join(shown)


class LiveDisplay(PlainDisplay):
    """Progress bars of training and evaluation with the status below them, refreshed in place on a terminal.

    Args:
        console: The terminal.
        state: As :class:`PlainDisplay` takes it.
    """

    def __init__(self, console: Console, *, total_steps: int, start_step: int, **state: Any) -> None:
        super().__init__(total_steps=total_steps, start_step=start_step, **state)
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), auto_refresh=False
        )
        self._bar = self._bars.add_task("training", total=total_steps, completed=start_step)
        # Refreshed by our own calls: a refreshing thread could hold its lock while loader workers are forked.
        self._live = Live(get_renderable=self._render, console=console, auto_refresh=False)
        self._live.start(refresh=True)
        self._next_refresh = self._started

    def line(self, text: str) -> None:
        self._console.print(printable(text))  # above the bars

    @contextmanager
    def evaluating(self, total: int) -> Iterator[Callable[[int], None]]:
        bar = self._bars.add_task("evaluating", total=total)

        def on_progress(n: int) -> None:
            self._bars.advance(bar, n)
            if time.monotonic() >= self._next_refresh:
                self._refresh()

        try:
            yield on_progress
        finally:
            self._bars.remove_task(bar)

    def close(self) -> None:
        self._refresh()
        self._live.stop()

    def _refresh(self) -> None:
        self._bars.update(self._bar, completed=self._step)
        self._live.refresh()
        self._next_refresh = time.monotonic() + LIVE_SECONDS

    def _render(self) -> Group:
        return Group(self._bars, Text(self._status(), no_wrap=True, overflow="ellipsis"))


def open_display(**state: Any) -> PlainDisplay:
    """The display that suits the standard output; arguments as :class:`PlainDisplay` takes them."""
    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
    if sys.stdout.isatty() and not console.is_dumb_terminal:
        return LiveDisplay(console, **state)
    return PlainDisplay(**state)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
