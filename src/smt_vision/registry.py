"""Variants of SMT: their constructor arguments, pretrained weights and registration with timm.

The registered functions build the plain network with fast forms of its modules (see ``forms``). With the environment
variable ``SMT_VISION_KERNELS=plain``, read when the models are registered, they build the plain network only.
"""

import os
import pickle
import sys
from collections.abc import Mapping, Set
from contextlib import redirect_stdout
from http.client import HTTPException
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import timm
import torch
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors
from safetensors import SafetensorError
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from torch import Tensor

from . import baselines, checkpoints  # noqa: F401  baselines registers models with timm
from .bounds import WEIGHT_ARGUMENTS, short
from .tensor_files import find_state_dict, read_tensors
from .text import get_logger

# The network is imported when it is built: this module is imported in the midst of whichever import of timm comes
# first, which may be the network's own.
if TYPE_CHECKING:
    from .model import SMT

log = get_logger(__name__)
RELEASE_URL = "https://github.com/AFeng-x/SMT/releases/download/v1.0.0/"
# URLError, timeouts, lost connections and most of the Hub's errors are OSErrors.
DOWNLOAD_ERRORS = (OSError, HTTPException, hub_errors.HTTPError)

KERNELS = os.environ.get("SMT_VISION_KERNELS", "auto")
if KERNELS not in ("auto", "plain"):
    raise ValueError(f"invalid SMT_VISION_KERNELS={KERNELS!r}: expected one of 'auto', 'plain'")

# Constructor arguments. Tiny to large are the paper's; atto, femto and pico follow their rules: attention heads of 32
# channels (24 in atto), stage 3 the deepest, with alternating mixers.
VARIANTS: dict[str, dict[str, Any]] = {
    "smt_atto": dict(embed_dims=(12, 24, 48, 96), depths=(1, 1, 4, 1), attn_heads=(1, 1, 2, 4)),
    "smt_femto": dict(embed_dims=(32, 64, 128, 256), depths=(2, 2, 4, 1), attn_heads=(1, 2, 4, 8)),
    "smt_pico": dict(embed_dims=(48, 96, 192, 384), depths=(2, 2, 4, 1), attn_heads=(2, 3, 6, 12)),
    "smt_tiny": dict(embed_dims=(64, 128, 256, 512), depths=(2, 2, 8, 1)),
    "smt_small": dict(embed_dims=(64, 128, 256, 512), depths=(3, 4, 18, 2)),
    "smt_base": dict(embed_dims=(64, 128, 256, 512), depths=(4, 6, 28, 2), mlp_ratios=(8, 6, 4, 2), stem_kernel=7),
    "smt_large": dict(
        embed_dims=(96, 192, 384, 768), depths=(4, 6, 28, 4), mlp_ratios=(8, 6, 4, 2), stem_kernel=7, layer_scale=1e-4
    ),
}

# Arguments that the weights of a tag were trained with, where they are not the variant's.
TAG_ARGS: dict[str, dict[str, Any]] = {"smt_femto.cifar10": dict(stem_stride=1, depths=(1, 1, 4, 1))}

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def _cfg(**kwargs: Any) -> dict[str, Any]:
    defaults = dict(
        input_size=(3, 224, 224),
        pool_size=(7, 7),
        crop_pct=224 / 256,
        interpolation="bicubic",
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        first_conv="stem.conv1",
        classifier="head.fc",
        license="apache-2.0",
        paper_ids="arXiv:2307.08579",
        paper_name="Scale-Aware Modulation Meet Transformer",
        origin_url="https://github.com/AFeng-x/SMT",
    )
    return {**defaults, **kwargs}


default_cfgs = generate_default_cfgs(
    {
        "smt_atto.untrained": _cfg(),
        "smt_femto.cifar10": _cfg(
            file=str(files("smt_vision") / "weights" / "smt_femto.cifar10.safetensors"),
            input_size=(3, 32, 32),
            pool_size=(4, 4),
            crop_pct=1.0,
            num_classes=10,
            label_names=CIFAR10_CLASSES,
            origin_url=None,
        ),
        "smt_femto.untrained*": _cfg(),  # starred, last: the default, so that smt_femto has 1000 classes
        "smt_pico.untrained": _cfg(),
        "smt_tiny.in1k": _cfg(url=RELEASE_URL + "smt_tiny.pth"),
        "smt_small.in1k": _cfg(url=RELEASE_URL + "smt_small.pth"),
        "smt_base.in1k": _cfg(url=RELEASE_URL + "smt_base.pth"),
        "smt_large.in22k_ft_in1k": _cfg(url=RELEASE_URL + "smt_large_22k_224_ft.pth"),
        "smt_large.in22k_ft_in1k_384": _cfg(
            url=RELEASE_URL + "smt_large_22k_384_ft.pth",
            input_size=(3, 384, 384),
            pool_size=(12, 12),
            crop_pct=1.0,
            crop_mode="squash",
        ),
        "smt_large.in22k": _cfg(url=RELEASE_URL + "smt_large_22k.pth", num_classes=21841),
    }
)


