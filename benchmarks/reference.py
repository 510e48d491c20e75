"""The two sides of the comparisons: the plain form of the network in ``tests/literal.py``, and ours, of one weights."""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from smt_vision import __version__
from smt_vision.engine.summary import hardware
from smt_vision.model.official import to_official
from smt_vision.registry import VARIANTS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from literal import LiteralSMT


def reference_and_ours(variant: str) -> tuple[nn.Module, nn.Module]:
    """The same network twice, with the same random weights."""
    torch.manual_seed(0)
    ours = timm.create_model(variant)
    reference = LiteralSMT(**VARIANTS[variant])
    reference.load_state_dict(to_official(ours.state_dict()))
    return reference, ours


def parser(about: str) -> argparse.ArgumentParser:
    """The options that the benchmarks share."""
    options = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="smt_tiny", choices=VARIANTS)
    options.add_argument("--size", type=int, default=224, help="side in pixels")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--rounds", type=int, default=8, help="turns of each")
    options.add_argument("--seconds", type=float, default=2.0, help="timed, a turn")
    options.add_argument("--out", type=Path, help="a JSON file to write")
    return options


def finish(args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Write the results with what they were measured by, on and when."""
    if args.out:
        about = {
            "command": " ".join(["python", *sys.argv]),
            "hardware": hardware(),
            "versions": {"smt_vision": __version__, "torch": torch.__version__},
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        args.out.write_text(json.dumps({**about, **results}, indent=1) + "\n", encoding="utf-8")
