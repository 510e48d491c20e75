"""Weights by every road timm and torch have: official files, local folders, the hub's upload, no network."""

import argparse
import json
import logging
import re
import sys
from collections.abc import Callable
from http.client import IncompleteRead, RemoteDisconnected
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import errors as hub_errors
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from timm.models import _hub
from torch import Tensor, nn

import smt_vision
from literal import LiteralSMT
from smt_vision import checkpoints, registry
from smt_vision.model import SMT
from smt_vision.model.official import to_official
from smt_vision.registry import VARIANTS
from smt_vision.spec import ModelSpec
from smt_vision.tasks import get_task
from smt_vision.tasks.classification.config import ClassificationInput, ClassifyConfig
from smt_vision.tasks.classification.published import class_names, imagenet22k_rows
from smt_vision.tensor_files import read_tensors

SIZE: dict[str, Any] = dict(embed_dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), attn_heads=(1, 2, 3, 4))


def create(**kwargs: Any) -> Any:
    return timm.create_model("smt_tiny", **{**SIZE, **kwargs}).eval()


def images(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def literal() -> LiteralSMT:
    torch.manual_seed(0)
    return LiteralSMT(**SIZE).eval()


@pytest.fixture
def official(literal: LiteralSMT, tmp_path: Path) -> Path:
    """A file of the release's layout: ``{"model": state dict}`` of 1000 classes."""
    path = tmp_path / "smt_official.pth"
    torch.save({"model": literal.state_dict(), "epoch": 299}, path)
    return path


# --- official files ---


def test_an_official_file_loads_as_it_is(literal: LiteralSMT, official: Path) -> None:
    model = create()
    result = model.load_state_dict(torch.load(official, weights_only=True)["model"])
    assert not result.missing_keys
    assert not result.unexpected_keys
    torch.testing.assert_close(model(images()), literal(images()), rtol=1e-4, atol=1e-5)


def test_loading_leaves_the_callers_dict_alone(literal: LiteralSMT) -> None:
    state = literal.state_dict()
    keys = list(state)
    create().load_state_dict(state)
    assert list(state) == keys


def test_an_official_dict_loads_inside_another_module(literal: LiteralSMT) -> None:
    outer = torch.nn.ModuleDict({"backbone": create(num_classes=1000)})
    outer.load_state_dict({f"backbone.{k}": v for k, v in literal.state_dict().items()})
    torch.testing.assert_close(outer["backbone"](images()), literal(images()), rtol=1e-4, atol=1e-5)


def test_pretrained_file(literal: LiteralSMT, official: Path) -> None:
    model = create(pretrained=True, pretrained_cfg_overlay=dict(file=str(official)))
    torch.testing.assert_close(model(images()), literal(images()), rtol=1e-4, atol=1e-5)


def test_pretrained_file_of_other_classes(literal: LiteralSMT, official: Path) -> None:
    model = create(pretrained=True, pretrained_cfg_overlay=dict(file=str(official)), num_classes=5)
    assert model(images()).shape == (2, 5)
    torch.testing.assert_close(model.forward_features(images()), literal.features(images())[-1], rtol=1e-4, atol=1e-4)
    bare = create(pretrained=True, pretrained_cfg_overlay=dict(file=str(official)), num_classes=0)
    torch.testing.assert_close(bare(images()), literal.features(images())[-1].mean((2, 3)), rtol=1e-4, atol=1e-4)


def test_pretrained_file_of_other_channels(literal: LiteralSMT, official: Path) -> None:
    """One channel: timm sums the first convolution over the three, which is the grey image thrice."""
    model = create(pretrained=True, pretrained_cfg_overlay=dict(file=str(official)), in_chans=1)
    grey = images(1)
    torch.testing.assert_close(model(grey), literal(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)
    four = create(pretrained=True, pretrained_cfg_overlay=dict(file=str(official)), in_chans=4)
    assert four(images(4)).shape == (2, 1000)


def test_pretrained_features(literal: LiteralSMT, official: Path) -> None:
    overlay = dict(file=str(official))
    model = create(pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, out_indices=(1, 2))
    for actual, i in zip(model(images()), (1, 2), strict=True):
        torch.testing.assert_close(actual, literal.features(images())[i], rtol=1e-4, atol=1e-4)


def test_the_22k_head(tmp_path: Path) -> None:
    narrow = dict(embed_dims=(4, 4, 4, 8), depths=(1, 1, 1, 1), attn_heads=1, conv_heads=4)
    literal = LiteralSMT(
        **{**narrow, "attn_heads": (1,) * 4, "conv_heads": (4,) * 4}, num_classes=21841, layer_scale=1.0
    )
    torch.save({"model": literal.state_dict()}, tmp_path / "smt_large_22k.pth")
    overlay = dict(file=str(tmp_path / "smt_large_22k.pth"))
    args = dict(narrow, mlp_ratios=(4, 4, 4, 2), stem_kernel=3, layer_scale=1.0)
    model = timm.create_model("smt_large.in22k", pretrained=True, pretrained_cfg_overlay=overlay, **args)
    assert model.num_classes == 21841
    assert torch.equal(model.get_classifier().weight, literal.head.weight)
    tuned = timm.create_model("smt_large.in22k", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3, **args)
    assert tuned.get_classifier().weight.shape == (3, 8)


IMAGENET_1K, IMAGENET_22K = (tuple(ImageNetInfo(name).label_names()) for name in ("imagenet-1k", "imagenet-22k"))
TEDDY = "n04399382"  # the one class that is not among the 22K


@pytest.fixture(scope="module")
def weights_of_22k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TORCH_HOME with weights of ImageNet-22K in which the number of each row is its value."""
    home = tmp_path_factory.mktemp("torch")
    model = timm.create_model("smt_large", num_classes=21841, **SIZE)
    rows = torch.arange(21841.0)
    model.load_state_dict(
        model.state_dict() | {"head.fc.weight": rows[:, None].expand(-1, 32).clone(), "head.fc.bias": rows + 0.25}
    )
    (home / "hub" / "checkpoints").mkdir(parents=True)
    torch.save({"model": model.state_dict()}, home / "hub" / "checkpoints" / "smt_large_22k.pth")
    return home


def fine_tuned(home: Path, source: str, classes: tuple[str, ...]) -> Any:
    spec = ModelSpec("classify", "smt_large.in22k", classes, ClassificationInput(), SIZE, ClassifyConfig())
    checkpoint = checkpoints.load(home / "hub" / "checkpoints" / "smt_large_22k.pth") if source == "file" else None
    return get_task("classify").build_model(spec, pretrained=source == "published", checkpoint=checkpoint)


@pytest.mark.parametrize("source", ["published", "file"])
def test_fine_tuning_on_imagenet_1k_starts_from_its_rows_of_22k(
    source: str, weights_of_22k: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(weights_of_22k))
    with caplog.at_level("INFO", logger="smt_vision"):
        model = fine_tuned(weights_of_22k, source, IMAGENET_1K)
    assert len(re.findall(rf"999 of ImageNet-1K's classes, and from zero for {TEDDY}", caplog.text)) == 1
    assert "reinitialized" not in caplog.text
    for name, weight, bias in zip(IMAGENET_1K, model.head.fc.weight, model.head.fc.bias, strict=True):
        expected = None if name == TEDDY else IMAGENET_22K.index(name)
        assert weight.tolist() == [expected or 0.0] * 32
        assert bias == (0 if expected is None else expected + 0.25)
    assert model.head.fc.bias[IMAGENET_1K.index("n03933933")] == 9211.25  # the authors' file has 9212
    assert model(images()).shape == (2, 1000)


def test_classes_of_imagenet_are_recognized_by_name_in_any_order() -> None:
    names = class_names(type("Model", (), {"pretrained_cfg": {}, "num_classes": 1000}))
    by_id = imagenet22k_rows(IMAGENET_1K)
    assert by_id is not None
    assert imagenet22k_rows(names) == by_id
    assert imagenet22k_rows(IMAGENET_1K[::-1]) == by_id[::-1]
    assert imagenet22k_rows((*IMAGENET_1K[:-1], "n00004475")) is None
    assert imagenet22k_rows((*IMAGENET_1K[:-1], IMAGENET_1K[0])) is None
    assert imagenet22k_rows(tuple(map(str, range(1000)))) is None


@pytest.mark.parametrize("source", ["published", "file"])
@pytest.mark.parametrize("count", [2, 1000])
def test_other_classes_than_imagenets_start_from_a_new_classifier(
    source: str, count: int, weights_of_22k: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(weights_of_22k))
    with caplog.at_level("INFO", logger="smt_vision"):
        model = fine_tuned(weights_of_22k, source, tuple(f"class {i}" for i in range(count)))
    assert model.head.fc.weight.shape == (count, 32)
    assert model.head.fc.weight.abs().max() < 1
    assert "reinitialized" in caplog.text


@pytest.mark.parametrize("head", ["1000 classes", "none", "several layers"])
def test_a_new_classifier_is_logged(
    head: str, literal: LiteralSMT, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = literal.state_dict()
    if head != "1000 classes":
        values = state.pop("head.weight"), state.pop("head.bias")
    if head == "several layers":
        state |= {"head.0.weight": values[0], "head.0.bias": values[1]}
    torch.save(state, tmp_path / "weights.pth")
    spec = ModelSpec("classify", "smt_tiny", ("cat", "dog"), ClassificationInput(), SIZE, ClassifyConfig())
    get_task("classify").build_model(spec, checkpoint=checkpoints.load(tmp_path / "weights.pth"))
    found = "a classifier of 1000 classes" if head == "1000 classes" else "no such classifier"
    assert len(re.findall(rf"weights\.pth has {found}, the recipe has 2 \(cat, dog\)", caplog.text)) == 1


def drop(state: dict[str, Tensor], key: str) -> None:
    del state[key]


def add(state: dict[str, Tensor], key: str) -> None:
    state[key] = torch.zeros(1)


@pytest.mark.parametrize(("change", "key", "named"), [
    (drop, "block1.0.mlp.fc1.weight", r"Missing key.*stages\.0\.blocks\.0\.ffn\.fc1\.weight"),
    (drop, "block1.0.attn.s.weight", r"block1\.0\.attn\.v\.weight"),  # half of a merged layer
    (drop, "block4.0.attn.q.bias", r"stages\.3\.blocks\.0\.mixer\.qkv\.bias"),
    (add, "block1.0.attn.conv.weight", r"block1\.0\.attn\.conv\.weight"),
    (add, "epoch", r"epoch"),
])  # fmt: skip
def test_a_file_that_does_not_fit_is_refused(
    change: Callable[[dict[str, Tensor], str], None], key: str, named: str, literal: LiteralSMT, tmp_path: Path
) -> None:
    state = dict(literal.state_dict())
    change(state, key)
    with pytest.raises(RuntimeError, match=f"(?s){named}"):
        create().load_state_dict(state)
    torch.save({"model": state}, tmp_path / "changed.pth")
    overlay = dict(file=str(tmp_path / "changed.pth"))
    for num_classes in (1000, 5):  # timm alone would load the second without a word
        with pytest.raises(RuntimeError, match=f"(?s){named}"):
            create(pretrained=True, pretrained_cfg_overlay=overlay, num_classes=num_classes)


def test_a_file_of_another_size_is_refused(official: Path) -> None:
    with pytest.raises(RuntimeError, match=r"size mismatch for stem\.conv1\.weight"):
        timm.create_model(
            "smt_atto", pretrained=True, pretrained_cfg_overlay=dict(file=str(official)), depths=(1, 1, 2, 1)
        )
    with pytest.raises(
        RuntimeError, match=r"Missing keys: stages\.2\.blocks\.2\..*and \d+ more.*Unexpected keys: none"
    ):
        create(pretrained=True, pretrained_cfg_overlay=dict(file=str(official)), depths=(1, 1, 3, 1))


def test_our_own_state_dict_loads_by_the_same_road(tmp_path: Path) -> None:
    model = create(num_classes=3)
    torch.save(model.state_dict(), tmp_path / "ours.pth")
    overlay = dict(file=str(tmp_path / "ours.pth"), num_classes=3)
    again = create(pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(again(images()), model(images()))


# --- no network ---


@pytest.mark.parametrize("error", [
    URLError(OSError(-2, "Name or service not known")),
    HTTPError("https://example.org/x", 404, "Not Found", None, None),  # type: ignore[arg-type]
    TimeoutError("timed out"),
    ConnectionResetError("reset by peer"),
    RemoteDisconnected("closed without response"),
    IncompleteRead(b""),
    hub_errors.HTTPError("407 Proxy Authentication Required"),
], ids=lambda e: type(e).__name__)  # fmt: skip
@pytest.mark.parametrize("name", ["smt_tiny", "smt_large.in22k"])
def test_without_a_network_the_error_says_what_to_do(
    name: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", fetch)
    file = {"smt_tiny": "smt_tiny.pth", "smt_large.in22k": "smt_large_22k.pth"}[name]
    with pytest.raises(
        RuntimeError, match=rf"{name.split('.')[0]} .*v1\.0\.0/{file} .*pretrained_cfg_overlay=dict\(file="
    ):
        timm.create_model(name, pretrained=True, **{**SIZE, "num_classes": 2})


def test_a_server_that_does_not_exist_is_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real download code, against a port where nothing listens."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    overlay = dict(url="http://127.0.0.1:9/smt_tiny.pth")
    with pytest.raises(RuntimeError, match=r"smt_tiny from http://127\.0\.0\.1:9/smt_tiny\.pth \(.*refused"):
        create(pretrained=True, pretrained_cfg_overlay=overlay)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "absent.pth"
    with pytest.raises(FileNotFoundError, match=r"smt_tiny from .*absent\.pth"):
        create(pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))


def test_a_variant_without_weights_says_so() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist for smt_atto"):
        timm.create_model("smt_atto", pretrained=True)


# --- folders and the hub ---


@pytest.mark.parametrize("safe", [True, False])
def test_local_dir_round_trip(safe: bool, tmp_path: Path) -> None:
    model = create(num_classes=5, in_chans=1, mixers=("S", "A", "S*A*", "A"), stem_stride=2)
    _hub.save_for_hf(model, str(tmp_path), safe_serialization=safe)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert again.num_classes == 5
    assert again.patterns == model.patterns
    assert torch.equal(again(images(1)), model(images(1)))
    tuned = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=2)
    assert tuned(images(1)).shape == (2, 2)


def test_local_dir_keeps_what_a_tag_set(tmp_path: Path) -> None:
    """The CIFAR-10 weights have a stem of stride 1; a reload of stride 4 would not fit them."""
    model = timm.create_model("smt_femto.cifar10", depths=(1, 1, 1, 1)).eval()
    assert model.feature_info[0]["reduction"] == 1
    _hub.save_for_hf(model, str(tmp_path))
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert again.feature_info[0]["reduction"] == 1
    assert torch.equal(again(images()), model(images()))


def test_local_dir_after_a_new_classifier(tmp_path: Path) -> None:
    model = create()
    model.reset_classifier(4, "max")
    _hub.save_for_hf(model, str(tmp_path))
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, global_pool="max").eval()
    assert torch.equal(again(images()), model(images()))


def test_push_to_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's own function, up to the network: what it would upload is what a user would download."""
    folder = tmp_path / "repo"

    class Api:
        def __init__(self, **_: Any) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> SimpleNamespace:
            return SimpleNamespace(repo_id=repo_id)

        def file_exists(self, **_: Any) -> bool:
            return False

        def upload_folder(self, *, repo_id: str, folder_path: str, **_: Any) -> str:
            Path(folder_path).rename(folder)
            Path(folder_path).mkdir()  # timm removes its temporary folder itself
            return repo_id

    monkeypatch.setattr(_hub, "HfApi", Api)
    model = create(num_classes=3)
    assert (
        timm.models.push_to_hf_hub(model, "someone/smt", model_config=dict(label_names=["a", "b", "c"]))
        == "someone/smt"
    )
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors", "pytorch_model.bin", "README.md"}
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "smt_tiny"
    assert config["num_classes"] == 3
    assert config["label_names"] == ["a", "b", "c"]
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(again(images()), model(images()))


def test_a_run_in_a_folder_of_the_hub_has_its_own_preprocessing(trained: Path, tmp_path: Path) -> None:
    """The config has the size, crop, mean and classes of the run, and not those of the variant."""
    classifier = smt_vision.load(trained)
    _hub.save_for_hf(classifier.model, str(tmp_path))
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    config, input = timm.data.resolve_model_data_config(again), classifier.input
    assert config["input_size"] == (input.channels, input.size, input.size) != (3, 224, 224)
    assert (config["crop_pct"], config["crop_mode"]) == (input.crop_pct, input.crop_mode)
    assert (tuple(config["mean"]), tuple(config["std"])) == (input.mean, input.std)
    assert again.pretrained_cfg["label_names"] == list(classifier.classes)
    x = torch.randn(2, *config["input_size"])
    torch.testing.assert_close(again(x), classifier.model(x), rtol=1e-4, atol=1e-4)


def test_every_tag_has_a_variant() -> None:
    assert set(registry.default_cfgs) == set(VARIANTS)
    for name in registry.TAG_ARGS:
        variant, tag = name.split(".")
        assert tag in registry.default_cfgs[variant].cfgs
        assert type(timm.create_model(name)) is SMT


# --- files of other programs ---


class CfgNode(dict):  # type: ignore[type-arg]
    """A configuration, as training programs pickle it into their checkpoints."""


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


OTHER = {"neck.conv.weight": torch.zeros(2), "head_2.bias": torch.zeros(1)}
CHECKPOINTS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "timm": lambda s: {
        "epoch": 3, "arch": "smt_tiny", "state_dict": {k: 0 * v for k, v in s.items()}, "state_dict_ema": s,
        "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"lr": 0.1}]}, "version": 2,
        "args": argparse.Namespace(lr=0.1, model="smt_tiny"), "metric": 71.0,
    },
    "authors": lambda s: {"model": s, "optimizer": {}, "lr_scheduler": {"t": 1}, "max_accuracy": 82.0, "epoch": 299},
    "mmdetection": lambda s: {"meta": {"epoch": 12}, "state_dict": {**under("backbone.", s), **OTHER}},
    "MMDetection, the authors' backbone": lambda s: {
        "state_dict": {f"backbone.{k.replace('attn.local_conv.', 'attn.dw_conv.')}": v for k, v in s.items()}
    },
    "lightning": lambda s: {
        "state_dict": under("model.", s), "pytorch-lightning_version": "2.5", "hyper_parameters": {"lr": 0.1}
    },
    "distributed": lambda s: under("module.", s),
    "compiled": lambda s: {"model": under("_orig_mod.module.", s)},
    "nested": lambda s: {**under("net.rgb_encoder.", s), **OTHER},
    "entry net": lambda s: {"net": s, "optimizer": {"state": {0: {"step": torch.ones(1)}}}, "epoch": 1},
    "entries": lambda s: {"encoder": s, "decoder": OTHER},
    "ema of module": lambda s: {"ema": {"module": s, "updates": 4}, "model": {k: 0 * v for k, v in s.items()}},
    "epoch beside the tensors": lambda s: {**s, "epoch": 3, "_extra_state": None},
    "parameters": lambda s: {k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()},
    "without batch counts": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    "BasicSR": lambda s: {"params": {k: 0 * v for k, v in s.items()}, "params_ema": s},
    "compiled and checkpointed parts": lambda s: {
        re.sub(r"(stages\.0\.blocks|block1)\.0\.", r"\1._orig_mod.0._checkpoint_wrapped_module.", k): v
        for k, v in s.items()
    },
    "format is text": lambda s: {"format": "pt", "spec": "smt", "input": 3, "model": s},
}  # fmt: skip


@pytest.mark.parametrize("release", [True, False], ids=["release", "ours"])
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints_of_other_programs(kind: str, release: bool, literal: LiteralSMT, tmp_path: Path) -> None:
    classifier = create()
    classifier.load_state_dict(literal.state_dict())
    state = literal.state_dict() if release else classifier.state_dict()
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(CHECKPOINTS[kind](dict(state)), path)
    net = smt_vision.backbone("smt_tiny", weights=path, **SIZE).eval()
    for actual, expected in zip(net(images()), literal.features(images()), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    if kind != "ema of module":  # timm reads the file of an overlay, and does not know this entry
        model = create(pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))
        torch.testing.assert_close(model(images()), literal(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["weights.pth", "weights.SAFETENSORS", "weights", "my weights (1).safetensors"])
@pytest.mark.parametrize("format", ["torch", "safetensors"])
def test_the_content_decides_the_format(format: str, name: str, literal: LiteralSMT, tmp_path: Path) -> None:
    write = {"torch": torch.save, "safetensors": save_file}[format]
    write(literal.state_dict(), tmp_path / name)
    state, _ = read_tensors(tmp_path / name)
    assert state.keys() == literal.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in literal.state_dict().items())


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(("content", "found"), [
    (b"", "it is empty"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer.*git lfs pull"),
    (b"\n<!DOCTYPE html><title>Virus scan warning</title>", "a web page or a server's message"),
    (b'{"message": "Not Found"}', "a web page or a server's message"),
    (b"PK\x03\x04" + bytes(100), "truncated or not a tensor file"),
    (b"\x10\x27" + bytes(6) + b'{"a": ', "truncated or not a tensor file"),
    (b"\x08\x08\x12\x07pytorch", "truncated or not a tensor file"),
])  # fmt: skip
def test_what_was_saved_instead_of_weights_is_told(content: bytes, found: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"smt_tiny.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"smt_tiny\.{suffix}: not a readable \.{suffix} .*{found}"):
        smt_vision.backbone("smt_tiny", weights=path)


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore:.torch.load. received a zip file")
def test_a_program_is_not_weights(tmp_path: Path) -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "program.pt"))
    with pytest.raises(ValueError, match=r"program\.pt: .*TorchScript program; expected a state dict"):
        read_tensors(tmp_path / "program.pt")


def test_weights_in_the_home_folder(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(official.parent))
    smt_vision.backbone("smt_tiny", weights=f"~/{official.name}", **SIZE)
    with pytest.raises(FileNotFoundError, match=r"there is no best\.pt in this folder"):
        smt_vision.backbone("smt_tiny", weights="~", **SIZE)


def test_a_prefix_is_told(literal: LiteralSMT, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "network.pth"
    torch.save({**under("net.rgb_encoder.", literal.state_dict()), **OTHER}, path)
    smt_vision.backbone("smt_tiny", weights=path, **SIZE)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    count = len(literal.state_dict())
    assert record.getMessage() == (
        f"{path}: took {count} tensors under 'net.rgb_encoder.'; ignored 2 others, e.g. 'neck.conv.weight', "
        "'head_2.bias'"
    )


def test_two_networks_in_one_file_are_refused(literal: LiteralSMT, tmp_path: Path) -> None:
    two = {**under("rgb.", literal.state_dict()), **under("net.depth.", create().state_dict())}
    torch.save(two, tmp_path / "two.pth")
    with pytest.raises(ValueError, match=r"two\.pth: contains several SMTs.*'net\.depth\.', 'rgb\.'"):
        smt_vision.backbone("smt_tiny", weights=tmp_path / "two.pth", **SIZE)
    with pytest.raises(RuntimeError, match=r"contains several SMTs.*'net\.depth\.', 'rgb\.'"):
        create().load_state_dict(two, strict=False)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("extra", "named"), [
    (CfgNode(a=1), r"test_weights\.CfgNode"),
    (np.float64(1.0), r"multiarray\.scalar"),
    (Path("x"), r"pathlib"),
])  # fmt: skip
def test_refused_objects_are_named(extra: Any, named: str, zipped: bool, literal: LiteralSMT, tmp_path: Path) -> None:
    path = tmp_path / "refused.pth"
    content = {"model": literal.state_dict(), "config": extra}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    message = rf"refused\.pth: not a readable .*{named}.*torch\.load\('refused\.pth', weights_only=False\)\['model'\]"
    with pytest.raises(ValueError, match=message):
        read_tensors(path)
    with pytest.raises(ValueError, match=message):
        create(pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))


