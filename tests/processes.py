"""Threads in the place of processes, for the reduction of metrics."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from waiting import DEADLINE


def run_on_processes(work: Callable[[int, Callable[[Tensor], Tensor]], Any], world: int) -> list[Any]:
    """Run ``work(rank, all_gather)`` on threads whose ``all_gather``, like that of processes, needs equal shapes."""
    slots: list[Any] = [None] * world
    barrier = threading.Barrier(world, timeout=DEADLINE)
    results: list[Any] = [None] * world

    def run(rank: int) -> None:
        def all_gather(value: Tensor) -> Tensor:
            slots[rank] = value
            barrier.wait()
            gathered = torch.stack(slots)
            barrier.wait()
            return gathered

        results[rank] = work(rank, all_gather)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
