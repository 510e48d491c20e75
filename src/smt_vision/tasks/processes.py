"""What the model of a task shares between the processes of a run; with one process, nothing."""

import torch
from torch import Tensor, nn


def mean_count(count: Tensor) -> Tensor:
    """The mean over all processes of what a sum of losses is divided by, at least 1.

    The mean over processes of the losses is then that of the global batch: an object or pixel counts the same on each.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        total = count.detach().float().clone()
        torch.distributed.all_reduce(total)
        count = total / torch.distributed.get_world_size()
    return count.clamp(min=1)


def share_statistics(module: nn.Module) -> nn.Module:
    """The module with BatchNorm statistics over the images of all processes, where these are on GPUs; else as it is."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not distributed or torch.distributed.get_backend() != "nccl":
        return module
    return nn.SyncBatchNorm.convert_sync_batchnorm(module)
