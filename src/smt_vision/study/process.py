"""The process that trains one cell of a study."""

import fcntl
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._version import __version__
from ..allocator import keep_large_allocations
from ..cost import describe
from ..data.dataset import RawDataset
from ..data.fingerprint import hash_bytes
from ..engine.log import read_log
from ..engine.loop import train
from ..engine.run import Run
from ..files import write_text_atomic
from ..hardware import describe_hardware
from ..recipe_files import read_recipe_file
from ..signals import Stopped, unblock_stop_signals
from ..tasks import get_task
from ..tasks.task import Training
from ..text import printable
from .file import import_file
from .results import CellResult

# Files in the folder of a cell.
RECIPE, RESULT, MESSAGES, LOCK = "cell.yaml", "result.json", "messages.txt", ".lock"
FAILED = 1  # exit code after an error, also of Python after a traceback
EXPECTED_ERRORS = (ValueError, OSError, RuntimeError, ImportError, ArithmeticError)

# Hash of the package's source files as they are when this process, which imports them, starts.
_SOURCES = sorted(Path(__file__).parents[1].rglob("*.py"))
CODE = hash_bytes(*(part for file in _SOURCES for part in (file.name.encode(), file.read_bytes())))


def train_cell(folder: Path, key: str, label: str, device: str | None, files: Sequence[Path] = ()) -> None:
    """Train the recipe in ``cell.yaml``, from where it was stopped, and write ``result.json``.

    Exits with code 1 after an error, whose message is the last line of ``messages.txt``, and as a command does after a
    signal. If the process that started this one ends, training stops with a checkpoint.

    Args:
        folder: Folder of the cell.
        key: Key of the cell.
        label: Label of the cell.
        device: The GPU to use, for ``CUDA_VISIBLE_DEVICES``; ``None`` to train on one thread of the CPU.
        files: Python files to import first, which may register networks.
    """
    os.setsid()  # a signal to the group of the runner does not reach its cells: it stops them
    unblock_stop_signals()
    _write_output_to(folder / MESSAGES)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    if device is None:
        torch.set_num_threads(1)
        keep_large_allocations()
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until a process of an earlier runner, which was killed, has stopped
        try:
            for file in files:
                import_file(file)
            recipe = read_recipe_file(folder / RECIPE)
            result = _result(train(recipe, folder, display=False), folder, key, label, files)
        except Stopped as stopped:
            print(printable(stopped), flush=True)
            sys.exit(128 + stopped.signal)
        except EXPECTED_ERRORS as error:
            print(f"{type(error).__name__}: {printable(error)}", flush=True)
            sys.exit(FAILED)
        write_text_atomic(folder / RESULT, json.dumps(asdict(result)))


def _result(run: Run, folder: Path, key: str, label: str, files: Sequence[Path]) -> CellResult:
    metric = run.task.primary_metric
    lines: Sequence[dict[str, Any]] = [line for line in read_log(folder) if line["kind"] == "eval"]
    cost = describe(*get_task(run.task.spec.task).flops_model(run.raw, run.task.spec))
    return CellResult(
        key=key,
        cell=label,
        seed=run.recipe.seed,
        metric=metric,
        by_epoch=tuple(round(line[metric], 4) for line in lines),
        epochs=tuple(line["epoch"] for line in lines),
        value=round(lines[-1][metric], 4),
        steps=run.step,
        seconds=round(run.seconds, 1),
        parameters=cost.parameters,
        gmac=cost.gmac,
        version=__version__,
        torch=torch.__version__,
        hardware=describe_hardware(),
        date=date.today().isoformat(),
        val_images=hash_of_images(run.task.val_set),
        listing=hash_of_listing(run.task),
        code=_hex(hash_bytes(str(CODE).encode(), *(file.read_bytes() for file in files))),
    )


def hash_of_images(images: RawDataset[Any]) -> str:
    """Hash of the content of images, whatever their order."""
    return _hex(hash_bytes(np.unique(images.fingerprints()).tobytes()))


def hash_of_listing(task: Training) -> str:
    """Hash of names and labels of the training and validation images."""
    parts = [(images.listing(), str(images.hash_labels()).encode()) for images in (task.train_set, task.val_set)]
    return _hex(hash_bytes(*parts[0], *parts[1]))


def _hex(value: int) -> str:
    return value.to_bytes(8, "big", signed=True).hex()


def _write_output_to(path: Path) -> None:
    """Redirect standard output and error of this process and its own processes to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _stop_with_parent() -> None:
    """Wait for the end of the process that started this one, then stop as after a signal."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
