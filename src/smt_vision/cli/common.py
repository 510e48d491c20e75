"""What the commands share."""

import argparse
import difflib
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter

EXIT_ERROR, EXIT_USAGE = 1, 2
# How jsonargparse speaks of an unknown option, and of an unknown key in a file; what is typed before the name.
UNKNOWN = (
    (r"nrecognized arguments: --([\w.\-]+)", "--"),
    (r"Option ['\"]([\w.\-]+)['\"] is not accepted", ""),
    (r"Group ['\"]([\w.\-]+)['\"] does not accept option ['\"]([\w.\-]+)['\"]", ""),
    (r"[Kk]ey ['\"]([\w.\-]+)['\"]", ""),
)


@dataclass(frozen=True)
class Output:
    """A command's result.

    Args:
        data: for ``--json``.
        show: otherwise printed, one after the other: strings and rich's renderables.
        code: the exit code.
    """

    data: Any
    show: Sequence[Any] = ()
    code: int = 0


def nearest(word: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"``, or nothing where no known word is near."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not close:  # a bare or misplaced field: --lr for --optim.lr
        close = [k for k in known if k.rpartition(".")[2] == word.rpartition(".")[2]][:1]
    return f"; did you mean {close[0]}?" if close else ""


class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Options as jsonargparse prints them, examples as they are typed."""


class Parser(ArgumentParser):
    """A parser that answers an unknown option or key with the nearest known one."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        options = [o.lstrip("-") for action in self._actions for o in action.option_strings if o.startswith("--")]
        for pattern, dashes in UNKNOWN:
            if (match := re.search(pattern, message)) and (name := ".".join(match.groups())) not in options:
                hint = nearest(name, options)
                message = f"there is no {dashes}{name}" + (hint.replace("mean ", f"mean {dashes}") if hint else "")
                break
        print(f"{self.prog}: error: {message}\nsee {self.prog} --help", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def new_parser(command: str, about: str, examples: str, usage: str | None = None) -> Parser:
    """A command's parser, with ``--json``; ``examples`` are shown before the options."""
    parser = Parser(
        prog=f"smt {command}",
        usage=usage,
        description=f"{about}\n\nexamples:\n{textwrap.indent(examples, '  ')}",
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
    return parser
