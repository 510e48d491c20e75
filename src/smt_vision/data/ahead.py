"""Reading and preprocessing images in threads, ahead of the model that they are for."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from math import inf
from typing import TypeVar

import torch

from .loaders import share_of_cores

T = TypeVar("T")
R = TypeVar("R")
MAX_THREADS = 8
MAX_PIXELS = 1 << 26  # of the images that are read at the same time: some 0.8 GB in 32-bit floating point


def image_threads(device: torch.device) -> int:
    """Number of threads that read images for a model on a device, at most 8: on a CPU as many as PyTorch computes with,
    else one per core."""
    return min(MAX_THREADS, torch.get_num_threads() if device.type == "cpu" else share_of_cores())


def map_ahead(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    pixels: Callable[[T], float] = lambda item: 0,
    threads: int,
    ahead: int = 0,
) -> Iterator[R]:
    """``map(function, items)`` by several threads, some items ahead of the one that is taken.

    Args:
        function: Called in any thread, at the same time as other calls. Its exceptions are raised in place of its
            result.
        items: Taken by the calling thread.
        pixels: Size of an item, of which at most :data:`MAX_PIXELS` are computed or waiting to be taken, or one item.
            If it is infinite, the calling thread computes the item, and nothing else is computed meanwhile.
        threads: Number of threads.
        ahead: Largest number of items that are computed or waiting to be taken; at least one more than threads.
    """
    ahead = max(ahead, threads + 1)
    pending: deque[tuple[float, Future[R]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="images") as pool:
        try:
            for item in items:
                size = pixels(item)
                while pending and (len(pending) >= ahead or size + sum(other for other, _ in pending) > MAX_PIXELS):
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