def test_the_state_dict_of_a_file_of_mmengine(literal: LiteralSMT, tmp_path: Path) -> None:
    """Its runner pickles an object beside the state dict, which has another name than in most programs' files."""
    buffer = type("HistoryBuffer", (), {"__module__": "mmengine.logging.history_buffer"})
    module = ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = buffer  # type: ignore[attr-defined]
    path = tmp_path / "epoch_12.pth"
    with patch.dict(sys.modules, dict.fromkeys(("mmengine", "mmengine.logging", module.__name__), module)):
        torch.save({"state_dict": under("backbone.", literal.state_dict()), "message_hub": buffer()}, path)
    with pytest.raises(ValueError, match=r"HistoryBuffer.*weights_only=False\)\['state_dict'\], .*entry 'model'"):
        read_tensors(path)


def test_only_a_namespace_is_allowed_and_only_while_reading(tmp_path: Path) -> None:
    torch.save({"args": argparse.Namespace(a=1), "model": {}}, tmp_path / "a.pth")
    assert read_tensors(tmp_path / "a.pth")[0]["args"] == argparse.Namespace(a=1)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([argparse.Namespace]):  # an application's own
        read_tensors(tmp_path / "a.pth")
        assert argparse.Namespace in torch.serialization.get_safe_globals()
    torch.save({"args": argparse.Namespace(a=CfgNode())}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match="CfgNode"):
        read_tensors(tmp_path / "b.pth")


