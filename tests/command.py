"""The command line, called in the tests' own process."""

import json
from pathlib import Path
from typing import Any

import pytest

from smt_vision.cli import main


def run(*words: str | Path) -> int:
    """A command's exit code; wrong words end argparse-like, by SystemExit."""
    try:
        return main([str(word) for word in words])
    except SystemExit as end:
        return int(end.code or 0)


def answer(capsys: pytest.CaptureFixture[str], *words: str | Path) -> Any:
    """What a command that must succeed prints with --json, parsed."""
    capsys.readouterr()
    assert run(*words, "--json") == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str], code: int, *words: str | Path) -> str:
    """What a command that must fail prints on standard error; nothing on standard output, and no traceback."""
    capsys.readouterr()
    assert run(*words) == code
    out, error = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in error
    return error
