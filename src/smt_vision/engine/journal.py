"""Everything a run writes down while it goes: JSON lines, TensorBoard and a live display."""

import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TextIO

import numpy as np
from PIL import Image
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

LOG_NAME = "log.jsonl"
LIVE_SECONDS = 0.25  # between two refreshes of a terminal
PLAIN_SECONDS = 30.0  # between two lines where there is no terminal
FIRST_PLAIN_SECONDS = 5.0
LOSSES_SHOWN = 20  # the loss shown is the mean of the latest ones
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # numbers that JSON cannot write


class Journal:
    """A run's written record.

    ``log.jsonl`` holds one JSON object a line, flushed as it is written: ``kind`` is ``train``, ``eval``, ``note`` or
    ``resume``, ``time`` is in seconds since 1970. ``tensorboard/`` holds the same numbers. A terminal shows them live;
    elsewhere (``nohup``, CI) there is one plain line every 30 seconds, and one for each evaluation.

    Args:
        folder: the run's folder; made if need be.
        total_steps: updates of the whole run.
        total_epochs: epochs of the whole run.
        headline: the metric, in percent, that says which evaluation is best.
        label: what it is called on the display.
        display: write to the standard output at all.
        start_step: the last step already done, where a run resumes; ``read_log`` drops what was written beyond it.
        active: ``False`` on all processes but the first: every method then does nothing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        total_steps: int,
        total_epochs: int,
        headline: str,
        label: str,
        display: bool,
        start_step: int = 0,
        active: bool = True,
    ) -> None:
        self._active = active
        if not active:
            return
        self._total_steps, self._total_epochs = total_steps, total_epochs
        self._headline, self._label = headline, label
        self._start_step = self._step = start_step
        self._values: dict[str, float | Tensor] = {}  # the latest of each name, for the display
        self._losses: deque[float | Tensor] = deque(maxlen=LOSSES_SHOWN)  # since the last evaluation
        self._best = -math.inf
        self._started = time.monotonic()

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / LOG_NAME
        _cut_torn_line(log)
        begun = log.exists() and log.stat().st_size > 0
        self._file: TextIO = log.open("a", encoding="utf-8", buffering=1)
        if begun or start_step:
            self._write("resume", step=start_step)
            self._best = max((line[headline] for line in read_log(folder) if headline in line), default=-math.inf)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)

        self._console = Console(markup=False, highlight=False, soft_wrap=True)
        self._display = display
        self._live: Live | None = None
        self._next_show = self._started + FIRST_PLAIN_SECONDS
        if display and sys.stdout.isatty() and not self._console.is_dumb_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), auto_refresh=False
            )
            self._bar = self._bars.add_task("training", total=total_steps, completed=start_step)
            # refreshed by our own calls: a refreshing thread could hold its lock while loader workers are forked
            self._live = Live(get_renderable=self._picture, console=self._console, auto_refresh=False)
            self._live.start(refresh=True)
            self._next_show = self._started

    def step(self, step: int, epoch: float, **values: float) -> None:
        """Records an update: a ``train`` line, TensorBoard ``train/NAME``, and the display.

        Args:
            step: updates done.
            epoch: epochs done, as 1.25.
            values: as loss, the sum of a task's losses, lr, images_per_s, grad_norm, data_share.
        """
        if not self._active:
            return
        numbers = {name: float(value) for name, value in values.items()}
        self._write("train", step=step, epoch=epoch, **numbers)
        for name, number in numbers.items():
            self._board.add_scalar(f"train/{name}", number, step)
        self.progress(step, **numbers)

    def progress(self, step: int, **values: float | Tensor) -> None:
        """Shows an update and writes nothing down; for every step.

        Args:
            step: updates done.
            values: as in ``step``; a tensor of one element is read only when it is shown, so that no step waits for
                the GPU.
        """
        if not self._active or not self._display:
            return
        self._step = step
        self._values.update(values)
        if "loss" in values:
            self._losses.append(values["loss"])
        if time.monotonic() >= self._next_show:
            self._show()

    def evaluation(self, step: int, epoch: int, metrics: dict[str, Any]) -> None:
        """Records an evaluation: an ``eval`` line, TensorBoard ``eval/NAME``, and a line that stays on the display.

        Args:
            step: updates done.
            epoch: epochs done.
            metrics: by name; percent, or nats for ``loss``. Only those that are numbers are written. A headline
                above all before is marked with a star.
        """
        if not self._active:
            return
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        self._write("eval", step=step, epoch=epoch, **numbers)
        for name, number in numbers.items():
            self._board.add_scalar(f"eval/{name}", number, step)
        self._board.flush()
        self._step = step
        parts = [f"epoch {epoch:>{len(str(self._total_epochs))}}/{self._total_epochs}"]
        if self._losses:
            parts.append(f"train loss {self._loss():.4f}")
            self._losses.clear()
        if "loss" in numbers:
            parts.append(f"eval loss {numbers['loss']:.4f}")
        if (score := numbers.get(self._headline)) is not None:
            star = "*" if score > self._best else " "
            self._best = max(self._best, score)
            parts.append(f"{self._label} {score:.2f} %{star}")
            parts.append(f"best {self._best:.2f} %")
        parts.append(_clock(time.monotonic() - self._started))
        self._say("  ".join(parts))

    def note(self, message: str, **values: Any) -> None:
        """Records something in words: a ``note`` line, and a line that stays on the display.

        Args:
            message: one line.
            values: further fields of the JSON line; what JSON cannot hold is written as ``str`` gives it.
        """
        if not self._active:
            return
        self._write("note", message=message, **values)
        self._say("  ".join([message, *(f"{name}={value}" for name, value in values.items())]))

    def image(self, name: str, step: int, picture: Path | Tensor) -> None:
        """Puts a picture into TensorBoard.

        Args:
            name: of the picture.
            step: updates done.
            picture: an image file, or a (C, H, W) tensor of floats in [0, 1] or of bytes.
        """
        if not self._active:
            return
        if isinstance(picture, Tensor):
            self._board.add_image(name, picture, step)
        else:
            with Image.open(picture) as image:
                self._board.add_image(name, np.array(image.convert("RGB")), step, dataformats="HWC")

    @contextmanager
    def evaluating(self, total: int) -> Iterator[Callable[[int], None]]:
        """A second bar while an evaluation runs; gives ``advance(n)``, to be called with the images just done.

        Args:
            total: images this process evaluates.
        """
        if not self._active or self._live is None:
            yield lambda n: None
            return
        bar = self._bars.add_task("evaluating", total=total)

        def advance(n: int) -> None:
            self._bars.advance(bar, n)
            if time.monotonic() >= self._next_show:
                self._show()

        try:
            yield advance
        finally:
            self._bars.remove_task(bar)

    def close(self) -> None:
        """Ends the display and closes the files; a second call does nothing."""
        if not self._active:
            return
        self._active = False
        if self._live is not None:
            self._show()
            self._live.stop()
        self._board.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write(self, kind: str, **values: Any) -> None:
        fields = {"kind": kind, "time": round(time.time(), 3), **values}
        plain = {name: _plain(value) for name, value in fields.items()}
        self._file.write(json.dumps(plain, ensure_ascii=False, allow_nan=False, default=str) + "\n")

    def _say(self, line: str) -> None:
        if not self._display:
            return
        if self._live is None:
            print(line, flush=True)
        else:
            self._console.print(line)  # above the bars

    def _show(self) -> None:
        if self._live is None:
            print(self._status(), flush=True)
            self._next_show = time.monotonic() + PLAIN_SECONDS
        else:
            self._bars.update(self._bar, completed=self._step)
            self._live.refresh()
            self._next_show = time.monotonic() + LIVE_SECONDS

    def _loss(self) -> float:
        losses = self._losses or [self._values["loss"]]  # just after an evaluation: the one before it
        return sum(float(loss) for loss in losses) / len(losses)

    def _picture(self) -> Group:
        return Group(self._bars, Text(self._status(), no_wrap=True, overflow="ellipsis"))

    def _status(self) -> str:
        done = self._step - self._start_step
        elapsed = time.monotonic() - self._started
        epoch = min(self._step * self._total_epochs // max(self._total_steps, 1) + 1, self._total_epochs)
        parts = [f"epoch {epoch}/{self._total_epochs}"]
        if self._live is None:  # the bar shows it
            parts.append(f"step {self._step}/{self._total_steps}")
        if "loss" in self._values:
            parts.append(f"loss {self._loss():.4f}")
        if "lr" in self._values:
            parts.append(f"lr {float(self._values['lr']):.2e}")
        if "images_per_s" in self._values:
            parts.append(f"{float(self._values['images_per_s']):.0f} images/s")
        if math.isfinite(self._best):
            parts.append(f"best {self._best:.2f} %")
        parts.append(_clock(elapsed))
        if done > 0 and self._step < self._total_steps:
            parts.append(f"{_clock(elapsed / done * (self._total_steps - self._step))} left")
        return "  ".join(parts)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``log.jsonl``, in order, without those that a resumed run did again.

    A line cut short by the end of the process is left out. Numbers that JSON cannot write come back as floats.

    Args:
        folder: the run's folder.

    Raises:
        FileNotFoundError: the folder holds no log.
        ValueError: a line other than the last is not JSON.
    """
    path = Path(folder) / LOG_NAME
    if not path.exists():
        raise FileNotFoundError(f"no {LOG_NAME} in {folder}: is it the folder of a training run?")
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(texts, start=1):
        if not text:
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            if number == len(texts):  # no newline follows: the process was ended as it wrote
                break
            raise ValueError(f"{path}, line {number} is not JSON ({error}): {text[:80]!r}") from error
        line = {name: NOT_FINITE.get(value, value) if isinstance(value, str) else value for name, value in line.items()}
        if line["kind"] == "resume":
            lines = [earlier for earlier in lines if earlier.get("step", 0) <= line["step"]]
        lines.append(line)
    return lines


def _cut_torn_line(log: Path) -> None:
    """Removes what follows the last newline, so that the next line does not continue a torn one."""
    if log.exists():
        content = log.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with log.open("r+b") as file:
                file.truncate(whole)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
