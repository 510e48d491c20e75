"""The options of ``smt predict`` and ``smt eval`` that have a model see or say things otherwise than in training."""

from typing import Any, get_type_hints

from ..recipes import CHANGEABLE, GROUPS
from .common import Parser

FIELDS = dict.fromkeys(
    (group, name) for groups in CHANGEABLE.values() for group, names in groups.items() for name in names
)


def add_changes(parser: Parser) -> None:
    """``--input.size`` and the like, one for each field that may change, by default the model's own."""
    for group, name in FIELDS:
        kind = get_type_hints(GROUPS[group])[name] | None
        parser.add_argument(f"--{group}.{name}", type=kind, help="as in a recipe; default: the model's")


def changes_of(args: Any) -> dict[str, dict[str, Any]]:
    """What was typed of them, as :func:`smt_vision.inference.load` takes it."""
    return {group: vars(getattr(args, group)) for group in dict.fromkeys(group for group, _ in FIELDS)}
