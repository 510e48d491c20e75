"""Parsers and results, shared by all commands."""

import argparse
import difflib
import json
import math
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml
from docstring_parser import parse
from jsonargparse import ArgumentParser, DefaultHelpFormatter, get_loader, set_loader

from ..bounds import check, describe, has_bound
from ..text import printable

EXIT_ERROR, EXIT_USAGE = 1, 2
# Messages of jsonargparse about an unknown option or an unknown key in a file, with the prefix to show before the name.
UNKNOWN = (
    (r"nrecognized arguments: --([\w.\-]+)", "--"),
    (r"Option ['\"]([\w.\-]+)['\"] is not accepted", ""),
    (r"Group ['\"]([\w.\-]+)['\"] does not accept option ['\"]([\w.\-]+)['\"]", ""),
    (r"[Kk]ey ['\"]([\w.\-]+)['\"]", ""),
)
# What an option may be called here that has another name in other commands or tools; the last part of the name.
SYNONYMS = {
    "device": ("accelerator",), "accelerator": ("device",), "gpus": ("devices",), "amp": ("precision",),
    "num_workers": ("workers",), "img_size": ("size",), "imgsz": ("size",), "confidence": ("score",),
    "conf": ("score",), "output": ("out", "run"), "output_dir": ("out", "run"),
}  # fmt: skip
# Arguments are tried as YAML first. File names that are not UTF-8 are not YAML, like names with control characters.
set_loader("yaml", get_loader("yaml"), (yaml.YAMLError, UnicodeEncodeError))


@dataclass(frozen=True)
class Output:
    """A command's result.

    Args:
        data: Result as plain data, printed with ``--json``.
        show: Strings, each a line, and rich renderables; printed without ``--json``.
        code: Exit code.
    """

    data: Any
    show: Sequence[Any] = ()
    code: int = 0


def finite(data: Any) -> Any:
    """Plain data with ``None`` for numbers that are infinite or NaN, which JSON does not have."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {name: finite(value) for name, value in data.items()}
    return [finite(value) for value in data] if isinstance(data, list | tuple) else data


def nearest(word: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"`` with the most similar known word, or an empty string if none is similar."""
    known = list(known)
    # A field without its group, or with another, e.g. --lr instead of --optim.lr, before those that look like it.
    field = word.rpartition(".")[2].replace("-", "_")
    close = [k for f in (field, *SYNONYMS.get(field, ())) for k in known if k.rpartition(".")[2] == f][:1]
    close = close or difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def add_field(parser: "Parser", group: str, name: str, declared: type, default: str) -> None:
    """Add an option for a field of a recipe that has no value unless it is given.

    Args:
        parser: Gets the option ``--GROUP.NAME``.
        group: Group of the recipe, e.g. ``input``.
        name: Name of the field.
        declared: The dataclass that declares the field and describes it in its docstring.
        default: What holds if the option is not given, for the help.
    """
    kind = get_type_hints(declared, include_extras=True)[name] | None
    described = {p.arg_name: p.description for cls in declared.__mro__[::-1] for p in parse(cls.__doc__ or "").params}
    about = " ".join((described.get(name) or "").replace("``", "").split())
    parser.add_argument(f"--{group}.{name}", type=kind, help=f"{about} Default: {default}".lstrip())


class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Formats options like jsonargparse, keeps the line breaks of the description, and shows the range of an option."""

    def _get_type_str(self, action: argparse.Action) -> str | None:
        hint = getattr(action, "_typehint", None)
        if has_bound(hint):
            return describe(hint)
        shown = super()._get_type_str(action)
        return shown and shown.replace("<class 'Path'>", "path")


class Parser(ArgumentParser):
    """A parser whose errors suggest the most similar option or key for an unknown one.

    An option's type may have a range, see :mod:`smt_vision.bounds`; :meth:`check` checks it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._fields: list[str] = []
        self.shorthands: dict[str, str] = {}  # e.g. --distill for --distill.teacher
        self.lists: set[str] = set()  # options whose values may be written as names separated by commas, or none
        super().__init__(*args, **kwargs)

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        added: list[str] = super().add_class_arguments(*args, **kwargs)
        self._fields += added
        return added

    def parse_args(self, args: Sequence[str] | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        words = self._in_full(sys.argv[1:] if args is None else args)
        try:
            parsed = super().parse_args(words, **kwargs)
        except ValueError as error:  # of the YAML library, e.g. about a number of 5,000 digits
            self.error(f"a value cannot be read: {error}")
        for name, value in list(parsed.items()):
            parsed[name] = _with_home(value)
        return parsed

    def _in_full(self, words: Sequence[str]) -> list[str]:
        """The arguments with shorthands and lists as jsonargparse knows them."""
        full: list[str] = []
        for word in words:
            if full and full[-1] in self.lists:
                full.append(_as_list(word))
                continue
            name, equals, value = word.partition("=")
            name = self.shorthands.get(name, name)
            full.append(f"{name}{equals}{_as_list(value) if equals and name in self.lists else value}")
        return full

    def check(self, args: Any) -> None:
        """Check the options that have a range; the fields of a class are checked when an instance is made.

        Raises:
            ValueError: A value is not in the range of its option; the message has both.
        """
        for action in self._actions:
            hint = getattr(action, "_typehint", None)
            if has_bound(hint) and action.dest not in self._fields:
                value = args[action.dest]
                for item in value if isinstance(value, list) and action.nargs else [value]:
                    if item is not None:
                        check(f"--{action.dest}", item, hint, separator=" ")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        options = [o.lstrip("-") for action in self._actions for o in action.option_strings if o.startswith("--")]
        for pattern, dashes in UNKNOWN:
            if (match := re.search(pattern, message)) and (name := ".".join(match.groups())) not in options:
                hint = nearest(name, options)
                message = f"there is no {dashes}{name}" + hint.replace("mean ", f"mean {dashes}")
                break
        if re.search(r"Expected a <class 'str'>\. Got value: (True|False|[-\d.]+)\b", message):
            message += '\nquote names in a list that read as numbers, true or false, e.g. \'["1", "2"]\''
        print(f"{self.prog}: error: {printable(message, multiline=True)}\nsee {self.prog} --help", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def new_parser(command: str, about: str, examples: str, usage: str | None = None) -> Parser:
    """A parser for a command, with ``--json``; the help shows ``examples`` before the options."""
    parser = Parser(
        prog=f"smt {command}",
        usage=usage,
        description=f"{about}\n\nexamples:\n{textwrap.indent(examples, '  ')}",
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
    return parser


def _with_home(value: Any) -> Any:
    """A path, or the paths in a list, with the home directory for ``~``: shells replace it in ``--out ~/x`` only."""
    if isinstance(value, list):
        return [_with_home(item) for item in value]
    return Path(os.path.expanduser(value)) if isinstance(value, Path) else value


def _as_list(text: str) -> str:
    """Names separated by commas as a list in YAML; ``none`` is an empty list, and a list stays as it is."""
    if text.startswith("["):
        return text
    return json.dumps([] if text == "none" else [name.strip() for name in text.split(",")])
