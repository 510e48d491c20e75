"""The training log: ``log.jsonl`` in a run's folder, one JSON object per line."""

import json
import math
import time
from pathlib import Path
from typing import Any, TextIO

LOG_NAME = "log.jsonl"
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # numbers that JSON cannot represent


class TrainingLog:
    """Appends lines to ``log.jsonl``, each flushed as it is written.

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
        self._file: TextIO = path.open("a", encoding="utf-8", buffering=1)
        if has_lines or start_step:
            self.write("resume", step=start_step)

    def write(self, kind: str, **values: Any) -> None:
        """Append a line. Values that JSON cannot represent are written as their ``str``."""
        fields = {"kind": kind, "time": round(time.time(), 3), **values}
        encodable = {name: _encodable(value) for name, value in fields.items()}
        self._file.write(json.dumps(encodable, allow_nan=False, default=str) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``log.jsonl``, in order, without those that a resumed run repeated.

    An incomplete last line, as a killed process leaves it, is ignored. ``nan`` and infinities come back as floats.

    Args:
        folder: The run's folder.

    Raises:
        FileNotFoundError: The folder has no log.
        ValueError: A line other than the last is not JSON.
    """
    path = Path(folder) / LOG_NAME
    if not path.exists():
        raise FileNotFoundError(f"no {LOG_NAME} in {folder}: is it the folder of a training run?")
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(texts, start=1):
        if not text:
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            if number == len(texts):  # no newline follows: the process ended while writing it
                break
            raise ValueError(f"{path}, line {number} is not JSON ({error}): {text[:80]!r}") from error
        line = {name: NOT_FINITE.get(value, value) if isinstance(value, str) else value for name, value in line.items()}
        if line["kind"] == "resume":
            lines = [earlier for earlier in lines if earlier.get("step", 0) <= line["step"]]
        elif line["kind"] == "eval":  # an evaluation that was killed before its checkpoint is repeated
            lines = [earlier for earlier in lines if (earlier["kind"], earlier.get("step")) != ("eval", line["step"])]
        lines.append(line)
    return lines


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
