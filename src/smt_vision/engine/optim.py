"""The optimizer, and the learning rate as a pure function of the step."""

import math
from collections import defaultdict
from typing import Any

from timm.optim import create_optimizer_v2, get_optimizer_info, param_groups_weight_decay
from torch import nn, optim

from ..recipe import Optim
from ..spec import ModelSpec
from ..tasks.backbone import Backbone, find_backbone
from ..tasks.finetune import is_norm, layer_numbers
from ..text import get_logger

log = get_logger(__name__)
FROZEN_SCALE = 1e-4  # a factor on the learning rate below which a layer hardly changes


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


def build_optimizer(
    model: nn.Module, config: Optim, spec: ModelSpec | None = None, *, scaled: bool = False
) -> optim.Optimizer:
    """timm's optimizer ``config.name``, without weight decay on what ``no_decay`` selects.

    With ``layer_decay`` each layer has its own learning rate, with ``backbone_lr_scale`` the backbone. In detectors and
    segmenters, ``layer_decay`` is of the layers of the backbone; neck and heads have the full learning rate.

    Args:
        model: The model to train.
        config: The recipe's ``optim``.
        spec: The model spec; ``layer_decay`` of a detector or segmenter needs it.
        scaled: Whether gradients are multiplied by a loss scale, as in float16. Adam is then not fused: the fused
            kernel undoes the scale inside its step, too late for gradient clipping.

    Raises:
        ValueError: ``layer_decay`` with a model or backbone whose layers timm does not name, ``backbone_lr_scale`` with
            a model that has no backbone, or ``betas`` or ``eps`` with an optimizer that has none.
    """
    backbone = find_backbone(model)
    layer_decay = config.layer_decay if backbone is None else None  # timm's, of the model itself
    if layer_decay is not None and not hasattr(model, "group_matcher"):
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
    elif layer_decay is None:  # as timm does, which asks the model itself only, and not its backbone
        groups = param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=_without_decay(model))
    if backbone is None and config.backbone_lr_scale != 1:
        raise ValueError(
            f"optim.backbone_lr_scale={config.backbone_lr_scale} requires a detector or segmenter, but "
            f"{type(model).__name__} has no separate backbone: set it to 1, or use optim.layer_decay"
        )
    if backbone is not None and groups is not None and (config.backbone_lr_scale, config.layer_decay) != (1, None):
        groups = _scaled_groups(groups, _backbone_scales(backbone, config, spec))
    optimizer = create_optimizer_v2(
        groups or model,
        opt=config.name,
        lr=config.lr,
        weight_decay=config.weight_decay,
        layer_decay=layer_decay,
        **adam,
    )
    smallest = min(group.get("lr_scale", 1.0) for group in optimizer.param_groups)
    if config.layer_decay is not None and smallest < FROZEN_SCALE:
        log.warning(
            "optim.layer_decay=%g: the learning rate of the first trained layers is multiplied by %.1e, so they hardly "
            "change; for a deep model, set it to e.g. 0.9, or save the time of these layers with --freeze",
            config.layer_decay, smallest,
        )  # fmt: skip
    return optimizer


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


def _backbone_scales(backbone: Backbone, config: Optim, spec: ModelSpec | None) -> dict[int, float]:
    """The factor on the learning rate of each parameter of the backbone, by its id."""
    scales = {id(p): config.backbone_lr_scale for p in backbone.parameters()}
    if config.layer_decay is not None:
        assert spec is not None
        layers, count = layer_numbers(backbone.network, spec, f"optim.layer_decay={config.layer_decay}", coarse=False)
        for name, p in backbone.network.named_parameters():
            scales[id(p)] *= config.layer_decay ** max(count + 1 - layers[name], 0)
    return scales


def _scaled_groups(groups: list[dict[str, Any]], scales: dict[int, float]) -> list[dict[str, Any]]:
    """The groups, each split by the factors on the learning rate of its parameters: those of the backbone from low to
    high, then the others. Checkpoints depend on this order."""
    split = []
    for group in groups:
        by_scale: dict[tuple[bool, float], list[nn.Parameter]] = defaultdict(list)
        for p in group["params"]:
            by_scale[id(p) not in scales, scales.get(id(p), 1.0)].append(p)
        split += [{**group, "params": by_scale[key], "lr_scale": key[1]} for key in sorted(by_scale)]
    return split


def set_learning_rate(optimizer: optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate to ``lr`` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
