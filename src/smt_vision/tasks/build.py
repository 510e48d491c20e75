"""Building models from their specs, and loading initial weights."""

import difflib
import sys
import warnings
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import adapt_input_conv
from torch import Tensor, nn

from .. import checkpoints
from ..checkpoints import Checkpoint
from ..model import SMT
from ..model.official import our_state, require_smt, without_prefix
from ..recipe import OWN_DATA, Input, Recipe
from ..registry import PretrainedWeightsError, create_timm_model
from ..spec import ModelSpec
from ..text import get_logger
from . import RECIPES
from .backbone import Backbone
from .classes import some_names
from .classification.published import IMAGENET_22K, imagenet22k_rows
from .image_size import arguments_for_any_size, check_any_size, is_for_one_size, run_on_black

log = get_logger(__name__)
AnyInput = TypeVar("AnyInput", bound=Input)
AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)
SMALL_SIDE = 64  # pixels; larger images are large enough for any known network


class UnknownModelError(ValueError):
    """A name that timm does not know."""


def create_model(name: str, **arguments: Any) -> Any:
    """``timm.create_model`` with errors that name the arguments and suggest similar model names.

    Raises:
        UnknownModelError: The model is unknown to timm.
        ValueError: It does not accept the arguments, or its cached weights are damaged.
        PretrainedWeightsError: Pretrained weights do not exist, or cannot be downloaded.
    """
    if ":" not in name and not timm.is_model(name):
        close = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise UnknownModelError(f"unknown timm model {name!r}{hint}")
    try:
        return create_timm_model(name, **arguments)
    except RuntimeError as error:
        if "img_size" not in arguments or not arguments.get("pretrained"):
            raise
        raise ValueError(
            f"the pretrained weights of {name!r} are for images of another size, and timm cannot adapt them to "
            f"{arguments['img_size']} pixels: set input.size to theirs, or pretrained to false ({error})"
        ) from error
    except (TypeError, AssertionError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(f"model {name!r} does not accept {arguments}: {error or type(error).__name__}") from error


def create_pretrained(name: str, classes: Sequence[str], **arguments: Any) -> Any:
    """A classifier with its published weights, and a new head unless it has as many classes.

    From weights of ImageNet-22K, ImageNet-1K's classes take the rows of theirs.

    Args:
        name: timm name of the model.
        classes: Its class names.
        arguments: Further arguments of the model.

    Raises:
        ValueError, PretrainedWeightsError: As :func:`create_model`.
    """
    weights = timm.get_pretrained_cfg(name)
    of_22k = weights is not None and weights.num_classes == IMAGENET_22K != len(classes)
    rows = imagenet22k_rows(classes) if of_22k else None
    model = create_model(name, pretrained=True, num_classes=IMAGENET_22K if rows else len(classes), **arguments)
    if rows is None:
        if of_22k:
            log.info("%s: %d other classes than ImageNet-1K's: the classifier is reinitialized", name, len(classes))
        return model
    heads = classifier_layers(model)
    head = {key: value for key, value in model.state_dict().items() if key.rpartition(".")[0] in heads}
    model.reset_classifier(len(classes))
    model.load_state_dict(model.state_dict() | _imagenet1k_rows(head, classes, rows, name))
    return model


def without_unaccepted_drop_path(recipe: AnyRecipe) -> AnyRecipe:
    """The recipe, without its own ``drop_path_rate`` if its model is another one that has no such argument.

    A rate that is not that of the named recipe is kept: that a model does not accept it is then an error.
    """
    own, rate = RECIPES.get(recipe.name), recipe.model_args.get("drop_path_rate")
    if own is None or rate is None or recipe.model == own.model or rate != own.model_args.get("drop_path_rate"):
        return recipe
    if ":" not in recipe.model and not timm.is_model(recipe.model):  # an error, which create_model raises
        return recipe
    others = {name: value for name, value in recipe.model_args.items() if name != "drop_path_rate"}
    if _accepts(recipe.model, recipe.model_args) or not _accepts(recipe.model, others):
        return recipe
    log.warning("model %r has no drop_path_rate: omitted that of recipe %s, %s", recipe.model, recipe.name, rate)
    return replace(recipe, model_args=others)


def _accepts(name: str, arguments: Mapping[str, Any]) -> bool:
    try:
        classifier_of(name, arguments)
    except (TypeError, AssertionError, AttributeError, LookupError, ArithmeticError):
        return False
    return True


def set_grad_checkpointing(network: Any, recipe: Recipe) -> None:
    """Let a timm model recompute its activations in the backward pass, if the recipe says so.

    Raises:
        ValueError: The model does not support it.
    """
    if not recipe.engine.grad_checkpointing:
        return
    try:
        network.set_grad_checkpointing(True)
    except (AssertionError, AttributeError) as error:
        raise ValueError(
            f"engine.grad_checkpointing=true: model {recipe.model!r} does not support it; set it to false (a smaller "
            "batch_size with engine.accumulate saves memory, too), or use another model, e.g. an SMT, ConvNeXt or "
            "ResNet"
        ) from error


def initial_weights(recipe: Recipe) -> Checkpoint | None:
    """Read a recipe's checkpoint, or download its pretrained weights to timm's cache, before the data is opened.

    Opening a dataset can take long; weights that cannot be had are an error before that.

    Returns:
        The checkpoint, if the recipe names one.

    Raises:
        ValueError: The recipe is for one's own images, and no folder is given.
    """
    if recipe.data == OWN_DATA and not Path(OWN_DATA).exists():
        raise ValueError(
            f"recipe {recipe.name!r} has no data of its own: pass the folder of your images (--data MY_FOLDER); the "
            f"guide of task {recipe.task!r} describes the layouts"
        )
    if recipe.checkpoint is not None:
        return checkpoints.load(Path(recipe.checkpoint))
    if recipe.pretrained:
        with torch.random.fork_rng(devices=[]):  # the run's random numbers stay the same
            create_model(recipe.model, pretrained=True, **recipe.model_args)
    return None


def build_backbone(spec: ModelSpec, pretrained: bool, checkpoint: Checkpoint | None) -> Backbone:
    """Build the backbone of a detector or segmenter, with its initial weights.

    Args:
        spec: Model spec of the detector or segmenter.
        pretrained: Load the published weights of the backbone, unless ``checkpoint`` is given.
        checkpoint: Checkpoint of a classifier to load. Checkpoints of detectors and segmenters are ignored here and
            loaded by :func:`load_head_checkpoint`.

    Raises:
        ValueError: The model cannot be used as a backbone, or the checkpoint does not match it.
    """
    name, channels = spec.model, spec.input.channels
    arguments = arguments_for_any_size(name, spec.model_args)
    try:
        net = create_timm_model(
            name, features_only=True, in_chans=channels, pretrained=pretrained and checkpoint is None, **arguments
        )
    except PretrainedWeightsError:
        raise
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"model {name!r} with {arguments or 'no further arguments'} cannot be used as a backbone: {error}"
        ) from error
    try:
        backbone = Backbone(net, partial(_without_decay, name, arguments))
        if is_for_one_size(name):
            check_any_size(backbone, channels)
    except ValueError as error:
        raise ValueError(f"model {name!r} cannot be used as a backbone: {error}") from error
    if checkpoint is not None and checkpoint.task == "classify":
        classifier = create_model(name, in_chans=channels, **arguments)
        load_pretrained(classifier, checkpoint)
        features = backbone.network.state_dict()
        backbone.network.load_state_dict(_to_feature_keys(classifier.state_dict(), features))
    return backbone


