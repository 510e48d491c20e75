"""Ranges of values, declared in the type of a field or argument and checked in one place.

A range is part of the type, ``epochs: Annotated[int, Range(ge=1)]``, so that a recipe from Python, a YAML file, a
checkpoint or the command line is checked against the same declaration, which ``--help`` shows. This module imports
nothing of ours.
"""

import reprlib
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, reduce, wraps
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

P = ParamSpec("P")
R = TypeVar("R")

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 100
_NAMES: Mapping[Any, str] = {
    bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "null", Any: "a value",
}  # fmt: skip


class Bound:
    """A condition on the values of a type; the type is ``Annotated`` with it."""

    def allows(self, value: Any) -> bool:
        """Whether a value of the type is allowed."""
        raise NotImplementedError

    def describe(self, kind: str) -> str:
        """The allowed values; ``kind`` describes those of the type, e.g. ``an integer``."""
        raise NotImplementedError


@dataclass(frozen=True)
class Range(Bound):
    """Bounds of a number; without any, every finite number.

    Args:
        ge: Smallest value.
        le: Largest value.
        gt: The value is above.
        lt: The value is below.
        expected: Description of the values, where more than the bounds is to be said.
    """

    ge: float | None = None
    le: float | None = None
    gt: float | None = None
    lt: float | None = None
    expected: str = ""

    def allows(self, value: Any) -> bool:
        return (
            (self.ge is None or value >= self.ge)
            and (self.le is None or value <= self.le)
            and (self.gt is None or value > self.gt)
            and (self.lt is None or value < self.lt)
        )

    def describe(self, kind: str) -> str:
        bounds = (("of at least", self.ge), ("above", self.gt), ("at most", self.le), ("below", self.lt))
        described = " and ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)
        return self.expected or f"{kind} {described}".rstrip()


@dataclass(frozen=True)
class OneOf(Bound):
    """A list of values."""

    values: tuple[Any, ...]

    def allows(self, value: Any) -> bool:
        return value in self.values

    def describe(self, kind: str) -> str:
        return f"one of {', '.join(map(repr, self.values))}"


@dataclass(frozen=True)
class NotEmpty(Bound):
    """Text or a list that is not empty."""

    def allows(self, value: Any) -> bool:
        return len(value) > 0

    def describe(self, kind: str) -> str:
        return (
            kind.replace("a list of values", "a list of one value or more") if "list" in kind else f"non-empty {kind}"
        )


@dataclass(frozen=True)
class Ascending(Bound):
    """A smallest and a largest value, in this order."""

    def allows(self, value: Any) -> bool:
        return bool(value[0] <= value[1])

    def describe(self, kind: str) -> str:
        return f"{kind}, the first at most the second"


@dataclass(frozen=True)
class Where(Bound):
    """Any other condition.

    Args:
        test: Whether a value satisfies it.
        expected: Description of the values that do.
    """

    test: Callable[[Any], bool]
    expected: str

    def allows(self, value: Any) -> bool:
        return self.test(value)

    def describe(self, kind: str) -> str:
        return self.expected


@dataclass(frozen=True)
class Without(Bound):
    """A mapping without certain names.

    Args:
        names: The names that it must not have.
        instead: What to use in their place, for messages.
    """

    names: tuple[str, ...]
    instead: str

    def allows(self, value: Any) -> bool:
        return not any(name in value for name in self.names)

    def describe(self, kind: str) -> str:
        return f"{kind}, without {', '.join(self.names)}: {self.instead}"


def _can_be_folder(path: Path) -> bool:
    """Whether a folder is there or can be created, since neither the path nor one above it is a file."""
    return next((above.is_dir() for above in (path, *path.parents) if above.exists()), True)


# Upper limits are far above useful values: beyond them, the machine would fail later and with another message.
Count = Annotated[int, Range(ge=1, le=1_000_000)]
Seed = Annotated[int, Range(ge=0, le=2**32 - 1)]
CountOrZero = Annotated[int, Range(ge=0)]
Resamples = Annotated[int, Range(ge=0, le=100_000)]
Seconds = Annotated[float, Range(ge=0, le=1_000_000)]
Processes = Annotated[int, Range(ge=1, le=1024)]
Workers = Annotated[int, Range(ge=0, le=1024)]
Side = Annotated[int, Range(ge=1, le=16_384)]  # pixels
Channels = Annotated[int, Range(ge=1, le=16_384)]
Fraction = Annotated[float, Range(ge=0, le=1)]
PositiveFraction = Annotated[float, Range(gt=0, le=1)]
Points = Annotated[float, Range(ge=0, le=100)]  # percentage points
FractionBelow1 = Annotated[float, Range(ge=0, lt=1)]
OutputFolder = Annotated[Path, Where(_can_be_folder, "a folder that exists or can be created, not a file")]

