"""Files of earlier formats: the one place that knows them."""

from collections.abc import Mapping
from typing import Any

# Recipes once had the groups and fields of all tasks: those that only classification reads.
_CLASSIFICATION_ONLY = {
    "input": {"size", "crop_pct", "crop_mode", "val_fraction"},
    "augment": {
        "crop", "scale", "ratio", "pad", "auto_augment", "random_erasing", "erasing_mode", "mixup", "cutmix",
        "mix_prob", "switch_prob", "label_smoothing",
    },
}  # fmt: skip
_RENAMED = {"max_broken": "max_unreadable", "free_sides": "dynamic_image_size"}


def upgrade(values: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint, of an export's manifest or of a recipe, brought from any earlier form to today's.

    What has today's form already, or is none of the three, comes back as it is.

    - Recipes held the groups of all tasks, and ``input.max_broken``.
    - Checkpoints of format 1 held the model spec as ``card``, with the head under the task's name.
    - Manifests of versions 1 (classifiers only) and 2 held it in parts.
    """
    out = dict(values)
    if "max_broken" in out.get("input", ()) and "seed" in out:
        return _recipe(out)
    if isinstance(out.get("recipe"), Mapping):
        out["recipe"] = upgrade(out["recipe"])
    for row in out.get("metrics", {}).get("worst", ()) if "card" in out else ():
        if "confidence" in row:
            row["score"] = row.pop("confidence")
    if "free_sides" in out:
        card = out.pop("card", {"task": "classify"})
        parts = {"model": out.pop("architecture"), "classes": out.pop("classes"), "input": out.pop("input")}
        out |= {"spec": _spec({**card, **parts}), "version": 3}
        return _renamed(out)
    if "card" in out:
        out |= {"spec": _spec(out.pop("card")), "format": 2}
    return out


def _recipe(values: dict[str, Any]) -> dict[str, Any]:
    task = values["task"]
    out = {name: value for name, value in values.items() if name == task or name not in ("detect", "segment")}
    for group in ("input", "augment"):
        if group in out:
            out[group] = _fields(out[group], group, task)
    return out


def _spec(card: Mapping[str, Any]) -> dict[str, Any]:
    task = card["task"]
    known = {name: card[name] for name in ("model", "model_args", "classes", "category_ids") if name in card}
    return {"task": task, **known, "input": _fields(card["input"], "input", task), "head": card.get(task)}


def _fields(values: Mapping[str, Any], group: str, task: str) -> dict[str, Any]:
    left_out = set() if task == "classify" else _CLASSIFICATION_ONLY[group]
    if group == "augment" and task == "segment":
        left_out = left_out | {"color_jitter"}
    return _renamed({name: value for name, value in values.items() if name not in left_out})


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {_RENAMED.get(name, name): value for name, value in values.items()}
