"""Everything timm asks of a model, for every registered variant; details on the smallest one."""

import copy
import io
from typing import Any

import pytest
import timm
import torch
from timm.models._manipulate import group_parameters
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from debug_model import create, images, on_meta
from smt_vision.model import SAM, SMT
from smt_vision.model.official import to_official
from smt_vision.registry import VARIANTS

ALL = timm.list_models("smt*")
PAPER = {  # parameters and GMAC at 224, attention counted; the release's configuration
    "smt_tiny": (11_506_536, 2.46),
    "smt_small": (22_550_952, 4.84),
    "smt_base": (32_037_352, 7.97),
    "smt_large": (80_620_264, 17.9),
}
each_variant = pytest.mark.parametrize("name", ALL)


@pytest.fixture
def atto() -> SMT:
    torch.manual_seed(0)
    return create(num_classes=7).eval()


# --- every variant ---


def test_the_registry_holds_the_variants() -> None:
    assert set(ALL) == set(VARIANTS)
    assert len(ALL) == 7
    assert set(timm.list_models("smt*", pretrained=True)) >= {
        "smt_tiny.in1k", "smt_small.in1k", "smt_base.in1k", "smt_large.in22k", "smt_large.in22k_ft_in1k",
        "smt_large.in22k_ft_in1k_384",
    }  # fmt: skip


@each_variant
def test_create_and_describe(name: str) -> None:
    model = on_meta(name)
    assert type(model) is SMT
    assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 1000)
    cfg = model.pretrained_cfg
    assert cfg["architecture"] == name
    assert cfg["num_classes"] == 1000
    assert cfg["input_size"] == (3, 224, 224)
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert model.num_features == model.head_hidden_size == VARIANTS[name]["embed_dims"][-1]
    assert model.no_weight_decay() == set()


@each_variant
def test_features_only(name: str) -> None:
    check_features(on_meta(name, features_only=True), VARIANTS[name]["embed_dims"], (0, 1, 2, 3))


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 3), (0,), (-1,)])
def test_features_only_of_chosen_stages(out_indices: tuple[int, ...]) -> None:
    model = on_meta("smt_atto", features_only=True, out_indices=out_indices)
    check_features(model, VARIANTS["smt_atto"]["embed_dims"], out_indices)