def test_a_damaged_file_in_the_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / "smt_tiny.pth"
    cached.parent.mkdir(parents=True)
    for content in (b"", b"<html>404</html>", b"PK" + bytes(100)):
        cached.write_bytes(content)
        with pytest.raises(ValueError, match=r"checkpoints/smt_tiny\.pth: not a readable .*download it again"):
            create(pretrained=True)


@pytest.mark.parametrize("content", [b"\x10\x27" + bytes(6) + b'{"a": ', b""])
def test_damaged_weights_of_other_models_are_told(content: bytes, tmp_path: Path) -> None:
    _hub.save_for_hf(timm.create_model("test_resnet"), str(tmp_path), safe_serialization=True)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"The weights of local-dir:.* in {tmp_path} are damaged"):
        registry.create_timm_model(f"local-dir:{tmp_path}", pretrained=True)


def test_a_configuration_brings_the_arguments_of_its_tag() -> None:
    cfg = timm.get_pretrained_cfg("smt_femto.cifar10")
    for given in (cfg, cfg.to_dict()):
        model = timm.create_model("smt_femto", pretrained=True, pretrained_cfg=given)
        assert model.num_classes == 10
        assert len(model.stages[0].blocks) == 1


# --- the backbone, and networks that have it as a part ---


def test_backbone_arguments(literal: LiteralSMT, official: Path) -> None:
    net = smt_vision.backbone("smt_tiny", weights=official, **SIZE, in_chans=1, out_indices=(0, 2)).eval()
    assert net.feature_info.channels() == [8, 24]
    assert net.feature_info.reduction() == [4, 16]
    grey = images(1)
    expected = literal.features(grey.expand(-1, 3, -1, -1))
    for actual, i in zip(net(grey), (0, 2), strict=True):
        torch.testing.assert_close(actual, expected[i], rtol=1e-4, atol=1e-4)
    assert "state_dict" not in net.pretrained_cfg
    assert "state_dict" not in net.model.pretrained_cfg
    with pytest.raises(ValueError, match=r"name='smt_t': expected one of .*smt_tiny"):
        smt_vision.backbone("smt_t")
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        smt_vision.backbone("smt_tiny", weights="absent.pth")


