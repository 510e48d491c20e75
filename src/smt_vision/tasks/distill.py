"""Distillation: a frozen teacher, whose outputs and feature maps a model learns from.

Shapes: B images, C channels, H x W pixels; feature maps (B, C_i, H_i, W_i), finest first.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import Format
from torch import Tensor, nn

from ..checkpoints import checksum
from ..data.fingerprint import UsedImages
from ..data.padding import LARGEST_STRIDE
from ..data.transforms import channel_statistics
from ..recipe import Distill, Input, Recipe
from .backbone import find_backbone
from .image_size import check_any_size, run_on_black
from .load import load

T = TypeVar("T")
DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # of autocast, by the recipe's precision


class Distillation:
    """A teacher, and the losses by which a model learns from it.

    The teacher is in evaluation mode, computes no gradients, and is part of neither the model, its average nor its
    checkpoints. It gets the images of the model's batches, with their augmentation, mixup and CutMix, in its own
    normalization; grayscale images of a model are repeated for a teacher of three channels.

    Args:
        recipe: Recipe of the run; ``distill.teacher`` is set.
        student: The model that is trained.
        input: Its input, with mean and standard deviation.
        resize: Resize square images to the size that the teacher is evaluated with, if it has one.

    Attributes:
        predictor: The teacher.
        identity: Hash of the teacher's weights.

    Raises:
        ValueError: The teacher cannot be loaded, its images have other channels, or there are no feature maps.
    """

    def __init__(self, recipe: Recipe, student: nn.Module, input: Input, resize: bool = False) -> None:
        config: Distill = recipe.distill
        assert config.teacher is not None
        try:
            with torch.random.fork_rng(devices=[]):  # the run's random numbers stay the same
                self.predictor = load(config.teacher, require_classes=False)
        except ValueError as error:
            raise ValueError(f"distill.teacher: {error}") from error
        self._model = self.predictor.model.requires_grad_(False)
        self._student, self._weight = student, config.features
        # Of a detector or segmenter, only the backbone.
        self._network = find_backbone(self._model) or self._model
        self._dtype = DTYPES.get(recipe.engine.precision)
        theirs: Input = self.predictor.input
        self._size: int | None = getattr(theirs, "size", None) if resize else None
        self._check_input(config.teacher, theirs, input)
        if not any(True for _ in self._model.parameters()):
            raise ValueError(f"distill.teacher={config.teacher} is an export; expected the run that was exported")
        if self._weight:
            _check_maps(student, recipe.model, input, recipe.engine.grad_checkpointing)
            _check_maps(self._network, config.teacher, theirs)
        if find_backbone(student) is not None:  # of a task whose images have any size
            try:
                check_any_size(self._network, theirs.channels)
            except ValueError as error:
                raise ValueError(f"distill.teacher={config.teacher} cannot teach {recipe.task}: {error}") from error
        self.identity = checksum(self._model.state_dict())
        (mean, std), (their_mean, their_std) = channel_statistics(input), channel_statistics(theirs)
        m, s, tm, ts = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std, their_mean, their_std))
        self._scale, self._shift = s / ts, (m - tm) / ts

    def __call__(
        self, forward: Callable[[], T], image: Tensor, sizes: Tensor | None = None
    ) -> tuple[T, Any, dict[str, Tensor]]:
        """Run the model and the teacher.

        Args:
            forward: Runs the model on the images.
            image: Its images (B, C, H, W).
            sizes: Height and width (B, 2) of each image without padding, which is 0 for the teacher, too, and not part
                of the loss; ``None`` if there is none.

        Returns:
            The output of ``forward``; that of the teacher, logits (B, K) of a classifier; and ``features``, the loss
            of the feature maps, if it has a weight.
        """
        inside = None if sizes is None else inside_mask(image, sizes)
        if not self._weight:
            return forward(), self._teacher(image, inside), {}
        with feature_maps(self._student) as ours:
            output = forward()
        with feature_maps(self._network) as theirs:
            target = self._teacher(image, inside)
        return output, target, {"features": self._weight * attention_transfer(ours, theirs, inside)}

    def with_initial(self, images: UsedImages | None) -> UsedImages | None:
        """The images that the initial weights were trained on, and those of the teacher."""
        theirs = self.predictor.used_images
        if images is None or theirs is None:
            return images or theirs
        unlabeled = np.union1d(images.unlabeled, theirs.unlabeled)
        return replace(images, train=np.union1d(images.train, theirs.train), unlabeled=unlabeled)

    @torch.no_grad()
    def _teacher(self, image: Tensor, inside: Tensor | None = None) -> Any:
        device = image.device
        if next(self._model.parameters()).device != device:
            self._model.to(device)
        image = image * self._scale.to(device) + self._shift.to(device)
        if inside is not None:
            image = image * inside
        if self._size is not None and image.shape[-2:] != (self._size, self._size):
            image = F.interpolate(image, (self._size, self._size), mode="bicubic", antialias=True)
        with torch.autocast(device.type, self._dtype, enabled=self._dtype is not None):
            return self._network(image)

    @staticmethod
    def _check_input(teacher: str, theirs: Input, ours: Input) -> None:
        ranges = [getattr(input, "max_value", None) for input in (theirs, ours)]
        if theirs.channels not in (ours.channels, 3 if ours.channels == 1 else ours.channels) or ranges[0] != ranges[1]:
            raise ValueError(
                f"distill.teacher={teacher} is for images of {_described(theirs)}, the recipe for {_described(ours)}; "
                "use a teacher for the same images"
            )


def with_teacher(
    distillation: Distillation | None, forward: Callable[[], T], image: Tensor, sizes: Tensor | None = None
) -> tuple[T, Any, dict[str, Tensor]]:
    """:meth:`Distillation.__call__`; without a teacher the output of ``forward`` only, and no losses."""
    return (forward(), None, {}) if distillation is None else distillation(forward, image, sizes)


def inside_mask(image: Tensor, sizes: Tensor) -> Tensor:
    """Mask (B, 1, H, W) of images (B, C, H, W) with 1 inside of heights and widths (B, 2), and 0 in the padding."""
    sizes = sizes.to(image.device)
    rows, columns = (
        torch.arange(length, device=image.device) < sizes[:, axis, None] for axis, length in enumerate(image.shape[-2:])
    )
    return (rows[:, :, None] & columns[:, None, :])[:, None].to(image.dtype)


@contextmanager
def feature_maps(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within the context, a forward pass of a model puts its feature maps (B, C_i, H_i, W_i) into the list.

    Args:
        model: Classifier of timm, detector, segmenter or backbone.
    """
    maps: list[Tensor] = []
    backbone = find_backbone(model)
    if backbone is not None:
        handles = [backbone.register_forward_hook(lambda module, arguments, output: maps.extend(output))]
    else:
        permuted = getattr(model, "output_fmt", Format.NCHW) == Format.NHWC  # e.g. Swin
        modules = [model.get_submodule(info["module"]) for info in _feature_info(model)]
        handles = [module.register_forward_hook(partial(_keep, maps, permuted)) for module in modules]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def attention_transfer(student: Sequence[Tensor], teacher: Sequence[Tensor], inside: Tensor | None = None) -> Tensor:
    """Loss between feature maps of two networks, of any numbers of channels.

    The maps are matched from the last one back; the first ones of the network that has more are not compared. Of each,
    the mean of the squares over the channels (B, H_i, W_i) is normalized to a vector of length 1, and the loss is the
    squared distance between the two vectors, in [0, 2]: the mean over images and maps. Zagoruyko and Komodakis, Paying
    More Attention to Attention, ICLR 2017.

    Args:
        student: Its maps.
        teacher: Its maps; their squares are resized to the student's height and width.
        inside: Mask (B, 1, H, W) of what is not padding; ``None`` for all. A cell counts by its share inside.
    """
    terms = []
    for ours, theirs in zip(reversed(student), reversed(teacher), strict=False):
        energy, target = (maps.float().square().mean(dim=1, keepdim=True) for maps in (ours, theirs))
        if target.shape != energy.shape:
            target = F.interpolate(target, energy.shape[-2:], mode="area")
        if inside is not None:
            share = F.interpolate(inside.float(), energy.shape[-2:], mode="area")
            energy, target = energy * share, target * share
        difference = F.normalize(energy.flatten(1)) - F.normalize(target.flatten(1))
        terms.append(difference.square().sum(dim=1).mean())
    return torch.stack(terms).mean()


