"""Memory of a model: peak during calls, and activations that training saves for the backward pass."""

import gc
import multiprocessing
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..allocator import release_free_memory

T = TypeVar("T")


def saved_activations(model: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass saves for the backward pass, excluding parameters and buffers.

    Each storage that autograd holds is counted once and in full, including the input if a layer saves it. With
    activation checkpointing this is what is kept between the passes, without what is recomputed.

    Args:
        model: Model, in training or evaluation mode as required.
        x: Images ``(B, C, H, W)``.
    """
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(x)
    del out  # kept alive until here: the address of a freed storage could be reused by another
    return sum(kept.values())


def in_fresh_process(function: Callable[..., T], *args: Any) -> T:
    """Call a function in a process in which nothing has run yet.

    Args:
        function: Function to call; it, its arguments and its result must be picklable.
        args: Arguments of the function.

    Raises:
        RuntimeError: The process died, e.g. because memory ran out.
    """
    # A fork server has imported the libraries and run nothing: faster to start than a spawned process, and as clean.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(["timm"])
    with ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool as error:
            raise RuntimeError("the measuring process died, probably out of memory; use a smaller batch") from error


def peak_memory(
    prepare: Callable[[], Iterable[Callable[[], object]]], device: torch.device | str = "cpu"
) -> list[int | None]:
    """Peak memory of calls in bytes: weights, activations and scratch space together.

    Measured in a fresh process. On CUDA it is the peak of the caching allocator. On a CPU it is the growth of the
    process's resident set since before ``prepare``, which includes what libraries allocate, load and compile; it is
    available on Linux only. What building the model took beyond the model, e.g. the one that it was fused from, is not
    included.

    Args:
        prepare: Builds the model and yields the calls in order of increasing memory; must be picklable. A call is
            dropped before the next one is made.
        device: Device on which the calls work.

    Returns:
        The peak after each call, which is made twice; ``None`` where it cannot be measured.

    Raises:
        RuntimeError: The process died, e.g. because memory ran out.
    """
    return in_fresh_process(_peaks, prepare, torch.device(device))


def _peaks(prepare: Callable[[], Iterable[Callable[[], object]]], device: torch.device) -> list[int | None]:
    def read() -> int | None:
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated(device) if torch.cuda.is_initialized() else 0
        return peak_resident_set() if device.type == "cpu" else None

    before = read()
    peaks: list[int | None] = []
    for call in prepare():
        if not peaks:
            forget_peak(device)
        call()
        call()
        after = read()
        peaks.append(None if before is None or after is None else after - before)
        del call
    return peaks


def forget_peak(device: torch.device) -> None:
    """Free what is not in use, and measure the peak from here on, where the platform can."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        release_free_memory()
        with suppress(OSError):  # Linux only
            Path("/proc/self/clear_refs").write_text("5")


def peak_resident_set() -> int | None:
    """Peak resident set of this process in bytes.

    Read from /proc, because the value of ``getrusage`` starts from that of the parent process.
    """
    status = Path("/proc/self/status")
    match = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.M) if status.is_file() else None
    return 1024 * int(match[1]) if match else None
