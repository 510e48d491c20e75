"""The training log: ``log.jsonl`` in a run's folder, one JSON object per line."""

import json
import math
import time
from pathlib import Path
from typing import Any

from ..text import get_logger

log = get_logger(__name__)
LOG_NAME = "log.jsonl"
KINDS = ("train", "eval", "note", "resume")
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # numbers that JSON cannot represent


class TrainingLog:
    """Appends lines to ``log.jsonl``, each of them at once.

    Lines that cannot be written, e.g. because the disk is full, are kept in memory until it is possible.

    A line has a ``kind`` (``train``, ``eval``, ``note`` or ``resume``), a ``time`` in seconds since 1970, and the
    values passed to :meth:`write`. Where the log already has lines, or the run starts after step 0, the first line
    written is of kind ``resume``: :func:`read_log` then drops earlier lines of later steps. Lines are ASCII: names with
    other characters have JSON's escape sequences, so that they can be shown anywhere and always be written.

    Args:
        folder: The run's folder; created if missing.
        start_step: The last step already done.
    """

    def __init__(self, folder: Path, start_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOG_NAME
        _remove_incomplete_line(path)
        has_lines = path.exists() and path.stat().st_size > 0
        self._file = path.open("ab", buffering=0)
        self._waiting = b""
        if has_lines or start_step:
            self.write("resume", step=start_step)

    def write(self, kind: str, **values: Any) -> None:
        """Append a line. Values that JSON cannot represent are written as their ``str``."""
        fields = {"kind": kind, "time": round(time.time(), 3), **values}
        encodable = {name: _encodable(value) for name, value in fields.items()}
        line = json.dumps(encodable, allow_nan=False, default=str) + "\n"
        had_to_wait = bool(self._waiting)
        self._waiting += line.encode()
        try:
            self._flush()
        except OSError as error:
            if not had_to_wait:
                log.warning("%s: %s; its lines are kept in memory until they can be written", self._file.name, error)

    def _flush(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) :]

    def close(self) -> None:
        """Close the file. Lines that cannot be written now either are logged as an error."""
        if self._file.closed:
            return
        try:
            self._flush()
        except OSError as error:
            log.error("%s: %s; its last %d lines are lost", self._file.name, error, self._waiting.count(b"\n"))
        self._file.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``log.jsonl``, in order, without those that a resumed run repeated.

    Lines that cannot be read, e.g. an incomplete last one that a killed process has left, are left out; those in the
    middle are logged as a warning. ``nan`` and infinities come back as floats.

    Args:
        folder: The run's folder.

    Raises:
        FileNotFoundError: The folder has no log.
    """
    path = Path(folder) / LOG_NAME
    if not path.exists():
        raise FileNotFoundError(f"no {LOG_NAME} in {folder}: is it the folder of a training run?")
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    lines: list[dict[str, Any]] = []
    damaged: list[int] = []
    for number, text in enumerate(texts, start=1):
        if not text:
            continue
        line = _parsed(text)
        if line is None:
            damaged += [number] * (number < len(texts))  # else no newline follows: the process ended while writing it
        elif line["kind"] == "resume":
            lines = [earlier for earlier in lines if earlier.get("step", 0) <= line["step"]]
            lines.append(line)
        elif line["kind"] == "eval":  # an evaluation that was killed before its checkpoint is repeated
            lines = [earlier for earlier in lines if (earlier["kind"], earlier.get("step")) != ("eval", line["step"])]
            lines.append(line)
        else:
            lines.append(line)
    if damaged:
        some = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        log.warning("%s: left out %d lines that are not lines of a training log: %s", path, len(damaged), some)
    return lines


def _parsed(text: str) -> dict[str, Any] | None:
    """A line of the log; ``None`` if it is not one."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or line.get("kind") not in KINDS or not isinstance(line.get("step", 0), int):
        return None
    line = {name: NOT_FINITE.get(value, value) if isinstance(value, str) else value for name, value in line.items()}
    numbers = {name: value for name, value in line.items() if name != "kind"}
    needed = {"note": set(), "resume": {"step"}}.get(line["kind"], {"step", "epoch"})
    if not needed <= line.keys() or (line["kind"] != "note" and not all(map(_is_number, numbers.values()))):
        return None
    return line


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _remove_incomplete_line(path: Path) -> None:
    """Truncate the file after its last newline, so that the next line does not continue an incomplete one."""
    if path.exists():
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            with path.open("r+b") as file:
                file.truncate(end)


def _encodable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(name): _encodable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(item) for item in value]
    return value
