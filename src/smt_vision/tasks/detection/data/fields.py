"""Values of annotation files, JSON values or text, and names of splits, as annotation tools write them."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from ....data.files import TRAIN_NAMES, VAL_NAMES

DetectionSplit = Literal["train", "val", "test"]
# The first name that exists is the split.
SPLIT_NAMES: Mapping[DetectionSplit, tuple[str, ...]] = {
    "train": TRAIN_NAMES,
    "val": VAL_NAMES,
    "test": ("test", "testing"),
}

INT64 = 2**63
MAX_SIDE = 2**31 - 1  # pixels of an image
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_FLAGS = {"0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}


def parse_number(value: object) -> float | None:
    """A finite number, also written as text; ``None`` for any other value."""
    if isinstance(value, str):
        value = value.strip()
        if not _NUMBER.fullmatch(value):
            return None
    elif isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer beyond floating point
        return None
    return number if math.isfinite(number) else None


def parse_integer(value: object) -> int | None:
    """A 64-bit integer, also written as text or as a float such as 12.0; ``None`` for any other value."""
    number = parse_number(value)
    if number is None or not number.is_integer():
        return None
    try:
        integer = int(value)  # type: ignore[call-overload]  # exact beyond 2**53, unlike the float
    except ValueError:  # text such as "1e5"
        integer = int(number)
    return integer if -INT64 <= integer < INT64 else None


def parse_flag(value: object) -> bool | None:
    """A flag, written as a boolean, as 0 or 1, or as text of these; ``None`` for any other value."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _FLAGS:
        return _FLAGS[value.strip().lower()]
    return {0.0: False, 1.0: True}.get(parse_number(value))  # type: ignore[arg-type]


def are_finite(values: Iterable[Any]) -> bool:
    """Whether all values are finite numbers."""
    try:
        return all(map(math.isfinite, values))
    except (TypeError, OverflowError):  # not a number; an integer beyond floating point
        return False


def shown(value: object) -> str:
    """A value in messages, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
