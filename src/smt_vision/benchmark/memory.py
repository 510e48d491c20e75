"""What a model needs of memory, and what training keeps of it."""

import multiprocessing
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


def saved_activations(model: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters and buffers left out.

    Every storage that autograd holds on to counts once and whole, the input too where a layer saves it. With
    checkpoints that is what the blocks keep between the passes, not what they recompute.

    Args:
        model: in the mode, of training or evaluation, whose activations are asked for.
        x: images ``(B, C, H, W)``.
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
    del out  # held until here: a storage freed too early would leave its address to another
    return sum(kept.values())


def in_fresh_process(function: Callable[..., T], *args: Any) -> T:
    """Call a function in a process in which nothing has run yet.

    Args:
        function: of a module, so that it can be pickled, as its arguments and its result can.
        args: its arguments.

    Raises:
        RuntimeError: the process died, as it does where memory runs out.
    """
    # Where possible a fork of a server that has imported the libraries and run nothing: quick, and clean.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(["timm"])
    with ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "the process that measures died; most likely memory ran out: take a smaller batch"
            ) from error


def peak_memory(
    prepare: Callable[[], Sequence[Callable[[], object]]], device: torch.device | str = "cpu"
) -> list[int | None]:
    """Most memory that calls need, in bytes: weights, activations and scratch space together.

    Measured in a process of its own. On CUDA it is the allocator's high-water mark; on a CPU the growth of the
    process's resident set over what it was before ``prepare``, so that whatever a library allocates by itself counts as
    well, and so does what it loads and compiles. Known for CUDA, and for the CPU where the kernel tells it (Linux);
    ``None`` elsewhere.

    Args:
        prepare: builds what is needed and returns the calls, those that need less first; must be picklable.
        device: where the calls work.

    Returns:
        The high-water mark after each call, made twice.

    Raises:
        RuntimeError: the process died, as it does where memory runs out.
    """
    return in_fresh_process(_high_water_marks, prepare, torch.device(device))


def _high_water_marks(prepare: Callable[[], Sequence[Callable[[], object]]], device: torch.device) -> list[int | None]:
    def mark() -> int | None:
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated(device) if torch.cuda.is_initialized() else 0
        return _resident_mark() if device.type == "cpu" else None

    before = mark()
    marks: list[int | None] = []
    for call in prepare():
        call()
        call()
        after = mark()
        marks.append(None if before is None or after is None else after - before)
    return marks


def _resident_mark() -> int | None:
    """The process's largest resident set so far, in bytes.

    Read from the kernel's own page: ``getrusage`` starts from the size of the process that started this one.
    """
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.M) if status.is_file() else None
    return 1024 * int(found[1]) if found else None
