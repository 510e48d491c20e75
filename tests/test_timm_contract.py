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
from torchvision.ops import FrozenBatchNorm2d

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


# --- what timm's own tests check of each of its models, on a shallow network of each variant's width ---


def shallow(name: str, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, depths=(1, 1, 2, 1), **kwargs)


@each_variant
def test_checkpointing_keeps_the_output(name: str) -> None:
    model, x = shallow(name).eval(), images(1, 3, 64, 64)
    expected = model(x)
    assert expected.shape == (1, 1000)
    assert expected.isfinite().all()
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.forward_intermediates(x)[0], model.forward_features(x), rtol=1e-4, atol=1e-5)


@each_variant
def test_every_parameter_has_a_gradient(name: str) -> None:
    model = shallow(name, num_classes=42).train()
    out = model(images(2, 3, 64, 64))
    assert out.shape == (2, 42)
    out.mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", timm.list_models("smt*", include_tags=True))
def test_the_configuration_of_each_tag(name: str) -> None:
    model = on_meta(name, depths=(1, 1, 2, 1))
    cfg = model.default_cfg
    x = torch.empty(1, *cfg["input_size"], device="meta")
    features = model.forward_features(x)
    assert features.shape == (1, model.num_features, *cfg["pool_size"])
    assert model.forward_head(features, pre_logits=True).shape == (1, model.head_hidden_size)
    assert model(x).shape == (1, cfg["num_classes"])
    assert {cfg["classifier"] + ".weight", cfg["first_conv"] + ".weight"} <= model.state_dict().keys()
    model.reset_classifier(0)
    assert model(x).shape == (1, model.head_hidden_size)
    model.reset_classifier(0, "")
    assert model(x).shape == features.shape


@pytest.mark.parametrize(
    ("name", "scriptable"), [("smt_atto", False), ("smt_tiny", False), ("smt_large", False), ("smt_atto", True)]
)
@pytest.mark.filterwarnings("ignore:.torch.jit")  # TorchScript is deprecated
def test_torchscript(name: str, scriptable: bool) -> None:
    model, x = shallow(name, num_classes=5, scriptable=scriptable).double().train(), images(2, 3, 32, 64).double()
    kinds = [type(module) for module in model.modules()]
    scripted = torch.jit.script(copy.deepcopy(model))
    model(x).square().mean().backward()
    scripted(x).square().mean().backward()
    for (key, p), q in zip(model.named_parameters(), scripted.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-12, msg=key)
    with torch.inference_mode():
        torch.testing.assert_close(scripted.eval()(x), model.eval()(x), rtol=1e-9, atol=1e-12)
    torch.jit.script(model)
    assert kinds == [type(module) for module in model.modules()]


# --- device and dtype ---


@each_variant
def test_created_on_a_device_with_a_dtype(name: str) -> None:
    for kwargs in ({}, dict(features_only=True), dict(num_classes=0)):
        model = shallow(name, device="meta", dtype=torch.bfloat16, **kwargs)
        assert {(t.device.type, t.dtype) for t in model.parameters()} == {("meta", torch.bfloat16)}
        assert {t.device.type for t in model.buffers()} == {"meta"}
        out = model(torch.empty(1, 3, 64, 64, device="meta", dtype=torch.bfloat16))
        assert (out[0] if kwargs.get("features_only") else out).dtype is torch.bfloat16


def test_values_of_a_dtype_are_those_of_float32_rounded() -> None:
    models = []
    for kwargs in ({}, dict(dtype=torch.bfloat16), dict(device="cpu"), dict(device=torch.device("cpu"))):
        torch.manual_seed(0)
        models.append(create(layer_scale=0.1, **kwargs))
    expected = models[0].state_dict()
    assert {t.dtype for t in models[1].state_dict().values()} == {torch.bfloat16, torch.int64}
    assert all(torch.equal(t, expected[k].to(t.dtype)) for k, t in models[1].state_dict().items())
    for model in models[2:]:
        assert all(torch.equal(t, expected[k]) for k, t in model.state_dict().items())
    assert models[1](images(1, 3, 64, 64).bfloat16()).dtype is torch.bfloat16
    assert "dtype" not in models[1]._model_args


def test_pretrained_weights_on_a_device_with_a_dtype() -> None:
    expected = timm.create_model("smt_femto.cifar10", pretrained=True).state_dict()
    low = timm.create_model("smt_femto.cifar10", pretrained=True, device="cpu", dtype=torch.bfloat16)
    assert all(torch.equal(t, expected[k].to(t.dtype)) for k, t in low.state_dict().items())


def test_a_new_classifier_in_bfloat16_has_no_outliers() -> None:
    torch.manual_seed(0)
    model = create(num_classes=0, dtype=torch.bfloat16)
    model.reset_classifier(2000)  # drawn in bfloat16, some of its 256,000 values would be 100 standard deviations off
    weight = model.get_classifier().weight
    assert weight.dtype is torch.bfloat16
    assert weight.abs().max() < 0.2