# timm.create_model's arguments that choose weights. Arguments may come from the spec in a checkpoint of others, which
# must not make timm read another file, or download to a folder of its choice.
WEIGHT_ARGUMENTS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
ModelArgs = Annotated[
    dict[str, Any],
    Without(
        (*WEIGHT_ARGUMENTS, "num_classes", "in_chans", "features_only"),
        "they follow from the classes and from pretrained, checkpoint (--checkpoint FILE) and input.channels",
    ),
]


def allows(hint: Any, value: Any) -> bool:
    """Whether a value is of a declared type and in its range.

    Integers are numbers, but true and false are not; infinity and NaN are not either. A list is as good as a tuple.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        return allows(arguments[0], value) and all(bound.allows(value) for bound in arguments[1:])
    if origin in (Union, types.UnionType):
        return any(allows(argument, value) for argument in arguments)
    if origin is Literal:
        return any(type(value) is type(argument) and value == argument for argument in arguments)
    if origin is tuple and arguments[1:] != (...,):
        same_length = isinstance(value, tuple | list) and len(value) == len(arguments)
        return same_length and all(map(allows, arguments, value))
    if origin in (tuple, list, Sequence):
        return isinstance(value, tuple | list) and all(allows(arguments[0], item) for item in value)
    if origin in (dict, Mapping):
        key, item = arguments
        return isinstance(value, Mapping) and all(allows(key, k) and allows(item, v) for k, v in value.items())
    if hint is float:
        limit = sys.float_info.max
        return isinstance(value, int | float) and not isinstance(value, bool) and -limit <= value <= limit
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def describe(hint: Any) -> str:
    """The values that a declared type allows, e.g. ``an integer of at least 1, or null``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return reduce(lambda kind, bound: bound.describe(kind), arguments[1:], describe(arguments[0]))
    if origin in (Union, types.UnionType):
        return ", or ".join(describe(argument) for argument in arguments)
    if origin is Literal:
        return f"{'one of ' if len(arguments) > 1 else ''}{', '.join(map(repr, arguments))}"
    if origin is tuple and arguments[1:] != (...,):
        return f"a list of {len(arguments)} values, each {describe(arguments[0])}"
    if origin in (tuple, list, Sequence):
        return f"a list of values, each {describe(arguments[0])}"
    if origin in (dict, Mapping):
        return "a mapping by name" if arguments[1] is Any else f"a mapping by name, each value {describe(arguments[1])}"
    if is_dataclass(hint):
        return f"a mapping with fields of {hint.__name__}"  # type: ignore[union-attr]
    return _NAMES.get(hint) or f"a {hint.__name__}"


def has_bound(hint: Any) -> bool:
    """Whether a type, or a part of it, has a declared bound."""
    return get_origin(hint) is Annotated or any(map(has_bound, get_args(hint)))


def short(value: Any) -> str:
    """A value for a message: shortened, with control characters escaped."""
    return _short.repr(str(value) if isinstance(value, Path) else value)


def check(name: str, value: Any, hint: Any, separator: str = "=") -> None:
    """Raise a ValueError with the name, the value and what is expected, unless the declared type allows the value."""
    if not allows(hint, value):
        raise ValueError(f"invalid {name}{separator}{short(value)}: expected {describe(hint)}")


def check_fields(instance: Any, prefix: str = "") -> None:
    """Check every field of a dataclass against its declared type.

    Raises:
        ValueError: A value is not allowed; the message has the name of its field, after ``prefix``.
    """
    for name, hint in _field_hints(instance.__class__).items():
        check(f"{prefix}{name}", getattr(instance, name), hint)


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check the arguments of a function that have a declared range, before it is called."""
    parameters = signature(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        hints = _argument_hints(function)
        try:
            given = parameters.bind(*args, **kwargs).arguments
        except TypeError:  # missing or unknown arguments: Python's own error names them
            return function(*args, **kwargs)
        for name, value in given.items():
            if name in hints:
                check(name, value, hints[name])
        return function(*args, **kwargs)

    return call


@cache
def _field_hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


@cache
def _argument_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Types of the arguments that have a declared range."""
    hints = get_type_hints(function, include_extras=True)
    return {name: hint for name, hint in hints.items() if name != "return" and has_bound(hint)}
