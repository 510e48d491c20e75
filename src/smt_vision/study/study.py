"""A study as data: a base recipe, named variants of it, seeds, and the claims that the results decide."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, cached_property
from typing import Any

from ..bounds import Count, check
from ..engine.fields import FREE_FIELDS, flat_fields
from ..recipe import Recipe

Overrides = Mapping[str, Any]  # values by dotted field name, e.g. {"optim.lr": 1e-3, "model_args.conv_heads": 1}


@dataclass(frozen=True)
class Claim:
    """A statement that one variant has a higher primary metric than others.

    Args:
        text: The statement.
        better: The variant that is claimed to be better.
        than: The variants that it is compared with.
        published: Published difference in percentage points, by variant of ``than``, where there is one.
        source: Where the claim is published, and under which conditions; empty if nowhere.

    Raises:
        ValueError: ``than`` is not a tuple of names, or names ``better`` or a variant twice.
    """

    text: str
    better: str
    than: tuple[str, ...]
    published: Mapping[str, float] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        if (
            isinstance(self.than, str)
            or not self.than
            or {*self.than} & {self.better}
            or len({*self.than}) < len(self.than)
        ):
            raise ValueError(
                f"claim {self.text!r}: invalid than={self.than!r}: expected a tuple of other variants than "
                f"{self.better!r}, each once, e.g. ('small', 'large') or, of one, ('small',)"
            )


@dataclass(frozen=True)
class Study:
    """A comparison of variants of a recipe.

    The cells of one seed and budget have the same data order and augmentation, since these are functions of the seed,
    so that differences between variants are paired by seed.

    Args:
        name: Name of the study.
        about: The question, in one line.
        base: The recipe that is varied.
        variants: Values that differ from the base, by variant. The name of a field is dotted, e.g. ``optim.lr``;
            ``model_args.NAME`` is an argument of the model, and ``model_args`` replaces all of them.
        claims: What the results decide.
        budgets: Values that differ from the base, by budget, e.g. ``{"5 epochs": {"epochs": 5}}``. All variants run at
            every budget.
        seeds: Number of seeds, from 0; a verdict needs four.
        trend_from: The budget from which the trend to a budget is shown, by the latter's name; by default the first
            one. E.g. that of the same length for one of another size. Claims are judged at each budget that has one,
            and at the last one of the others.
        reference_budgets: Budgets at which other studies judge the same differences. Here they have no p-values and
            verdicts, so that no difference is judged twice, and are only what trends start from.
        debug: Values that make a cell small enough for a test.
        debug_variants: Variants that replace those of the same name in a test, for models that ``debug`` does not make
            small.

    Raises:
        ValueError: A field is unknown or is the seed, a claim names a variant that does not exist, or two variants are
            the same run.
    """

    name: str
    about: str
    base: Recipe
    variants: Mapping[str, Overrides]
    claims: tuple[Claim, ...] = ()
    budgets: Mapping[str, Overrides] = field(default_factory=lambda: {"": {}})
    seeds: Count = 4
    debug: Overrides = field(default_factory=dict)
    debug_variants: Mapping[str, Overrides] = field(default_factory=dict)
    trend_from: Mapping[str, str] = field(default_factory=dict)
    reference_budgets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check("seeds", self.seeds, Count)
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(
                f"invalid name={self.name!r} of a study: expected letters, digits, '_', '-' and '.', since files are "
                "named after it"
            )
        if isinstance(self.claims, Claim):
            raise ValueError(f"study {self.name!r}: claims is a Claim: expected a tuple, e.g. claims=(Claim(...),)")
        for claim in self.claims:
            unknown = {claim.better, *claim.than, *claim.published} - self.variants.keys()
            if unknown:
                raise ValueError(
                    f"study {self.name!r}: a claim names the variant {min(unknown)!r}: expected one of "
                    f"{', '.join(self.variants)}"
                )
        if unknown := {*self.trend_from, *self.trend_from.values()} - self.budgets.keys():
            raise ValueError(f"study {self.name!r}: trend_from has {min(unknown)!r}, which is not a budget")
        if unknown := {*self.reference_budgets} - self.budgets.keys():
            raise ValueError(f"study {self.name!r}: reference_budgets has {min(unknown)!r}, which is not a budget")
        if unknown := self.debug_variants.keys() - self.variants.keys():
            raise ValueError(f"study {self.name!r}: debug_variants has {min(unknown)!r}, which is not a variant")
        for values in (
            *self.variants.values(),
            *self.budgets.values(),
            *self.debug_variants.values(),
            self.debug,
        ):
            if "seed" in values:
                raise ValueError(
                    f"study {self.name!r}: a variant or budget sets the seed; seeds=N runs the seeds 0 to N - 1"
                )
            with_overrides(self.base, values)
        known: dict[str, list[tuple[str, str]]] = {}
        for budget in self.budgets:
            for variant in self.variants:
                same = known.setdefault(self.cell(budget, variant, 0).key, [])
                for other_budget, other in same:
                    if other_budget == budget:
                        raise ValueError(
                            f"study {self.name!r}: the variants {other!r} and {variant!r} are the same run"
                            f"{f' at {budget}' if budget else ''}: a difference between them is always 0; remove one"
                        )
                    if other == variant:
                        raise ValueError(
                            f"study {self.name!r}: the variant {variant!r} is the same run at {other_budget} and "
                            f"{budget}: its values replace those of the budget, e.g. model_args those of "
                            "model_args.NAME"
                        )
                same.append((budget, variant))

    def cells(self, seeds: int | None = None) -> Iterator["Cell"]:
        """All cells: budget by budget, seed by seed, so that an unfinished study has complete pairs.

        Args:
            seeds: Number of seeds; ``None`` for the study's.
        """
        for budget in self.budgets:
            for seed in range(self.seeds if seeds is None else seeds):
                for variant in self.variants:
                    yield self.cell(budget, variant, seed)

    def cell(self, budget: str, variant: str, seed: int) -> "Cell":
        """The cell of a budget, a variant and a seed."""
        recipe = with_overrides(with_overrides(self.base, self.budgets[budget]), self.variants[variant])
        return Cell(self.name, budget, variant, replace(recipe, seed=seed))

    def for_debugging(self) -> "Study":
        """The study with tiny cells: one budget, two seeds, and the values of ``debug``.

        Raises:
            ValueError: The study has no such values.
        """
        if not self.debug:
            raise ValueError(
                f"study {self.name!r} has no values that make its cells tiny: set debug=..., e.g. "
                "debug={'epochs': 1, 'batch_size': 8, 'input.size': 32}"
            )
        base = with_overrides(self.base, self.debug)
        variants = {**self.variants, **self.debug_variants}
        return replace(
            self, name=f"{self.name}_debug", base=base, variants=variants, budgets={"debug": {}}, seeds=2,
            trend_from={}, reference_budgets=(),
        )  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One training run of a study.

    Args:
        study: Name of the study.
        budget: Name of the budget.
        variant: Name of the variant.
        recipe: The run, with its seed.
    """

    study: str
    budget: str
    variant: str
    recipe: Recipe

    @property
    def label(self) -> str:
        """E.g. ``aggregation / 5 epochs / saa / seed 0``."""
        parts = (self.study, self.budget, self.variant, f"seed {self.recipe.seed}")
        return " / ".join(part for part in parts if part)

    @cached_property
    def key(self) -> str:
        """Hash of the recipe, 12 hexadecimal digits; see :func:`recipe_key`."""
        return recipe_key(self.recipe)