# --- output stride ---


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize(
    ("output_stride", "reductions"), [(8, [4, 8, 8, 8]), (16, [4, 8, 16, 16]), (32, [4, 8, 16, 32])]
)
def test_output_stride(output_stride: int, reductions: list[int], features: bool) -> None:
    kwargs: dict[str, Any] = dict(output_stride=output_stride, device="meta")
    kwargs |= dict(features_only=True, out_indices=(0, 1, 2, 3)) if features else {}
    model = timm.create_model("smt_tiny", **kwargs)
    assert [info["reduction"] for info in model.feature_info] == reductions
    x = torch.empty(1, 3, 97, 130, device="meta")
    maps = model(x) if features else model.forward_intermediates(x, intermediates_only=True)
    # The stem rounds down, each stage that halves rounds up.
    sizes = {4: (24, 32), 8: (12, 16), 16: (6, 8), 32: (3, 4)}
    assert [m.shape[2:] for m in maps] == [sizes[reduction] for reduction in reductions]


def test_output_stride_of_another_stem() -> None:
    for stem_stride, output_stride, reductions in ((2, 8, [2, 4, 8, 8]), (1, 8, [1, 2, 4, 8]), (2, 32, [2, 4, 8, 16])):
        model = create(stem_stride=stem_stride, output_stride=output_stride)
        assert [info["reduction"] for info in model.feature_info] == reductions
        dilations = [stage.blocks[0].ffn.dwconv.dilation[0] for stage in model.stages]
        assert dilations == [stem_stride * 2**i // reduction for i, reduction in enumerate(reductions)]


@pytest.mark.parametrize("size", [(64, 96), (97, 130)])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_a_dilated_stage_samples_what_a_strided_one_does(output_stride: int, size: tuple[int, int]) -> None:
    """Without attention, which sees more tokens, the map of a strided stage is in the dilated one's at every stride."""
    torch.manual_seed(0)
    strided = create(mixers="S", num_classes=3).eval()
    dilated = create(mixers="S", num_classes=3, output_stride=output_stride).eval()
    dilated.load_state_dict(strided.state_dict())
    x = images(1, 3, *size)
    with torch.inference_mode():
        expected = strided.forward_intermediates(x, intermediates_only=True)
        found = dilated.forward_intermediates(x, intermediates_only=True)
    for i in range(4):
        step = strided.feature_info[i]["reduction"] // dilated.feature_info[i]["reduction"]
        torch.testing.assert_close(found[i][:, :, ::step, ::step], expected[i], rtol=1e-4, atol=1e-5)


def test_output_stride_32_changes_nothing() -> None:
    models = []
    for kwargs in ({}, dict(output_stride=32)):
        torch.manual_seed(0)
        models.append(create(num_classes=3, **kwargs).eval())
    x = images(1, 3, 64, 64)
    assert torch.equal(models[0](x), models[1](x))


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
@pytest.mark.parametrize("fast", ["", "fast"])
def test_global_pool(pool: str, width: int, fast: str) -> None:
    model = create(global_pool=fast + pool, num_classes=5).eval()
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
    for (name, a), b in zip(model.named_buffers(), twin.buffers(), strict=True):  # updated once
        torch.testing.assert_close(b, a, msg=name)


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


@pytest.mark.parametrize("kind", ["release", "ours", "the wrapper's own"])
@pytest.mark.parametrize("feature_cls", ["getter", "list", "hook"])
def test_fixed_statistics_take_a_state_dict_with_their_updates(feature_cls: str, kind: str, atto: SMT) -> None:
    """DETR replaces BatchNorm by layers without num_batches_tracked; these accept and ignore it."""
    features = create(features_only=True, feature_cls=feature_cls)
    for name, module in list(features.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            features.set_submodule(name, FrozenBatchNorm2d(module.num_features))
    features.load_state_dict(STATES[kind](atto))
    x = images(1, 3, 64, 64)
    expected = atto.forward_intermediates(x, intermediates_only=True)
    for actual, map in zip(features.eval()(x), expected, strict=True):
        torch.testing.assert_close(actual, map, rtol=1e-4, atol=1e-5)


class Counter(nn.Linear):
    """A linear layer with state that is neither a parameter nor a buffer, as quantized layers have."""

    count = 0

    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor(self.count)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.count = int(state)


def test_extra_state_of_a_layer_is_loaded() -> None:
    first, second = create(features_only=True), create(features_only=True)
    for features in (first, second):
        features.model.stages[0].blocks[0].ffn.fc1.__class__ = Counter
    first.model.stages[0].blocks[0].ffn.fc1.count = 3
    second.load_state_dict(first.state_dict())
    assert second.model.stages[0].blocks[0].ffn.fc1.count == 3


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