def load_pretrained(model: Any, checkpoint: Checkpoint, classes: Sequence[str] | None = None) -> None:
    """Load a classifier's weights from a checkpoint of this library, the official release, or another program.

    The keys may have a prefix, e.g. ``module.`` or ``backbone.``, which is logged with the number of other tensors. The
    first convolution of an RGB model is adapted to other channels as timm adapts it. The classification head keeps its
    initialization if its shape or the checkpoint's classes differ, except that ImageNet-1K's classes are taken from a
    file of ImageNet-22K. All other weights must match.

    Args:
        model: The classifier.
        checkpoint: The checkpoint.
        classes: Class names of the classifier; ``None`` if its head is not used.

    Raises:
        ValueError: The weights do not match the model.
    """
    own = model.state_dict()
    heads = classifier_layers(model)
    state = _state_for(model, [key for key in own if key.rpartition(".")[0] not in heads], checkpoint)
    convs = model.pretrained_cfg.get("first_conv") or ()
    for key in [f"{conv}.weight" for conv in ((convs,) if isinstance(convs, str) else convs)]:
        if key in own and key in state and state[key].ndim == 4 and state[key].shape[1] == 3:
            state[key] = adapt_input_conv(own[key].shape[1], state[key])
    # A projection head of pretraining has layers below the classifier's name.
    state = {key: v for key, v in state.items() if key in own or not key.startswith(tuple(f"{h}." for h in heads))}
    in_head = [key for key in (own.keys() | state.keys()) if key.rpartition(".")[0] in heads]
    head = {key: state.pop(key) for key in in_head if key in state}
    state |= _fitting_head(head, {key: own[key] for key in in_head if key in own}, checkpoint, classes)
    settings = "model and model_args"
    if not isinstance(model, SMT) and model.pretrained_cfg.get("fixed_input_size"):
        state, settings = _resampled(model, own, state), "model, model_args and input.size"
    _load_state(model, state, checkpoint, settings)


