"""The optimiser, and the learning rate as a pure function of the step."""

import math
from typing import Any

from timm.optim import create_optimizer_v2
from torch import nn, optim

from ..recipe import Optim


def learning_rate(step: int, config: Optim, total_steps: int, steps_per_epoch: int, images_per_step: int) -> float:
    """The rate of update ``step``, counted from 0: linear warm-up, then what ``config.schedule`` names.

    ``cosine`` is a half cosine and ``poly`` a straight line (power 1) from the peak at the warm-up's end to ``min_lr``
    at the run's; ``step`` is the peak, and a tenth of it for each milestone passed.

    Args:
        step: the update.
        config: peak, first and last rate, schedule, warm-up and scaling rule.
        total_steps: updates of the whole run.
        steps_per_epoch: updates an epoch.
        images_per_step: images an update, over all processes and accumulated batches.
    """
    scale = images_per_step / config.lr_batch if config.lr_batch else 1.0
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total_steps)
    if step < warmup:
        return scale * (config.warmup_lr + (config.lr - config.warmup_lr) * step / warmup)
    if config.schedule == "step":
        passed = sum(step >= milestone * steps_per_epoch for milestone in config.milestones)
        return scale * config.lr * 0.1**passed
    progress = (step - warmup) / max(total_steps - warmup, 1)
    left = 1 - progress if config.schedule == "poly" else 0.5 * (1 + math.cos(math.pi * progress))
    return scale * (config.min_lr + (config.lr - config.min_lr) * left)


def build_optimizer(model: nn.Module, config: Optim, *, scaled: bool = False) -> optim.Optimizer:
    """timm's optimiser of that name; no decay on what ``no_decay`` names; a rate a layer with ``layer_decay``.

    Args:
        model: what is trained.
        config: as a recipe has it.
        scaled: the gradients come multiplied, as float16's do. Then Adam is not the fused one, which takes the factor
            out itself, after they were to be clipped.

    Raises:
        ValueError: ``layer_decay`` with a model that does not tell its layers, or with ``no_decay="norm"``.
    """
    if config.layer_decay is not None and not hasattr(model, "group_matcher"):
        raise ValueError(
            f"optim.layer_decay={config.layer_decay} needs a model that tells its layers, and {type(model).__name__} "
            "has no group_matcher: leave it at null"
        )
    if config.layer_decay is not None and config.no_decay == "norm":
        raise ValueError(f"optim.layer_decay={config.layer_decay} goes with optim.no_decay=1d, not with norm")
    adam: dict[str, Any] = (
        {"betas": config.betas, "eps": config.eps} if "adam" in config.name or "lamb" in config.name else {}
    )
    if config.name in ("adam", "adamw") and not scaled:  # torch's own; all parameters in one pass
        adam["fused"] = True
    return create_optimizer_v2(
        _groups_by_norm(model, config.weight_decay) if config.no_decay == "norm" else model,
        opt=config.name,
        lr=config.lr,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
        **adam,
    )


def _groups_by_norm(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: normalisation layers, and what a part of the model names in ``no_weight_decay``, without decay."""
    free: set[int] = set()
    for module in model.modules():
        if "norm" in type(module).__name__.lower():
            free.update(id(p) for p in module.parameters(recurse=False))
        if callable(names := getattr(module, "no_weight_decay", None)):
            named = dict(module.named_parameters())
            free.update(id(named[name]) for name in names() if name in named)
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if id(p) not in free], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in free], "weight_decay": 0.0},
    ]


def set_learning_rate(optimizer: optim.Optimizer, lr: float) -> None:
    """Give every group the rate times its layer's factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
