"""The fields of recipes, compared: which of them decide what a run computes."""

from typing import Any

from ..recipe import Recipe
from ..tasks import RECIPES

# A resumed run may differ in these fields: they change how it is carried out or described, not what it computes.
FREE_FIELDS = {
    "name", "about", "hardware", "citation", "expected", "expected_source", "engine.log_every",
    "engine.checkpoint_minutes", "engine.keep_last", "engine.keep_every_hours", "engine.on_nonfinite",
    "engine.max_grad_norm", "engine.allow_changed_data", "engine.timeout_minutes", "engine.eval_every",
    "engine.loggers", "engine.patience", "engine.min_delta", "input.workers", "input.max_unreadable",
    "input.allow_damaged", "input.clip_boxes",
    # The number of processes, which must not change, is compared by itself. Others change the last digits only.
    "engine.accelerator", "engine.devices", "engine.nodes", "engine.grad_checkpointing",
}  # fmt: skip


def changed_fields(recipe: Recipe) -> list[str]:
    """The fields that differ from the recipe of that name and change results, except for data, seed and processes."""
    named = RECIPES.get(recipe.name)
    if named is None or named.task != recipe.task:
        return []
    theirs, ours = flat_fields(named), flat_fields(recipe)
    free = {*FREE_FIELDS, "data", "seed"}
    return [name for name in ours if name not in free and ours[name] != theirs.get(name)]


def flat_fields(recipe: Recipe) -> dict[str, Any]:
    """A recipe as one flat dictionary, with keys like ``optim.lr``; a model's own arguments stay together."""
    fields: dict[str, Any] = {}
    groups = recipe.groups()
    for key, value in recipe.to_dict().items():
        if key in groups:
            fields.update({f"{key}.{name}": item for name, item in value.items()})
        else:
            fields[key] = value
    return fields