def check_features(model: Any, dims: tuple[int, ...], out_indices: tuple[int, ...]) -> None:
    maps = model(torch.empty(2, 3, 64, 96, device="meta"))
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    assert [m.shape for m in maps] == [(2, c, 64 // r, 96 // r) for c, r in zip(channels, reductions, strict=True)]
    assert channels == [dims[i] for i in out_indices]
    assert reductions == [(4, 8, 16, 32)[i] for i in out_indices]


@each_variant
def test_layer_decay_groups(name: str) -> None:
    model = on_meta(name, layer_scale=1e-4)
    depths = VARIANTS[name]["depths"]
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(layers) == {n for n, _ in model.named_parameters()}
    assert max(layers.values()) + 1 == 1 + sum(depths) + 1  # stem, blocks, head
    first = 1
    for i, depth in enumerate(depths):
        for j in range(depth):
            assert {v for k, v in layers.items() if k.startswith(f"stages.{i}.blocks.{j}.")} == {first + j}
        assert {v for k, v in layers.items() if k.startswith(f"stages.{i}.downsample.")} <= {first}
        assert {v for k, v in layers.items() if k.startswith(f"stages.{i}.norm.")} == {first + depth - 1}
        first += depth
    assert {v for k, v in layers.items() if k.startswith("stem.")} == {0}
    assert {v for k, v in layers.items() if k.startswith("head.")} == {first}
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert max(coarse.values()) + 1 == 1 + len(depths) + 1

    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    assert sum(len(g["params"]) for g in groups) == len(layers)
    assert min(g["lr_scale"] for g in groups) == 0.5 ** (sum(depths) + 1)
    for group in groups:
        assert {p.ndim <= 1 for p in group["params"]} == {group["weight_decay"] == 0}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_variants(name: str) -> None:
    params, gmac = PAPER[name]
    model = on_meta(name)
    assert sum(p.numel() for p in model.parameters()) == params
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, rel=0.005)
    patterns = ["".join("S" if isinstance(b.mixer, SAM) else "A" for b in s.blocks) for s in model.stages]
    assert tuple(patterns) == model.patterns
    d1, d2, d3, d4 = VARIANTS[name]["depths"]
    assert patterns == ["S" * d1, "S" * d2, "SA" * (d3 // 2), "A" * d4]


# --- feature maps ---


def test_forward_intermediates(atto: SMT) -> None:
    x = images(2, 3, 64, 96)
    with torch.inference_mode():
        last, maps = atto.forward_intermediates(x)
        assert torch.equal(last, atto.forward_features(x))
        assert torch.equal(last, maps[-1])
        assert [m.shape[1:] for m in maps] == [(16, 16, 24), (32, 8, 12), (64, 4, 6), (128, 2, 3)]
        only = atto.forward_intermediates(x, indices=[0, 2], intermediates_only=True)
        assert len(only) == 2
        assert torch.equal(only[0], maps[0])
        assert torch.equal(only[1], maps[2])
        newest = atto.forward_intermediates(x, indices=2, intermediates_only=True)
        assert torch.equal(newest[0], maps[2])
        assert torch.equal(newest[1], maps[3])
        assert torch.equal(atto.forward_intermediates(x, indices=[-1], norm=True)[1][0], maps[3])
        nhwc = atto.forward_intermediates(x, output_fmt="NHWC", intermediates_only=True)
        assert all(torch.equal(a, b.permute(0, 2, 3, 1)) for a, b in zip(nhwc, maps, strict=True))


def test_stop_early_runs_no_later_stage(atto: SMT) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("stage 3 ran")

    atto.stages[2].register_forward_pre_hook(fail)
    with torch.inference_mode():
        last, maps = atto.forward_intermediates(images(1, 3, 32, 32), indices=[1], stop_early=True)
        assert torch.equal(last, maps[0])
        with pytest.raises(AssertionError, match="stage 3 ran"):
            atto.forward_intermediates(images(1, 3, 32, 32), indices=[1])


def test_forward_intermediates_errors(atto: SMT) -> None:
    with pytest.raises(ValueError, match=r"output_fmt='NLC'.*'NCHW', 'NHWC'"):
        atto.forward_intermediates(images(1, 3, 32, 32), output_fmt="NLC")
    with pytest.raises(AssertionError, match="out of range"):
        atto.forward_intermediates(images(1, 3, 32, 32), indices=[4])


def test_features_only_gives_the_classifiers_maps(atto: SMT) -> None:
    features = create(features_only=True, out_indices=(1, 3)).eval()
    state = {f"model.{k}": v for k, v in atto.state_dict().items() if not k.startswith("head.")}
    features.load_state_dict(state)
    x = images(1, 3, 64, 64)
    with torch.inference_mode():
        maps = atto.forward_intermediates(x, intermediates_only=True)
        for actual, i in zip(features(x), (1, 3), strict=True):
            assert torch.equal(actual, maps[i])


def test_features_of_another_number_of_stages() -> None:
    stages = dict(embed_dims=(8, 16), depths=(1, 2), mlp_ratios=4, mixers=("S", "SA"), attn_heads=2)
    model = create(**stages, features_only=True)
    assert [m.shape for m in model(images(1, 3, 32, 32))] == [(1, 8, 8, 8), (1, 16, 4, 4)]


def test_prune_intermediate_layers(atto: SMT) -> None:
    x = images(1, 3, 64, 64)
    with torch.inference_mode():
        maps = atto.forward_intermediates(x, intermediates_only=True)
        assert atto.prune_intermediate_layers([0, 1]) == [0, 1]
        assert torch.equal(atto.forward_features(x), maps[1])
        assert torch.equal(atto(x), maps[1])
    assert len(atto.stages) == len(atto.patterns) == 2
    assert atto.num_features == 32
    assert atto.num_classes == 0
    atto.reset_classifier(3, "avg")
    assert atto(x).shape == (1, 3)


def test_prune_keeps_a_head_that_fits(atto: SMT) -> None:
    x = images(1, 3, 64, 64)
    expected = atto(x)
    assert atto.prune_intermediate_layers([3], prune_head=False) == [3]
    assert torch.equal(atto(x), expected)
    atto.prune_intermediate_layers([0], prune_head=False)
    assert isinstance(atto.get_classifier(), nn.Identity)
    assert atto(x).shape == (1, 16, 16, 16)


# --- the classifier ---


def test_forward_head(atto: SMT) -> None:
    x = images(2, 3, 64, 64)
    with torch.inference_mode():
        features = atto.forward_features(x)
        assert features.shape == (2, 128, 2, 2)
        pooled = atto.forward_head(features, pre_logits=True)
        torch.testing.assert_close(pooled, features.mean(dim=(2, 3)))
        torch.testing.assert_close(atto(x), pooled @ atto.head.fc.weight.T + atto.head.fc.bias)


@pytest.mark.parametrize(("pool", "width"), [("avg", 128), ("max", 128), ("avgmax", 128), ("catavgmax", 256)])
def test_global_pool(pool: str, width: int) -> None:
    model = create(global_pool=pool, num_classes=5).eval()
    features = model.forward_features(images(2, 3, 64, 64))
    mean, top = features.mean(dim=(2, 3)), features.amax(dim=(2, 3))
    pooled = {"avg": mean, "max": top, "avgmax": (mean + top) / 2, "catavgmax": torch.cat([mean, top], 1)}[pool]
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), pooled)
    assert model.forward_head(features).shape == (2, 5)
    assert model.head_hidden_size == width
    assert model.num_features == 128


def test_no_classifier() -> None:
    x = images(2, 3, 64, 64)
    model = create(num_classes=0).eval()
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model(x).shape == (2, 128)
    unpooled = create(num_classes=0, global_pool="").eval()
    assert unpooled(x).shape == (2, 128, 2, 2)


def test_reset_classifier(atto: SMT) -> None:
    x = images(2, 3, 64, 64)
    before = atto.forward_features(x)
    atto.reset_classifier(0)
    assert atto(x).shape == (2, 128)
    assert atto.num_classes == 0
    atto.reset_classifier(11)
    assert atto(x).shape == (2, 11)
    assert atto.get_classifier().weight.shape == (11, 128)
    assert 0.015 < atto.get_classifier().weight.std() < 0.025
    assert not atto.get_classifier().bias.any()
    atto.reset_classifier(3, "catavgmax")
    assert atto(x).shape == (2, 3)
    assert atto.head_hidden_size == 256
    atto.reset_classifier(0, "")
    assert torch.equal(atto(x), before)
    with pytest.raises(ValueError, match=r"global_pool=''.*num_classes=0"):
        atto.reset_classifier(4)
    with pytest.raises(ValueError, match=r"num_classes=-1.*0"):
        atto.reset_classifier(-1)


def test_reset_classifier_keeps_type_and_device(atto: SMT) -> None:
    atto.to(torch.bfloat16).reset_classifier(0)
    atto.reset_classifier(4)
    assert atto.get_classifier().weight.dtype == torch.bfloat16
    model = on_meta("smt_atto", num_classes=0)
    model.reset_classifier(4)
    assert model.get_classifier().weight.is_meta


# --- compilers ---

# One block of each mixer, for these are slow.
SHORT: dict[str, Any] = dict(
    embed_dims=(8, 16), depths=(1, 1), mlp_ratios=2, mixers=("S", "A"), attn_heads=2, num_classes=3
)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compile_is_one_graph(checkpointing: bool) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    model = create(**SHORT).train()
    model.set_grad_checkpointing(checkpointing)
    twin = copy.deepcopy(model)
    x = images(2, 3, 64, 64)
    expected = model(x)
    actual = torch.compile(twin, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(actual, expected)
    expected.sum().backward()
    actual.sum().backward()
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, msg=name, rtol=1e-3, atol=1e-4)


def test_export_with_dynamic_batch_and_size() -> None:
    torch.manual_seed(0)
    model = create(**SHORT).eval()
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(model, (images(2, 3, 64, 96),), dynamic_shapes=(sizes,)).module()
    # From 35 on, the last grid has two cells a side; a grid of one is another memory layout to the exporter.
    for shape in [(1, 3, 64, 64), (3, 3, 47, 81), (2, 3, 35, 130)]:
        x = images(*shape)
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)


