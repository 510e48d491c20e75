"""The optimizer, and the learning rate as a pure function of the step."""

import math
from typing import Any

from timm.optim import create_optimizer_v2, get_optimizer_info, param_groups_weight_decay
from torch import nn, optim

from ..recipe import Optim
from ..tasks.backbone import find_backbone
from ..tasks.finetune import is_norm


def learning_rate(step: int, config: Optim, total_steps: int, steps_per_epoch: int, images_per_step: int) -> float:
    """The learning rate of optimizer step ``step``, counted from 0: linear warm-up, then ``config.schedule``.

    ``cosine`` is a half cosine and ``poly`` a straight line (power 1) from the peak at the end of the warm-up to
    ``min_lr`` at the end of the run; ``step`` divides the peak by 10 at each milestone.

    Args:
        step: Index of the step.
        config: Peak, first and last learning rate, schedule, warm-up and scaling rule.
        total_steps: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps per epoch.
        images_per_step: Images per optimizer step, over all processes and accumulated batches.
    """
    scale = learning_rate_scale(config, images_per_step)
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total_steps)
    if step < warmup:
        return scale * (config.warmup_lr + (config.lr - config.warmup_lr) * step / warmup)
    if config.schedule == "step":
        passed = sum(step >= milestone * steps_per_epoch for milestone in config.milestones)
        return scale * config.lr * 0.1**passed
    progress = (step - warmup) / max(total_steps - warmup, 1)
    left = 1 - progress if config.schedule == "poly" else 0.5 * (1 + math.cos(math.pi * progress))
    return scale * (config.min_lr + (config.lr - config.min_lr) * left)


def learning_rate_scale(config: Optim, images_per_step: int) -> float:
    """The factor on the recipe's learning rates for this many images per optimizer step."""
    return images_per_step / config.lr_batch if config.lr_batch else 1.0


def build_optimizer(model: nn.Module, config: Optim, *, scaled: bool = False) -> optim.Optimizer:
    """timm's optimizer ``config.name``, without weight decay on what ``no_decay`` selects.

    With ``layer_decay`` each layer has its own learning rate, with ``backbone_lr_scale`` the backbone.

    Args:
        model: The model to train.
        config: The recipe's ``optim``.
        scaled: Whether gradients are multiplied by a loss scale, as in float16. Adam is then not fused: the fused
            kernel undoes the scale inside its step, too late for gradient clipping.

    Raises:
        ValueError: ``layer_decay`` with a model without ``group_matcher``, ``backbone_lr_scale`` with a model that has
            no backbone, or ``betas`` or ``eps`` with an optimizer that has none.
    """
    if config.layer_decay is not None and not hasattr(model, "group_matcher"):
        raise ValueError(
            f"optim.layer_decay={config.layer_decay} requires a model with group_matcher(), which "
            f"{type(model).__name__} does not have: set it to null"
        )
    adam = _betas_and_eps(config)
    if config.name in ("adam", "adamw") and not scaled:  # all parameters in one pass
        adam["fused"] = True
    groups: list[dict[str, Any]] | None = None
    if config.no_decay == "none":
        groups = [{"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": config.weight_decay}]
    elif config.no_decay == "norm":
        groups = _groups_by_norm(model, config.weight_decay)
    elif config.layer_decay is None:  # as timm does, which asks the model itself only, and not its backbone
        groups = param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=_without_decay(model))
    if config.backbone_lr_scale != 1:
        groups = _scale_backbone(model, groups or param_groups_weight_decay(model, config.weight_decay), config)
    return create_optimizer_v2(
        groups or model,
        opt=config.name,
        lr=config.lr,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
        **adam,
    )


def _betas_and_eps(config: Optim) -> dict[str, Any]:
    """Those of Adam and its variants; of other optimizers those that differ from the default."""
    info = get_optimizer_info(config.name)
    is_adam = "adam" in config.name or "lamb" in config.name
    arguments: dict[str, Any] = {}
    for name, has in (("betas", info.has_betas and info.num_betas == 2), ("eps", info.has_eps)):
        value = getattr(config, name)
        is_default = value == getattr(Optim, name)
        if not has and not is_default:
            raise ValueError(f"optim.{name}={value} does not apply to optimizer {config.name!r}; omit it")
        if has and (is_adam or not is_default):
            arguments[name] = value
    return arguments


def _without_decay(model: nn.Module) -> set[str]:
    """Names of the parameters that modules list in ``no_weight_decay()``."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if callable(names := getattr(module, "no_weight_decay", None))
        for name in names()
    }


def _groups_by_norm(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: the second, normalization layers and what modules list in ``no_weight_decay()``, has no decay."""
    listed = _without_decay(model)
    no_decay = {id(p) for name, p in model.named_parameters() if name in listed}
    for module in filter(is_norm, model.modules()):
        no_decay.update(id(p) for p in module.parameters(recurse=False))
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if id(p) not in no_decay], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in no_decay], "weight_decay": 0.0},
    ]


def _scale_backbone(model: nn.Module, groups: list[dict[str, Any]], config: Optim) -> list[dict[str, Any]]:
    """The groups, each split into the parameters of the backbone, with a factor, and the others."""
    backbone = find_backbone(model)
    if backbone is None:
        raise ValueError(
            f"optim.backbone_lr_scale={config.backbone_lr_scale} requires a detector or segmenter, but "
            f"{type(model).__name__} has no separate backbone: set it to 1, or use optim.layer_decay"
        )
    inside = {id(p) for p in backbone.parameters()}
    return [
        {**group, "params": params, "lr_scale": scale}
        for group in groups
        for scale, in_backbone in ((config.backbone_lr_scale, True), (1.0, False))
        if (params := [p for p in group["params"] if (id(p) in inside) == in_backbone])
    ]


def set_learning_rate(optimizer: optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate to ``lr`` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