def published_name(variant: str, num_classes: int, file: Path) -> str:
    """The name of the weights in a file, with the tag that its name has in the release, e.g. ``smt_tiny.in1k``.

    A file of another name gets the name of the variant, i.e. the input of its default tag; where files of the release
    for as many classes have other inputs, a warning says so.
    """
    tags = {name: cfg for name, cfg in _published_cfgs(variant) if cfg.num_classes == num_classes}
    for name, cfg in tags.items():
        if cfg.url and Path(urlparse(cfg.url).path).name == file.name:
            return name
    sizes = {cfg.input_size[-1] for cfg in tags.values() if cfg.url}
    if len(sizes) > 1:
        log.warning(
            "%s: its name does not say whether the weights are for %s pixels; uses the input of %s (--input.size)",
            file, " or ".join(map(str, sorted(sizes))), variant,
        )  # fmt: skip
    return variant


def _published_cfgs(variant: str) -> list[tuple[str, Any]]:
    default = default_cfgs.get(variant)
    return [] if default is None else [(f"{variant}.{tag}", cfg) for tag, cfg in default.cfgs.items()]


def checkpoint_filter_fn(state_dict: dict[str, Any], model: "SMT") -> dict[str, Tensor]:
    """The state dict in a weight file (the release's, a training checkpoint, or a state dict), for a model.

    Raises:
        ValueError: The file contains no state dict, or several SMTs.
        RuntimeError: There are missing or unexpected keys. timm loads strictly only where the number of classes is the
            file's; this check always covers everything but the classifier.
    """
    from .model.official import our_state

    cfg: Any = model.pretrained_cfg
    state_dict = our_state(find_state_dict(state_dict), cfg.get("file") or cfg.get("url") or "pretrained weights")
    head = {"head.fc.weight", "head.fc.bias"}
    expected, given = model.state_dict().keys() - head, state_dict.keys() - head
    missing = {key for key in expected - given if not key.endswith(".num_batches_tracked")}  # as BatchNorm loads
    if missing or given - expected:
        raise RuntimeError(
            f"State dict does not match this model. Missing keys: {_some(missing)}. Unexpected keys: "
            f"{_some(given - expected)}. Use the variant and the arguments that the weights were trained with."
        )
    return state_dict


def _some(keys: Set[str]) -> str:
    names = sorted(keys)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"


class PretrainedWeightsError(RuntimeError):
    """Pretrained weights that do not exist or cannot be downloaded.

    The message has the remedy in Python; :meth:`for_command` has that of the command line.

    Args:
        name: timm name of the model.
        problem: What is wrong, as a sentence without a period.
        cfg: timm's ``pretrained_cfg`` of the weights.
        exist: Whether there are weights to download.
    """

    def __init__(self, name: str, problem: str, cfg: Mapping[str, Any], exist: bool = True) -> None:
        self.name = name
        self.problem = problem
        self.exist = exist
        self.url, self.hub_id = cfg.get("url"), cfg.get("hf_hub_id")
        remedy = "Use pretrained=False for random weights"
        if exist:
            remedy = (
                f"Without network access, {self._download()}; or create the model with pretrained=True, "
                "pretrained_cfg_overlay=dict(file='PATH/TO/FILE')"
            )
        super().__init__(f"{problem}. {remedy}.")

    def for_command(self, command: str) -> str:
        """The message for users of an ``smt`` command."""
        steps = [self._download()] if self.exist else []
        if command == "train":
            steps += [
                "pass a file of weights with --checkpoint FILE",
                "start from random weights with --pretrained false",
            ]
        elif self.name.partition(".")[0] in VARIANTS:
            steps += [f"pass the path of a file of weights instead of {self.name}"]
        else:
            steps += [f"pass local-dir:FOLDER instead of {self.name}, a folder with the config.json and the "
                      "model.safetensors of the Hugging Face Hub"]  # fmt: skip
        return f"{self.problem}. What to do: {'; or '.join(steps)}."

    def _download(self) -> str:
        """What to download where there is a network, and where to put it."""
        if self.hub_id:
            folder = f"models--{self.hub_id.replace('/', '--')}"
            return f"run 'hf download {self.hub_id}' elsewhere and copy its folder {folder} to {constants.HF_HUB_CACHE}"
        return f"download that file elsewhere and copy it to {_cache_file(str(self.url))}"


