"""Everything timm asks of a model, for every registered variant; details on the smallest one."""

import copy
import math
from typing import Any

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.models._manipulate import group_parameters
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from smt_vision import MSA, SAM, SMT, VARIANTS
from smt_vision.model.ehn import expand_pattern

ALL = timm.list_models("smt*")
PAPER = {  # parameters and GMAC at 224, attention counted; the release's configuration
    "smt_tiny": (11_506_536, 2.46),
    "smt_small": (22_550_952, 4.84),
    "smt_base": (32_037_352, 7.97),
    "smt_large": (80_620_264, 17.9),
}
# One size for the details, whatever the smallest variant's becomes.
DEBUG: dict[str, Any] = dict(embed_dims=(16, 32, 64, 128), depths=(1, 1, 2, 1), attn_heads=(1, 1, 2, 4))
each_variant = pytest.mark.parametrize("name", ALL)


def create(**kwargs: Any) -> Any:
    """A debug-size model, through timm."""
    return timm.create_model("smt_atto", **{**DEBUG, **kwargs})


def on_meta(name: str, **kwargs: Any) -> Any:
    """A model without memory: shapes are computed, numbers are not."""
    with torch.device("meta"):
        return timm.create_model(name, **kwargs).eval()


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def atto() -> SMT:
    torch.manual_seed(0)
    return create(num_classes=7).eval()


# --- every variant ---


def test_the_registry_holds_the_variants() -> None:
    assert set(ALL) == set(VARIANTS) and len(ALL) == 7
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
    assert cfg["architecture"] == name and cfg["num_classes"] == 1000 and cfg["input_size"] == (3, 224, 224)
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert model.num_features == model.head_hidden_size == VARIANTS[name]["embed_dims"][-1]
    assert model.no_weight_decay() == set()


