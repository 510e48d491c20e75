"""The results file of studies: one JSON line per finished cell."""

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from typing import get_origin, get_type_hints

from ..files import write_text_atomic
from ..recipe import from_plain

RESULTS, FAILURES = "results.jsonl", "failures.jsonl"


@dataclass(frozen=True)
class CellResult:
    """What a finished cell leaves: everything that the report needs.

    Args:
        key: Hash of the recipe; see :func:`smt_vision.study.study.recipe_key`.
        cell: Label of the cell that was trained. Cells of other studies may have the same key.
        seed: Seed of the run.
        metric: Name of the primary metric.
        by_epoch: Primary metric in percent by evaluated epoch, of the weights at that epoch.
        epochs: The epochs that were evaluated.
        value: Primary metric in percent at the end of training. It is not that of the best epoch, which would be chosen
            on the images that it is measured on.
        steps: Optimizer steps.
        seconds: Wall-clock time of the run, with its evaluations.
        parameters: Number of parameters.
        gmac: Multiply-accumulates per image divided by 1e9.
        version: Version of this package.
        torch: Version of PyTorch.
        hardware: Description of the machine.
        date: Day on which the cell was finished, e.g. ``2026-11-26``.
        val_images: Hash of the content of the validation images; empty where it is not known. Cells that were evaluated
            on different images are not compared.
        listing: Hash of names and labels of the training and validation images; empty where it is not known. Cells
            whose recipes name the same images are not compared if it differs.
        code: Hash of the source files of this package and of the study; empty where it is not known. A development
            version changes without its number.
    """

    key: str
    cell: str
    seed: int
    metric: str
    by_epoch: tuple[float, ...]
    epochs: tuple[float, ...]
    value: float
    steps: int
    seconds: float
    parameters: int
    gmac: float
    version: str
    torch: str
    hardware: str
    date: str
    val_images: str = ""
    listing: str = ""
    code: str = ""


def under_same_conditions(results: Collection[CellResult]) -> bool:
    """Whether results are of the same hardware, versions of PyTorch and of this package and, if recorded, code."""
    return all(
        len({getattr(result, name) for result in results} - {""}) < 2
        for name in ("hardware", "torch", "version", "code")
    )


def read_results(paths: Iterable[Path]) -> dict[str, CellResult]:
    """The results in files of JSON lines, by key; files of several machines may be given, or appended to each other.

    A file that does not exist has no results.

    Raises:
        ValueError: A line is not a result, or two of one cell have different metrics, since it was trained twice; the
            message has the file and the line.
    """
    results: dict[str, CellResult] = {}
    places: dict[str, str] = {}
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 ({error}); expected lines of JSON, one per result") from error
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{path}, line {number}"
                result = read_result(line, where)
                if _differ(earlier := results.get(result.key, result), result):
                    raise ValueError(
                        f"{where}: {result.cell} has another result, {result.value:.2f}, than in "
                        f"{places[result.key]}, {earlier.value:.2f}; remove one of the lines"
                    )
                results[result.key], places[result.key] = result, where
    return results


def _differ(one: CellResult, other: CellResult) -> bool:
    """Whether two results of one cell are different; one of them may have been evaluated more often."""
    by_epoch = [dict(zip(result.epochs, result.by_epoch, strict=True)) for result in (one, other)]
    common = by_epoch[0].keys() & by_epoch[1].keys()
    pairs = [(one.value, other.value), *((by_epoch[0][epoch], by_epoch[1][epoch]) for epoch in common)]
    return any(a != b and not (isnan(a) and isnan(b)) for a, b in pairs)


def add_result(path: Path, result: CellResult) -> None:
    """Append a result to a results file, which is replaced as a whole: a reader never finds half a line."""
    _append(path, asdict(result))


def add_failure(path: Path, key: str, cell: str, reason: str) -> None:
    """Append a cell that failed to a file of failures, so that the report counts it even if nobody tries it again."""
    _append(path, {"key": key, "cell": cell, "reason": reason})


def read_failures(paths: Iterable[Path]) -> dict[str, dict[str, str]]:
    """The cells that failed, by key: ``key``, ``cell`` and ``reason``; a cell may have a result since.

    A file that does not exist has none.

    Raises:
        ValueError: A line is not one of a failed cell.
    """
    failures: dict[str, dict[str, str]] = {}
    for path in paths:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
                failures[str(values["key"])] = {name: str(values[name]) for name in ("key", "cell", "reason")}
            except (ValueError, TypeError, LookupError) as error:
                raise ValueError(f"{path}, line {number}: not a cell that failed ({error}): {line[:80]!r}") from error
    return failures


def _append(path: Path, values: dict[str, object]) -> None:
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if before and not before.endswith("\n"):
        before += "\n"
    write_text_atomic(path, f"{before}{json.dumps(values)}\n")


def read_result(line: str, where: str) -> CellResult:
    """A result from a line of JSON; ``where`` is named in the ValueError if it is not one."""
    try:
        values = json.loads(line)
        if not isinstance(values, dict):
            raise TypeError(f"it is a {type(values).__name__} instead of an object")
        result = from_plain(CellResult, values)
        for name, kind in get_type_hints(CellResult).items():
            value = getattr(result, name)
            entries = value if isinstance(value, tuple) else (value,)
            wanted = {str: str, int: int}.get(kind, (int, float))
            is_right = all(isinstance(entry, wanted) and not isinstance(entry, bool) for entry in entries)
            if isinstance(value, tuple) != (get_origin(kind) is tuple) or not is_right:
                raise TypeError(f"its {name} is {value!r}"[:200])
        if len(result.epochs) != len(result.by_epoch):
            raise ValueError(f"{len(result.by_epoch)} values of {len(result.epochs)} epochs")
        return result
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{where}: not a result of a study ({error}): {line[:80]!r}") from error
