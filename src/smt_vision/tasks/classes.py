"""Matching the classes of a dataset with those of a model, by name."""

import difflib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeVar

from ..data.dataset import RawDataset
from ..text import get_logger, printable

log = get_logger(__name__)
Images = TypeVar("Images", bound=RawDataset[Any])
Key = TypeVar("Key", str, int)
_SEPARATORS = re.compile(r"\s+|(?<=\w)[-_\s]+(?=\w)|_+")  # not the sign of a number
SHOWN = 5  # names listed in a message
LABEL_SEPARATORS = ("|", ";", ",")  # between the class names of an image that has several
MAX_DIGITS = 100  # of a name that is taken for a number


def label_separator(classes: Iterable[str]) -> str:
    """What joins the class names of an image in a table: the first separator that is in none of them, else ``|``."""
    text = "".join(classes)
    return next((separator for separator in LABEL_SEPARATORS if separator not in text), LABEL_SEPARATORS[0])


def with_classes(
    images: Images, classes: Sequence[str], synonyms: Sequence[str] = (), owner: str = "the model"
) -> Images:
    """A dataset with the classes of a model or of the training set, matched by name; see :func:`match_classes`."""
    matched = match_classes(images.classes, classes, images.where, synonyms, images.unused_classes(), owner)
    return images.relabel(classes, matched)


def match_classes(
    names: Sequence[str],
    classes: Sequence[str],
    where: str,
    synonyms: Sequence[str] = (),
    unused: Collection[int] = (),
    owner: str = "the model",
    by_index: bool = True,
) -> list[int]:
    """Index in ``classes`` of each of ``names``.

    Names are compared regardless of case, Unicode normalization, and whether words are separated by spaces, hyphens or
    underscores. A class may have several names, separated by commas, as ImageNet's have. With ``by_index``, names that
    are numbers stand for class indices if none of the model's is a number; if the model's are just its indices and the
    dataset's are not numbers, they are matched in order. Both is logged as a warning.

    Args:
        names: Class names of a dataset.
        classes: Class names of a model.
        where: Name of the dataset in messages.
        synonyms: Further names of the model's classes, in order, e.g. WordNet ids.
        unused: Indices in ``names`` of classes that do not occur in the dataset. They need not be among the model's,
            and have the index -1 if they are not.
        owner: What ``classes`` are of, in messages.
        by_index: Numbers, as names of either, may be indices of the model's classes. Not so of a network that was
            trained independently of the dataset.

    Raises:
        ValueError: A name is not among the model's or could be several of them, or several names are one of the
            model's; the message lists these.
    """
    if tuple(names) == tuple(classes):
        return list(range(len(classes)))
    by_name, by_synonym = class_candidates(names, classes), class_candidates(names, synonyms)
    candidates = [first or second for first, second in zip(by_name, by_synonym, strict=True)]
    if all(len(indices) == 1 or i in unused for i, indices in enumerate(candidates)):
        matched = [indices[0] if len(indices) == 1 else -1 for indices in candidates]
        _check_distinct(names, matched, classes, where, owner)
        if skipped := [name for name, index in zip(names, matched, strict=True) if index < 0]:
            log.info("%s: ignored %d classes that do not occur: %s", where, len(skipped), some_names(skipped))
        return matched
    for name, indices in zip(names, candidates, strict=True):
        if len(indices) > 1:
            raise ValueError(
                f"{where}: several of {owner}'s classes are called {name!r} (indices {', '.join(map(str, indices))}); "
                f"name the classes as {owner} does, in its order"
            )
    indexed = by_index and _are_numbers(names) and not any(map(str.isdecimal, classes))
    if indexed and max(map(_number, names)) < len(classes):
        log.warning("%s: the class names are numbers, which are taken for the model's class indices", where)
        return [int(name) for name in names]
    unnamed = by_index and tuple(classes) == tuple(map(str, range(len(classes))))
    if unnamed and not any(map(str.isdecimal, names)) and len(names) == len(classes):
        log.warning("%s: the model's classes have no names; they are matched in order: %s", where, some_names(names))
        return list(range(len(names)))
    unmatched = [names[i] for i, indices in enumerate(candidates) if not indices and i not in unused]
    close = {name: difflib.get_close_matches(name, classes, n=1, cutoff=0.8) for name in unmatched[:SHOWN]}
    hints = [f"{name!r} is perhaps {match[0]!r}" for name, match in close.items() if match]
    raise ValueError(
        f"{where}: {len(unmatched)} of its {len(names)} classes are not among {owner}'s {len(classes)}: "
        f"{some_names(unmatched)}; {owner} has {some_names(classes)}"
        f"{'; ' + ', '.join(hints) if hints else ''}. Rename them as {owner}'s"
        f"{', or use a model that was trained on them' if owner == 'the model' else ''}"
    )


def class_candidates(names: Sequence[str], classes: Sequence[str]) -> list[list[int]]:
    """Indices of the classes that each name could mean."""
    exact = _indices([[name] for name in classes])
    normalized = _indices([[_normalize(name)] for name in classes])
    parts = _indices([map(_normalize, name.split(",")) for name in classes])
    counts = Counter(names)
    # Names that differ only in what is normalized are told apart by it.
    alike = Counter(map(_normalize, counts))
    # Two of ImageNet's classes are called crane, and two maillot.
    ordered = len(names) == len(classes)
    out = []
    for i, name in enumerate(names):
        key = _normalize(name)
        found = exact.get(name) or ([] if alike[key] > 1 else normalized.get(key) or parts.get(key, []))
        options = found + parts.get(key, []) if counts[name] > 1 else found
        out.append([i] if ordered and i in options else found)
    return out


def _check_distinct(
    names: Sequence[str], matched: Sequence[int], classes: Sequence[str], where: str, owner: str
) -> None:
    """Raise a ValueError if several names are matched with one class."""
    by_class = _indices([[index] for index in matched])
    for index, same in by_class.items():
        if index >= 0 and len(same) > 1:
            raise ValueError(
                f"{where}: the classes {', '.join(repr(names[i]) for i in same)} are all {owner}'s class "
                f"{classes[index]!r}; name the classes as {owner} does"
            )


def _indices(names: Iterable[Iterable[Key]]) -> dict[Key, list[int]]:
    """Indices of the classes with each name; a class may have several."""
    out: dict[Key, list[int]] = {}
    for i, alternatives in enumerate(names):
        for name in dict.fromkeys(alternatives):
            out.setdefault(name, []).append(i)
    return out


def _normalize(name: str) -> str:
    if name.isdecimal():
        return str(int(name)) if len(name) <= MAX_DIGITS else name  # folders are often called 000, 001, ...
    words = _SEPARATORS.sub(" ", unicodedata.normalize("NFC", name)).strip(" _") or name
    return unicodedata.normalize("NFC", words.casefold())


def _number(name: str) -> int | float:
    """The number that a name of digits stands for; infinity if it cannot be an index."""
    return int(name) if len(name) <= MAX_DIGITS else math.inf


def _are_numbers(names: Sequence[str]) -> bool:
    return all(map(str.isdecimal, names))


def some_names(names: Sequence[str]) -> str:
    """The first few names, and the number of the others, for messages."""
    return ", ".join(map(printable, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
