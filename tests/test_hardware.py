"""The description of the machine."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from smt_vision.hardware import describe_hardware


def test_description_is_one_line() -> None:
    line = describe_hardware()
    assert "\n" not in line
    assert f"{torch.get_num_threads()} torch threads" in line
    assert re.search(r"\d+ cores", line)


def test_gpus_are_counted_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["GPU A", "GPU B", "GPU A"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: names[index])
    assert describe_hardware().endswith(", 2 x GPU A, 1 x GPU B")


def test_without_proc_the_platform_names_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    is_file = Path.is_file

    def hidden(self: Path) -> Any:
        return self != Path("/proc/cpuinfo") and is_file(self)

    monkeypatch.setattr(Path, "is_file", hidden)
    monkeypatch.setattr("platform.processor", lambda: "some CPU")
    assert describe_hardware().startswith("some CPU, ")