def _keep(maps: list[Tensor], permuted: bool, module: nn.Module, arguments: Any, output: Tensor) -> None:
    is_map = isinstance(output, Tensor) and output.ndim == 4
    maps.append(output.permute(0, 3, 1, 2) if permuted and is_map else output)


def _feature_info(model: Any) -> list[dict[str, Any]]:
    info = getattr(model, "feature_info", [])
    return info if isinstance(info, list) else info.get_dicts()


def _check_maps(model: Any, name: str, input: Input, grad_checkpointing: bool = False) -> None:
    """Raise a ValueError if timm does not name feature maps of a model, or they are not of several resolutions.

    With ``grad_checkpointing``, some models, e.g. ResNets, run the blocks of all stages without calling the stages,
    whose outputs are the feature maps.
    """
    if find_backbone(model) is not None:
        return
    info = _feature_info(model)
    strides = [entry.get("reduction") for entry in info]
    named = len(set(strides)) > 1 and all(entry.get("module") for entry in info)
    channels = [entry["num_chs"] for entry in info]
    if not named or not _has_maps(model, channels, input):
        if named and grad_checkpointing:
            model.set_grad_checkpointing(False)
            if _has_maps(model, channels, input):
                raise ValueError(
                    f"distill.features and engine.grad_checkpointing=true: {name} does not give its feature maps with "
                    "activation checkpointing; set distill.features to 0 or engine.grad_checkpointing to false, or use "
                    "a model that does, e.g. an SMT or ConvNeXt"
                )
        raise ValueError(
            f"invalid distill.features: {name} has no feature maps of several resolutions; set it to 0 to learn from "
            "the outputs of a classifier, or use a model that has, e.g. an SMT, ConvNeXt, EfficientNet or ResNet"
        )


def _has_maps(model: nn.Module, channels: list[int], input: Input) -> bool:
    """Whether the modules that timm names return maps (B, C_i, H_i, W_i), on a black image."""
    side = getattr(input, "size", LARGEST_STRIDE * 4)
    try:
        with feature_maps(model) as maps:
            run_on_black(model, input.channels, side, side)
    except AttributeError:  # a module that is not there
        return False
    return [x.shape[1] if isinstance(x, Tensor) and x.ndim == 4 else None for x in maps] == channels


def _described(input: Input) -> str:
    limit = getattr(input, "max_value", None)
    return f"{input.channels} channel{'s' * (input.channels != 1)}" + (f" up to {limit:g}" if limit else "")
