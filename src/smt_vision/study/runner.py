"""Training the cells of studies: a process per cell, several at a time, resumed where they were stopped."""

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from ..bounds import Processes, checked
from ..engine.launch import runs_on_cuda
from ..engine.log import LOG_NAME, read_log
from ..recipe import Recipe
from ..recipe_files import write_recipe
from ..signals import Stopped, blocked_stop_signals, stop_signals
from ..tasks import get_task
from ..tasks.build import create_model
from ..tasks.task import Training
from . import process
from .estimate import PassTimes
from .results import FAILURES, RESULTS, CellResult, add_failure, add_result, read_result, read_results
from .study import Cell, model_key, passes, with_data

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Progress:
    """State of the runner, for a progress display.

    Args:
        done: Cells with a result, including those that had one before.
        total: All cells.
        running: Fraction of each running cell that is done, by label.
        finished: The cell that has just finished, with its result.
        failed: The cell that has just failed, with the reason.
        seconds_left: Estimated time to the end; ``None`` before there is anything to estimate it from.
    """

    done: int
    total: int
    running: Mapping[str, float]
    finished: tuple[Cell, CellResult] | None = None
    failed: tuple[Cell, str] | None = None
    seconds_left: float | None = None


class StudyStopped(Stopped):
    """The runner received a signal; the running cells have saved themselves."""

    def __init__(self, number: int, done: int, total: int) -> None:
        super().__init__(f"stopped with {done} of {total} cells done; the same command continues", number)


class CellsFailed(RuntimeError):
    """Some cells failed; all others have results."""


def unique_cells(cells: Sequence[Cell]) -> list[Cell]:
    """The cells without those that train the same recipe as an earlier one, in the same order."""
    first: dict[str, Cell] = {}
    for cell in cells:
        first.setdefault(cell.key, cell)
    return list(first.values())


def cell_folder(folder: Path, cell: Cell) -> Path:
    """The folder of a cell's run."""
    return folder / "cells" / cell.key


@checked
def run_cells(
    cells: Sequence[Cell],
    folder: Path,
    *,
    data: Mapping[str, str] | None = None,
    files: Sequence[Path] = (),
    jobs: Processes = 1,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, CellResult]:
    """Train the cells that have no result yet.

    A cell is a process, with one thread on a CPU, or with a GPU of its own where there are several. It has a folder,
    ``cells/KEY``, from which it continues after a stop. Results are appended to ``results.jsonl`` as they come. SIGINT
    and SIGTERM stop the running cells after their current step, with a checkpoint.

    Args:
        cells: The cells; those with equal recipes are trained once.
        folder: Folder of the results and of all runs.
        data: Path of the dataset, by the name that recipes have for it.
        files: Python files that every process imports, e.g. those of the studies, which may register networks.
        jobs: Cells that are trained at the same time.
        on_progress: Called when a cell has finished or failed, and twice per second.

    Returns:
        The results of all cells, by key.

    Raises:
        ValueError: ``jobs`` is below 1, another process runs studies in this folder, a network or dataset is invalid
            (see :func:`check_cells`), or cells in this folder were evaluated on other images than those of ``data``.
        CellsFailed: Some cells failed. The others were trained nevertheless.
        StudyStopped: A signal was received.
    """
    cells = unique_cells(cells)
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder), stop_signals() as signals:
        runner = _Runner(cells, folder, data or {}, files, jobs, on_progress)
        check_cells(runner.waiting, runner.data)
        _check_images(cells, runner.results, runner.data, folder)
        try:
            while runner.running or (runner.waiting and not signals):
                if signals:
                    runner.stop(signals.received[0])
                else:
                    runner.start()
                time.sleep(POLL_SECONDS)
                runner.collect()
        finally:
            runner.stop(signal.SIGTERM)
            runner.join()
    if signals:
        raise StudyStopped(signals.received[0], runner.done, runner.total)
    if runner.failed:
        reasons = "; ".join(f"{cell.label}: {reason}" for cell, reason in runner.failed)
        raise CellsFailed(
            f"{len(runner.failed)} of {len(cells)} cells failed: {reasons}. The same command tries them again"
        )
    return {cell.key: runner.results[cell.key] for cell in cells}


def check_cells(cells: Sequence[Cell], data: Mapping[str, str]) -> None:
    """Build every network, without memory for its weights, and open every dataset, before anything is trained.

    Args:
        cells: The cells.
        data: Path of the dataset, by the name that recipes have for it.

    Raises:
        ValueError: A network cannot be built; the message names the cell.
        Exception: A dataset cannot be opened, as ``smt train`` says it.
    """
    for cell in {model_key(cell.recipe): cell for cell in cells}.values():
        try:
            with torch.device("meta"):
                create_model(cell.recipe.model, **cell.recipe.model_args)
        except ValueError as error:
            raise ValueError(f"{cell.label}: {error}") from error
        except (NotImplementedError, RuntimeError):  # a network that computes with its weights when it is built
            continue
    for cell in {cell.recipe.data: cell for cell in cells}.values():
        open_training(cell, data)


def _check_images(
    cells: Sequence[Cell], results: Mapping[str, CellResult], data: Mapping[str, str], folder: Path
) -> None:
    """Raise if finished cells were trained or evaluated on other data than what is there now.

    The content of training images is not compared, which takes long: their names and labels are.
    """
    for name in dict.fromkeys(cell.recipe.data for cell in cells):
        finished = [cell for cell in cells if cell.recipe.data == name and cell.key in results]
        images = {results[cell.key].val_images for cell in finished} - {""}
        listed = next((cell for cell in finished if results[cell.key].listing), None)
        other = ""
        if images and process.hash_of_images(open_training(finished[0], data).val_set) not in images:
            other = "validation images"
        elif listed and process.hash_of_listing(open_training(listed, data)) != results[listed.key].listing:
            other = "images or labels"
        if other:
            raise ValueError(
                f"{folder}: its results of {name} are of other {other} than those of {data.get(name, name)} are now; "
                "choose another folder (--run)"
            )


