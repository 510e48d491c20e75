"""Progress of commands: on a terminal on standard error, and nowhere else."""

import io
import sys
import threading
from collections.abc import Iterator

import pytest

from smt_vision.cli.progress import progress_callback, status_callback, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def use_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make standard error a terminal. Not a fixture: pytest replaces it between setup and call."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return stream


def test_callback_draws_the_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = use_terminal(monkeypatch)
    with progress_callback("rounds [x]") as on_progress:
        before = len(terminal.getvalue())
        on_progress(1, 3)
        assert "rounds [x]" in terminal.getvalue()[before:]
        assert "1/3" in terminal.getvalue()
        on_progress(3, 3)
    assert "3/3" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_callback_has_no_background_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    use_terminal(monkeypatch)
    threads = threading.active_count()
    with progress_callback("rounds"):
        assert threading.active_count() == threads


def test_track_yields_every_item(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    assert list(track(iter("abc"), 3, "images")) == ["a", "b", "c"]
    assert "images" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()


def test_an_error_inside_track_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    use_terminal(monkeypatch)

    def items() -> Iterator[int]:
        yield 1
        raise ValueError("unreadable")

    with pytest.raises(ValueError, match="unreadable"):
        list(track(items(), 2, "images"))


def test_status_shows_the_current_step(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    with status_callback() as on_status:
        on_status("tracing the model [x]")
    assert "tracing the model [x]" in terminal.getvalue()


def test_nothing_is_written_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_callback("rounds") as on_progress:
        on_progress(1, 1)
    assert list(track("ab", 2, "images")) == ["a", "b"]
    with status_callback() as on_status:
        on_status("tracing the model")
    assert capsys.readouterr() == ("", "")