def test_backbone_is_strict(literal: LiteralSMT, official: Path, tmp_path: Path) -> None:
    for changed in (dict(depths=(1, 1, 3, 1)), dict(embed_dims=(8, 16, 24, 36)), dict(layer_scale=1.0)):
        with pytest.raises(RuntimeError, match=r"smt_official\.pth: "):
            smt_vision.backbone("smt_tiny", weights=official, **{**SIZE, **changed})
    for content in ({}, {"conv1.weight": torch.zeros(1)}):
        torch.save({"model": content, "epoch": 1} if content else content, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=r"other\.pth: not the weights of an SMT"):
            smt_vision.backbone("smt_tiny", weights=tmp_path / "other.pth", **SIZE)


@pytest.mark.parametrize("channels", [1, 4])
def test_backbone_of_weights_for_other_channels(channels: int, tmp_path: Path) -> None:
    source = create(in_chans=channels)
    torch.save(source.state_dict(), tmp_path / "other.pth")
    net = smt_vision.backbone("smt_tiny", weights=tmp_path / "other.pth", **SIZE, in_chans=channels)
    assert torch.equal(net.model.stem.conv1.weight, source.stem.conv1.weight)
    with pytest.raises(ValueError, match=rf"other\.pth: weights for images of {channels} channels, in_chans is 3"):
        smt_vision.backbone("smt_tiny", weights=tmp_path / "other.pth", **SIZE)


