"""A study that is stopped from outside, and continues."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from smt_vision.study.debug import write_debug_data
from smt_vision.study.results import RESULTS, read_results
from smt_vision.study.runner import cell_folder, run_cells
from test_study import TINY_STUDY
from waiting import DEADLINE, wait_until

LONG = {"epochs": 8, "engine.eval_every": 8, "engine.log_every": 1}
COMMAND = """\
from smt_vision.study.study import *
from test_study import TINY_STUDY
from test_study_processes import LONG
STUDY = replace(TINY_STUDY, {changes})
"""


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_debug_data(TINY_STUDY.base, tmp_path_factory.mktemp("debug_data"))


def start(study_file: Path, folder: Path, data: Path, *arguments: str) -> "subprocess.Popen[str]":
    """``smt study`` in a process group of its own."""
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "smt_vision", "study", str(study_file), "--run", str(folder), "--data", str(data)]
    return subprocess.Popen(
        [*command, *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path, process: "subprocess.Popen[str]", text: str) -> None:
    """Wait until a file contains a text, which a process that is still running writes."""
    wait_until(lambda: process.poll() is not None or (path.exists() and text in path.read_text()))
    assert process.poll() is None


def test_a_stopped_study_continues(shapes: Path, tmp_path: Path) -> None:
    """A signal to all processes of the group stops the cells, once. A killed runner cannot stop its cells: they stop by
    themselves, and the next runner waits for that."""
    file = tmp_path / "study.py"
    file.write_text(COMMAND.format(changes="budgets={'': LONG}, seeds=1, variants={'saa': {}}, claims=()"))
    cell = replace(TINY_STUDY, budgets={"": LONG}).cell("", "saa", 0)
    folder, log = tmp_path / "run", cell_folder(tmp_path / "run", cell) / "log.jsonl"
    with start(file, folder, shapes) as process:
        wait_for(log, process, '"step": 2')
        os.killpg(process.pid, signal.SIGTERM)
        error = process.communicate(timeout=DEADLINE)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped with 0 of 1 cells done" in error
    assert "failed" not in error
    with start(file, folder, shapes) as process:
        wait_for(log, process, '"kind": "resume"')
        process.kill()
        assert process.wait(DEADLINE) == -signal.SIGKILL
    assert not (folder / RESULTS).exists()
    assert run_cells([cell], folder, data={"shapes": str(shapes)})[cell.key].steps == 48
    assert read_results([folder / RESULTS]).keys() == {cell.key}
    kinds = [json.loads(line)["kind"] for line in log.read_text().splitlines()]
    assert kinds.count("resume") == 2
