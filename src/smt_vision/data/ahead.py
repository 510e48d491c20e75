"""Reading and preprocessing images in threads, ahead of the model that they are for."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from math import inf
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
MAX_THREADS = 8
MAX_PIXELS = 1 << 26  # of the images that are read at the same time: some 0.8 GB in 32-bit floating point


def map_ahead(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    pixels: Callable[[T], float] = lambda item: 0,
    threads: int | None = None,
) -> Iterator[R]:
    """``map(function, items)`` by several threads, a few items ahead of the one that is taken.

    Args:
        function: Called in any thread, at the same time as other calls. Its exceptions are raised in place of its
            result.
        items: Taken by the calling thread.
        pixels: Size of an item, of which at most :data:`MAX_PIXELS` are computed or waiting to be taken, or one item.
            If it is infinite, the calling thread computes the item, and nothing else is computed meanwhile.
        threads: Number of threads; by default as many as PyTorch computes with, at most 8.
    """
    threads = threads or min(MAX_THREADS, torch.get_num_threads())
    pending: deque[tuple[float, Future[R]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="images") as pool:
        try:
            for item in items:
                size = pixels(item)
                while pending and (len(pending) > threads or size + sum(other for other, _ in pending) > MAX_PIXELS):
                    yield pending.popleft()[1].result()
                if size == inf:
                    yield function(item)
                else:
                    pending.append((size, pool.submit(function, item)))
            while pending:
                yield pending.popleft()[1].result()
        finally:
            for _, future in pending:
                future.cancel()