def test_large_without_layer_scale(tmp_path: Path) -> None:
    """The authors' ``smt_l()`` and their dense backbones have none; timm drops arguments that are None."""
    small = dict(embed_dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), attn_heads=1, mlp_ratios=4, stem_kernel=3)
    source = timm.create_model("smt_large", layer_scale=0, **small)
    assert not any("gamma" in key for key in source.state_dict())
    torch.save(to_official(source.state_dict()), tmp_path / "smt_l.pth")
    net = smt_vision.backbone("smt_large", weights=tmp_path / "smt_l.pth", layer_scale=0, **small).eval()
    torch.testing.assert_close(net(images())[-1], source.eval().forward_intermediates(images())[1][-1])


def test_backbone_of_weights_with_another_head(literal: LiteralSMT, tmp_path: Path) -> None:
    state = {key: value for key, value in literal.state_dict().items() if not key.startswith("head.")}
    torch.save({**state, "head.0.weight": torch.ones(4, 32), "head.2.weight": torch.ones(2, 4)}, tmp_path / "head.pth")
    net = smt_vision.backbone("smt_tiny", weights=tmp_path / "head.pth", **SIZE).eval()
    torch.testing.assert_close(net(images())[-1], literal.features(images())[-1], rtol=1e-5, atol=1e-5)


