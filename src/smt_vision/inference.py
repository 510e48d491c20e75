"""A trained classifier in use: load it from wherever it is, ask it about images.

classifier = Classifier.load("runs/finetune")          # or a checkpoint, an export, or a timm name
classifier(["cat.jpg"])[0].label
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import nn

from .convert import identify, state_dict_of
from .data import BrokenImage, decode, eval_transform, input_from_model
from .deploy.exported import MANIFEST, load_exported
from .engine import checkpoint
from .model.official import our_state
from .recipes import Input, Recipe, from_plain
from .tasks.build import create_model

IMAGE_SUFFIXES = frozenset(Image.registered_extensions())


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of an image.

    Args:
        id: the image's path, or its place in the list given.
        label: the likeliest class.
        probability: its probability, 0 to 1.
        top: the likeliest classes with their probabilities, best first.
        error: why the image could not be read; then there is no label.
    """

    id: str
    label: str | None
    probability: float
    top: tuple[tuple[str, float], ...]
    error: str | None = None


class Classifier:
    """A model with its classes and the way images must be prepared for it.

    Args:
        model: gives ``(B, len(classes))`` logits.
        classes: names, by output.
        input: how images become tensors.
        name: what to call it.
        device: where it runs.
        recipe: what it was trained by, where that is known.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[str],
        input: Input,
        name: str,
        device: str | torch.device = "cpu",
        recipe: Recipe | None = None,
    ) -> None:
        self.model = model.eval().to(device)
        self.classes = tuple(classes)
        self.input = input
        self.name = name
        self.recipe = recipe
        self.device = torch.device(device)
        self.transform = eval_transform(input)

    @classmethod
    def load(cls, source: str | Path, device: str | torch.device = "cpu") -> "Classifier":
        """Load a run's folder (its best weights), an export's, a checkpoint file of ours, a release's, or a timm name.

        Raises:
            FileNotFoundError: the folder holds no finished evaluation and no export.
            ValueError: there is neither such a file or folder nor such a timm model, or the file is not a classifier's.
            RuntimeError: the model has no pretrained weights, or they could not be fetched.
        """
        path = Path(source)
        if (path / MANIFEST).is_file():
            return cls._from_export(path, device)
        if path.is_dir():
            if not (path / "best.pt").is_file():
                raise FileNotFoundError(
                    f"{path} holds no finished evaluation and no export: there is no best.pt in it, and no {MANIFEST}"
                )
            path = path / "best.pt"
        if path.is_file():
            return cls._from_file(path, device)
        return cls._from_timm(str(source), device)

    @classmethod
    def _from_file(cls, path: Path, device: str | torch.device) -> "Classifier":
        state = checkpoint.load(path)
        card = state.get("card")
        if card is None:
            weights = our_state(state_dict_of(state, path))
            variant, num_classes, in_chans, _ = identify(weights, path)
            model = create_model(variant, num_classes=num_classes, in_chans=in_chans)
            model.load_state_dict(weights)
            names = _class_names(model, num_classes)
            return cls(model, names, input_from_model(model), f"{variant} ({path.name})", device)
        model = create_model(
            card["model"], num_classes=len(card["classes"]), in_chans=card["input"]["channels"], **card["model_args"]
        )
        weights = state["ema"] if state.get("ema") else state["model"]
        model.load_state_dict(weights)
        recipe = Recipe.from_dict(state["recipe"]) if "recipe" in state else None
        return cls(model, card["classes"], from_plain(Input, card["input"]), str(path), device, recipe)

    @classmethod
    def _from_export(cls, folder: Path, device: str | torch.device) -> "Classifier":
        if torch.device(device).type != "cpu":
            raise ValueError(
                f"{folder} is an export, which runs on the CPU and not on {device}: ask for the CPU (--device cpu, for "
                "smt eval --engine.accelerator cpu), or use the model that it was made of"
            )
        model = load_exported(folder)
        return cls(model, model.manifest.classes, model.manifest.input, str(folder), device)

    @classmethod
    def _from_timm(cls, name: str, device: str | torch.device) -> "Classifier":
        try:
            model: Any = create_model(name, pretrained=True)
        except ValueError as error:
            raise ValueError(f"there is no file or folder {name!r}, and as a name: {error}") from error
        return cls(model, _class_names(model, model.num_classes), input_from_model(model), name, device)

    @torch.inference_mode()
    def __call__(
        self, images: Iterable[str | Path | Image.Image], batch_size: int = 32, top_k: int = 5
    ) -> list[Prediction]:
        """Classify images; see :meth:`stream`."""
        return list(self.stream(images, batch_size, top_k))

    @torch.inference_mode()
    def stream(
        self, images: Iterable[str | Path | Image.Image], batch_size: int = 32, top_k: int = 5
    ) -> Iterator[Prediction]:
        """Classify images as they come, in order; an unreadable one gives a prediction with ``error`` and no label.

        Args:
            images: paths or PIL images of any mode and size.
            batch_size: images a forward pass.
            top_k: classes told an image.
        """
        items = iter(enumerate(images))
        while batch := list(islice(items, batch_size)):
            names: list[str] = []
            tensors: list[torch.Tensor] = []
            errors: dict[int, str] = {}
            for i, image in batch:
                name = str(i) if isinstance(image, Image.Image) else str(image)
                try:
                    raw = image if isinstance(image, Image.Image) else Path(image)
                    tensors.append(self.transform(decode(raw, 1 if self.input.channels == 1 else 3, name=name)))
                except BrokenImage as error:
                    errors[len(names)] = str(error)
                names.append(name)
            rows = iter(self._probabilities(tensors)) if tensors else iter(())
            for k, name in enumerate(names):
                if k in errors:
                    yield Prediction(name, None, 0.0, (), errors[k])
                    continue
                values, indices = next(rows).topk(min(top_k, len(self.classes)))
                top = tuple((self.classes[i], v) for i, v in zip(indices.tolist(), values.tolist(), strict=True))
                yield Prediction(name, top[0][0], top[0][1], top)

    def _probabilities(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        return self.model(torch.stack(tensors).to(self.device)).float().softmax(-1).cpu()


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """The images that files and folders (searched whole) stand for, sorted within a folder.

    Raises:
        FileNotFoundError: a path does not exist, or a folder has no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not inside:
                raise FileNotFoundError(f"there is no image in the folder {path}")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"there is no file or folder {path}")
    return found


def _class_names(model: Any, num_classes: int) -> tuple[str, ...]:
    """A timm model's class names: its own, ImageNet's where it has as many, else the numbers."""
    if names := model.pretrained_cfg.get("label_names"):
        return tuple(names)
    subset = {1000: "imagenet-1k", 21841: "imagenet-22k"}.get(num_classes)
    if subset is None:
        return tuple(map(str, range(num_classes)))
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(i) for i in range(num_classes))
