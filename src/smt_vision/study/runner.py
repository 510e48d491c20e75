"""Training the cells of studies: a process per cell, several at a time, resumed where they were stopped."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import torch
import yaml

from .._version import __version__
from ..cost import describe
from ..engine.launch import runs_on_cuda
from ..engine.log import LOG_NAME, read_log
from ..engine.signals import Stopped, stop_signals
from ..hardware import describe_hardware
from ..recipe import Recipe
from ..tasks.load import load
from .results import RESULTS, CellResult, add_result, read_results
from .study import Cell

POLL_SECONDS = 0.5
THREADS = 1  # of a cell on a CPU
# Files in the folder of a cell: its recipe, and what its process wrote.
CELL, PRINTED, MESSAGES = "cell.yaml", "result.json", "messages.txt"


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
        super().__init__(f"stopped with {done} of {total} cells done; the same command goes on", number)


class CellsFailed(RuntimeError):
    """Some cells failed; all others have results."""


@dataclass
class _Running:
    cell: Cell
    folder: Path
    process: "subprocess.Popen[bytes]"
    slot: int
    started: float


def unique_cells(cells: Sequence[Cell]) -> list[Cell]:
    """The cells without those that train the same recipe as an earlier one, in the same order."""
    first: dict[str, Cell] = {}
    for cell in cells:
        first.setdefault(cell.key, cell)
    return list(first.values())


def run_cells(
    cells: Sequence[Cell],
    folder: Path,
    *,
    data: Mapping[str, str] | None = None,
    jobs: int = 1,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, CellResult]:
    """Train the cells that have no result yet.

    A cell is a process, ``smt train`` with its recipe in a file, with one thread on a CPU, and with a GPU of its own
    where there are several. It has a folder, ``cells/KEY``, from which it continues after a stop. Results are appended
    to ``results.jsonl`` as they come. SIGINT and SIGTERM stop the running cells after their current step, with a
    checkpoint.

    Args:
        cells: The cells; those with equal recipes are trained once.
        folder: Folder of the results and of all runs.
        data: Path of the dataset, by the name that recipes have for it.
        jobs: Cells that are trained at the same time.
        on_progress: Called when a cell has finished or failed, and twice per second.

    Returns:
        The results of all cells, by key.

    Raises:
        ValueError: ``jobs`` is below 1, or another process runs studies in this folder.
        CellsFailed: Some cells failed. The others were trained nevertheless.
        StudyStopped: A signal was received.
    """
    if jobs < 1:
        raise ValueError(f"invalid jobs={jobs}: expected at least 1")
    cells, file = unique_cells(cells), folder / RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder) as lock, stop_signals() as received:
        results: dict[str, CellResult] = read_results([file])
        waiting = [cell for cell in cells if cell.key not in results]
        done, total = len(cells) - len(waiting), len(cells)
        failed: list[tuple[Cell, str]] = []
        running: list[_Running] = []
        stopped = False
        speeds: list[float] = []  # seconds per epoch of the cells of this call
        try:
            while (waiting and not received) or running:
                while waiting and len(running) < jobs and not received:
                    slot = min(set(range(jobs)) - {each.slot for each in running})
                    running.append(_start(waiting.pop(0), folder, data or {}, slot, lock))
                time.sleep(POLL_SECONDS)
                if received and not stopped:
                    stopped = _stop(running, received[0])
                state = {each.cell.label: _fraction(each) for each in running}
                for each in [each for each in running if each.process.poll() is not None]:
                    running.remove(each)
                    outcome = _outcome(each, received)
                    if isinstance(outcome, CellResult):
                        add_result(file, outcome)
                        results[outcome.key] = outcome
                        done += 1
                        speeds.append((time.monotonic() - each.started) / each.cell.recipe.epochs)
                        left = sum(cell.recipe.epochs for cell in waiting) * sum(speeds) / len(speeds) / jobs
                        on_progress(Progress(done, total, state, finished=(each.cell, outcome), seconds_left=left))
                    elif outcome is not None:
                        failed.append((each.cell, outcome))
                        on_progress(Progress(done, total, state, failed=(each.cell, outcome)))
                on_progress(Progress(done, total, state))
        finally:
            stopped or _stop(running, signal.SIGTERM)
            for each in running:
                each.process.wait()
    if received:
        raise StudyStopped(received[0], done, total)
    if failed:
        names = "; ".join(f"{cell.label}: {reason}" for cell, reason in failed)
        raise CellsFailed(f"{len(failed)} of {total} cells failed: {names}. The same command tries them again")
    return {cell.key: results[cell.key] for cell in cells}


def command(cell: Cell, folder: Path) -> list[str]:
    """The arguments of the ``smt`` command that trains a cell in its folder."""
    return ["train", cell.recipe.name, "--config", str(folder / CELL), "--run", str(folder), "--json"]


def cell_folder(folder: Path, cell: Cell) -> Path:
    """The folder of a cell's run."""
    return folder / "cells" / cell.key


