"""The network computes the release's function: recorded outputs, official keys, and a literal second implementation."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from literal import FFN as LiteralFFN
from literal import MSA as LiteralMSA
from literal import SAM as LiteralSAM
from literal import Block as LiteralBlock
from literal import LiteralSMT, PatchEmbed, reference_input, reference_state_dict, to_grid
from literal import Stem as LiteralStem
from smt_vision.forms import use_fast_forms
from smt_vision.model import MSA, SAM, SMT
from smt_vision.model.official import is_official, to_official, to_ours
from smt_vision.model.smt import FFN, Block, Downsample, Stem
from smt_vision.registry import VARIANTS

PAPER = ("smt_tiny", "smt_small", "smt_base", "smt_large")
CASES = {"t": "smt_tiny", "s": "smt_small", "b": "smt_base", "l": "smt_large"}


@pytest.fixture(scope="session")
def official_shapes(shared: Path) -> dict[str, dict[str, list[int]]]:
    return json.loads((shared / "reference" / "official_checkpoint_keys.json").read_text())


@pytest.fixture(scope="session")
def cases(shared: Path) -> dict[str, dict[str, Any]]:
    return {case["name"]: case for case in json.loads((shared / "reference" / "reference_outputs.json").read_text())}


def close(actual: Tensor, expected: Any, relative: float = 1e-4) -> None:
    """Agreement relative to the largest value, the reference's own measure."""
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    assert actual.shape == expected.shape
    worst, scale = (actual - expected).abs().max().item(), expected.abs().max().item()
    assert worst <= relative * scale, f"off by {worst:.3g} where the largest value is {scale:.3g}"


def rebuild(case: dict[str, Any], official_shapes: dict[str, dict[str, list[int]]]) -> SMT:
    variant = CASES[case["variant"]]
    assert not case["overrides"]
    model = SMT(**VARIANTS[variant])
    model.load_state_dict(reference_state_dict(official_shapes[variant]))
    return model