# Fields that a run can be resumed with other values of, but that decide what it trains.
DECISIVE = {"engine.patience", "engine.min_delta", "engine.max_grad_norm", "engine.on_nonfinite",
            "input.max_unreadable", "engine.accelerator", "engine.devices", "engine.nodes",
            "engine.grad_checkpointing"}  # fmt: skip
# Fields that choose the images, beside those of the group "labels".
DATA = {"data", "train_fraction", "split_seed", "folds", "fold"}
# Fields without a default, which are always part of the hash.
REQUIRED: Mapping[str, Any] = dict(name="any", model="any", data="any", epochs=1, batch_size=2)


def recipe_key(recipe: Recipe) -> str:
    """Hash of the fields that decide a run's result, 12 hexadecimal digits.

    Fields with their default are left out, so that a field that is new in a later version does not change the hash; a
    default that changes must not change what a hash stands for (``tests/study_defaults.json``).
    Studies that share a run have the same hash for it, and it is trained once.
    """
    return hashlib.sha256(json.dumps(changed_fields(recipe), sort_keys=True).encode()).hexdigest()[:12]


def decisive_fields(recipe: Recipe) -> dict[str, Any]:
    """The fields that decide a run's result, by dotted name."""
    return {name: value for name, value in flat_fields(recipe).items() if name not in FREE_FIELDS - DECISIVE}