# --- load_state_dict ---

STATES = {
    "release": lambda atto: to_official(atto.state_dict()),
    "ours": lambda atto: atto.state_dict(),
    "without a head": lambda atto: {k: v for k, v in atto.state_dict().items() if not k.startswith("head.")},
    "module.": lambda atto: {f"module.{k}": v for k, v in atto.state_dict().items()},
    "nested": lambda atto: {f"net.rgb.{k}": v for k, v in to_official(atto.state_dict()).items()},
    "the wrapper's own": lambda atto: {f"model.{k}": v for k, v in atto.state_dict().items() if k[:4] != "head"},
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("kind", STATES)
def test_features_only_loads_the_state_dict_of_an_smt(kind: str, strict: bool, atto: SMT) -> None:
    state = STATES[kind](atto)
    features = create(features_only=True)
    result = features.load_state_dict(state, strict=strict)
    assert not result.missing_keys
    assert not result.unexpected_keys
    x = images(1, 3, 64, 64)
    expected = atto.forward_intermediates(x, intermediates_only=True)
    for actual, map in zip(features.eval()(x), expected, strict=True):
        assert torch.equal(actual, map)


def test_features_only_of_copies_and_pickles_loads_too(atto: SMT) -> None:
    features = create(features_only=True)
    file = io.BytesIO()
    torch.save(features, file)
    file.seek(0)
    expected = atto.state_dict()
    for other in (copy.deepcopy(features), torch.load(file, weights_only=False)):
        other.load_state_dict(to_official(expected), assign=True)
        assert all(
            torch.equal(value, expected[key.removeprefix("model.")]) for key, value in other.state_dict().items()
        )
        assert not torch.equal(features.model.stem.conv1.weight, expected["stem.conv1.weight"])


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("features_only", [True, False])
@pytest.mark.parametrize(("wrap", "named"), [
    (lambda s: {"model": s, "epoch": 3}, r"model, epoch.*pass its entry 'model'"),
    (lambda s: {f"layer.{k[-3:]}": v for k, v in s.items()}, r"layer\."),
])  # fmt: skip
def test_a_state_dict_without_any_fitting_key_is_refused(
    wrap: Any, named: str, features_only: bool, strict: bool, atto: SMT
) -> None:
    model = create(features_only=features_only)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match=rf"none of its \d+ keys \({named}"):
        model.load_state_dict(wrap(atto.state_dict()), strict=strict)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_missing_or_additional_tensor_stays_an_error(atto: SMT) -> None:
    features = create(features_only=True)
    state = to_official(atto.state_dict())
    for key in ("block3.1.mlp.fc1.weight", "norm2.bias"):
        with pytest.raises(RuntimeError, match=r"Missing key"):
            features.load_state_dict({k: v for k, v in state.items() if k != key})
    for key in ("block3.9.norm1.weight", "extra"):
        with pytest.raises(RuntimeError, match=r"Unexpected key"):
            features.load_state_dict({**state, key: torch.zeros(1)})
    smaller = create(features_only=True, out_indices=(0, 1))
    assert not smaller.load_state_dict(state).missing_keys


def test_an_smt_takes_keys_of_larger_networks(atto: SMT) -> None:
    other = create(num_classes=7).eval()
    state = {f"module.encoder.{k}": v for k, v in to_official(atto.state_dict()).items()}
    other.load_state_dict({**state, "module.decoder.weight": torch.zeros(1)})
    x = images(1, 3, 64, 64)
    assert torch.equal(other(x), atto(x))