@pytest.mark.parametrize("name", ["tiny-224", "small-160x96"])
def test_outputs_equal_the_release(name: str, cases: dict, official_shapes: dict) -> None:
    case = cases[name]
    model = rebuild(case, official_shapes).eval()
    x = reference_input(case["input_shape"])
    with torch.inference_mode():
        last, maps = model.forward_intermediates(x)
        logits = model.forward_head(last)
    close(logits[:, :16], case["logits_first16"])
    assert logits.norm().item() == pytest.approx(case["logits_l2"], rel=1e-4)
    assert sum(p.numel() for p in model.parameters()) == case["params"]
    assert len(maps) == len(case["features"])
    for feature, expected in zip(maps, case["features"], strict=True):
        assert list(feature.shape) == expected["shape"]
        scale = feature.abs().max().item()
        assert feature.mean().item() == pytest.approx(expected["mean"], abs=1e-4 * scale)
        assert feature.std().item() == pytest.approx(expected["std"], rel=1e-4)
        H, W = feature.shape[2:]
        close(feature[0, :4, 0, 0], expected["corner"])
        close(feature[1, -4:, H // 2, W // 2], expected["centre"])


def test_loss_and_gradients_equal_the_release(cases: dict, official_shapes: dict) -> None:
    case = cases["tiny-64-train"]
    model = rebuild(case, official_shapes).train()
    loss = F.cross_entropy(model(reference_input(case["input_shape"])), torch.tensor(case["labels"]))
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-4)
    grads = to_official({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads.keys() == case["grad_l2"].keys()
    for key, expected in case["grad_l2"].items():
        assert grads[key].norm().item() == pytest.approx(expected, rel=1e-3, abs=1e-6), key


def test_every_recorded_case_is_tested(cases: dict) -> None:
    assert set(cases) == {"tiny-224", "small-160x96", "tiny-64-train"}


@pytest.mark.parametrize("variant", PAPER)
def test_official_keys_load_strictly(variant: str, official_shapes: dict) -> None:
    shapes = official_shapes[variant]
    with torch.device("meta"):
        model, literal = SMT(**VARIANTS[variant]), LiteralSMT(**VARIANTS[variant])
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
    assert {k: list(v.shape) for k, v in literal.state_dict().items()} == shapes
    assert {k: list(v.shape) for k, v in to_official(model.state_dict()).items()} == shapes
    result = model.load_state_dict(state, strict=True, assign=True)
    assert not result.missing_keys
    assert not result.unexpected_keys


def test_names_translate_both_ways() -> None:
    model = SMT(embed_dims=(8, 16), depths=(2, 2), mlp_ratios=4, mixers="SA", attn_heads=2, layer_scale=0.1)
    state = {key: torch.randn(value.shape) for key, value in model.state_dict().items()}
    official = to_official(state)
    assert is_official(official)
    assert not is_official(state)
    assert not official.keys() & state.keys()
    back = to_ours(official)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())
    assert to_ours({"patch_embed1.x": 1, "other.weight": 2}) == {"patch_embed1.x": 1, "other.weight": 2}


# --- module by module, in double precision, where only the order of the sums differs ---


def randomise(module: nn.Module) -> None:
    """Weights and statistics of which none is 0 or 1, so that each matters."""
    module.double()
    for value in (*module.parameters(), *module.buffers()):
        if value.is_floating_point():
            value.data.copy_(torch.rand_like(value) * 0.5 + 0.25 if value.ndim < 2 else torch.randn_like(value) * 0.2)


def assert_same_function(
    literal: nn.Module,
    ours: nn.Module,
    prefixes: tuple[str, str],
    inputs: Tensor,
    run_literal: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    """Equal outputs, gradients and running statistics, of the plain module and of its fast form.

    ``prefixes`` are the module's places in the release's network and in this one.
    """
    randomise(literal)
    for module in (ours, use_fast_forms(copy.deepcopy(ours))):
        assert_equal_to(copy.deepcopy(literal), module, prefixes, inputs, run_literal)


def assert_equal_to(
    literal: nn.Module,
    ours: nn.Module,
    prefixes: tuple[str, str],
    inputs: Tensor,
    run_literal: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    theirs, here = prefixes
    state = to_ours({theirs + k: v for k, v in literal.state_dict().items()})
    ours.double().load_state_dict({k.removeprefix(here): v for k, v in state.items()})
    x, y = inputs.double().requires_grad_(), inputs.double().requires_grad_()
    expected, actual = run_literal(literal, x), ours(y)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (actual * weights).sum().backward()
    torch.testing.assert_close(y.grad, x.grad, rtol=1e-7, atol=1e-8)
    grads = to_official({here + k: p.grad for k, p in ours.named_parameters() if p.grad is not None})
    stats = to_official({here + k: b for k, b in ours.named_buffers()})
    for name, p in literal.named_parameters():
        torch.testing.assert_close(grads.pop(theirs + name), p.grad, rtol=1e-7, atol=1e-8, msg=lambda m, n=name: n + m)
    assert not grads
    for name, b in literal.named_buffers():
        torch.testing.assert_close(stats[theirs + name], b, rtol=1e-9, atol=1e-9)


def mixer_or_ffn(literal: nn.Module, ours: nn.Module, name: tuple[str, str], dim: int, size: tuple[int, int]) -> None:
    H, W = size

    def run_literal(literal: nn.Module, x: Tensor) -> Tensor:
        return literal(x.flatten(1, 2), H, W).unflatten(1, (H, W))

    prefixes = (f"block1.0.{name[0]}.", f"stages.0.blocks.0.{name[1]}.")
    assert_same_function(literal, ours, prefixes, torch.randn(2, H, W, dim), run_literal)


SIZES = [(5, 7), (1, 1), (2, 12)]
MODES = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])


@MODES
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("dim", "heads", "ratio", "aggregation"),
    [(16, 4, 2, "saa"), (12, 3, 1, "saa"), (8, 1, 3, "saa"), (24, 6, 2, "saa"), (16, 4, 2, "none"), (5, 5, 2, "saa")],
)
def test_sam(dim: int, heads: int, ratio: int, aggregation: str, size: tuple[int, int], training: bool) -> None:
    torch.manual_seed(dim + heads)
    literal, ours = LiteralSAM(dim, heads, ratio, aggregation), SAM(dim, heads, ratio, aggregation)
    mixer_or_ffn(literal.train(training), ours.train(training), ("attn", "mixer"), dim, size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dim", "heads"), [(16, 4), (12, 3), (8, 1), (6, 6)])
def test_msa(dim: int, heads: int, size: tuple[int, int]) -> None:
    torch.manual_seed(dim + heads)
    mixer_or_ffn(LiteralMSA(dim, heads), MSA(dim, heads), ("attn", "mixer"), dim, size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dim", "hidden_dim"), [(8, 32), (6, 6), (5, 3)])
def test_ffn(dim: int, hidden_dim: int, size: tuple[int, int]) -> None:
    torch.manual_seed(dim)
    mixer_or_ffn(LiteralFFN(dim, hidden_dim), FFN(dim, hidden_dim), ("mlp", "ffn"), dim, size)


@MODES
@pytest.mark.parametrize("layer_scale", [None, 0.5])
def test_block(layer_scale: float | None, training: bool) -> None:
    torch.manual_seed(1)
    literal = LiteralBlock(16, LiteralSAM(16), 32, layer_scale).train(training)
    ours = Block(16, SAM(16), 2, layer_scale).train(training)

    def run_literal(literal: nn.Module, x: Tensor) -> Tensor:
        return literal(x.flatten(1, 2), 4, 5).unflatten(1, (4, 5))

    assert_same_function(literal, ours, ("block1.0.", "stages.0.blocks.0."), torch.randn(2, 4, 5, 16), run_literal)


@MODES
@pytest.mark.parametrize("size", [(8, 8), (9, 11), (15, 6)])
@pytest.mark.parametrize(("kernel", "stride", "in_chans"), [(3, 4, 3), (7, 4, 1), (3, 2, 4), (5, 1, 3)])
def test_stem(kernel: int, stride: int, in_chans: int, size: tuple[int, int], training: bool) -> None:
    torch.manual_seed(kernel + stride)
    literal, ours = LiteralStem(in_chans, 8, kernel, stride), Stem(in_chans, 8, kernel, stride)

    def run_literal(literal: nn.Module, x: Tensor) -> Tensor:
        out, H, W = literal(x)
        return to_grid(out, H, W)

    literal.train(training)
    x = torch.randn(2, in_chans, *size)
    assert_same_function(literal, ours.train(training), ("patch_embed1.", "stem."), x, run_literal)


@pytest.mark.parametrize("size", [(8, 8), (9, 11), (1, 1)])
def test_downsample(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    literal, ours = PatchEmbed(6, 8), Downsample(6, 8)

    def run_literal(literal: nn.Module, x: Tensor) -> Tensor:
        out, H, W = literal(x)
        return to_grid(out, H, W)

    x = torch.randn(2, 6, *size)
    assert_same_function(literal, ours, ("patch_embed2.", "stages.1.downsample."), x, run_literal)


# --- the whole network, of arguments drawn by chance ---


def draw(seed: int) -> tuple[dict[str, Any], tuple[int, int, int, int]]:
    """Constructor arguments and an input shape."""
    rng = random.Random(seed)
    stages = rng.choice([2, 3, 4])
    conv_heads = [rng.choice([1, 2, 3, 4, 5]) for _ in range(stages)]
    attn_heads = [rng.choice([1, 2, 3, 4]) for _ in range(stages)]
    args: dict[str, Any] = dict(
        in_chans=rng.choice([1, 3, 4]),
        num_classes=rng.choice([0, 5, 11]),
        embed_dims=[c * a * rng.choice([1, 2]) for c, a in zip(conv_heads, attn_heads, strict=True)],
        depths=[rng.choice([1, 2, 3]) for _ in range(stages)],
        mlp_ratios=[rng.choice([1, 1.5, 4]) for _ in range(stages)],
        mixers=[rng.choice(["S", "A", "SA", "AS", "S*A*", "A*S*", "SSA"]) for _ in range(stages)],
        conv_heads=conv_heads,
        attn_heads=attn_heads,
        expand_ratio=rng.choice([1, 2, 3]),
        aggregation="saa" if rng.random() < 0.75 else "none",
        layer_scale=rng.choice([None, 0.3]),
        stem_kernel=rng.choice([3, 5, 7]),
        stem_stride=rng.choice([1, 2, 4, 4]),
    )
    side = 8 * args["stem_stride"]
    return args, (2, args["in_chans"], side + rng.randrange(0, 14), side + rng.randrange(0, 14))


@pytest.mark.parametrize("seed", range(24))
def test_whole_network(seed: int) -> None:
    args, shape = draw(seed)
    torch.manual_seed(seed)
    literal, ours = LiteralSMT(**args), SMT(**args)
    training = seed % 3 != 0
    literal.train(training)
    assert_same_function(literal, ours.train(training), ("", ""), torch.randn(shape), lambda literal, x: literal(x))


@pytest.mark.parametrize("seed", range(3))
def test_feature_maps(seed: int) -> None:
    args, shape = draw(100 + seed)
    torch.manual_seed(seed)
    literal, ours = LiteralSMT(**args).eval(), SMT(**args).eval()
    randomise(literal)
    ours.double().load_state_dict(literal.state_dict())
    x = torch.randn(shape).double()
    for actual, expected in zip(ours.forward_intermediates(x)[1], literal.features(x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_the_draw_reaches_every_choice() -> None:
    drawn = [draw(seed)[0] for seed in range(24)]
    assert {args["stem_stride"] for args in drawn} == {1, 2, 4}
    assert {args["in_chans"] for args in drawn} == {1, 3, 4}
    assert {args["aggregation"] for args in drawn} == {"saa", "none"}
    assert {args["layer_scale"] for args in drawn} == {None, 0.3}
    assert {heads for args in drawn for heads in args["conv_heads"]} == {1, 2, 3, 4, 5}
    assert 0 in {args["num_classes"] for args in drawn}
