"""Reading again after an error of the storage that may pass."""

import errno
from pathlib import Path
from typing import Any

import pytest

from smt_vision.data import fingerprint, retry
from smt_vision.data.fingerprint import hash_file
from smt_vision.data.retry import retried
from smt_vision.tasks import get_task
from smt_vision.tasks.classification.data.folders import FolderDataset
from tiny_run import tiny, write_split


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, instead of making them."""
    made: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", made.append)
    return made


def failing(number: int, code: int) -> Any:
    """A reader that fails a number of times."""
    left = [number]

    def read() -> str:
        if left[0]:
            left[0] -= 1
            raise OSError(code, "of the storage")
        return "content"

    return read


def test_errors_that_may_pass_are_waited_for(pauses: list[float]) -> None:
    assert retried(failing(3, errno.ESTALE)) == "content"
    assert pauses == [0.5, 2.0, 8.0]
    with pytest.raises(OSError, match="of the storage"):
        retried(failing(4, errno.EIO))


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES, errno.ENOSPC])
def test_other_errors_are_raised_at_once(code: int, pauses: list[float]) -> None:
    with pytest.raises(OSError, match="of the storage"):
        retried(failing(1, code))
    assert pauses == []


def test_an_image_that_cannot_be_read_for_a_moment_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    """The batches and the fingerprints are those of storage without an error."""
    recipe = tiny(write_split(tmp_path / "data"))

    def opened() -> Any:
        return get_task(recipe.task).training(recipe)

    def batches(task: Any) -> list[Any]:
        loaded = list(task.train_loader(0, 1).epoch(0))
        assert all(batch["unreadable"] == [] for batch in loaded)
        return [batch["image"].sum().item() for batch in loaded]

    expected = batches(opened()), opened().train_set.fingerprints().tolist()
    read, failures = FolderDataset._read, iter([True, False, False] * 1000)

    def flaky(self: FolderDataset, row: int, name: str) -> Path:
        if next(failures):
            raise OSError(errno.EIO, "Input/output error")
        return read(self, row, name)

    def flaky_hash(path: Path) -> int:
        if next(failures):
            raise OSError(errno.ESTALE, "Stale file handle")
        return hash_file(path)

    monkeypatch.setattr(FolderDataset, "_read", flaky)
    monkeypatch.setattr("smt_vision.data.dataset.hash_file", flaky_hash)
    monkeypatch.setattr(fingerprint, "THREADS", 1)  # one failure after the other
    assert (batches(opened()), opened().train_set.fingerprints().tolist()) == expected
    assert pauses
