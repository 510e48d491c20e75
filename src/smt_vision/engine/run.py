"""The state of a run: model, averaged model, optimiser and how far it is; its folder, saved and restored."""

import json
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_fabric import Fabric
from timm.utils import ModelEmaV3
from torch import nn

from .. import pictures
from ..cost import describe
from ..hardware import describe_hardware
from ..recipes import GROUPS, Recipe
from ..tasks import Task
from . import checkpoint
from .journal import read_log
from .optim import build_optimizer
from .summary import write_summary

LAST, BEST = "last.pt", "best.pt"
# A resumed run may differ in these: they change how it is carried out or described, not what it computes.
FREE_FIELDS = {
    "name", "about", "hardware", "citation", "expected", "expected_source", "engine.log_every",
    "engine.checkpoint_minutes", "engine.eval_every", "input.workers", "input.max_broken",
}  # fmt: skip


class Run:
    """A run's state, restored from its folder's ``last.pt`` where there is one.

    Attributes:
        raw: the model itself; ``model`` is the same, wrapped for the devices.
        ema: the averaged model, or ``None``.
        weights: what is evaluated and saved as best: the averaged model where there is one.
        step: updates done.
        total_steps: updates of the whole run, once it is planned.
        metrics: of the best weights so far; empty before the first evaluation.

    Raises:
        ValueError: the folder holds a run of another recipe.
    """

    def __init__(self, fabric: Fabric, task: Task, recipe: Recipe, folder: Path) -> None:
        self.fabric, self.task, self.recipe, self.folder = fabric, task, recipe, folder
        self.raw = task.model
        model: Any = torch.compile(self.raw) if recipe.engine.compile else self.raw
        optimizer = build_optimizer(self.raw, recipe.optim, scaled=recipe.engine.precision == "16-mixed")
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.ema = (
            ModelEmaV3(self.raw, decay=recipe.engine.ema, use_warmup=True) if recipe.engine.ema is not None else None
        )
        self.weights: nn.Module = self.raw if self.ema is None else self.ema.module
        self.step = self.total_steps = self._steps_per_epoch = 0
        self.best_epoch = 0
        self.metrics: dict[str, Any] = {}
        self._seconds_before = 0.0
        self._started = self._saved = time.monotonic()
        if (folder / LAST).is_file():
            self._restore(checkpoint.load(folder / LAST))
        elif fabric.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False))
        fabric.barrier()

    def plan(self, steps_per_epoch: int) -> int:
        """Set how many updates an epoch has; returns those of the whole run.

        Raises:
            ValueError: the run was begun with another number, so that it could not go on where it was.
        """
        if self._steps_per_epoch not in (0, steps_per_epoch):
            raise ValueError(
                f"{self.folder} was begun with {self._steps_per_epoch} updates an epoch and would go on with "
                f"{steps_per_epoch}; use as many processes as before, and the same images"
            )
        self._steps_per_epoch = steps_per_epoch
        self.total_steps = steps_per_epoch * self.recipe.epochs
        return self.total_steps

    @property
    def seconds(self) -> float:
        """Time spent on the run, over all its sessions."""
        return self._seconds_before + time.monotonic() - self._started

    def checkpoint_due(self) -> bool:
        """Whether the last save is longer ago than the recipe allows."""
        return time.monotonic() - self._saved > 60 * self.recipe.engine.checkpoint_minutes

    def save_last(self) -> None:
        """Write ``last.pt``: everything needed to go on as if never stopped."""
        self._save(
            LAST,
            model=self.raw.state_dict(),
            ema=self.ema.module.state_dict() if self.ema is not None else None,
            optimizer=self.optimizer.state_dict(),
            precision=self.fabric.strategy.precision.state_dict(),
            step=self.step,
            steps_per_epoch=self._steps_per_epoch,
            seconds=self.seconds,
            best_epoch=self.best_epoch,
            metrics=self.metrics,
        )
        self._saved = time.monotonic()

    def keep_if_best(self, metrics: dict[str, Any], epoch: int) -> None:
        """Write ``best.pt`` if no evaluation before scored as high."""
        headline = self.task.headline
        if not self.metrics or metrics[headline] > self.metrics[headline]:
            self.metrics, self.best_epoch = metrics, epoch
            self._save(BEST, model=self.weights.state_dict(), metrics=metrics, epoch=epoch)

    def _save(self, name: str, **state: Any) -> None:
        if self.fabric.is_global_zero:
            checkpoint.save({**state, "card": self.task.card, "recipe": self.recipe.to_dict()}, self.folder / name)
        self.fabric.barrier()

    def _restore(self, state: dict[str, Any]) -> None:
        # Through a Recipe, a field that the run's version did not have yet stands at its default, which is what it did.
        theirs, ours = (_flat(recipe.to_dict()) for recipe in (Recipe.from_dict(state["recipe"]), self.recipe))
        unlike = [k for k in sorted({*theirs, *ours} - FREE_FIELDS) if theirs.get(k) != ours.get(k)]
        if unlike:
            listed = "; ".join(f"{k} is {theirs.get(k)!r} there and {ours.get(k)!r} here" for k in unlike)
            raise ValueError(
                f"{self.folder} holds a run of another recipe: {listed}. Go on with that one (smt train --resume "
                f"{self.folder}) or choose another folder with --run."
            )
        self.raw.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.step, self.metrics, self.best_epoch = state["step"], state["metrics"], state["best_epoch"]
        self._seconds_before, self._steps_per_epoch = state["seconds"], state["steps_per_epoch"]

    def draw_samples(self, epoch: int) -> Path | None:
        """Draw the task's sample images with what the weights say of them; returns the picture, if there is one."""
        if not self.fabric.is_global_zero:
            return None
        training = self.weights.training
        with torch.inference_mode(), self.fabric.autocast():
            picture = self.task.samples(self.weights.eval(), self.fabric.device)
        self.weights.train(training)
        if picture is None:
            return None
        path = self._samples(epoch)
        path.parent.mkdir(exist_ok=True)
        picture.save(path)
        return path

    def _samples(self, epoch: int) -> Path:
        return self.folder / "samples" / f"epoch_{epoch:03}.png"

    def report(self, command: str) -> None:
        """Write what a finished run leaves to read: metrics.json, pictures and the one-page summary."""
        if not self.fabric.is_global_zero:
            return
        task, measures = self.task, self.task.measures
        (self.folder / "metrics.json").write_text(json.dumps(self.metrics, indent=1))
        pictures.curves(
            read_log(self.folder),
            self.folder / "curves.png",
            self.recipe.name,
            metric=task.headline,
            label=measures[task.headline].title,
            loss_label=measures["loss"].title if "loss" in measures else "loss",
        )
        drawn = task.pictures(self.folder, self.metrics)
        samples = self._samples(self.best_epoch)
        module, input_size = task.countable()
        write_summary(
            self.folder,
            recipe=self.recipe.to_dict(),
            metrics=self.metrics,
            headline=task.headline,
            measures=measures,
            best_epoch=self.best_epoch,
            seconds=self.seconds,
            hardware=describe_hardware(),
            command=command,
            classes=len(task.card["classes"]),
            images=task.images,
            cost=describe(module, input_size),
            tables=task.tables(self.metrics),
            pictures=[*drawn, samples] if samples.is_file() else drawn,
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A recipe's groups as dotted keys; a model's own arguments stay together."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and key in GROUPS:
            out.update(_flat(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = value
    return out