def _fitting_head(
    head: dict[str, Tensor], own: dict[str, Tensor], checkpoint: Checkpoint, classes: Sequence[str] | None
) -> dict[str, Tensor]:
    """The tensors of a classification head for the classes of a model.

    Args:
        head: Those of the checkpoint.
        own: Those of the model.
        checkpoint: The checkpoint.
        classes: Class names of the model; ``None`` if its head is not used.
    """
    if classes is not None and checkpoint.spec is not None and not _same_classes(checkpoint, classes):
        return own
    if classes is not None and checkpoint.spec is None:
        outputs = sorted({len(value) for value in head.values() if value.ndim})
        if outputs == [IMAGENET_22K] and (rows := imagenet22k_rows(classes)) is not None:
            head = _imagenet1k_rows(head, classes, rows, f"checkpoint {checkpoint.path}")
        if any(key not in head or head[key].shape != own[key].shape for key in own):
            found = f"a classifier of {' and '.join(map(str, outputs))} classes" if outputs else "no such classifier"
            _log_reinitialized(checkpoint, found, classes)
    return {key: head[key] if key in head and head[key].shape == own[key].shape else own[key] for key in own}


def _imagenet1k_rows(
    head: Mapping[str, Tensor], classes: Sequence[str], rows: list[int], source: str
) -> dict[str, Tensor]:
    """A classifier of ImageNet-1K from one of ImageNet-22K, as in the authors' fine-tuning.

    Args:
        head: Weight (21841, ...) and bias (21841,) of one or several layers.
        classes: Class names of ImageNet-1K.
        rows: The row of each class; -1 for one that the 22K do not have, which starts at zero.
        source: Where the weights are from, for messages.
    """
    absent = [name for name, row in zip(classes, rows, strict=True) if row < 0]
    log.info(
        "%s: the classifier starts from ImageNet-22K's rows of %d of ImageNet-1K's classes, and from zero for %s",
        source, len(rows) - len(absent), some_names(absent),
    )  # fmt: skip
    index = torch.tensor(rows)
    taken = {key: value[index] for key, value in head.items()}
    for value in taken.values():
        value[index < 0] = 0
    return taken


