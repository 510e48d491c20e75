"""Conversion of files in earlier formats. No other module handles them."""

from collections.abc import Mapping
from typing import Any

# Recipes used to have the fields of all tasks; these are used by classification only.
_CLASSIFICATION_ONLY = {
    "input": {"size", "crop_pct", "crop_mode", "val_fraction"},
    "augment": {
        "crop", "scale", "ratio", "pad", "auto_augment", "random_erasing", "erasing_mode", "mixup", "cutmix",
        "mix_prob", "switch_prob", "label_smoothing",
    },
}  # fmt: skip
# Recipe files without a checksum may lack these fields and groups: they are of versions that did not have them yet. A
# field that is newer than the checksum belongs here too.
FIELDS_ADDED_BEFORE_CHECKSUMS = {
    "augment.close_mosaic", "augment.copy_paste", "augment.iou_crop", "augment.mosaic", "augment.scale_jitter",
    "classify", "detect.cascade_boxes", "detect.eval_detections", "detect.fcos_points", "detect.layers",
    "detect.queries", "detect.roi_aligned", "detect.tile_overlap", "detect.tiles", "distill",
    "engine.allow_changed_data", "engine.keep_every_hours", "engine.keep_last", "engine.loggers",
    "engine.max_grad_norm", "engine.min_delta", "engine.on_nonfinite", "engine.patience", "engine.timeout_minutes",
    "fold", "folds", "freeze", "input.allow_damaged", "input.clip_boxes", "input.exact",
    "input.max_value", "input.val_fraction", "labels", "lora", "loss", "optim.backbone_lr_scale", "optim.milestones",
    "optim.no_decay", "optim.schedule", "sampling", "segment.squash", "split_seed", "train_fraction",
}  # fmt: skip
_RENAMED = {"max_broken": "max_unreadable", "free_sides": "dynamic_image_size"}


def upgrade(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the content of a checkpoint, export manifest or recipe from any earlier format to the current one.

    Current content, and any other mapping, is returned unchanged. Earlier formats:

    - Recipes had the groups of all tasks, and ``input.max_broken``.
    - The model argument ``aggregation`` was true or false.
    - Checkpoints of format 1 had the model spec as ``card``, with the head under the task's name.
    - Model specs of classifiers had no head.
    - FCOS had its points on the corners of the cells, and cascades one box for all classes; no field said so.
    - Manifests of versions 1 (classifiers only) and 2 had the model spec in parts, and those up to 3 no batch size.
    """
    out = dict(values)
    if isinstance(out.get("model_args"), Mapping):
        out["model_args"] = _model_args(out["model_args"])
    if isinstance(out.get("detect"), Mapping):
        out["detect"] = _detect(out["detect"])
    if isinstance(out.get("input"), Mapping) and "max_broken" in out["input"] and "seed" in out:
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
        out = _renamed(out)
    if "card" in out:
        out |= {"spec": _spec(out.pop("card")), "format": 2}
    if isinstance(out.get("spec"), Mapping):
        out["spec"] = spec = dict(out["spec"])
        if isinstance(spec.get("model_args"), Mapping):
            spec["model_args"] = _model_args(spec["model_args"])
        if spec.get("task") == "classify" and spec.get("head") is None:
            spec["head"] = {}
        if spec.get("task") == "detect" and isinstance(spec.get("head"), Mapping):
            spec["head"] = _detect(spec["head"])
    if "parity" in out and out.get("version") == 3:
        one = out["spec"]["task"] == "detect" or out["format"] in ("executorch", "coreml")
        out |= {"batch_size": 1 if one else None, "version": 4}
    return out


def _model_args(values: Mapping[str, Any]) -> dict[str, Any]:
    aggregation = values.get("aggregation")
    named = {"aggregation": "saa" if aggregation else "none"} if isinstance(aggregation, bool) else {}
    return {**values, **named}


def _detect(values: Mapping[str, Any]) -> dict[str, Any]:
    head, earlier = str(values.get("head")), dict[str, Any]()
    if head == "fcos":
        earlier["fcos_points"] = "corner"
    if head == "cascade_mask_rcnn":
        earlier["cascade_boxes"] = "shared"
    if head.endswith("_rcnn"):
        earlier["roi_aligned"] = False
    return {**earlier, **values}


def _recipe(values: dict[str, Any]) -> dict[str, Any]:
    task = values["task"]
    out = {name: value for name, value in values.items() if name == task or name not in ("detect", "segment")}
    for group in ("input", "augment"):
        if isinstance(out.get(group), Mapping):
            out[group] = _fields(out[group], group, task)
    return out


def _spec(card: Mapping[str, Any]) -> dict[str, Any]:
    task = card["task"]
    known = {name: card[name] for name in ("model", "model_args", "classes", "category_ids") if name in card}
    return {"task": task, **known, "input": _fields(card["input"], "input", task), "head": card.get(task, {})}


def _fields(values: Mapping[str, Any], group: str, task: str) -> dict[str, Any]:
    unused = set() if task == "classify" else _CLASSIFICATION_ONLY[group]
    if group == "augment" and task == "segment":
        unused = unused | {"color_jitter"}
    return _renamed({name: value for name, value in values.items() if name not in unused})


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {_RENAMED.get(name, name): value for name, value in values.items()}
