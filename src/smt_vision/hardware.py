"""Description of the hardware that a process runs on."""

import os
import platform
from pathlib import Path

import torch


def describe_hardware() -> str:
    """One line: CPU model, cores available to the process, PyTorch threads, and GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    line = f"{_cpu_name()}, {cores} cores, {torch.get_num_threads()} torch threads"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    for name in dict.fromkeys(names):
        line += f", {names.count(name)} x {name}"
    return line


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")  # Linux only
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
