"""Write docs/api.md, the reference of the public API, and docs/fields.md, that of recipes, from the docstrings.

    python tools/write_api.py

The names of the API are those of ``smt_vision.__all__``. A test compares the committed pages with the docstrings.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from docstring_parser import Docstring, parse

import smt_vision
from smt_vision.bounds import describe
from smt_vision.recipe import Recipe
from smt_vision.tasks import TASKS, recipe_class

DOCS = Path(__file__).resolve().parent.parent / "docs"
SECTIONS = {
    "Models": ("backbone", "fuse", "SMT"),
    "Prediction": (
        "load", "predict", "predict_video", "Classifier", "Prediction", "Detector", "Detections", "Segmenter",
        "SegmentationResult",
    ),
    "Training": ("train", "find_lr", "cross_validate", "CrossValidation", "Recipe"),
    "Evaluation": ("evaluate", "calibrate"),
    "Data": ("inspect", "embed", "Embeddings"),
    "Export": ("export",),
}  # fmt: skip
INTRODUCTION = """\
# API reference

The names of `smt_vision`, which are imported on first use. This page is written from their docstrings by
`python tools/write_api.py`; `help(smt_vision.load)` shows the same.

`RECIPES` maps the names of the recipes (`smt recipes` lists them) to frozen dataclasses of the class `Recipe`, one
subclass per task; `__version__` is the version of the package. In PyTorch, images are tensors of shape (B, C, H, W).
"""
FIELDS_INTRODUCTION = """\
# Fields of the recipes

All fields of the recipes, with what they take and their defaults; a recipe may have other values (`smt recipes NAME`
prints them). On the command line a field is `--GROUP.FIELD VALUE`, e.g. `smt train finetune --optim.lr 5e-4`; in Python
`dataclasses.replace` makes a copy with another value. This page is written from the docstrings by `python
tools/write_api.py`.
"""


def main() -> None:
    """Write the pages."""
    for name, write in PAGES.items():
        (DOCS / name).write_text(write(), encoding="utf-8")
        print(f"written: {DOCS / name}")


def fields_page() -> str:
    """The page of the recipes' fields as Markdown."""
    groups: dict[tuple[str, type], list[str]] = {}
    for task in TASKS:
        for group, kind in recipe_class(task).groups().items():
            groups.setdefault((group, kind), []).append(task)
    lines = [FIELDS_INTRODUCTION, "## Of the recipe itself\n", *_fields(Recipe, {group for group, _ in groups})]
    for (group, kind), tasks in groups.items():
        of = "" if len(tasks) == len(TASKS) else f" ({', '.join(tasks)})"
        lines += [f"## {group}{of}\n", _prose(parse(inspect.getdoc(kind) or "").short_description or "") + "\n"]
        lines += _fields(kind, set())
    return "\n".join(lines)


def _fields(kind: Any, left_out: set[str]) -> Iterator[str]:
    """A table of the fields of a dataclass."""
    described: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        described |= {p.arg_name: _prose(p.description or "") for p in parse(inspect.getdoc(base) or "").params}
    hints = get_type_hints(kind, include_extras=True)
    yield "| field | takes | default | meaning |\n|---|---|---|---|"
    for each in fields(kind):
        if each.name not in left_out:
            cells = (f"`{each.name}`", describe(hints[each.name]), _default(each), described.get(each.name, ""))
            yield "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"
    yield ""


def _default(each: "Field[Any]") -> str:
    value = each.default if each.default_factory is MISSING else each.default_factory()
    if value is MISSING:
        return "none: required"
    return "" if is_dataclass(value) else f"`{value!r}`"


def page() -> str:
    """The page of the API as Markdown."""
    lines, described = [INTRODUCTION], dict[Any, str]()
    for section, names in SECTIONS.items():
        lines.append(f"## {section}\n")
        for name in names:
            lines += [f"### {name}\n", *_entry(name, described)]
    return "\n".join(lines)


