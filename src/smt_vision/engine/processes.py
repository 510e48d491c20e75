"""What the processes of a run tell each other; with one process, nothing is sent."""

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal, TypeVar, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor

T = TypeVar("T")


def average(fabric: Fabric, tensors: Sequence[Tensor]) -> None:
    """Set tensors to their means over all processes, in one all-reduce.

    Called in each step with the statistics of BatchNorm, so that every process evaluates and saves the same model.
    """
    if fabric.world_size > 1 and tensors:
        means = reduced(fabric, "mean", torch.cat([tensor.float().flatten() for tensor in tensors]))
        for tensor, mean in zip(tensors, means.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def reduced(fabric: Fabric, how: Literal["sum", "mean"], value: Tensor) -> Tensor:
    """The sum or mean of a tensor over all processes, in its place: without the barrier of Fabric's function."""
    if fabric.world_size > 1:
        torch.distributed.all_reduce(value)
        if how == "mean":  # not an operation of the gloo backend
            value /= fabric.world_size
    return value


def gathered(fabric: Fabric, value: Tensor) -> Tensor:
    with warnings.catch_warnings():
        # Fabric calls a function that torch has deprecated; not the user's concern.
        warnings.filterwarnings("ignore", "torch.distributed.nn.functional.all_gather is deprecated")
        return cast(Tensor, fabric.all_gather(value))


def any_process(fabric: Fabric, *flags: bool) -> list[bool]:
    """For each flag, whether it is set on any process."""
    if fabric.world_size == 1:
        return list(flags)
    summed = reduced(fabric, "sum", torch.tensor(flags, dtype=torch.float32, device=fabric.device))
    return [bool(flag) for flag in summed]


def check_same_images(fabric: Fabric, where: str, **sets: tuple[int, int]) -> None:
    """Raise a ValueError on every process if they opened different images, of which each would then take its share.

    Args:
        fabric: The processes.
        where: Name of the data, for the message.
        sets: By its name, the number of images of a set, and a hash of its names and labels.
    """
    every = gathered_objects(fabric, sets)
    for name in sets:
        if len({each[name] for each in every}) > 1:
            numbers = ", ".join(f"process {rank}: {each[name][0]}" for rank, each in enumerate(every))
            raise ValueError(
                f"{where}: the processes opened different {name} images or labels (numbers of images: {numbers}): "
                "machines have different copies of the data; make them equal, or use storage that all machines share"
            )


def is_first() -> bool:
    """Whether this is the first process, or the only one; for code that has no Fabric."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


@contextmanager
def together(fabric: Fabric) -> Iterator[None]:
    """A block without collectives, which ends with an error on every process if it does on one.

    Otherwise the process with the error would leave the others waiting for it in their next collective.

    Raises:
        Exception: That of this process, or of the first one that has one.
    """
    if fabric.world_size == 1:
        yield
        return
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    raise_together(fabric, error)


def raise_together(fabric: Fabric, error: Exception | None) -> None:
    """Called by every process: raise its own error, or that of the first process that has one."""
    errors = gathered_objects(fabric, None if error is None else _sendable(error))
    if error is not None:
        raise error
    for other in errors:
        if other is not None:
            raise other


def _sendable(error: Exception) -> Exception:
    """The error, or one of its text if other processes could not read it."""
    try:
        pickle.dumps(copy.copy(error))  # made from its parts as a pickle is
    except Exception:  # of any kind: classes decide how they are pickled
        return RuntimeError(repr(error))
    return error


def on_first(fabric: Fabric, action: Callable[[], object], long: bool = False) -> None:
    """Do something on the first process, e.g. write a file, while the others wait.

    Args:
        fabric: The processes.
        action: What to do.
        long: Whether it may take longer than the time limit of a collective.

    Raises:
        Exception: It failed; on every process.
    """
    error = None
    with fabric.rank_zero_first() if long else nullcontext():
        if fabric.is_global_zero:
            try:
                action()
            except Exception as caught:
                error = caught
    raise_together(fabric, error)


def gathered_objects(fabric: Fabric, content: T) -> list[T]:
    """The objects of all processes."""
    gathered = [content] * fabric.world_size
    if fabric.world_size > 1:
        torch.distributed.all_gather_object(gathered, content)
    return gathered
