"""Items that are computed by threads, ahead of the one that is taken."""

import functools
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smt_vision.data import ahead
from smt_vision.data.ahead import image_threads
from smt_vision.data.decode import count_pixels
from tiny_run import environment
from waiting import DEADLINE

map_ahead = functools.partial(ahead.map_ahead, threads=4)


def test_results_are_in_order() -> None:
    def slow_first(i: int) -> int:
        time.sleep(0.02 * (i % 4 == 0))
        return i * i

    assert list(map_ahead(slow_first, range(20))) == [i * i for i in range(20)]
    assert list(map_ahead(slow_first, [])) == []


def test_few_items_are_taken_ahead() -> None:
    taken = []

    def items() -> Iterator[int]:
        for i in range(100):
            taken.append(i)
            yield i

    results = map_ahead(lambda i: i, items())
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(taken) == 3 + 4 + 1
    results.close()  # type: ignore[attr-defined]
    assert len(taken) == 3 + 4 + 1
    taken.clear()
    results = map_ahead(lambda i: i, items(), ahead=20)  # e.g. two batches
    assert next(results) == 0
    assert len(taken) == 20 + 1
    results.close()  # type: ignore[attr-defined]


def test_threads_beside_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model on a GPU leaves the cores to the images."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(ahead, "share_of_cores", lambda: 16)
    assert (image_threads(torch.device("cpu")), image_threads(torch.device("cuda"))) == (1, 8)


def test_an_error_is_raised_in_place_of_its_result() -> None:
    def inverse(i: int) -> float:
        return 1 / i

    results = map_ahead(inverse, [4, 2, 0, 1])
    assert [next(results), next(results)] == [0.25, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_items_of_infinite_size_are_computed_alone() -> None:
    """By the calling thread; all items before are done, and none after has begun."""
    begun, done = [], []

    def record(i: int) -> int:
        begun.append(i)
        if i == 5:
            assert (sorted(begun), sorted(done)) == (list(range(6)), list(range(5)))
            assert threading.current_thread() is threading.main_thread()
        time.sleep(0.01)
        done.append(i)
        return i

    assert list(map_ahead(record, range(10), pixels=lambda i: math.inf if i == 5 else 0)) == list(range(10))


def test_large_items_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that are computed or wait to be taken, together."""
    monkeypatch.setattr(ahead, "MAX_PIXELS", 100)
    sizes = [10, 60, 60, 30, 200, 50, 10, 10]
    taken = 0
    most = []

    def items() -> Iterator[int]:
        for i in range(len(sizes)):
            most.append(sum(sizes[taken:i]))  # of those before the one that is given now
            yield i

    for i in map_ahead(lambda i: i, items(), pixels=lambda i: sizes[i]):
        assert i == taken
        taken += 1
    assert max(most[:4]) <= 100
    assert most[5] == 200  # an item that is larger is computed alone


def test_pixels_are_counted_without_decoding(tmp_path: Path) -> None:
    Image.new("RGB", (70, 30)).save(tmp_path / "a.png")
    (tmp_path / "damaged.png").write_bytes(b"no image")
    np.save(tmp_path / "a.npy", np.zeros((20, 10, 5), dtype=np.float32))
    names = ("a.png", "damaged.png", "a.npy", "missing.png")
    assert [count_pixels(tmp_path / name) for name in names] == [2100, 0, 200, 0]


def test_large_photographs_are_no_warnings() -> None:
    """In any thread, and in a process that makes errors of warnings."""
    program = """
import io
from PIL import Image
from smt_vision.data.decode import decode
Image.MAX_IMAGE_PIXELS = 60  # Pillow warns
file = io.BytesIO()
Image.new("RGB", (8, 8)).save(file, "PNG")
print(decode(file.getvalue(), 3, name="a").size)
"""
    command = [sys.executable, "-W", "error::PIL.Image.DecompressionBombWarning", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE, env=environment())
    assert (done.stdout, done.returncode) == ("(8, 8)\n", 0), done.stderr