@each_variant
@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 3), (0,), (-1,)])
def test_features_only(name: str, out_indices: tuple[int, ...]) -> None:
    model = on_meta(name, features_only=True, out_indices=out_indices)
    maps = model(torch.empty(2, 3, 64, 96, device="meta"))
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    assert [m.shape for m in maps] == [(2, c, 64 // r, 96 // r) for c, r in zip(channels, reductions, strict=True)]
    dims = VARIANTS[name]["embed_dims"]
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
def test_parameters_and_gmac_are_the_papers(name: str) -> None:
    params, gmac = PAPER[name]
    model = on_meta(name)
    assert sum(p.numel() for p in model.parameters()) == params
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, rel=0.005)


@pytest.mark.parametrize("name", PAPER)
def test_mixers_are_the_papers(name: str) -> None:
    model = on_meta(name)
    patterns = ["".join("S" if isinstance(b.mixer, SAM) else "A" for b in s.blocks) for s in model.stages]
    assert tuple(patterns) == model.patterns
    d1, d2, d3, d4 = VARIANTS[name]["depths"]
    assert patterns == ["S" * d1, "S" * d2, "SA" * (d3 // 2), "A" * d4]


# --- feature maps ---


def test_forward_intermediates(atto: SMT) -> None:
    x = images(2, 3, 64, 96)
    with torch.inference_mode():
        last, maps = atto.forward_intermediates(x)
        assert torch.equal(last, atto.forward_features(x)) and torch.equal(last, maps[-1])
        assert [m.shape[1:] for m in maps] == [(16, 16, 24), (32, 8, 12), (64, 4, 6), (128, 2, 3)]
        only = atto.forward_intermediates(x, indices=[0, 2], intermediates_only=True)
        assert len(only) == 2 and torch.equal(only[0], maps[0]) and torch.equal(only[1], maps[2])
        newest = atto.forward_intermediates(x, indices=2, intermediates_only=True)
        assert torch.equal(newest[0], maps[2]) and torch.equal(newest[1], maps[3])
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
    with pytest.raises(ValueError, match="output_fmt='NLC'.*'NCHW' or 'NHWC'"):
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
    assert atto.num_features == 32 and atto.num_classes == 0
    atto.reset_classifier(3, "avg")
    assert atto(x).shape == (1, 3)


def test_prune_keeps_a_head_that_fits(atto: SMT) -> None:
    x = images(1, 3, 64, 64)
    expected = atto(x)
    assert atto.prune_intermediate_layers([3], prune_head=False) == [3]
    assert torch.equal(atto(x), expected)
    atto.prune_intermediate_layers([0], prune_head=False)
    assert isinstance(atto.get_classifier(), nn.Identity) and atto(x).shape == (1, 16, 16, 16)


# --- the classifier ---


def test_forward_head(atto: SMT) -> None:
    x = images(2, 3, 64, 64)
    with torch.inference_mode():
        features = atto.forward_features(x)
        assert features.shape == (2, 128, 2, 2)
        pooled = atto.forward_head(features, pre_logits=True)
        torch.testing.assert_close(pooled, features.mean(dim=(2, 3)))
        torch.testing.assert_close(atto(x), pooled @ atto.head.fc.weight.T + atto.head.fc.bias)


@pytest.mark.parametrize("pool, width", [("avg", 128), ("max", 128), ("avgmax", 128), ("catavgmax", 256)])
def test_global_pool(pool: str, width: int) -> None:
    model = create(global_pool=pool, num_classes=5).eval()
    features = model.forward_features(images(2, 3, 64, 64))
    mean, top = features.mean(dim=(2, 3)), features.amax(dim=(2, 3))
    pooled = {"avg": mean, "max": top, "avgmax": (mean + top) / 2, "catavgmax": torch.cat([mean, top], 1)}[pool]
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), pooled)
    assert model.forward_head(features).shape == (2, 5)
    assert model.head_hidden_size == width and model.num_features == 128


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
    assert atto(x).shape == (2, 128) and atto.num_classes == 0
    atto.reset_classifier(11)
    assert atto(x).shape == (2, 11) and atto.get_classifier().weight.shape == (11, 128)
    assert 0.015 < atto.get_classifier().weight.std() < 0.025 and not atto.get_classifier().bias.any()
    atto.reset_classifier(3, "catavgmax")
    assert atto(x).shape == (2, 3) and atto.head_hidden_size == 256
    atto.reset_classifier(0, "")
    assert torch.equal(atto(x), before)
    with pytest.raises(ValueError, match="global_pool=''.*num_classes=0"):
        atto.reset_classifier(4)
    with pytest.raises(ValueError, match="num_classes=-1.*0"):
        atto.reset_classifier(-1)


def test_reset_classifier_keeps_type_and_device(atto: SMT) -> None:
    atto.to(torch.bfloat16).reset_classifier(0)
    atto.reset_classifier(4)
    assert atto.get_classifier().weight.dtype == torch.bfloat16
    model = on_meta("smt_atto", num_classes=0)
    model.reset_classifier(4)
    assert model.get_classifier().weight.is_meta


# --- training ---


def test_grad_checkpointing_changes_nothing_but_memory() -> None:
    torch.manual_seed(0)
    plain = create(num_classes=5, layer_scale=0.1).train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    runs = []
    saving.stages[0].blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))
    x = images(2, 3, 64, 64)
    for model in (plain, saving):
        model(x).square().sum().backward()
    assert len(runs) == 2
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for (name, a), b in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(a, b), name
    assert list(plain.state_dict()) == list(saving.state_dict())
    saving.set_grad_checkpointing(False)
    saving(x)
    assert len(runs) == 3


def test_drop_path_grows_linearly() -> None:
    model = create(drop_path_rate=0.3)
    blocks = [block for stage in model.stages for block in stage.blocks]
    for i, block in enumerate(blocks):
        for drop in (block.drop_path1, block.drop_path2):
            assert isinstance(drop, DropPath) and drop.drop_prob == pytest.approx(0.3 * i / (len(blocks) - 1))
    x = images(4, 3, 32, 32)
    model.eval()
    assert torch.equal(model(x), model(x))


