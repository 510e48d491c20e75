"""Items that are computed by threads, ahead of the one that is taken."""

import io
import threading
import time
import warnings
from collections.abc import Iterator

import pytest
import torch
from PIL import Image

from smt_vision.data.ahead import map_ahead
from smt_vision.data.decode import decode


@pytest.fixture(autouse=True)
def four_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)


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
    assert len(taken) == 3 + 4
    results.close()  # type: ignore[attr-defined]
    assert len(taken) == 3 + 4


def test_an_error_is_raised_in_place_of_its_result() -> None:
    def inverse(i: int) -> float:
        return 1 / i

    results = map_ahead(inverse, [4, 2, 0, 1])
    assert [next(results), next(results)] == [0.25, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_items_that_are_computed_alone() -> None:
    """Nothing else is computed at that time: all items before are done, and none after has begun."""
    begun, done = [], []

    def record(i: int) -> int:
        begun.append(i)
        if i == 5:
            assert (sorted(begun), sorted(done)) == (list(range(6)), list(range(5)))
            assert threading.current_thread() is threading.main_thread()
        time.sleep(0.01)
        done.append(i)
        return i

    assert list(map_ahead(record, range(10), alone=lambda i: i == 5)) == list(range(10))


def test_the_filters_of_warnings_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts of several threads overlap in any order."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)  # Pillow warns, and warnings are errors in tests
    image = Image.new("RGB", (8, 8))
    before = list(warnings.filters)
    files = [io.BytesIO() for _ in range(40)]
    for file in files:
        image.save(file, "PNG")
    sizes = [picture.size for picture in map_ahead(lambda f: decode(f.getvalue(), 3, name="a"), files)]
    assert sizes == [(8, 8)] * 40
    assert list(warnings.filters) == before
