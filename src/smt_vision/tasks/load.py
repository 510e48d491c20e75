"""Loading predictors from runs, exports, checkpoints, released weights and timm."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from .. import checkpoints
from ..checkpoints import BEST, Checkpoint, training_checkpoints
from ..convert import identify
from ..data.fingerprint import UsedImages
from ..deploy.exported import MANIFEST, Provider, is_export, load_exported, load_used_images
from ..forms.inference import at_dtype
from ..model.official import our_state
from ..precision import Precision, resolve_dtype
from ..recipe import Recipe
from ..registry import published_name
from ..spec import ModelSpec
from . import get_task, inference_overrides, read_recipe, read_spec
from .build import UnknownModelError, check_image_size, create_model, resolve_input
from .classification.published import published_spec
from .image_size import arguments_for_size
from .predictor import Predictor, parse_device

Overrides = Mapping[str, Mapping[str, Any]]
# A model may have MAX_TIMES the parameters of its file plus MAX_MORE while it is built: heads are replaced, and
# backbones are built with a classifier first.
MAX_TIMES, MAX_MORE = 4, 150_000_000
MAX_MORE_TENSORS = 20_000


def load(
    source: str | Path,
    device: str | torch.device = "cpu",
    overrides: Overrides | None = None,
    *,
    require_classes: bool = True,
    providers: Sequence[Provider] = (),
    precision: Precision | None = None,
) -> Predictor[Any]:
    """Load a predictor.

    Args:
        source: Run folder (its best weights), export folder, checkpoint file, file of an SMT's weights (of the official
            release, or another program's), or timm model name. The last two are classifiers.
        device: Device to run on.
        overrides: Values that differ from training, by recipe group, e.g. ``{"segment": {"test_flip": True}}``;
            :func:`smt_vision.tasks.inference_overrides` lists the fields of a task.
        require_classes: Whether weights without a classifier are an error; they can only be measured, e.g. with
            :func:`smt_vision.cost.describe`.
        providers: Execution providers of an ONNX export; see :func:`smt_vision.deploy.exported.load_exported`.
        precision: ``fp32``; ``bf16``, which computes matrix products and convolutions in bfloat16 (an SMT is fused on
            a CPU); or ``auto``, which is ``bf16`` if the device has instructions for it. A predictor in bfloat16 is for
            inference only, not for an export. ``None`` for ``fp32``, or for the precision that an export was made for.

    Returns:
        A :class:`~smt_vision.tasks.classification.predictor.Classifier`,
        :class:`~smt_vision.tasks.detection.predictor.Detector` or
        :class:`~smt_vision.tasks.segmentation.predictor.Segmenter`.

    Raises:
        FileNotFoundError: The folder contains neither a best checkpoint nor an export.
        ValueError: ``source`` is neither a file or folder nor a timm model, the file does not contain a model, the
            weights have no classifier, or a field cannot be overridden.
        PretrainedWeightsError: The model has no pretrained weights, or they could not be downloaded.
    """
    predictor = _load(source, device, overrides or {}, providers, precision)
    if require_classes and predictor.spec.task == "classify" and not predictor.classes:
        raise ValueError(
            f"{source}: weights of {predictor.spec.model} without a classifier, so there are no classes to predict; "
            "expected weights with a classifier. Use these as initial weights (smt train RECIPE --checkpoint FILE), or "
            "for feature maps (smt_vision.backbone, or timm.create_model with features_only=True)"
        )
    return predictor


def _hint(folder: Path) -> str:
    """What a folder without a model has instead."""
    if (folder / "config.json").is_file():
        return f"; pass a model that timm saved as local-dir:{folder}"
    if (folder / "fold-1").is_dir():
        return f"; it is a cross-validation: pass one of its runs, e.g. {folder / 'fold-1'}"
    if last := training_checkpoints(folder):
        return f"; the run has not been evaluated yet: pass its last checkpoint, {last[0]}"
    return ""


def _load(
    source: str | Path,
    device: str | torch.device,
    overrides: Overrides,
    providers: Sequence[Provider],
    precision: Precision | None,
) -> Predictor[Any]:
    path, device = Path(source).expanduser(), parse_device(device)
    if is_export(path):
        return _from_export(path, device, overrides, providers, precision)
    if providers:
        raise ValueError(f"{source}: providers are for ONNX exports, and this is not an export; omit them")
    if path.is_dir() and not (path / BEST).is_file():
        raise FileNotFoundError(
            f"{path}: contains neither a best checkpoint ({BEST}) nor an export ({MANIFEST}){_hint(path)}"
        )
    if path.is_file() and is_export(path.parent):
        raise ValueError(f"{path} is a file of an export; expected the folder, {path.parent}")
    dtype = torch.float32 if precision is None else resolve_dtype(precision, device)
    if path.exists():
        predictor = _from_checkpoint(checkpoints.load(path), device, overrides)
    else:
        predictor = _from_timm(str(source), device, overrides)
    if dtype != torch.float32:
        predictor.model, predictor.dtype = at_dtype(predictor.model, dtype), dtype
    return predictor


def _from_checkpoint(checkpoint: Checkpoint, device: str | torch.device, overrides: Overrides) -> Predictor[Any]:
    if checkpoint.spec is None:
        weights = our_state(checkpoint.weights, checkpoint.path)
        variant, num_classes, in_chans, _ = identify(weights, checkpoint.path)
        variant = published_name(variant, num_classes, checkpoint.path)
        model = create_model(variant, num_classes=num_classes, in_chans=in_chans)
        model.load_state_dict(weights)
        _check_finite(model, checkpoint.path)
        spec = published_spec(model, variant)
        if in_chans == 1:
            gray = replace(spec.input, channels=1, mean=None, std=None)
            spec = replace(spec, input=resolve_input(gray, model))
        elif in_chans != 3:
            raise ValueError(
                f"{checkpoint.path}: weights for images of {in_chans} channels; expected 3 (RGB) or 1 (gray)"
            )
        spec = override(spec, overrides)
        return _predictor(model, spec, f"{variant} ({checkpoint.path.name})", device)
    weights = checkpoint.weights
    with _named(checkpoint.path):
        stored = read_spec(checkpoint.spec)
    spec = override(stored, overrides)
    with _named(checkpoint.path):
        with limited_parameters(weights):
            model = get_task(spec.task).build_model(spec)
        model.load_state_dict(weights)
        _check_finite(model, checkpoint.path)
        recipe = read_recipe(checkpoint.state["recipe"]) if "recipe" in checkpoint.state else None
        used = UsedImages.from_checkpoint(checkpoint)
    return _predictor(model, spec, str(checkpoint.path), device, recipe, used)


def _check_finite(model: nn.Module, path: Path) -> None:
    """Raise a ValueError if weights or statistics are not finite: every prediction would be NaN."""
    bad = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    # Other buffers, e.g. attention masks, may be infinite.
    bad += [
        f"{name}.{statistic}" if name else statistic
        for name, module in model.named_modules()
        for statistic in ("running_mean", "running_var")
        if isinstance(value := getattr(module, statistic, None), Tensor) and not value.isfinite().all()
    ]
    if bad:
        raise ValueError(f"{path}: {len(bad)} weights are infinite or NaN, e.g. {bad[0]}; use an earlier checkpoint")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what a damaged model spec causes into a ValueError that names its file."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:1000]
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(
            f"{path}: its model spec is invalid, or does not match its weights: {kind}{reason}; use another file"
        ) from error


@contextmanager
def limited_parameters(weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Raise a ValueError as soon as a model that is built has many more parameters than its file."""
    with _hook_lock:  # two threads would each install it
        _install_hook()
    _limit.parameters = MAX_TIMES * sum(tensor.numel() for tensor in weights.values()) + MAX_MORE
    _limit.tensors = MAX_TIMES * len(weights) + MAX_MORE_TENSORS
    _limit.stored = len(weights)
    try:
        yield
    finally:
        del _limit.stored


