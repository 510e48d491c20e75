"""The objects that training changes: model, averaged model and optimizer."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning_fabric import Fabric
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ..lora import merged_adapters
from ..recipe import Recipe
from ..tasks.finetune import select_trained
from ..tasks.task import Training
from ..text import get_logger
from .optim import build_optimizer

log = get_logger(__name__)


class TrainingState:
    """A task's model, prepared for training as a recipe says.

    Attributes:
        raw: The model itself; ``model`` is the same, wrapped for the devices.
        optimizer: The optimizer of the parameters that are trained.
        ema: The averaged model, or ``None``.
        weights: The model to evaluate and to save as best: the averaged one if there is one.
        step: Optimizer steps done.
        rescaled: Steps in a row that only lowered the loss scale of float16, since the gradient was infinite.
        parameters: Number of parameters, without those of adapters.
        trained_parameters: Number of parameters that are trained.
    """

    def __init__(self, fabric: Fabric, task: Training, recipe: Recipe) -> None:
        self.fabric, self.task, self.recipe = fabric, task, recipe
        self.raw = task.model
        self.parameters = _count(self.raw)
        self._eval_modules = select_trained(self.raw, task.spec, recipe)
        self.trained_parameters = _count(self.raw, trained=True)
        model: Any = torch.compile(self.raw) if recipe.engine.compile else self.raw
        optimizer = build_optimizer(self.raw, recipe.optim, task.spec, scaled=recipe.engine.precision == "16-mixed")
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.ema = (
            ModelEmaV3(self.raw, decay=recipe.engine.ema, use_warmup=True) if recipe.engine.ema is not None else None
        )
        self.weights: nn.Module = self.raw if self.ema is None else self.ema.module
        self.step = self.rescaled = 0
        if self.is_partial and not recipe.pretrained and recipe.checkpoint is None and fabric.is_global_zero:
            log.warning("the frozen weights are random: start from trained ones with --pretrained or --checkpoint")

    @property
    def is_partial(self) -> bool:
        """Whether weights of the backbone are frozen."""
        return self.recipe.freeze != "none" or self.recipe.lora.rank > 0

    @property
    def trained_description(self) -> str:
        """The number of parameters that are trained, in words; empty if they are all."""
        if not self.is_partial:
            return ""
        lora = f", LoRA of rank {self.recipe.lora.rank}" if self.recipe.lora.rank else ""
        return (
            f"{self.trained_parameters / 1e6:.3f} M parameters, of {self.parameters / 1e6:.3f} M in the model "
            f"(freeze {self.recipe.freeze}{lora})"
        )

    def train_mode(self) -> None:
        """Set the model to training mode, and the frozen modules in it to evaluation mode."""
        self.model.train()
        for module in self._eval_modules:
            module.eval()

    def statistics(self) -> list[Tensor]:
        """The buffers that a training step changes, e.g. the statistics of BatchNorm."""
        return [buffer for module in self.raw.modules() if module.training for buffer in module.buffers(recurse=False)]

    def merged(self) -> AbstractContextManager[None]:
        """A context in which ``weights`` is the model that is evaluated and saved: adapters are merged into it."""
        return merged_adapters(self.weights)


def _count(model: nn.Module, trained: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)
