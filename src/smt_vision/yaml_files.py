"""YAML files with limits on what they may hold: size, depth, no aliases, no tags, no key twice."""

from pathlib import Path
from typing import Any

import yaml

from .bounds import short

MAX_BYTES = 1_000_000  # a recipe has some 4,000
MAX_DEPTH = 20


def read_yaml_text(path: Path, expected: str) -> str:
    """The text of a YAML file; ``expected`` is its content in messages.

    Raises:
        ValueError: The file is not UTF-8 or too large.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path}: more than {MAX_BYTES:,} bytes; expected {expected}")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 (byte {error.start} is 0x{content[error.start]:02x}); expected {expected}, saved as "
            "UTF-8"
        ) from error


def parse_yaml(text: str, path: Path, expected: str, *, as_text: bool = False) -> dict[str, Any]:
    """Parse the text of a YAML file whose content is a mapping.

    Args:
        text: Text of the file.
        path: Name of the file in messages.
        expected: Its content in messages.
        as_text: Whether scalars stay text as written, e.g. ``no`` and ``1e3``.

    Raises:
        ValueError: The file is not YAML, is nested too deeply, has aliases, tags or a key twice, or is not a mapping.
    """
    try:
        _check_events(text, path)
        values = yaml.load(text, _TextLoader if as_text else _Loader)  # noqa: S506  neither builds objects
    except yaml.MarkedYAMLError as error:
        mark: Any = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{path}: not valid YAML: {where}{error.problem or error.context}") from error
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        found = "nothing" if values is None else short(values)
        raise ValueError(f"{path}: contains {found}; expected {expected}")
    return values


def _check_events(text: str, path: Path) -> None:
    """Raise a ValueError for what a recipe never has, before anything is built from it."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        problem = None
        if depth > MAX_DEPTH:
            problem = f"nested more than {MAX_DEPTH} levels deep"
        elif isinstance(event, yaml.AliasEvent):
            problem = f"the alias *{event.anchor}; write its value out"
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            problem = f"the tag {short(event.tag)}; omit it"
        if problem:
            mark: Any = event.start_mark
            raise ValueError(f"{path}: line {mark.line + 1}: {problem}")


class _Checked(yaml.constructor.BaseConstructor):
    """A key that is there twice, and a value that cannot be converted, is an error of YAML."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for i, key in enumerate(names):
            if any(key.value == earlier.value for earlier in names[:i]):
                raise _error(f"{short(key.value)} is there twice", key)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # e.g. the date 2026-13-01, or an integer of 5,000 digits
            raise _error(str(error), node) from error


class _Loader(_Checked, yaml.SafeLoader):
    """Values of YAML's types."""


class _TextLoader(_Checked, yaml.BaseLoader):
    """All scalars as text."""


def _error(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