def open_training(cell: Cell, data: Mapping[str, str]) -> Training:
    """The training of a cell's recipe, with its dataset opened and its network built with random weights."""
    recipe = replace(with_data(cell.recipe, data), pretrained=False, checkpoint=None)
    return get_task(recipe.task).training(recipe)


@dataclass
class _Running:
    cell: Cell
    folder: Path
    process: Any  # multiprocessing's Process of the start method
    slot: int


class _Runner:
    """The cells that wait, run and have failed, and the results so far."""

    def __init__(
        self,
        cells: Sequence[Cell],
        folder: Path,
        data: Mapping[str, str],
        files: Sequence[Path],
        jobs: int,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.folder, self.data, self.files, self.jobs, self.on_progress = folder, data, files, jobs, on_progress
        self.total = len(cells)
        self.results = read_results([folder / RESULTS])
        self.waiting = [cell for cell in cells if cell.key not in self.results]
        self.done = self.total - len(self.waiting)
        self.running: list[_Running] = []
        self.failed: list[tuple[Cell, str]] = []
        self._stopped = False
        self._times = PassTimes()  # of the cells that were trained
        # Processes are forked from a clean one that has imported everything, which takes longer than a tiny cell.
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(
            [process.__name__, "torchmetrics.classification", "matplotlib.backends.backend_agg"]
        )

    def start(self) -> None:
        """Start as many waiting cells as there are free jobs."""
        while self.waiting and len(self.running) < self.jobs:
            slot = min(set(range(self.jobs)) - {each.slot for each in self.running})
            cell = self.waiting.pop(0)
            own = cell_folder(self.folder, cell)
            own.mkdir(parents=True, exist_ok=True)
            recipe = with_data(cell.recipe, self.data)
            write_recipe(recipe, own / process.RECIPE)
            (own / process.RESULT).unlink(missing_ok=True)
            child = self._context.Process(
                target=process.train_cell, args=(own, cell.key, cell.label, _device(recipe, slot), self.files)
            )
            with blocked_stop_signals():  # for the server that forks the cells, which the first one starts
                child.start()
            self.running.append(_Running(cell, own, child, slot))

    def stop(self, number: int) -> None:
        """Send a signal to the running processes, once: a second one would end them without a checkpoint."""
        if not self._stopped:
            self._stopped = True
            for each in self.running:
                if each.process.is_alive():
                    os.kill(each.process.pid, number)

    def join(self) -> None:
        for each in self.running:
            each.process.join()

    def collect(self) -> None:
        """Take the results of the processes that have ended, and report the progress."""
        fractions = {each.cell.label: _fraction(each) for each in self.running}
        for each in [each for each in self.running if not each.process.is_alive()]:
            self.running.remove(each)
            if each.process.exitcode == 0:
                result = read_result((each.folder / process.RESULT).read_text(encoding="utf-8"), str(each.folder))
                add_result(self.folder / RESULTS, result)
                self.results[result.key] = result
                self.done += 1
                self._times.add(each.cell.recipe, result.seconds)
                left = self._seconds_left(fractions)
                self.on_progress(
                    Progress(self.done, self.total, fractions, finished=(each.cell, result), seconds_left=left)
                )
            elif not self._stopped:
                self.failed.append((each.cell, _reason(each)))
                add_failure(self.folder / FAILURES, each.cell.key, each.cell.label, self.failed[-1][1])
                self.on_progress(Progress(self.done, self.total, fractions, failed=self.failed[-1]))
        self.on_progress(Progress(self.done, self.total, fractions))

    def _seconds_left(self, fractions: Mapping[str, float]) -> float:
        rest = [(each.cell.recipe, 1 - fractions[each.cell.label]) for each in self.running]
        rest += [(cell.recipe, 1.0) for cell in self.waiting]
        seconds = (fraction * passes(recipe) * (self._times.of(recipe, rough=True) or 0.0) for recipe, fraction in rest)
        return sum(seconds) / self.jobs


def _device(recipe: Recipe, slot: int) -> str | None:
    """The GPU of a job, as in ``CUDA_VISIBLE_DEVICES``; ``None`` on a CPU."""
    if not runs_on_cuda(recipe.engine):
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    devices = visible.split(",")
    return devices[slot % len(devices)]


def _fraction(each: _Running) -> float:
    """Fraction of the cell's epochs that its log has."""
    if not (each.folder / LOG_NAME).is_file():
        return 0.0
    epochs = [line["epoch"] for line in read_log(each.folder) if "epoch" in line]
    return float(max(epochs, default=0.0)) / each.cell.recipe.epochs


def _reason(each: _Running) -> str:
    """Why a process failed: its error, which is the last line that it wrote, or what ended it."""
    file = each.folder / process.MESSAGES
    code = each.process.exitcode
    lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines() if file.is_file() else []
    if code == process.FAILED and lines:
        reason = lines[-1]
    else:
        reason = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{reason} (see {file})"


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder of studies, which the system releases if the process dies.

    Raises:
        ValueError: Another process holds it.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{folder}: another process trains cells in this folder; wait for it, or choose another folder and "
                f"merge the files {RESULTS} later"
            ) from error
        yield
