"""Validation of datasets: problems are collected, then reported together."""

from collections import defaultdict

from ..text import get_logger, printable

log = get_logger(__name__)
SHOWN = 5  # examples listed per kind of problem
MAX_LENGTH = 500  # characters of an example


class ValidationReport:
    """Problems found in one file or directory, grouped by kind.

    A message gives, for each kind, the number of cases, the first few of them, and what to do.

    Args:
        where: Name of the file or directory in messages.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._errors: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._warnings: dict[tuple[str, str], list[str]] = defaultdict(list)

    def error(self, kind: str, case: str, fix: str) -> None:
        """Add a problem that must be fixed before the dataset can be used."""
        self._errors[kind, fix].append(case)

    def warning(self, kind: str, case: str, consequence: str) -> None:
        """Add a problem with which the dataset can still be used."""
        self._warnings[kind, consequence].append(case)

    def raise_errors(self) -> None:
        """Log the warnings since the last call, then raise all errors as one exception.

        Raises:
            ValueError: If there are errors.
        """
        for message in _messages(self._warnings):
            log.warning("%s: %s", self.where, message)
        self._warnings.clear()
        if self._errors:
            raise ValueError(f"{self.where}: {'. '.join(_messages(self._errors))}")


def _messages(problems: dict[tuple[str, str], list[str]]) -> list[str]:
    return [f"{len(cases)} {kind}: {first_few(cases)}; {advice}" for (kind, advice), cases in problems.items()]


def first_few(cases: list[str]) -> str:
    """List the first few cases, with an ellipsis if there are more, and in the middle of a long one."""
    return ", ".join(map(_shortened, cases[:SHOWN])) + (" ..." if len(cases) > SHOWN else "")


def _shortened(case: str) -> str:
    half = MAX_LENGTH // 2
    return printable(case if len(case) <= MAX_LENGTH else f"{case[:half]} ... {case[-half:]}")
