"""A run's processes and its arithmetic, by Lightning Fabric."""

import os
import warnings
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision

from ..recipe import Engine
from .allocator import keep_big_blocks


class Autocast(MixedPrecision):
    """Fabric's mixed precision, less its rounding of a model's inputs: operators cast what they take themselves.

    In bfloat16 a box would be off by pixels, and a small one of height 0.
    """

    def convert_input(self, data: Any) -> Any:
        return data


def launch(engine: Engine) -> Fabric:
    """Fabric on the recipe's devices, its processes started; on a CPU with an allocator that keeps big blocks.

    ``devices=-1`` is one process on a CPU and one for each GPU. Under torchrun the processes are torchrun's.

    Raises:
        ValueError: torchrun started other numbers of processes than the recipe names.
    """
    gpus = engine.accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
    devices = engine.devices if engine.devices != -1 else (torch.cuda.device_count() if gpus else 1)
    nodes = engine.nodes
    if torch.distributed.is_torchelastic_launched():
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        if engine.devices not in (-1, local) or engine.nodes not in (1, world // local):
            raise ValueError(
                f"torchrun started {world // local} x {local} processes, the recipe names engine.nodes={engine.nodes} "
                f"and engine.devices={engine.devices}; leave these two to torchrun"
            )
        devices, nodes = local, world // local
    # Depthwise kernels in channels-last memory: their strides say two things at once, and nothing is copied for it.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    autocast = None if engine.precision == "32-true" else Autocast(engine.precision, "cuda" if gpus else "cpu")
    fabric = Fabric(
        accelerator=engine.accelerator,
        devices=devices,
        num_nodes=nodes,
        plugins=autocast,
        strategy="ddp" if devices * nodes > 1 else "auto",
    )
    fabric.launch()
    if fabric.device.type == "cpu":
        keep_big_blocks()
    return fabric
