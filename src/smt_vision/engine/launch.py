"""Devices, processes and precision of a run, through Lightning Fabric."""

import atexit
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import SLURMEnvironment
from lightning_fabric.plugins.precision import MixedPrecision
from lightning_fabric.strategies import DDPStrategy
from lightning_fabric.utilities import distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..recipe import Engine
from ..signals import Stopped, end_with_parent

MARGIN_MINUTES = 10.0  # by which a collective may take longer than engine.timeout_minutes
MAX_MINUTES = 525_600.0  # a year: backends count in integers
LAUNCHER = "SMT_VISION_LAUNCHER"  # environment variable: the process that started the others


class Autocast(MixedPrecision):
    """Fabric's mixed precision without its cast of the model's inputs: autocast casts per operator.

    In bfloat16 a box would be off by pixels, and a small one would have zero height.
    """

    def convert_input(self, data: Any) -> Any:
        return data


class Processes(DDPStrategy):
    """Fabric's strategy without a broadcast of all buffers in each step: ``average`` keeps them equal."""

    def setup_module(self, module: nn.Module) -> DistributedDataParallel:
        model = super().setup_module(module)  # which makes them equal
        model.broadcast_buffers = False
        return model


def runs_on_cuda(engine: Engine) -> bool:
    """Whether the recipe's accelerator is CUDA on this machine."""
    return engine.accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()


@contextmanager
def ends_after_an_error() -> Iterator[None]:
    """After an error, end the program without closing the connection to the other processes.

    Fabric does that when the program exits, if the processes communicate with NCCL; it would wait for those that wait
    for this one, and nothing that looks after the processes would see one end.
    """
    try:
        yield
    except Stopped:  # all processes do
        raise
    except BaseException:
        if (close := getattr(distributed, "_destroy_dist_connection", None)) is not None:  # private in Fabric
            atexit.unregister(close)
        raise


def launch(engine: Engine) -> Fabric:
    """Fabric on the recipe's devices, with its processes started.

    ``devices=-1`` means one process on a CPU and one per GPU. Under torchrun the processes are torchrun's.

    Raises:
        ValueError: torchrun or SLURM started a different number of processes than the recipe asks for.
    """
    devices = engine.devices if engine.devices != -1 else (torch.cuda.device_count() if runs_on_cuda(engine) else 1)
    nodes = engine.nodes
    if torch.distributed.is_torchelastic_launched():
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        if engine.devices not in (-1, local) or engine.nodes not in (1, world // local):
            raise ValueError(
                f"torchrun started {world // local} x {local} processes, but engine.nodes={engine.nodes} and "
                f"engine.devices={engine.devices}; leave both unset under torchrun"
            )
        devices, nodes = local, world // local
    else:
        os.environ["LOCAL_WORLD_SIZE"] = str(devices)  # as torchrun sets it: loader workers share the CPU cores
        if os.environ.get("LOCAL_RANK", "0") == "0":
            os.environ[LAUNCHER] = str(os.getpid())
        elif LAUNCHER in os.environ:
            end_with_parent(int(os.environ[LAUNCHER]))
        # With one device, Fabric would not look at SLURM's variables, and each process start a run of its own.
        tasks = int(os.environ.get("SLURM_NTASKS", "1"))
        by_srun = tasks > 1 and "SLURM_STEP_ID" in os.environ and SLURMEnvironment.detect()
        if by_srun and tasks != devices * nodes and not engine.devices == engine.nodes == 1:
            raise ValueError(
                f"srun started {tasks} processes for {devices} devices x engine.nodes={nodes}; set --engine.nodes, "
                "start one process per device, and let each see all GPUs of its machine: with --gres, and without "
                "--gpus-per-task and --gpu-bind; or set --engine.devices 1 if each is a run of its own"
            )
    # Depthwise kernels have one input channel, so contiguous and channels-last strides describe the same memory: the
    # warning's copy does not happen.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    autocast = (
        None if engine.precision == "32-true" else Autocast(engine.precision, "cuda" if runs_on_cuda(engine) else "cpu")
    )
    fabric = Fabric(
        accelerator=engine.accelerator,
        devices=devices,
        num_nodes=nodes,
        plugins=autocast,
        # The watchdog ends a run that stands still; a collective must not end it before.
        strategy=Processes(
            timeout=timedelta(minutes=min(engine.timeout_minutes + MARGIN_MINUTES, MAX_MINUTES)),
            gradient_as_bucket_view=True,
        )
        if devices * nodes > 1
        else "auto",
    )
    fabric.launch()
    os.environ.pop(LAUNCHER, None)  # it would end processes of other launchers that this one starts later
    if fabric.world_size != devices * nodes:
        raise ValueError(
            f"{fabric.world_size} processes were started for engine.devices={devices} and engine.nodes={nodes}; under "
            "SLURM, start one per device: srun --ntasks-per-node=DEVICES"
        )
    return fabric