def _resampled(model: nn.Module, own: Mapping[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with what depends on the image size resampled by timm, as it does with its own weights."""
    resample = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if resample is None or all(key in own and own[key].shape == value.shape for key, value in state.items()):
        return state
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"timm\.layers\.interpolate")  # of its indexing
        return dict(resample(state, model))


def classifier_layers(model: Any) -> tuple[str, ...]:
    """Names of the layers of a timm model that have an output per class."""
    names = model.pretrained_cfg.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _state_for(model: nn.Module, keys: list[str], checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors of a checkpoint that belong to a model, without the prefix that a larger network gives its keys.

    Args:
        model: The model.
        keys: Keys of the model, without the classifier's.
        checkpoint: The checkpoint.

    Raises:
        ValueError: They are there more than once, under different prefixes.
    """
    state = checkpoint.weights
    if isinstance(model, SMT):
        state = our_state(state, checkpoint.path)
        require_smt(state, checkpoint.path)
        # Without classifiers that are not one linear layer, e.g. head.0 and head.2.
        return {key: value for key, value in state.items() if key.startswith("head.fc.") or not key.startswith("head.")}
    return without_prefix(state, [(keys[0], keys[-1])], checkpoint.path, "the model's keys several times")


def load_head_checkpoint(
    model: nn.Module, spec: ModelSpec, checkpoint: Checkpoint | None, build: Callable[[ModelSpec], nn.Module]
) -> None:
    """Load the weights of a detector or segmenter, including its heads; checkpoints of classifiers are ignored.

    If the classes differ, layers with outputs per class keep their initialization.

    Args:
        model: The detector or segmenter.
        spec: Its spec.
        checkpoint: The checkpoint.
        build: Builds such a model.

    Raises:
        ValueError: The checkpoint is for another task, or the weights do not match the model.
    """
    if checkpoint is None or checkpoint.spec is None or checkpoint.task == "classify":
        return
    if checkpoint.task != spec.task:
        raise ValueError(
            f"checkpoint {checkpoint.path} is for task {checkpoint.task!r}, the recipe is for {spec.task!r}"
        )
    state, own = checkpoint.weights, model.state_dict()
    if not _same_classes(checkpoint, spec.classes):
        # The layers with outputs per class are those whose shape depends on the number of classes.
        with torch.device("meta"):
            larger = build(replace(spec, classes=(*spec.classes, ""))).state_dict()
        state |= {name: value for name, value in own.items() if value.shape != larger[name].shape}
    _load_state(model, state, checkpoint, "model, model_args and the head")


def _same_classes(checkpoint: Checkpoint, classes: Sequence[str]) -> bool:
    assert checkpoint.spec is not None
    known = checkpoint.spec["classes"]
    if tuple(known) == tuple(classes) or not known:  # none: there is no classifier to initialize anew
        return True
    _log_reinitialized(checkpoint, f"{len(known)} other classes ({some_names(known)})", classes)
    return False


def _log_reinitialized(checkpoint: Checkpoint, found: str, classes: Sequence[str]) -> None:
    log.warning(
        "checkpoint %s has %s, the recipe has %d (%s): layers with an output per class are reinitialized",
        checkpoint.path, found, len(classes), some_names(classes),
    )  # fmt: skip


def _load_state(model: nn.Module, state: Mapping[str, Tensor], checkpoint: Checkpoint, settings: str) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"checkpoint {checkpoint.path} does not match the model; check {settings}. {error}") from error


def _to_feature_keys(classifier: Mapping[str, Tensor], features: Iterable[str]) -> dict[str, Tensor]:
    """Rename a classifier's weights to the keys of its ``features_only`` model."""
    return {name: classifier[classifier_key(name, classifier)] for name in features}


def classifier_of(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The classifier that a ``features_only`` model is a part of, for what only it says of its parameters.

    Built without memory for its weights where it can be; the random numbers of the run stay the same.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return create_timm_model(name, **arguments)
        except (NotImplementedError, RuntimeError):  # it computes with its weights when it is built
            return create_timm_model(name, **arguments)


def _without_decay(name: str, arguments: Mapping[str, Any], features: nn.Module) -> set[str]:
    """The parameters of a ``features_only`` model that its classifier keeps from weight decay; it has no such list."""
    classifier: Any = classifier_of(name, arguments)
    listed = classifier.no_weight_decay() if hasattr(classifier, "no_weight_decay") else set()
    known = {key for key, _ in classifier.named_parameters()}
    return {key for key, _ in features.named_parameters() if classifier_key(key, known) in listed}


def classifier_key(name: str, classifier: Container[str]) -> str:
    """The classifier's key for one of its ``features_only`` model, e.g. ``stages.0.norm`` for ``stages_0.norm``."""
    first, _, rest = name.partition(".")
    parent, _, child = first.rpartition("_")
    return name if name in classifier else f"{parent}.{child}.{rest}"


def resolve_input(config: AnyInput, model: nn.Module, checkpoint: Checkpoint | None = None) -> AnyInput:
    """Set a missing mean and standard deviation to those that the model's weights were trained with.

    They are those of the checkpoint, if it is one of this library for images of as many channels; otherwise those of
    the model's pretrained weights. For grayscale images the three values of an RGB model are averaged.
    """
    data_config = resolve_model_data_config(model)
    spec = None if checkpoint is None else checkpoint.spec
    trained = {} if spec is None else spec.get("input", {})

    def values(name: str) -> tuple[float, ...]:
        if (given := trained.get(name)) and len(given) == config.channels:
            return tuple(given)
        per_channel = tuple(data_config[name])
        if len(per_channel) == config.channels:
            return per_channel
        return (sum(per_channel) / len(per_channel),) * config.channels

    return replace(config, mean=config.mean or values("mean"), std=config.std or values("std"))


def check_image_size(model: nn.Module, channels: int, size: int) -> None:
    """Run a model on a small image, since networks differ in the smallest one that they can reduce to a feature map.

    Args:
        model: A model of a batch of images.
        channels: Image channels.
        size: Side of its square images in pixels; nothing is done above 64, unless timm says that the model is for
            images of one size.

    Raises:
        ValueError: The model cannot compute images of this size.
    """
    if size > SMALL_SIDE and not getattr(model, "pretrained_cfg", {}).get("fixed_input_size"):
        return
    try:
        run_on_black(model, channels, size, size)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"invalid input.size={size}: the model cannot compute images of this size ({error}); choose "
            + ("a larger one" if size <= SMALL_SIDE else "the size of its pretrained weights")
        ) from error