_hook_lock = threading.Lock()
_limit = threading.local()  # of the model that a thread builds


@cache
def _install_hook() -> None:
    """Install the hook that counts parameters, once: other threads may build models, which a hook that comes and goes
    would disturb."""
    register_module_parameter_registration_hook(_count)


def _count(module: nn.Module, name: str, parameter: Tensor | None) -> None:
    if (stored := getattr(_limit, "stored", None)) is None:
        return
    _limit.parameters -= 0 if parameter is None else parameter.numel()
    _limit.tensors -= 1
    if _limit.parameters < 0 or _limit.tensors < 0:
        raise ValueError(f"the spec describes a model that is much larger than its {stored} tensors")


def _from_export(
    folder: Path,
    device: torch.device,
    overrides: Overrides,
    providers: Sequence[Provider],
    precision: Precision | None,
) -> Predictor[Any]:
    if device.type != "cpu":
        raise ValueError(
            f"{folder} is an export, which cannot run on {device}: use the CPU (--device cpu, or --engine.accelerator "
            "cpu for smt eval), load the model that was exported, or run an ONNX export on a GPU with ONNX Runtime "
            "(--providers CUDAExecutionProvider)"
        )
    program = load_exported(folder, providers, precision)
    with _named(folder / MANIFEST):
        exported = read_spec(program.manifest.spec)
    spec = override(exported, overrides)
    with _named(folder / MANIFEST):
        model = get_task(spec.task).export.as_model(program, exported, spec, folder)
        return _predictor(model, spec, str(folder), device, used_images=load_used_images(folder))


