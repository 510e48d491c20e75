"""Run ``smt`` commands in the test process."""

import json
from pathlib import Path
from typing import Any

import pytest

from smt_vision.cli import main


def run(*arguments: str | Path) -> int:
    """The exit code of a command; usage errors raise SystemExit, as argparse does."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)


def answer(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    """The parsed ``--json`` output of a command that must succeed."""
    capsys.readouterr()
    assert run(*arguments, "--json") == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str], code: int, *arguments: str | Path) -> str:
    """Standard error of a command that must fail with ``code``: without a traceback, and with empty standard output."""
    capsys.readouterr()
    assert run(*arguments) == code
    out, error = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in error
    return error