def test_dropout_rates_reach_their_layers() -> None:
    model = create(drop_rate=0.1, proj_drop_rate=0.2, attn_drop_rate=0.3)
    assert model.head.drop.p == 0.1
    blocks = [block for stage in model.stages for block in stage.blocks]
    assert {b.ffn.drop.p for b in blocks} == {b.mixer.proj_drop.p for b in blocks} == {0.2}
    assert {b.mixer.attn_drop_rate for b in blocks if isinstance(b.mixer, MSA)} == {0.3}


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = SMT(**VARIANTS["smt_femto"], layer_scale=1e-4)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert module.weight.abs().max() <= 2 and not module.bias.any()
        elif isinstance(module, nn.Conv2d):
            std = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels // module.groups))
            assert module.weight.std().item() == pytest.approx(std, rel=8 / math.sqrt(module.weight.numel())), name
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            assert torch.all(module.weight == 1) and not module.bias.any()
    assert all(torch.all(p == 1e-4) for n, p in model.named_parameters() if n.endswith("gamma"))
    eps = {n: m.eps for n, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    embeddings = {"stem.norm", *(f"stages.{i}.downsample.norm" for i in (1, 2, 3))}
    assert all(e == (1e-5 if n in embeddings else 1e-6) for n, e in eps.items())


def test_autocast_bf16(atto: SMT) -> None:
    x = images(2, 3, 64, 64)
    with torch.inference_mode():
        full = atto(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = atto(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=0.05, atol=0.05 * full.abs().max().item())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = atto.train()(x).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in atto.parameters())


def test_deepcopy_after_a_forward_pass(atto: SMT) -> None:
    x = images(2, 3, 64, 64)
    expected = atto.train()(x)
    twin = copy.deepcopy(atto).eval()
    assert torch.equal(twin(x), atto.eval()(x)) and expected.shape == (2, 7)
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert not torch.equal(twin(x), atto(x))


def test_a_block_keeps_no_activation(atto: SMT) -> None:
    atto.train()(images(2, 3, 64, 64))
    for module in atto.modules():
        assert not [k for k, v in vars(module).items() if isinstance(v, Tensor)]


# --- shapes ---


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (35, 64), (63, 95), (224, 40)])
@pytest.mark.parametrize("stem_stride", [1, 2, 4])
def test_any_size(size: tuple[int, int], stem_stride: int) -> None:
    with torch.device("meta"):
        model = create(stem_stride=stem_stride, num_classes=3).eval()
    assert model(torch.empty(2, 3, *size, device="meta")).shape == (2, 3)
    H, W = size
    if stem_stride == 4:
        H, W = (H + 1) // 2, (W + 1) // 2  # the first convolution ceils
    if stem_stride > 1:
        H, W = H // 2, W // 2  # the second floors
    _, maps = model.forward_intermediates(torch.empty(2, 3, *size, device="meta"))
    for i, feature in enumerate(maps):
        assert feature.shape == (2, (16, 32, 64, 128)[i], H, W)
        H, W = (H + 1) // 2, (W + 1) // 2
    assert [info["reduction"] for info in model.feature_info] == [stem_stride * 2**i for i in range(4)]


@pytest.mark.parametrize("in_chans", [1, 4])
def test_in_chans(in_chans: int) -> None:
    assert create(in_chans=in_chans, num_classes=2)(images(2, in_chans, 33, 47)).shape == (2, 2)


