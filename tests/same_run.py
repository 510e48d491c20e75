"""Comparison of runs, e.g. of one that was stopped and resumed with one that was left alone."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smt_vision import checkpoints
from smt_vision.engine.log import read_log


def assert_identical(a: Any, b: Any, path: str = "") -> None:
    """Assert that two trees of tensors and plain data are bitwise equal; a failure names the entry."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_identical(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_identical(x, y, f"{path}[{i}]")
    elif isinstance(a, Tensor):
        assert a.dtype == b.dtype, path
        assert torch.equal(a, b), path
    else:
        assert a == b, path


def assert_same_run(one: Path, other: Path) -> None:
    """Two run folders hold the same result: weights, average, optimizer state, metrics and log."""
    for name in ("last.pt", "best.pt"):
        a, b = (dict(checkpoints.load(folder / name).state) for folder in (one, other))
        for state in (a, b):
            state.pop("seconds", None)
            state.pop("recipe")  # a resumed run's may differ where that has no effect
            state["spec"]["input"].pop("workers")
        assert_identical(a, b, name)
    clock = {"time", "images_per_s"}
    logs = [
        [
            {k: v for k, v in line.items() if k not in clock}
            for line in read_log(folder)
            if line["kind"] in ("train", "eval")
        ]
        for folder in (one, other)
    ]
    assert logs[0] == logs[1]
