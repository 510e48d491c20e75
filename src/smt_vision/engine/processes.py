"""What the processes of a run tell each other; with one process, nothing is sent."""

import warnings
from collections.abc import Callable, Sequence
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
    return cast(Tensor, fabric.all_reduce(value, reduce_op=how))


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


def on_first(fabric: Fabric, action: Callable[[], object]) -> None:
    """Do something on the first process, e.g. write a file, while the others wait.

    Raises:
        ValueError, OSError: It failed with one; on every process.
    """
    error = None
    if fabric.is_global_zero:
        try:
            action()
        except (ValueError, OSError) as caught:
            error = caught
    if error := fabric.broadcast(error):
        raise error


def gathered_objects(fabric: Fabric, content: T) -> list[T]:
    """The objects of all processes."""
    gathered = [content] * fabric.world_size
    if fabric.world_size > 1:
        torch.distributed.all_gather_object(gathered, content)
    return gathered
