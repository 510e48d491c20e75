"""Recipes as YAML files: written with a checksum, and read with limits on what a file may hold."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .bounds import short
from .files import write_text_atomic
from .legacy import FIELDS_ADDED_BEFORE_CHECKSUMS
from .recipe import Recipe
from .tasks import read_recipe

MAX_BYTES = 1_000_000  # a recipe has some 4,000
MAX_DEPTH = 20
CHECKSUM = "# sha256 of the lines above: "


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as YAML, atomically; the last line, a comment, is the checksum of the other lines."""
    text = yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True)
    write_text_atomic(path, f"{text}{CHECKSUM}{_sha256(text)}\n")


def read_recipe_file(path: Path) -> Recipe:
    """Read a complete recipe that a run or a study has written.

    Files of earlier versions have no checksum. They must have all fields, so that a file that ends early is not taken
    for another recipe, with the default of each field that is missing.

    Raises:
        ValueError: The file is damaged, incomplete or not a recipe.
    """
    text = _read_text(path)
    body, mark, checksum = text.rpartition(CHECKSUM)
    if mark and checksum.strip() != _sha256(body):
        raise ValueError(
            f"{path}: the file does not match the checksum in its last line, so it is damaged or was edited; restore "
            "it, or delete that line if you edited the file"
        )
    values = _parse(text, path)
    try:
        recipe = read_recipe(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not mark:
        _check_complete(text, values, recipe, path)
    return recipe


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose content is a mapping.

    Raises:
        ValueError: The file is not UTF-8 or not YAML, is too large or nested too deeply, has aliases, tags or a key
            twice, or is not a mapping.
    """
    return _parse(_read_text(path), path)


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path}: more than {MAX_BYTES:,} bytes; expected a recipe, as smt recipes prints it")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 (byte {error.start} is 0x{content[error.start]:02x}); expected a recipe in YAML, saved "
            "as UTF-8"
        ) from error


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        _check_events(text, path)
        values = yaml.load(text, _Loader)  # noqa: S506  a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark: Any = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{path}: not valid YAML: {where}{error.problem or error.context}") from error
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        found = "nothing" if values is None else short(values)
        raise ValueError(f"{path}: contains {found}; expected the fields of a recipe, e.g. epochs: 10")
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


class _Loader(yaml.SafeLoader):
    """A SafeLoader for which a key that is there twice, and a value that cannot be converted, is an error of YAML."""

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


def _error(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _check_complete(text: str, values: Mapping[str, Any], recipe: Recipe, path: Path) -> None:
    """Raise a ValueError if a file without a checksum lacks fields, or its last line is cut off."""
    plain, groups = recipe.to_dict(), recipe.groups()
    given = {f"{k}.{name}" for k in groups for name in values.get(k, ())} | values.keys()
    expected = {f"{k}.{name}" for k in groups for name in plain[k]} | plain.keys()
    renamed = {name.replace("max_broken", "max_unreadable") for name in given}
    missing = sorted(
        name
        for name in expected - renamed
        if not {name, name.partition(".")[0]} & FIELDS_ADDED_BEFORE_CHECKSUMS  # a field, or its group
    )
    if missing or not re.search(r"\n\s*\Z", text):
        what = (
            f"it lacks {', '.join(missing[:3])}{', ...' if missing[3:] else ''}" if missing else "its last line is cut"
        )
        raise ValueError(
            f"{path}: the recipe is incomplete: {what}; expected all fields. Restore the file, or continue the run "
            "with the command that started it, with --run"
        )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