def _from_timm(name: str, device: str | torch.device, overrides: Overrides) -> Predictor[Any]:
    return _predictor(*create_published(name, overrides, pretrained=True), name, device)


def create_published(name: str, overrides: Overrides, *, pretrained: bool) -> tuple[Any, ModelSpec]:
    """A timm model, built for the size of its images, and its spec."""
    size = overrides.get("input", {}).get("size")
    arguments = {} if size is None else arguments_for_size(name, {}, size)
    model = create_named(name, pretrained=pretrained, **arguments)
    return model, replace(override(published_spec(model, name), overrides), model_args=arguments)


def create_named(name: str, **arguments: Any) -> Any:
    """:func:`create_model` for a name that could have been a path, as the error says."""
    try:
        return create_model(name, **arguments)
    except UnknownModelError as error:
        raise ValueError(f"{name!r} is neither a file or folder nor a model: {error}") from error


def _predictor(
    model: nn.Module,
    spec: ModelSpec,
    name: str,
    device: str | torch.device,
    recipe: Recipe | None = None,
    used_images: UsedImages | None = None,
) -> Predictor[Any]:
    if spec.task == "classify":
        input: Any = spec.input
        check_image_size(model, input.channels, input.size)
    predictor_class: Any = get_task(spec.task).predictor
    predictor: Predictor[Any] = predictor_class(model, spec, name, device, recipe, used_images)
    return predictor


def override(spec: ModelSpec, overrides: Overrides) -> ModelSpec:
    """A copy of the spec with other values in its input or head; ``None`` keeps the value.

    Raises:
        ValueError: The task has no such field, or it cannot be overridden.
    """
    allowed = inference_overrides(spec.task)
    for group, values in overrides.items():
        given = {name: value for name, value in values.items() if value is not None}
        if invalid := [f"{group}.{name}" for name in given if name not in allowed.get(group, ())]:
            expected = ", ".join(f"{group}.{name}" for group, names in allowed.items() for name in names)
            raise ValueError(f"{invalid[0]} cannot be overridden for task {spec.task!r}: expected one of {expected}")
        if given and group == "input":
            spec = replace(spec, input=replace(spec.input, **given))
        elif given:
            spec = replace(spec, head=replace(spec.head, **given))
    return spec