def test_own_keys_keep_the_rules_of_load_state_dict(literal: LiteralSMT) -> None:
    net = smt_vision.backbone("smt_tiny", **SIZE)
    state = {**net.state_dict(), "other.weight": torch.zeros(1)}
    assert net.load_state_dict(state, strict=False).unexpected_keys == ["other.weight"]
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"other\.weight"'):
        net.load_state_dict(state)
    result = net.load_state_dict({"model.stem.bn.weight": torch.ones(8)}, strict=False)
    assert not result.unexpected_keys
    assert set(result.missing_keys) >= {name for name, _ in net.named_parameters()} - {"model.stem.bn.weight"}
    # What is left of the release's tensors after a comparison with the network's own keys.
    matching = {key: value for key, value in literal.state_dict().items() if key in net.state_dict()}
    with pytest.raises(RuntimeError, match="it is empty; pass all tensors of the file"):
        net.load_state_dict(matching, strict=False)


def test_a_whole_network_under_the_backbone_s_own_prefix_is_accepted() -> None:
    """As in the checkpoint of a classifier that is the attribute ``model`` of a Lightning module."""
    source = create()
    state = {f"model.{key}": value for key, value in source.state_dict().items()}
    net = smt_vision.backbone("smt_tiny", **SIZE)
    net.load_state_dict({**state, "criterion.weight": torch.zeros(1)})
    assert torch.equal(net.model.stem.conv1.weight, source.stem.conv1.weight)
    first = timm.create_model("smt_tiny", features_only=True, out_indices=(0, 1), **SIZE)
    first.load_state_dict(net.state_dict())
    assert torch.equal(first.state_dict()["model.stem.conv1.weight"], source.stem.conv1.weight)