def changed_fields(recipe: Recipe) -> dict[str, Any]:
    """The fields that decide a run's result and have another value than the task's default, by dotted name."""
    defaults = _defaults(type(recipe))  # type: ignore[arg-type]  # mypy: a class with fields is not Hashable
    return {
        name: value for name, value in decisive_fields(recipe).items() if name in REQUIRED or value != defaults[name]
    }


@cache
def _defaults(kind: type[Recipe]) -> Mapping[str, Any]:
    return flat_fields(kind(**REQUIRED))


def model_key(recipe: Recipe) -> str:
    """The model of a recipe, with its arguments, as text."""
    return json.dumps([recipe.model, recipe.to_dict()["model_args"]], sort_keys=True)


def inference_key(recipe: Recipe) -> str:
    """What decides the time of a recipe's model in inference, as text: the model, its head and its input."""
    parts = {"input.size", "input.channels"}
    newer = [("segment.squash", False)]  # than measurements in files, with the default
    head = {
        name: value
        for name, value in flat_fields(recipe).items()
        if (name in parts or name.partition(".")[0] in ("segment", "detect")) and (name, value) not in newer
    }
    return json.dumps([recipe.model, recipe.to_dict()["model_args"], head], sort_keys=True, default=list)


def passes(recipe: Recipe) -> float:
    """Passes over the whole dataset."""
    return recipe.epochs * recipe.train_fraction


def names_same_images(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes name the same training images with the same labels."""
    fields_of = [
        {name: value for name, value in flat_fields(recipe).items() if name in DATA or name.startswith("labels.")}
        for recipe in (one, other)
    ]
    return fields_of[0] == fields_of[1]


def with_data(recipe: Recipe, paths: Mapping[str, str]) -> Recipe:
    """A recipe with the path of its dataset; ``paths`` are by the name that recipes have for a dataset."""
    return replace(recipe, data=paths.get(recipe.data, recipe.data))


def with_overrides(recipe: Recipe, overrides: Overrides) -> Recipe:
    """A recipe with other values, by dotted field name.

    Raises:
        ValueError: A field is unknown; the message lists those of its group. Or a value is not in its field's range.
    """
    groups = recipe.groups()
    changed: dict[str, Any] = {}
    in_groups: dict[str, dict[str, Any]] = {}  # changed at once, since the values of fields may depend on each other
    for name, value in overrides.items():
        group, _, entry = name.partition(".")
        known: Sequence[str] = [f.name for f in fields(recipe)]
        if group in known and group == "model_args":
            before = changed.get("model_args", recipe.model_args)
            changed["model_args"] = {**before, entry: value} if entry else dict(value)
        elif group in groups and entry:
            _check_known(recipe, name, entry, [f.name for f in fields(groups[group])])
            in_groups.setdefault(group, {})[entry] = value
        else:
            _check_known(recipe, name, name, [n for n in known if n not in groups])
            changed[name] = value
    for group, values in in_groups.items():
        changed[group] = replace(getattr(recipe, group), **values)
    return replace(recipe, **changed)


def _check_known(recipe: Recipe, name: str, entry: str, known: Sequence[str]) -> None:
    if entry not in known:
        raise ValueError(
            f"unknown field {name!r} of a recipe of task {recipe.task!r}: expected one of {', '.join(known)}"
        )


def to_plain(study: Study) -> dict[str, Any]:
    """The study as JSON data, without its base recipe."""
    plain = {name: value for name, value in asdict(study).items() if name != "base"}
    return {**plain, "base": study.base.name, "cells": sum(1 for _ in study.cells())}