def _entry(name: str, described: dict[Any, str]) -> Iterator[str]:
    """The signature and docstring of a function; of a class also those of its public methods.

    Args:
        name: Public name.
        described: The methods that are on the page so far, and the class that they are at; those of this one are added.
    """
    value = getattr(smt_vision, name)
    yield _signature(f"smt_vision.{name}", value)
    yield from _text(parse(inspect.getdoc(value) or ""))
    if not isinstance(value, type):
        return
    inherited: dict[str, list[str]] = {}
    for attribute in sorted(_attributes(value)):
        method = inspect.getattr_static(value, attribute)
        if (elsewhere := described.setdefault(method, name)) != name:
            inherited.setdefault(elsewhere, []).append(f"`{attribute}`")
            continue
        if isinstance(method, property):
            yield f"`.{attribute}`: {_prose(inspect.getdoc(method) or '')}\n"
        elif inspect.isfunction(method) or isinstance(method, classmethod | staticmethod):
            function = getattr(value, attribute)
            yield _signature("" if attribute == "__call__" else f".{attribute}", function)
            yield from _text(parse(inspect.getdoc(function) or ""))
    for elsewhere, methods in inherited.items():
        yield f"{', '.join(methods)}: as of `{elsewhere}`.\n"


def _attributes(cls: type) -> set[str]:
    """Public methods and properties of a class that this package defines and describes."""
    return {
        name
        for base in cls.__mro__
        if base.__module__.partition(".")[0] == smt_vision.__name__
        for name, value in vars(base).items()
        if (not name.startswith("_") or name == "__call__")
        and (inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod))
        and getattr(value, "__doc__", None)
    }


def _signature(name: str, function: Callable[..., Any]) -> str:
    parameters = inspect.signature(function).parameters.values()
    shown, keyword_only = [], False
    for parameter in parameters:
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            shown.append("*")
        keyword_only |= parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        shown.append(str(parameter.replace(annotation=parameter.empty, default=_short(parameter.default))))
    text = f"{name}({', '.join(shown)})"
    if len(text) > 110:
        text = f"{name}(\n    " + ",\n    ".join(shown) + ",\n)"
    return f"```text\n{text}\n```\n"


class _Shown:
    """A default that prints as this text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _short(default: Any) -> Any:
    """A default that prints in few words, the same in every process."""
    if inspect.isfunction(default):
        return _Shown("...")
    long = default is not inspect.Parameter.empty and len(repr(default)) > 40
    return _Shown(f"{type(default).__name__}(...)") if long else default


def _text(doc: Docstring) -> Iterator[str]:
    between = "\n\n" if doc.blank_after_short_description else " "
    yield _prose(between.join(part for part in (doc.short_description, doc.long_description) if part)) + "\n"
    if doc.params:
        yield "\n".join(f"- `{p.arg_name}`: {_prose(p.description or '')}" for p in doc.params) + "\n"
    if doc.returns and doc.returns.description:
        yield f"Returns: {_prose(doc.returns.description)}\n"
    if doc.raises:
        yield "Raises:\n"
        yield "\n".join(f"- `{r.type_name}`: {_prose(r.description or '')}" for r in doc.raises) + "\n"


def _prose(text: str) -> str:
    """A docstring's text as Markdown: Sphinx's roles become code, paragraphs stay, examples become blocks."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    paragraphs = []
    for paragraph in text.split("\n\n"):
        if paragraph.startswith("    "):
            paragraphs.append(f"```text\n{inspect.cleandoc(paragraph)}\n```")
        else:
            paragraphs.append(re.sub(r"\s+", " ", paragraph).strip())
    return re.sub(r"::(?=\n|$)", ":", "\n\n".join(paragraphs))


PAGES: dict[str, Callable[[], str]] = {"api.md": page, "fields.md": fields_page}

if __name__ == "__main__":
    main()