def test_a_file_of_the_release_is_preprocessed_as_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small = dict(embed_dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), attn_heads=(1, 2, 3, 4))
    monkeypatch.setitem(VARIANTS, "smt_large", small)
    state = SMT(**small).state_dict()
    for name, size in (("smt_large_22k_384_ft.pth", 384), ("smt_large_22k_224_ft.pth", 224), ("mine.pth", 224)):
        caplog.clear()
        torch.save(state, tmp_path / name)
        input: Any = smt_vision.load(tmp_path / name).spec.input
        assert (input.size, input.crop_mode) == (size, "squash" if size == 384 else "center")
        assert ("224 or 384 pixels" in caplog.text) == (name == "mine.pth")


class TwoStreams(torch.nn.Module):
    """A network of RGB and depth images, whichever encoder it has."""

    def __init__(self, encoder: Callable[[], torch.nn.Module]) -> None:
        super().__init__()
        self.rgb, self.depth = encoder(), encoder()
        self.decoder = torch.nn.Conv2d(32, 1, 1)

    def forward(self, rgb: Tensor, depth: Tensor) -> Tensor:
        maps = [getattr(m, "features", m)(x)[-1] for m, x in ((self.rgb, rgb), (self.depth, depth))]
        return self.decoder(maps[0] * maps[1])


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("num_classes", [0, 1000])
def test_an_old_network_loads_into_the_same_network_with_our_backbone(num_classes: int, strict: bool) -> None:
    torch.manual_seed(1)
    old = TwoStreams(lambda: LiteralSMT(**SIZE, num_classes=num_classes)).eval()
    new = TwoStreams(lambda: smt_vision.backbone("smt_tiny", **SIZE)).eval()
    result = new.load_state_dict(old.state_dict(), strict=strict)
    assert not result.missing_keys
    assert not result.unexpected_keys
    rgb, depth = images(), images().flip(0)
    torch.testing.assert_close(new(rgb, depth), old(rgb, depth), rtol=1e-5, atol=1e-5)
    again = TwoStreams(lambda: smt_vision.backbone("smt_tiny", **SIZE)).eval()
    again.load_state_dict(new.state_dict())
    assert torch.equal(again(rgb, depth), new(rgb, depth))
    partial = again.load_state_dict({"decoder.bias": torch.ones(1)}, strict=False)  # a part of the network only
    assert set(partial.missing_keys) >= {name for name, _ in again.named_parameters()} - {"decoder.bias"}
    assert again.decoder.bias == 1