def _cache_file(url: str) -> Path:
    """The file that torch.hub downloads from a URL."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def create_timm_model(name: str, *, pretrained: bool = False, **arguments: Any) -> Any:
    """``timm.create_model`` with one error for pretrained weights that do not exist or cannot be downloaded.

    Raises:
        PretrainedWeightsError: The weights, or the configuration on the Hub, do not exist or cannot be downloaded.
        ValueError: The file of the weights is damaged, or an argument would make timm read another file.
    """
    for argument in WEIGHT_ARGUMENTS:
        if argument in arguments:
            raise ValueError(
                f"invalid model_args.{argument}={short(arguments[argument])}: a model's arguments cannot choose its "
                "weights; remove it, and train from a file with --checkpoint FILE"
            )
    scheme, _, location = name.rpartition(":")
    arguments["pretrained"] = pretrained
    if not pretrained and scheme in ("", "local-dir"):
        return timm.create_model(name, **arguments)
    cfg: dict[str, Any] = {"file" if scheme == "local-dir" else "hf_hub_id": location}
    if not scheme:
        variant, _, tag = name.partition(".")
        cfg = resolve_pretrained_cfg(variant, tag).to_dict()
        if not any(cfg.get(source) for source in ("url", "hf_hub_id", "file", "state_dict")):
            others = timm.list_pretrained(f"{variant}*")
            there_are = f"; there are weights of {', '.join(others[:5])}" if others else ""
            raise PretrainedWeightsError(name, f"No pretrained weights exist for {name}{there_are}", cfg, exist=False)
    try:
        with redirect_stdout(sys.stderr):  # torch.hub prints that it downloads; standard output is for results
            return timm.create_model(name, **arguments)
    except (SafetensorError, pickle.UnpicklingError, EOFError) as error:
        where = cfg.get("file") or f"the cache, {constants.HF_HUB_CACHE}"
        raise ValueError(
            f"The weights of {name} in {where} are damaged ({_first_line(error)}); delete and download them again"
        ) from error
    except DOWNLOAD_ERRORS as error:
        if cfg.get("file"):
            raise
        where = f"https://huggingface.co/{cfg['hf_hub_id']}" if cfg.get("hf_hub_id") else cfg.get("url")
        raise PretrainedWeightsError(
            name, f"Cannot download the pretrained weights of {name} from {where} ({_first_line(error)})", cfg
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def backbone(name: str, weights: str | Path | None = None, **kwargs: Any) -> Any:
    """An SMT that returns the feature maps of its four stages, with the weights of a file.

    Args:
        name: Name of a variant, e.g. ``smt_tiny``.
        weights: Weight file or run folder: the authors' release, a checkpoint or a state dict, also of a larger network
            that has one SMT under any prefix. Loading is strict, except that a classifier, and stages that
            ``out_indices`` does not need, are left out. ``None`` for random weights.
        kwargs: Further arguments of ``timm.create_model``: ``pretrained=True`` for the published weights,
            ``out_indices``, ``in_chans`` (the weights of the first convolution are adapted), arguments of
            :class:`~smt_vision.SMT`.

    Returns:
        timm's feature extractor. It maps images ``(B, in_chans, H, W)`` to a list of feature maps
        ``(B, C_i, H / s_i, W / s_i)``. ``feature_info.channels()`` has the C_i and ``feature_info.reduction()`` the
        strides s_i; ``model`` is the :class:`~smt_vision.SMT`, with ``stem`` and ``stages``. It loads state dicts of
        its own, of the release and of networks that contain an SMT.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The variant is unknown, the file cannot be read, or it has several SMTs.
        RuntimeError: The weights do not match the variant and the arguments.
    """
    from .model.official import our_state, require_smt

    if name.partition(".")[0] not in VARIANTS:
        raise ValueError(f"invalid name={name!r}: expected one of {', '.join(VARIANTS)}, or one of these with a tag")
    if weights is None:
        return timm.create_model(name, features_only=True, **kwargs)
    checkpoint = checkpoints.load(Path(weights))
    state = our_state(checkpoint.weights, checkpoint.path)
    require_smt(state, checkpoint.path)
    state = {key: value for key, value in state.items() if not key.startswith("head.")}
    channels, in_chans = state["stem.conv1.weight"].shape[1], kwargs.get("in_chans", 3)
    if channels not in (3, in_chans):
        raise ValueError(
            f"{checkpoint.path}: weights for images of {channels} channels, in_chans is {in_chans}; only weights for 3 "
            f"channels can be adapted, so set in_chans={channels}"
        )
    # Before 1.0.31, timm drops a first convolution that it cannot adapt, even where there is nothing to adapt.
    adapted = None if channels == in_chans else "stem.conv1"
    overlay = {"state_dict": state, "first_conv": adapted}
    try:
        net = timm.create_model(
            name, features_only=True, **{**kwargs, "pretrained": True, "pretrained_cfg_overlay": overlay}
        )
    except RuntimeError as error:
        raise RuntimeError(f"{checkpoint.path}: {error}") from error
    for module in net.modules():  # the wrapper and the network in it
        cfg: Any = getattr(module, "pretrained_cfg", None)
        if cfg is not None:
            cfg.pop("state_dict", None)
            cfg["first_conv"] = "stem.conv1"
    return net


def _build(**kwargs: Any) -> "SMT":
    from .forms import use_fast_forms
    from .model import SMT

    model = SMT(**kwargs)
    return model if KERNELS == "plain" else use_fast_forms(model)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> "SMT":
    given = kwargs.get("pretrained_cfg")  # a tag, or its configuration, as timm's object or a mapping
    if isinstance(given, dict):
        tag = given.get("tag")
    else:
        tag = given if isinstance(given, str) else getattr(given, "tag", None)
    tag_args = TAG_ARGS.get(f"{variant}.{tag}", {})
    args = {**VARIANTS[variant], **tag_args, **kwargs}
    dims = args["embed_dims"]
    out_indices = tuple(range(len(dims))) if isinstance(dims, list | tuple) else ()  # the network refuses others
    try:
        model: Any = build_model_with_cfg(
            _build,
            variant,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg=dict(out_indices=out_indices, feature_cls="getter", flatten_sequential=True),
            **args,
        )
    except (*DOWNLOAD_ERRORS, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        cfg = resolve_pretrained_cfg(variant, given, kwargs.get("pretrained_cfg_overlay"))
        file = Path(cfg.file or _cache_file(str(cfg.url)))
        if file.is_file():
            read_tensors(file)  # raises an error that names the file and what is wrong with it, if it is unreadable
        if not isinstance(error, DOWNLOAD_ERRORS):
            raise
        if cfg.file:
            raise type(error)(f"Cannot read the weights of {variant} from {cfg.file}: {error!r}") from error
        where = f"{cfg.url or cfg.hf_hub_id} ({_first_line(error)})"
        problem = f"Cannot download the pretrained weights of {variant} from {where}"
        name = f"{variant}.{tag}" if tag else variant
        raise PretrainedWeightsError(name, problem, cfg.to_dict()) from error
    if kwargs.get("features_only"):
        from .model.loading import convert_features_state

        model.register_load_state_dict_pre_hook(convert_features_state)
    # timm saves the caller's arguments with a model; without the tag's, reloading would build another network.
    model._model_args = dict(tag_args)
    return model


@register_model
def smt_atto(pretrained: bool = False, **kwargs: Any) -> "SMT":
    """SMT-Atto, a variant of this package for tests and very small images."""
    return _create("smt_atto", pretrained, **kwargs)


@register_model
def smt_femto(pretrained: bool = False, **kwargs: Any) -> "SMT":
    """SMT-Femto, a variant of this package for small images and edge devices."""
    return _create("smt_femto", pretrained, **kwargs)


@register_model
def smt_pico(pretrained: bool = False, **kwargs: Any) -> "SMT":
    """SMT-Pico, a variant of this package for edge devices."""
    return _create("smt_pico", pretrained, **kwargs)


@register_model
def smt_tiny(pretrained: bool = False, **kwargs: Any) -> "SMT":
    """SMT-T of the paper: 11.5 M parameters, 2.46 GMAC at 224."""
    return _create("smt_tiny", pretrained, **kwargs)


@register_model
def smt_small(pretrained: bool = False, **kwargs: Any) -> "SMT":
    """SMT-S of the release: 22.6 M parameters (the paper's table says 20.5), 4.84 GMAC at 224."""
    return _create("smt_small", pretrained, **kwargs)


@register_model
def smt_base(pretrained: bool = False, **kwargs: Any) -> "SMT":
    """SMT-B of the paper: 32.0 M parameters, 7.97 GMAC at 224."""
    return _create("smt_base", pretrained, **kwargs)


@register_model
def smt_large(pretrained: bool = False, **kwargs: Any) -> "SMT":
    """SMT-L of the paper: 80.6 M parameters, 17.9 GMAC at 224, with LayerScale."""
    return _create("smt_large", pretrained, **kwargs)
