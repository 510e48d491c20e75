"""Reading and preprocessing images in threads, ahead of the model that they are for."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
MAX_THREADS = 8


def map_ahead(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    alone: Callable[[T], bool] = lambda item: False,
    threads: int | None = None,
) -> Iterator[R]:
    """``map(function, items)`` by several threads, a few items ahead of the one that is taken.

    Args:
        function: Called in any thread, at the same time as other calls. Its exceptions are raised in place of its
            result.
        items: Taken by the calling thread.
        alone: Whether an item needs so much memory that nothing else should be computed meanwhile.
        threads: Number of threads; by default as many as PyTorch computes with, at most 8.
    """
    threads = threads or min(MAX_THREADS, torch.get_num_threads())
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="images") as pool:
        try:
            for item in items:
                if alone(item):
                    while pending:
                        yield pending.popleft().result()
                    yield function(item)
                    continue
                pending.append(pool.submit(function, item))
                if len(pending) > threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
