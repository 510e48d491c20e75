"""What is wrong with a data set, collected before any of it is told."""

import logging
from collections import defaultdict

log = logging.getLogger(__name__)
SHOWN = 5  # cases of each kind that a message names


class ValidationReport:
    """Cases of each kind of problem in one file or folder; told together: the first few, their number, the remedy.

    Args:
        where: the file or folder.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._errors: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._warnings: dict[tuple[str, str], list[str]] = defaultdict(list)

    def error(self, kind: str, case: str, remedy: str) -> None:
        """Something that must be mended before the set can be used."""
        self._errors[kind, remedy].append(case)

    def warning(self, kind: str, case: str, what_happens: str) -> None:
        """Something that can be lived with."""
        self._warnings[kind, what_happens].append(case)

    def tell(self) -> None:
        """Log the warnings; then raise the errors, all kinds in one.

        Raises:
            ValueError: there are errors.
        """
        for message in _messages(self._warnings):
            log.warning("%s: %s", self.where, message)
        if self._errors:
            raise ValueError(f"{self.where}: {'. '.join(_messages(self._errors))}")


def _messages(found: dict[tuple[str, str], list[str]]) -> list[str]:
    return [f"{len(cases)} {kind}: {shown(cases)}; {what_next}" for (kind, what_next), cases in found.items()]


def shown(cases: list[str]) -> str:
    """The first few of a list of cases."""
    return ", ".join(cases[:SHOWN]) + (" ..." if len(cases) > SHOWN else "")
