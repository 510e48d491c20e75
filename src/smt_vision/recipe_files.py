"""Recipes as YAML files: written with a checksum, and read with limits on what a file may hold."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .files import write_text_atomic
from .legacy import FIELDS_ADDED_BEFORE_CHECKSUMS
from .recipe import Recipe
from .tasks import read_recipe
from .yaml_files import parse_yaml, read_yaml_text

EXPECTED = "the fields of a recipe in YAML, e.g. epochs: 10"
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
    text = read_yaml_text(path, EXPECTED)
    body, mark, checksum = text.rpartition(CHECKSUM)
    if mark and checksum.strip() != _sha256(body):
        raise ValueError(
            f"{path}: the file does not match the checksum in its last line, so it is damaged or was edited; restore "
            "it, or delete that line if you edited the file"
        )
    values = parse_yaml(text, path, EXPECTED)
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
    return parse_yaml(read_yaml_text(path, EXPECTED), path, EXPECTED)


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
