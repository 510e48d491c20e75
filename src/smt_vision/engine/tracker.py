"""Everything that a run records and shows while it trains, behind one object."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image
from torch import Tensor

from ..signals import Stopped
from ..text import get_logger
from .display import PlainDisplay, open_display
from .log import TrainingLog
from .loggers import ExperimentLogger, build_loggers

log = get_logger(__name__)


class RunTracker:
    """Passes a run's numbers to the training log, the experiment loggers and the display.

    Args:
        folder: The run's folder; created if missing.
        loggers: Experiment loggers by name.
        config: The recipe as one flat dictionary, which the loggers record.
        total_steps: Optimizer steps of the whole run.
        total_epochs: Epochs of the whole run.
        primary_metric: Name of the metric, in percent, that decides which evaluation is best.
        label: How the primary metric is displayed.
        start_step: The last step already done, where a run resumes.
        best: The primary metric's best value so far; ``-inf`` for none.
        display: Whether to show progress on the standard output.
        active: ``False`` on all processes but the first: every method then does nothing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        loggers: Sequence[str],
        config: Mapping[str, Any],
        total_steps: int,
        total_epochs: int,
        primary_metric: str,
        label: str,
        start_step: int = 0,
        best: float = -math.inf,
        display: bool = True,
        active: bool = True,
    ) -> None:
        self._active = active
        if not active:
            return
        self._log = TrainingLog(folder, start_step)
        self._loggers: list[ExperimentLogger] = []
        for name in loggers:
            try:
                self._loggers += build_loggers([name], folder, config, start_step)
            except Exception as error:
                # A server that does not answer now should not end a run that was going on.
                if not start_step or isinstance(error, ValueError):
                    self._log.close()
                    raise
                self._drop(name, error)
        self._display = (
            open_display(
                total_steps=total_steps,
                total_epochs=total_epochs,
                primary_metric=primary_metric,
                label=label,
                start_step=start_step,
                best=best,
            )
            if display
            else None
        )

    def _show(self, write: Callable[[PlainDisplay], None]) -> None:
        """Write to the display, if there is one: training goes on without it after an error, e.g. of a closed pipe."""
        if self._display is None:
            return
        try:
            write(self._display)
        except (OSError, SystemExit) as error:  # the latter is what rich makes of a broken pipe
            self._display = None
            self._log.write("note", message=f"nothing is displayed any more: {error!r}")

    def _tell(self, write: Callable[[ExperimentLogger], None]) -> None:
        """Write to every logger: training goes on without one after an error, e.g. of a server that does not answer."""
        for logger in list(self._loggers):
            try:
                write(logger)
            except Exception as error:  # loggers raise those of their libraries
                self._loggers.remove(logger)
                self._drop(type(logger).__name__, error)

    def _drop(self, name: str, error: Exception) -> None:
        message = f"{name} records nothing any more: {type(error).__name__}: {error}"
        log.warning("%s", message)
        self._log.write("note", message=message)

    def step(self, step: int, epoch: float, **values: float) -> None:
        """Record an optimizer step: a ``train`` line, ``train/NAME`` for the loggers, and the display.

        Args:
            step: Optimizer steps done.
            epoch: Epochs done, e.g. 1.25.
            values: E.g. loss (the sum of a task's losses), lr, images_per_s, grad_norm.
        """
        if not self._active:
            return
        numbers = {name: float(value) for name, value in values.items()}
        self._log.write("train", step=step, epoch=epoch, **numbers)
        self._tell(lambda logger: logger.log_metrics({f"train/{name}": x for name, x in numbers.items()}, step))
        self.progress(step, **numbers)

    def progress(self, step: int, **values: float | Tensor) -> None:
        """Show an optimizer step without recording it; for every step. Arguments as of :meth:`step`."""
        if self._active:
            self._show(lambda display: display.progress(step, **values))

    def evaluation(self, step: int, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Record an evaluation: an ``eval`` line, ``eval/NAME`` for the loggers, and a line on the display.

        Args:
            step: Optimizer steps done.
            epoch: Epochs done.
            metrics: By name; percent, or nats for ``loss``. Those that are not numbers are left out.
        """
        if not self._active:
            return
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        self._log.write("eval", step=step, epoch=epoch, **numbers)
        self._tell(lambda logger: logger.log_metrics({f"eval/{name}": x for name, x in numbers.items()}, step))
        self._tell(lambda logger: logger.save())
        self._show(lambda display: display.evaluation(step, epoch, numbers))

    def note(self, message: str, **values: Any) -> None:
        """Record a message of one line, with further fields: a ``note`` line, and a line on the display."""
        if not self._active:
            return
        self._log.write("note", message=message, **values)
        text = "  ".join([message, *(f"{name}={value}" for name, value in values.items())])
        self._show(lambda display: display.line(text))

    def image(self, name: str, step: int, path: Path) -> None:
        """Pass an image file to the loggers."""
        if self._active and self._loggers:
            with Image.open(path, formats=["PNG"]) as image:
                pixels = np.array(image.convert("RGB"))
            self._tell(lambda logger: logger.log_image(name, pixels, step))

    @contextmanager
    def evaluating(self, total: int) -> Iterator[Callable[[int], None]]:
        """Show the progress of an evaluation; gives ``on_progress(n)``, to be called with the batches just done.

        Args:
            total: Batches that this process evaluates.
        """
        if not self._active or self._display is None:
            yield lambda n: None
            return
        with self._display.evaluating(total) as on_progress:
            yield lambda n: self._show(lambda display: on_progress(n))

    def close(self, status: str = "success") -> None:
        """End the display, the loggers and the log; a second call does nothing.

        Args:
            status: How the run ended: ``success``, ``failed`` or ``aborted``.
        """
        if not self._active:
            return
        self._active = False
        self._show(lambda display: display.close())
        self._tell(lambda logger: logger.finalize(status))
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        stopped = isinstance(error, Stopped | KeyboardInterrupt)
        self.close("success" if error is None else "aborted" if stopped else "failed")
