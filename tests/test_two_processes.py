"""What fails on one of two processes ends or is noted on both: none waits for the other."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smt_vision.engine.log import read_log
from tiny_run import environment
from waiting import DEADLINE

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def both(colored: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The results of the program's cases on the two processes, by name, and its folder."""
    folder, tests = tmp_path_factory.mktemp("two"), Path(__file__).parent
    path = ":".join(filter(None, (str(tests), environment().get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, str(tests / "two_processes.py"), str(colored), str(folder)],
        env={**environment(), "PYTHONPATH": path}, capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((folder / f"results{rank}.json").read_text()) for rank in (0, 1))
    return SimpleNamespace(folder=folder, results={name: [first[name], second[name]] for name in first})


def test_sums_and_means(both: SimpleNamespace) -> None:
    assert both.results["average_of_statistics"] == [[[1.5, 1.5], [1.0, 1.0], [3]]] * 2


def test_metrics_are_those_of_the_first_process(both: SimpleNamespace) -> None:
    assert both.results["metrics_that_differ"] == [[[10.0, 20.0], 2, 20.0]] * 2


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("metrics_that_fail", "ValueError: no metrics"),
        ("prediction_that_fails", "RuntimeError: out of memory"),
        ("images_that_fail_at_the_start", "UnreadableImage: 3 unreadable images"),
        ("error_that_cannot_be_sent", ("Unsendable: onetwo", "RuntimeError: Unsendable('onetwo')")),
    ],
)
def test_an_error_is_that_of_both(both: SimpleNamespace, case: str, message: Any) -> None:
    assert both.results[case] == [message] * 2 if isinstance(message, str) else list(message)


@pytest.mark.parametrize(
    ("case", "file"), [("log_that_cannot_be_opened", "log.jsonl"), ("recipe_that_cannot_be_written", "recipe.yaml")]
)
def test_a_file_that_the_first_process_cannot_write(both: SimpleNamespace, case: str, file: str) -> None:
    for result in both.results[case]:
        assert result.startswith("IsADirectoryError")
        assert file in result


def test_batches_that_are_too_few_for_a_step_are_not_loaded(both: SimpleNamespace) -> None:
    assert both.results["leftover_batches_that_fail"] == [2, 2]


def test_best_weights_that_cannot_be_written_are_written_later(both: SimpleNamespace) -> None:
    (step, failed, *same), second = both.results["storage_that_fails"]
    assert (step, failed, same) == (6, True, [True, True])
    assert second[0] == 6
    notes = [line["message"] for line in read_log(both.folder / "storage_that_fails") if line["kind"] == "note"]
    assert len(notes) == 1
    assert "no checkpoint of step 3: [Errno 5] Input/output error" in notes[0]


def test_sample_images_are_not_needed(both: SimpleNamespace) -> None:
    case = "sample_images_that_cannot_be_drawn"
    assert both.results[case] == [6, 6]
    notes = [line["message"] for line in read_log(both.folder / case) if line["kind"] == "note"]
    assert notes == [f"no sample images of epoch {epoch}: RuntimeError: out of memory" for epoch in (1, 2)]


def test_the_first_process_compares_the_images_of_a_resumed_run(both: SimpleNamespace) -> None:
    assert both.results["resumed_run"] == [[2, True], [2, False]]
    for result in both.results["resumed_run_with_other_images"]:
        assert result.startswith("ValueError")
        assert "is not the data that this run was started with" in result


def test_connections_are_not_closed_after_an_error(both: SimpleNamespace) -> None:
    assert all("IsADirectoryError" in result for result in both.results["the_end_after_an_error"])
    assert not list(both.folder.glob("closed*"))