def test_memory_format_is_no_matter(atto: SMT) -> None:
    x = images(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(atto(x.to(memory_format=torch.channels_last)), atto(x))


@pytest.mark.parametrize(
    "mixers, patterns",
    [
        ("S", ("S", "S", "SSSS", "S")),
        ("A", ("A", "A", "AAAA", "A")),
        (("S", "S", "SA", "A"), ("S", "S", "SASA", "A")),
        (("S", "S", "S*A*", "A"), ("S", "S", "SSAA", "A")),
        (("A", "A", "AS", "S"), ("A", "A", "ASAS", "S")),
        (("S", "S", "SSA", "A"), ("S", "S", "SSAS", "A")),
        (("S", "S", "S*A", "A"), ("S", "S", "SSSA", "A")),
    ],
)
def test_mixers(mixers: Any, patterns: tuple[str, ...]) -> None:
    model = create(mixers=mixers, num_classes=2, depths=(1, 1, 4, 1))
    assert model.patterns == patterns
    assert ["".join("S" if isinstance(b.mixer, SAM) else "A" for b in s.blocks) for s in model.stages] == [*patterns]
    assert model(images(2, 3, 32, 32)).shape == (2, 2)


@pytest.mark.parametrize(
    "pattern, depth, letters",
    [
        ("S", 3, "SSS"), ("SA", 5, "SASAS"), ("SA", 1, "S"), ("S*A*", 8, "SSSSAAAA"), ("S*A*", 5, "SSSAA"),
        ("A*S*", 4, "AASS"), ("S*A", 8, "SSSSSSSA"), ("SA*", 3, "SAA"), ("S*A", 1, "A"), ("S*A*S*", 7, "SSSAASS"),
    ],
)  # fmt: skip
def test_patterns(pattern: str, depth: int, letters: str) -> None:
    assert expand_pattern(pattern, depth) == letters


def test_conv_heads_a_stage() -> None:
    model = create(conv_heads=(1, 2, 4, 8), mixers="S", num_classes=2).eval()
    for stage, heads in zip(model.stages, (1, 2, 4, 8), strict=True):
        assert {len(b.mixer.mhmc.convs) for b in stage.blocks} == {heads}
        kernels = [conv.kernel_size for conv in stage.blocks[0].mixer.mhmc.convs]
        assert kernels == [(3 + 2 * i, 3 + 2 * i) for i in range(heads)]
    assert model(images(1, 3, 32, 32)).shape == (1, 2)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(in_chans=0), r"in_chans=0.*at least 1"),
        (dict(num_classes=-2), r"num_classes=-2.*0 \(no classifier\)"),
        (dict(global_pool="mean"), r"global_pool='mean'.*'avg'"),
        (dict(global_pool=""), r"global_pool=''.*num_classes=0"),
        (dict(stem_kernel=4), r"stem_kernel=4.*odd"),
        (dict(stem_stride=3), r"stem_stride=3.*4, 2 and 1"),
        (dict(expand_ratio=0), r"expand_ratio=0.*at least 1"),
        (dict(expand_ratio=1.5), r"expand_ratio=1.5.*whole number"),
        (dict(drop_path_rate=1.0), r"drop_path_rate=1.0.*below 1"),
        (dict(attn_drop_rate=-0.1), r"attn_drop_rate=-0.1.*from 0"),
        (dict(depths=(1, 1)), r"depths=\(1, 1\) has 2 entries for 4 stages.*embed_dims"),
        (dict(depths=(1, 0, 1, 1)), r"depths=\(1, 0, 1, 1\).*at least 1 block"),
        (dict(embed_dims=(16, 0, 4, 4)), r"embed_dims=\(16, 0, 4, 4\).*positive"),
        (dict(mlp_ratios=0.01), r"mlp_ratios=.*above 0"),
        (dict(mixers="X"), r"mixers: 'X'.*S \(modulation\) and A"),
        (dict(mixers=""), r"mixers: ''.*letters"),
        (dict(mixers="SAS*"), r"mixers: 'SAS\*'.*2 blocks without a star in a stage of 1.*depths"),
        (dict(mixers=("S", "A")), r"mixers=\('S', 'A'\) has 2 entries for 4 stages"),
        (dict(conv_heads=3), r"conv_heads=3.*stage 1 has embed_dims=16, which 1, 2, 4, 8, 16 heads divide"),
        (dict(attn_heads=(1, 1, 3, 4)), r"attn_heads=3.*stage 3 has embed_dims=64"),
        (dict(attn_heads=0), r"attn_heads=0.*heads divide"),
    ],
)
def test_impossible_arguments_say_what_would_work(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(**kwargs)


def test_unknown_arguments_are_not_swallowed() -> None:
    with pytest.raises(TypeError, match="mixer_pattern"):
        create(mixer_pattern="S")


# --- compilers ---

SHORT: dict[str, Any] = dict(depths=(1, 1, 1, 1), mixers=("S", "S", "S", "A"), num_classes=3)


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
    dim = torch.export.Dim
    # From 35 on the last grid has two cells a side; a grid of one is another memory layout to the exporter.
    sizes = {0: dim("batch", min=1, max=64), 2: dim("height", min=35, max=1024), 3: dim("width", min=35, max=1024)}
    program = torch.export.export(model, (images(2, 3, 64, 96),), dynamic_shapes=(sizes,)).module()
    for shape in [(1, 3, 64, 64), (3, 3, 47, 81), (2, 3, 35, 130)]:
        x = images(*shape)
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)
