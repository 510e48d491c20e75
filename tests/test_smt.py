"""SMT as it trains, at any size, of any arguments; on a debug size."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models.focalnet import FocalNet
from torch import Tensor, nn

from debug_model import create, images
from smt_vision.model import MSA, SAM, SMT
from smt_vision.model.arguments import expand_pattern
from smt_vision.model.modulation import AGGREGATIONS, build_aggregation
from smt_vision.registry import VARIANTS


@pytest.fixture
def atto() -> SMT:
    torch.manual_seed(0)
    return create(num_classes=7).eval()


# --- training ---


@pytest.mark.parametrize("synchronized", [False, True])
def test_grad_checkpointing_changes_nothing_but_memory(synchronized: bool) -> None:
    torch.manual_seed(0)
    plain = create(num_classes=5, layer_scale=0.1).train()
    if synchronized:
        plain = nn.SyncBatchNorm.convert_sync_batchnorm(plain)
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
            assert isinstance(drop, DropPath)
            assert drop.drop_prob == pytest.approx(0.3 * i / (len(blocks) - 1))
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
            assert module.weight.abs().max() <= 2
            assert not module.bias.any()
        elif isinstance(module, nn.Conv2d):
            std = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels // module.groups))
            assert module.weight.std().item() == pytest.approx(std, rel=8 / math.sqrt(module.weight.numel())), name
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            assert torch.all(module.weight == 1)
            assert not module.bias.any()
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
    assert torch.equal(twin(x), atto.eval()(x))
    assert expected.shape == (2, 7)
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
    ("mixers", "patterns"),
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
    ("pattern", "depth", "letters"),
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


def test_the_kernel_size_of_each_head() -> None:
    model = create(conv_kernels=(9, 1, 3, 3), num_classes=2)
    assert [conv.kernel_size for conv in model.stages[0].blocks[0].mixer.mhmc.convs] == [(9, 9), (1, 1), (3, 3), (3, 3)]
    assert model(images(1, 3, 33, 45)).shape == (1, 2)


# Layers between the heads and their sum, with C = 16 channels, r = 2: weights and biases; BatchNorm has 2 per channel.
AGGREGATION_PARAMETERS = {
    "saa": 32 * 4 + 32 + 2 * 32 + 32 * 16 + 16,
    "none": 0,
    "linear": 16 * 16 + 16,
    "mlp": 16 * 32 + 32 + 2 * 32 + 32 * 16 + 16,
    "inverted_bottleneck": 16 * 32 + 32 + 32 * 9 + 32 + 2 * 32 + 32 * 16 + 16,
}


@pytest.mark.parametrize("name", AGGREGATIONS)
@pytest.mark.parametrize("dilation", [1, 2])
def test_aggregations(name: str, dilation: int) -> None:
    aggregation = build_aggregation(name, 16, num_heads=4, expand_ratio=2, dilation=dilation)
    assert sum(p.numel() for p in aggregation.parameters()) == AGGREGATION_PARAMETERS[name]
    assert aggregation(images(2, 5, 6, 4, 4)).shape == (2, 5, 6, 16)


def test_linear_aggregation_is_one_matrix() -> None:
    aggregation, x = build_aggregation("linear", 8, 4, 2, 1), images(1, 3, 3, 2, 4)
    layer = aggregation.layers[0]
    torch.testing.assert_close(aggregation(x), F.linear(x.flatten(-2), layer.weight.flatten(1), layer.bias))


def test_the_sum_in_place_of_the_product() -> None:
    product, x = SAM(8), images(2, 4, 4, 8)
    total = SAM(8, modulation="sum")
    total.load_state_dict(product.state_dict())
    value, context = product.vs(x).chunk(2, dim=-1)
    modulator = product.eval().saa(product.mhmc(context))
    torch.testing.assert_close(total.eval()(x), product.proj(modulator + value))
    torch.testing.assert_close(product(x), product.proj(modulator * value))


def test_arguments_may_be_numpy_s_numbers() -> None:
    model = create(embed_dims=tuple(np.array([8, 8, 16, 16])), drop_path_rate=np.float32(0.1))
    assert model(images(1, 3, 32, 32)).shape == (1, 1000)


def test_focal_modulation() -> None:
    model = create(mixers=("F", "F", "FA", "A"), num_classes=2).eval()
    assert [type(b.mixer).__name__ for s in model.stages for b in s.blocks].count("FocalModulation") == 3
    mixer, x = model.stages[0].blocks[0].mixer, images(1, 8, 8, 16)
    expected = mixer.modulation(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert torch.equal(mixer(x), expected)
    assert mixer.modulation.kernel_sizes == [3, 5, 7]
    theirs = (
        FocalNet(depths=(1, 1, 1, 1), embed_dim=16, focal_levels=(3,) * 4, focal_windows=(3,) * 4)
        .layers[0]
        .blocks[0]
        .modulation
    )
    weights = dict(theirs.named_parameters())
    for name, weight in mixer.modulation.named_parameters():
        if weight.ndim > 1:  # FocalNet's initialisation, not that of SMT's convolutions
            assert weight.std().item() == pytest.approx(weights[name].std().item(), rel=0.25), name


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(in_chans=0), r"in_chans=0.*at least 1"),
        (dict(num_classes=-2), r"num_classes=-2.*0 \(no classifier\)"),
        (dict(global_pool="mean"), r"global_pool='mean'.*'avg'"),
        (dict(global_pool=""), r"global_pool=''.*num_classes=0"),
        (dict(stem_kernel=4), r"stem_kernel=4.*odd"),
        (dict(stem_stride=3), r"stem_stride=3.*1, 2, 4"),
        (dict(output_stride=4), r"output_stride=4.*8, 16, 32"),
        (dict(expand_ratio=0), r"expand_ratio=0.*at least 1"),
        (dict(expand_ratio=1.5), r"expand_ratio=1.5.*integer"),
        (dict(drop_path_rate=1.0), r"drop_path_rate=1.0.*below 1"),
        (dict(attn_drop_rate=-0.1), r"attn_drop_rate=-0.1.*at least 0"),
        (dict(depths=(1, 1)), r"depths=\(1, 1\).*4 stages.*embed_dims"),
        (dict(depths=(1, 0, 1, 1)), r"depths=\(1, 0, 1, 1\).*at least 1 block"),
        (dict(embed_dims=(16, 0, 4, 4)), r"embed_dims=\(16, 0, 4, 4\).*positive"),
        (dict(mlp_ratios=0.01), r"mlp_ratios=.*at least 1"),
        (dict(mixers="X"), r"mixers='X'.*S \(SAM\), A \(MSA\) and F"),
        (dict(mixers=""), r"mixers=''.*letters"),
        (dict(mixers="SAS*"), r"mixers='SAS\*'.*at most 1.*depths"),
        (dict(mixers=("S", "A")), r"mixers=\('S', 'A'\).*4 stages"),
        (dict(conv_heads=3), r"conv_heads=3: stage 1 has embed_dims=16.*\(1, 2, 4, 8, 16\)"),
        (dict(attn_heads=(1, 1, 3, 4)), r"attn_heads=3: stage 3 has embed_dims=64"),
        (dict(attn_heads=0), r"attn_heads=0.*divisor"),
        (dict(aggregation=True), r"aggregation=True.*'saa', 'none', 'linear'"),
        (dict(modulation="mean"), r"modulation='mean'.*'product', 'sum'"),
        (dict(conv_kernels=(3, 4, 5, 7)), r"conv_kernels=\(3, 4, 5, 7\).*odd"),
        (dict(conv_kernels=()), r"conv_kernels=\(\).*one per head"),
        (dict(conv_kernels=(3, 5)), r"conv_kernels=\(3, 5\): stage 1 has conv_heads=4"),
        (dict(mixers="F", output_stride=16), r"output_stride with mixer F"),
    ],
)
def test_impossible_arguments_say_what_would_work(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(**kwargs)


def test_unknown_arguments_are_not_swallowed() -> None:
    with pytest.raises(TypeError, match="mixer_pattern"):
        create(mixer_pattern="S")
