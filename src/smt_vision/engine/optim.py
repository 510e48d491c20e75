"""The optimiser, and the learning rate as a pure function of the step."""

import math
from typing import Any

from timm.optim import create_optimizer_v2
from torch import nn, optim

from ..recipes import Optim


def learning_rate(step: int, config: Optim, total_steps: int, steps_per_epoch: int, images_per_step: int) -> float:
    """The rate of update ``step``, counted from 0: linear warm-up, then a half cosine down to ``min_lr``.

    Args:
        step: the update.
        config: peak, first and last rate, warm-up and scaling rule.
        total_steps: updates of the whole run.
        steps_per_epoch: updates an epoch.
        images_per_step: images an update, over all processes and accumulated batches.
    """
    scale = images_per_step / config.lr_batch if config.lr_batch else 1.0
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total_steps)
    if step < warmup:
        return scale * (config.warmup_lr + (config.lr - config.warmup_lr) * step / warmup)
    progress = (step - warmup) / max(total_steps - warmup, 1)
    return scale * (config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


def build_optimizer(model: nn.Module, config: Optim) -> optim.Optimizer:
    """timm's optimiser of that name; no decay on biases and 1-D parameters; a rate a layer with ``layer_decay``."""
    adam: dict[str, Any] = (
        {"betas": config.betas, "eps": config.eps} if "adam" in config.name or "lamb" in config.name else {}
    )
    return create_optimizer_v2(
        model,
        opt=config.name,
        lr=config.lr,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
        **adam,
    )


def set_learning_rate(optimizer: optim.Optimizer, lr: float) -> None:
    """Give every group the rate times its layer's factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