def _start(cell: Cell, folder: Path, data: Mapping[str, str], slot: int, lock: int) -> _Running:
    own = cell_folder(folder, cell)
    own.mkdir(parents=True, exist_ok=True)
    recipe = replace(cell.recipe, data=data.get(cell.recipe.data, cell.recipe.data))
    (own / CELL).write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False), encoding="utf-8")
    with (own / PRINTED).open("wb") as printed, (own / MESSAGES).open("wb") as messages:
        process = subprocess.Popen(
            [sys.executable, "-m", "smt_vision", *command(cell, own)],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=messages,
            env={**os.environ, **_environment(recipe, slot)},
            pass_fds=(lock,),  # the folder stays locked as long as a cell runs, even if this process is killed
            start_new_session=True,  # a Ctrl-C reaches the runner only, which stops the cells
        )
    return _Running(cell, own, process, slot, time.monotonic())


def _environment(recipe: Recipe, slot: int) -> dict[str, str]:
    """One thread on a CPU; one GPU of several."""
    if not runs_on_cuda(recipe.engine):
        return {"OMP_NUM_THREADS": str(THREADS)}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    devices = visible.split(",")
    return {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]}


def _stop(running: Sequence[_Running], number: int) -> bool:
    """Send a signal to the processes, once: a second one would end them without a checkpoint."""
    for each in running:
        if each.process.poll() is None:
            each.process.send_signal(number)
    return True


def _fraction(each: _Running) -> float:
    """Fraction of the cell's epochs that its log has."""
    if not (each.folder / LOG_NAME).is_file():
        return 0.0
    epochs = [line["epoch"] for line in read_log(each.folder) if "epoch" in line]
    return float(max(epochs, default=0.0)) / each.cell.recipe.epochs


def _outcome(each: _Running, received: Sequence[int]) -> CellResult | str | None:
    """The result of a process that has ended, the reason of its failure, or ``None`` if it was stopped."""
    if each.process.returncode == 0:
        return read_cell(each.cell, each.folder)
    if received:
        return None
    file = each.folder / MESSAGES
    text = file.read_text(encoding="utf-8", errors="replace").strip()
    last = text.splitlines()[-1] if text else f"exit code {each.process.returncode}"
    return f"{last} (see {file})"


def read_cell(cell: Cell, folder: Path) -> CellResult:
    """The result of a cell's finished run."""
    printed = json.loads((folder / PRINTED).read_text(encoding="utf-8"))
    metric = printed["primary_metric"]
    lines = [line for line in read_log(folder) if line["kind"] == "eval"]
    cost = describe(*load(folder).flops_model())
    return CellResult(
        key=cell.key,
        cell=cell.label,
        seed=cell.recipe.seed,
        metric=metric,
        by_epoch=tuple(round(line[metric], 4) for line in lines),
        epochs=tuple(line["epoch"] for line in lines),
        value=round(lines[-1][metric], 4),
        steps=printed["step"],
        seconds=round(printed["seconds"], 1),
        parameters=cost.parameters,
        gmac=cost.gmac,
        version=__version__,
        torch=torch.__version__,
        hardware=describe_hardware(threads=THREADS),
        date=date.today().isoformat(),
    )


@contextmanager
def _lock(folder: Path) -> Iterator[int]:
    """Hold the lock of a folder of studies, which the system releases when this process and all cells have ended.

    Returns:
        The file descriptor, for the processes of the cells.

    Raises:
        ValueError: Another process holds it.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{folder}: another process trains cells in this folder, or a cell still runs whose runner was killed; "
                f"wait for it, or choose another folder and merge the files {RESULTS} later"
            ) from error
        yield file.fileno()
