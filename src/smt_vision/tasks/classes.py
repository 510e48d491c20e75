"""Matching the classes of a dataset with those of a model, by name."""

import difflib
import logging
import unicodedata
from collections.abc import Sequence

log = logging.getLogger(__name__)
SHOWN = 5  # names listed in a message


def match_classes(names: Sequence[str], classes: Sequence[str], where: str, synonyms: Sequence[str] = ()) -> list[int]:
    """Index in ``classes`` of each of ``names``.

    Names are compared regardless of case and Unicode normalization. Names that are numbers stand for class indices if
    none of the model's is a number; if the model's are numbers and the dataset's are not, they are matched in order.
    Both is logged as a warning.

    Args:
        names: Class names of a dataset.
        classes: Class names of a model.
        where: Name of the dataset in messages.
        synonyms: Further names of the model's classes, in order, e.g. WordNet ids.

    Raises:
        ValueError: A name is not among the model's or could be several of them; the message lists these.
    """
    if tuple(names) == tuple(classes):
        return list(range(len(classes)))
    candidates = class_candidates(names, classes)
    for found in (candidates, class_candidates(names, synonyms)):
        if all(len(indices) == 1 for indices in found):
            return [indices[0] for indices in found]
    for name, indices in zip(names, candidates, strict=True):
        if len(indices) > 1:
            raise ValueError(
                f"{where}: several classes of the model are called {name!r} (indices {', '.join(map(str, indices))}); "
                "name the classes as the model does, in its order"
            )
    if _are_numbers(names) and not _are_numbers(classes) and max(map(int, names)) < len(classes):
        log.warning("%s: the class names are numbers, which are taken for the model's class indices", where)
        return [int(name) for name in names]
    if _are_numbers(classes) and not _are_numbers(names) and len(names) == len(classes):
        log.warning("%s: the model's classes have no names; they are matched in order: %s", where, some_names(names))
        return list(range(len(names)))
    unmatched = [name for name, indices in zip(names, candidates, strict=True) if not indices]
    close = {name: difflib.get_close_matches(name, classes, n=1, cutoff=0.8) for name in unmatched[:SHOWN]}
    hints = [f"{name!r} is perhaps {match[0]!r}" for name, match in close.items() if match]
    raise ValueError(
        f"{where}: {len(unmatched)} of its {len(names)} classes are not among the model's {len(classes)}: "
        f"{some_names(unmatched)}; the model has {some_names(classes)}"
        f"{'; ' + ', '.join(hints) if hints else ''}. Rename them as the model's, or use a model that was trained on "
        "them"
    )


def class_candidates(names: Sequence[str], classes: Sequence[str]) -> list[list[int]]:
    """Indices of the classes that each name could mean."""
    exact, normalized = _indices(classes), _indices([_normalize(name) for name in classes])
    # Where names differ only in case or normalization, these are not ignored.
    strict = len({_normalize(name) for name in names}) < len(names)
    found = [exact.get(name) or ([] if strict else normalized.get(_normalize(name), [])) for name in names]
    if len(names) == len(classes):  # two of ImageNet's classes are called crane
        found = [[i] if i in indices else indices for i, indices in enumerate(found)]
    return found


def _indices(names: Sequence[str]) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        out.setdefault(name, []).append(i)
    return out


def _normalize(name: str) -> str:
    return str(int(name)) if name.isdecimal() else unicodedata.normalize("NFC", name).casefold().strip()


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.isdecimal() for name in names)


def some_names(names: Sequence[str]) -> str:
    """The first few names, and the number of the others, for messages."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
