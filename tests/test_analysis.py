"""What ``smt analyze`` computes, against closed forms and brute force, and the command itself."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import smt_vision
from command import answer, refusal, run
from debug_model import create, images
from sample_images import photograph, picture
from smt_vision.analysis import attention as attention_module
from smt_vision.analysis import neighbors as neighbors_module
from smt_vision.analysis.attention import attention_maps
from smt_vision.analysis.blocks import NotDefined, block_outputs, feature_map, find_blocks, stage_ends
from smt_vision.analysis.class_activation import class_activation
from smt_vision.analysis.kinds import KINDS, class_index
from smt_vision.analysis.modulation import modulation_maps
from smt_vision.analysis.neighbors import nearest, pooled_features
from smt_vision.analysis.pictures import attention_picture, modulators_picture, receptive_field_picture
from smt_vision.analysis.receptive_field import contribution_radius, effective_receptive_fields, uniform_radii
from smt_vision.analysis.spectrum import relative_log_amplitude, spectra
from smt_vision.analysis.subject import MAX_PIXELS, image_names, load_subject, model_names
from smt_vision.cli.analyze import KINDS as DESCRIBED
from smt_vision.model import MSA, SAM
from smt_vision.model.modulation import ConcatHeads

pytestmark = pytest.mark.pictures

CIFAR = "smt_femto.cifar10"


def vit(**kwargs: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=3, **kwargs).eval()


def swin(**kwargs: Any) -> Any:
    torch.manual_seed(0)
    small = dict(img_size=64, window_size=4, embed_dim=12, depths=(2, 2), num_heads=(1, 2), num_classes=3)
    return timm.create_model("swin_tiny_patch4_window7_224", **{**small, **kwargs}).eval()


def smt(**kwargs: Any) -> Any:
    torch.manual_seed(0)
    return create(num_classes=3, **kwargs).eval()


# --- blocks ---


def test_blocks_of_known_models() -> None:
    expected = {
        "smt_atto": ("stages.0.blocks.0", 4),
        "swin_tiny_patch4_window7_224": ("layers.0.blocks.0", 4),
        "convnext_atto": ("stages.0.blocks.0", 4),
        "resnet18": ("layer1.0", 4),
        "efficientnet_b0": ("blocks.0.0", 7),
        "pvt_v2_b0": ("stages.0.blocks.0", 4),
        "focalnet_tiny_srf": ("layers.0.blocks.0", 4),
        "davit_tiny": ("stages.0.blocks.0.0", 4),
        "densenet121": None,
        "legacy_seresnet18": ("layer1.0", 4),  # layer0 is the stem
        "gcvit_xxtiny": ("stages.0.blocks.0", 4),  # not stages.0.global_block.blocks
        "hrnet_w18_small": None,  # layer1 is not the network
        "convmixer_768_32": ("blocks.0", 1),  # a sequence of layers is one block
        "hiera_tiny_224": None,  # tokens of its blocks are not in raster order
    }
    with torch.device("meta"):
        for name, blocks in expected.items():
            found = find_blocks(timm.create_model(name))
            assert (next(iter(found)), len({info.stage for info in found.values()})) == blocks if blocks else not found


def test_what_has_no_parameters_is_no_block() -> None:
    with torch.device("meta"):
        model = timm.create_model("efficientformer_l1")
    assert type(model.stages[3].blocks[3]).__name__ == "Flat"
    assert [name for name in find_blocks(model) if name.startswith("stages.3")] == [
        f"stages.3.blocks.{i}" for i in (0, 1, 2, 4)
    ]


def test_the_end_of_a_stage_whose_blocks_are_a_branch_is_the_stage() -> None:
    model = timm.create_model("cs3darknet_focus_s")
    outputs = block_outputs(model, images(1, 3, 64, 64), lambda value: value.shape[1], stage_ends(model))
    assert [(output.name, output.value) for output in outputs] == [
        (info["module"], info["num_chs"]) for info in model.feature_info[1:]
    ]


def test_stages_of_a_network_without_stages_are_quarters() -> None:
    with torch.device("meta"):
        assert stage_ends(timm.create_model("vit_tiny_patch16_224", depth=8)) == [f"blocks.{i}" for i in (1, 3, 5, 7)]


@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_maps_of_blocks_have_their_channels_first(size: tuple[int, int]) -> None:
    """32 channels at stride 1 of 32 x 32 pixels are a shape that does not tell the layout."""
    model = smt(embed_dims=(32, 32, 64, 64), stem_stride=1)
    outputs = block_outputs(model, images(1, 3, *size), lambda value: value.detach())
    for output in outputs:
        if output.name in stage_ends(model):
            stage = model.get_submodule(output.info.stage)
            expected = model.forward_intermediates(images(1, 3, *size), intermediates_only=True)
            torch.testing.assert_close(stage.norm(output.value), expected[int(output.info.stage[-1])])
    assert [output.info.mixer for output in outputs] == list("SSSAA")


def test_of_several_outputs_the_feature_map_is_taken() -> None:
    x = torch.zeros(2, 3, 64, 64)
    parts, tokens = torch.zeros(2 * 16, 16, 8), torch.arange(2 * 17 * 8.0).reshape(2, 17, 8)  # as TNT's blocks give
    found = feature_map((parts, tokens), x.shape, channels_last=False, what="block")
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), tokens[:, 1:])


def test_prefix_tokens_are_as_many_as_the_network_declares() -> None:
    """The 2 x 2 cells and 5 other tokens of this network could be 3 x 3 cells."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, reg_tokens=4).eval()
    x, kept = images(1, 3, 32, 32), []
    model.blocks[0].register_forward_hook(lambda module, args, out: kept.append(out))
    (output,) = block_outputs(model, x, lambda value: value)
    torch.testing.assert_close(output.value.flatten(2).transpose(1, 2), kept[0][:, 5:])
    assert attention_maps(model, x)[0].from_query.shape == (3, 2, 2)
    with pytest.raises(NotDefined, match="class token"):
        class_activation(model, x)
    last = timm.create_model("cait_xxs24_224", img_size=32, depth=1).eval()  # class token in the last blocks only
    assert block_outputs(last, x, lambda value: value.shape)[0].value == (1, 192, 2, 2)


@pytest.mark.parametrize(
    "compute",
    [
        lambda model, x: effective_receptive_fields(model, [x]),
        lambda model, x: spectra(model, [x]),
        modulation_maps,
        attention_maps,
        class_activation,
        pooled_features,
    ],
)
def test_networks_are_run_in_evaluation_mode_and_left_as_they_were(compute: Callable[..., Any]) -> None:
    model = smt(drop_path_rate=0.5, attn_drop_rate=0.5).train()
    model.stages[0].eval()
    modes = [module.training for module in model.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    x = images(1, 3, 64, 64)
    found = compute(model, x)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    arrays = [found] if isinstance(found, np.ndarray) else _arrays(found)
    expected = compute(model.eval(), x)
    for a, b in zip(arrays, [expected] if isinstance(expected, np.ndarray) else _arrays(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def _arrays(found: Any) -> list[Any]:
    return [array for one in (found if isinstance(found, list) else [found]) for array in one.arrays().values()]


def test_one_image_at_a_time() -> None:
    model, x = smt(), images(2, 3, 64, 64)
    for compute in (modulation_maps, attention_maps, class_activation):
        with pytest.raises(ValueError, match=r"\(2, 3, 64, 64\): expected one image"):
            compute(model, x)
    for average in (effective_receptive_fields, spectra):
        with pytest.raises(ValueError, match="one image at a time"):
            average(model, [x])
        with pytest.raises(ValueError, match="at least one"):
            average(model, [])


def test_what_is_no_feature_map_is_refused() -> None:
    with pytest.raises(NotDefined, match="Flatten"):
        block_outputs(nn.Flatten(), images(1, 3, 4, 4), lambda value: value)


# --- modulation ---


@pytest.mark.parametrize("aggregation", [True, False])
def test_modulation_maps_are_the_outputs_of_the_heads(aggregation: bool) -> None:
    model, x = smt(), images(1, 3, 64, 96)
    kept: dict[str, Tensor] = {}
    sams = {name: module for name, module in model.named_modules() if isinstance(module, SAM)}
    for name, sam in sams.items():
        sam.saa = sam.saa if aggregation else ConcatHeads()
        sam.vs.register_forward_hook(lambda module, args, out, name=name: kept.update({name: out}))
    with torch.no_grad():
        model(x)
    found = modulation_maps(model, x)
    assert [block.name for block in found] == list(sams) == [f"stages.{i}.blocks.0.mixer" for i in range(3)]
    for block in found:
        sam: Any = sams[block.name]
        context = kept[block.name].chunk(2, dim=-1)[1].permute(0, 3, 1, 2).chunk(4, dim=1)
        with torch.no_grad():
            heads = [conv(part) for conv, part in zip(sam.mhmc.convs, context, strict=True)]
        expected = torch.stack([head.abs().mean(1)[0] for head in heads]).numpy()
        np.testing.assert_allclose(block.heads, expected, rtol=1e-5, atol=1e-6)
        assert block.kernels == (3, 5, 7, 9)
        if not aggregation:
            np.testing.assert_allclose(block.modulator, block.mean, rtol=1e-5)


# --- attention ---


def brute_force_distance(weights: Tensor, grid: tuple[int, int], cell: tuple[float, float]) -> Tensor:
    """Mean distance (A,) of weights (A, N, N) over a grid of cells of this height and width."""
    total = torch.zeros(weights.shape[0])
    for i in range(grid[0] * grid[1]):
        for j in range(grid[0] * grid[1]):
            apart = np.hypot((i // grid[1] - j // grid[1]) * cell[0], (i % grid[1] - j % grid[1]) * cell[1])
            total += weights[:, i, j] * apart
    return total / (grid[0] * grid[1])


def test_of_a_fused_network_the_source_is_named() -> None:
    fused = smt_vision.fuse(smt())
    for compute in (modulation_maps, attention_maps):
        with pytest.raises(NotDefined, match="use the original network"):
            compute(fused, images(1, 3, 64, 64))


def test_attention_of_an_smt() -> None:
    model, x = smt(), images(1, 3, 64, 96)
    kept: list[Tensor] = []
    msa: Any = model.get_submodule("stages.3.blocks.0.mixer")
    msa.qkv.register_forward_hook(lambda module, args, out: kept.append(out))
    block = attention_maps(model, x, query=(0.9, 0.0))[-1]
    q, k, _ = (part.reshape(6, 4, 32).transpose(0, 1) for part in kept[0][0].flatten(0, 1).chunk(3, dim=-1))
    weights = (q @ k.transpose(1, 2) / 32**0.5).softmax(-1).detach()
    assert (block.name, block.query) == ("stages.3.blocks.0.mixer", (1, 0))
    np.testing.assert_allclose(block.from_query, weights[:, 3].reshape(4, 2, 3), rtol=1e-4)
    np.testing.assert_allclose(block.mean, weights.mean(1).reshape(4, 2, 3), rtol=1e-4)
    np.testing.assert_allclose(block.distance, brute_force_distance(weights, (2, 3), (32, 32)), rtol=1e-4)


def test_attention_distance_of_uniform_attention() -> None:
    model = smt()
    for module in model.modules():
        if isinstance(module, MSA):
            nn.init.zeros_(module.qkv.weight)
    for block in attention_maps(model, images(1, 3, 64, 96)):
        A, H, W = block.mean.shape
        uniform = brute_force_distance(torch.full((A, H * W, H * W), 1 / (H * W)), (H, W), (64 / H, 96 / W))
        np.testing.assert_allclose(block.distance, uniform, rtol=1e-5)
        assert block.uniform_distance == pytest.approx(float(uniform[0]), rel=1e-5)
        np.testing.assert_allclose(block.from_query, 1 / (H * W), rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"class_token": False, "global_pool": "avg"}, {"qk_norm": True}])
def test_attention_of_a_vit_is_what_unfused_attention_computes(options: dict[str, Any]) -> None:
    model, kept = vit(**options), []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, args, out: kept.append(out[0].detach()))
    found = attention_maps(model, images(1, 3, 64, 64))
    for block, weights in zip(found, kept, strict=True):
        first = model.num_prefix_tokens
        weights = weights[:, first:, first:]
        np.testing.assert_allclose(block.share, weights.sum(-1).mean(-1), rtol=1e-5)
        assert (block.share.max() < 0.99) == bool(first)
        weights = weights / weights.sum(-1, keepdim=True)
        np.testing.assert_allclose(block.from_query, weights[:, 10].reshape(3, 4, 4), rtol=1e-4)
        np.testing.assert_allclose(block.distance, brute_force_distance(weights, (4, 4), (16, 16)), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("beit_base_patch16_224", {}),
        ("eva02_tiny_patch14_224", {"patch_size": 16}),
        ("vit_small_patch16_dinov3", {}),
        ("vit_relpos_small_patch16_224", {}),
    ],
)
def test_attention_with_positions_is_run_unfused(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model(name, img_size=64, depth=2, embed_dim=48, num_heads=3, **options).eval()
    attn, x = model.blocks[1].attn, images(1, 3, 64, 64)
    for parameter in attn.parameters():
        nn.init.normal_(parameter, std=0.3)  # also the position bias, which is zero otherwise
    assert attn.fused_attn
    block = attention_maps(model, x)[1]
    assert attn.fused_attn
    kept: list[Tensor] = []
    attn.fused_attn = False
    attn.attn_drop.register_forward_hook(lambda module, args, out: kept.append(out[0].detach()))
    model(x)
    first = model.num_prefix_tokens
    weights = kept[0][:, first:, first:]
    np.testing.assert_allclose(block.share, weights.sum(-1).mean(-1), rtol=1e-5)
    weights = weights / weights.sum(-1, keepdim=True)
    np.testing.assert_allclose(block.from_query, weights[:, 10].reshape(3, 4, 4), rtol=1e-4)
    np.testing.assert_allclose(block.mean, weights.mean(1).reshape(3, 4, 4), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "message"), [("xcit_nano_12_p16_224", "softmax"), ("maxvit_pico_rw_256", "weights, ")]
)
def test_attention_that_is_not_between_all_tokens_is_refused(name: str, message: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=64) if "maxvit" in name else timm.create_model(name)
    fused = [module.fused_attn for module in model.modules() if hasattr(module, "fused_attn")]
    with pytest.raises(NotDefined, match=message):
        attention_maps(model, images(1, 3, 64, 64))
    assert [module.fused_attn for module in model.modules() if hasattr(module, "fused_attn")] == fused


def test_uniform_attention_is_drawn_as_1_in_windows_too(tmp_path: Path) -> None:
    model = swin()
    for name, parameter in model.named_parameters():
        if "qkv" in name or "relative_position_bias" in name:
            nn.init.zeros_(parameter)
    maps = attention_maps(model, images(1, 3, 64, 64), (0.1, 0.1))
    assert [block.keys for block in maps[:2]] == [16, 4]  # the shifted window in the corner is 2 x 2
    figure = attention_picture(np.zeros((64, 64, 3), np.uint8), maps, "Attention", tmp_path / "a.png")
    shown = [image.get_array() for axes in figure.axes for image in axes.images if image.get_array().ndim == 2]
    assert len(shown) > 8
    for values in shown:
        assert values.max() == pytest.approx(1, rel=1e-5)


def test_attention_in_windows() -> None:
    """Swin: weights in the query's window, which in every second block is shifted and may wrap around."""
    model, x = swin(), images(1, 3, 64, 64)
    kept: list[Tensor] = []
    inputs: list[Tensor] = []
    block: Any
    for block in model.layers[0].blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, args, out: kept.append(out.detach()))
        block.norm1.register_forward_hook(lambda module, args, out: inputs.append(out.detach()))
    for query in ((0.5, 0.5), (0.0, 0.99), (0.2, 0.6)):
        kept.clear()
        inputs.clear()
        found = attention_maps(model, x, query)[:2]
        for i, maps in enumerate(found):
            row, column = maps.query
            assert maps.from_query.shape == (1, 16, 16)
            assert maps.from_query.sum() == pytest.approx(1, rel=1e-5)
            assert maps.mean.sum() == pytest.approx(1, rel=1e-5)
            assert (maps.from_query > 1e-9).sum() == maps.keys
            assert maps.share == pytest.approx(1)
            # The cells that the output at the query depends on are those with a weight.
            source = inputs[i].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(model.layers[0].blocks[i]._attn(source)[0, row, column].sum(), source)
            np.testing.assert_array_equal(maps.from_query[0] > 1e-9, gradient[0].abs().sum(-1).numpy() > 1e-12)
        row, column = found[0].query
        window, inside = (row // 4) * 4 + column // 4, row % 4 * 4 + column % 4
        top, left = row // 4 * 4, column // 4 * 4
        np.testing.assert_allclose(
            found[0].from_query[0, top : top + 4, left : left + 4].ravel(), kept[0][window, 0, inside], rtol=1e-4
        )
        distances = [brute_force_distance(weights, (4, 4), (4, 4)) for weights in kept[0]]
        np.testing.assert_allclose(found[0].distance, torch.stack(distances).mean(0), rtol=1e-4)


def test_padded_windows_do_not_count() -> None:
    maps = attention_maps(swin(img_size=56), images(1, 3, 56, 56))[-1]  # 7 x 7 cells in windows of 4
    assert maps.mean.shape == (2, 7, 7)
    np.testing.assert_allclose(maps.mean.sum((1, 2)), 1, rtol=1e-5)
    assert (maps.share < 0.9).all()


def test_distance_in_padded_and_shifted_windows_is_that_on_the_grid() -> None:
    """Shifted first and padded then, a window may hold rows of opposite edges."""
    model, x = swin(img_size=56), images(1, 3, 56, 56)
    assert any(list(model.layers[0].blocks)[1].shift_size)
    place, maps = next(
        (i, maps) for i, maps in enumerate(attention_maps(model, x)) if maps.name == "layers.0.blocks.1.attn"
    )
    side = maps.mean.shape[-1]
    cells = torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()
    total = 0.0
    for row, column in cells.tolist():
        weights = attention_maps(model, x, ((row + 0.5) / side, (column + 0.5) / side))[place].from_query[0]
        apart = (cells - torch.tensor([row, column])).norm(dim=1) * 56 / side
        total += float((torch.from_numpy(weights).flatten() * apart).sum())
    assert maps.distance[0] == pytest.approx(total / len(cells), rel=1e-4)


@pytest.mark.parametrize("build", [smt, vit, swin])
def test_attention_in_parts_is_the_same(build: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = build(), images(1, 3, 64, 64)
    all_at_once = attention_maps(model, x)
    monkeypatch.setattr(attention_module, "WEIGHTS", 50)
    for left, right in zip(all_at_once, attention_maps(model, x), strict=True):
        for name, value in left.arrays().items():
            np.testing.assert_allclose(value, right.arrays()[name], rtol=1e-4, atol=1e-6)


class Biased(MSA):
    """Attention that adds something to the values, which its weights do not show."""

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.qkv(x)[..., : x.shape[-1]])


def test_attention_that_is_something_else_is_refused() -> None:
    model: Any = smt()
    for module in model.modules():
        if isinstance(module, MSA):
            module.__class__ = Biased
    with pytest.raises(NotDefined, match="Biased"):
        attention_maps(model, images(1, 3, 64, 64))
    with torch.device("meta"):
        network = timm.create_model("resnet18")
    with pytest.raises(NotDefined, match="no attention"):
        attention_maps(network, images(1, 3, 64, 64))


# --- effective receptive field ---


def test_receptive_field_of_a_convolution_is_its_kernel() -> None:
    conv = nn.Conv2d(3, 1, 3, padding=1)
    (field,) = effective_receptive_fields(conv, [images(1, 3, 9, 11)])
    expected = np.zeros((9, 11))
    expected[3:6, 4:7] = conv.weight[0].abs().sum(0).detach().numpy()
    np.testing.assert_allclose(field.map, expected, rtol=1e-5)
    nn.init.ones_(conv.weight)
    (field,) = effective_receptive_fields(conv, [images(1, 3, 9, 11)])
    assert field.centroid == (4, 5)
    assert (field.radius50, field.radius95) == (1, 2**0.5)  # five of nine pixels, and all


def test_receptive_field_of_a_stack_has_its_known_size() -> None:
    stack = nn.Sequential(nn.Conv2d(3, 2, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1))
    for conv in (stack[0], stack[2]):
        nn.init.uniform_(conv.weight, 0.1, 1)
        nn.init.constant_(conv.bias, 9)  # no unit is dead
    (field,) = effective_receptive_fields(stack, [images(1, 3, 32, 32)])
    rows, columns = np.nonzero(field.map)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (7, 7)


def test_images_of_different_sizes_are_averaged_at_the_center() -> None:
    conv = nn.Conv2d(3, 1, 3, padding=1)
    alone, both = (effective_receptive_fields(conv, [images(1, 3, *s) for s in sizes])[0] for sizes in
                   ([(9, 9)], [(9, 9), (15, 11)]))  # fmt: skip
    assert both.map.shape == (15, 11)
    np.testing.assert_allclose(both.map[both.map > 0], alone.map[alone.map > 0], rtol=1e-5)
    assert both.radius95 == pytest.approx(alone.radius95)


@pytest.mark.parametrize("build", [smt, vit, swin])
def test_receptive_fields_grow_with_depth(build: Callable[[], Any]) -> None:
    fields = effective_receptive_fields(build(), [images(1, 3, 64, 64)])
    radii = [field.radius95 for field in fields]
    assert radii == sorted(radii)
    assert 0 < radii[0] < radii[-1]


def test_receptive_field_behind_a_norm_without_weights() -> None:
    """The sum over channels is constant there; the Jacobian, whose rows' length random signs give, is not."""
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(1, 16)), images(1, 3, 1, 1)
    (field,) = effective_receptive_fields(network, [x])
    jacobian: Any = torch.autograd.functional.jacobian(lambda x: network(x)[0, :, 0, 0], x)  # (16, 1, 3, 1, 1)
    assert 0.5 < field.map.sum() / float(jacobian.norm(dim=0).sum()) < 1.3
    (again,) = effective_receptive_fields(network, [x])
    np.testing.assert_array_equal(field.map, again.map)


def test_receptive_fields_are_drawn_in_pixels(tmp_path: Path) -> None:
    fields = effective_receptive_fields(nn.Conv2d(3, 1, 3, padding=1), [images(1, 3, 20, 30)])
    figure = receptive_field_picture([("model", fields)], "ERF", tmp_path / "a.png")
    axes, _ = figure.axes
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 30), (20, 0))
    circle: Any = axes.patches[0]
    assert circle.center == pytest.approx((fields[0].centroid[1] + 0.5, fields[0].centroid[0] + 0.5))
    radii = uniform_radii((20, 30))
    assert radii[0] == pytest.approx((300 / np.pi) ** 0.5, rel=0.05)
    assert f"20 × 30: {radii[0]:.3g} / {radii[1]:.3g} px" in figure.get_supxlabel()


def test_maps_on_small_grids_are_not_interpolated(tmp_path: Path) -> None:
    maps = modulation_maps(smt(), images(1, 3, 96, 96))
    models = [("model", (np.zeros((96, 96, 3), np.uint8), maps))]
    figure = modulators_picture(models, "Modulators", tmp_path / "a.png")
    drawn = [image for axes in figure.axes for image in axes.images if image.get_array().ndim == 2]
    assert [(image.get_array().shape[0], image.get_interpolation()) for image in drawn] == [
        (24, "bilinear"), (12, "nearest"), (6, "nearest")
    ]  # fmt: skip
    assert sum("colorbar" in axes.get_label() for axes in figure.axes) == len(maps)


def test_contribution_radius() -> None:
    map = np.zeros((5, 5))
    map[2, 2], map[2, 4] = 3, 1
    assert [contribution_radius(map, (2, 2), fraction) for fraction in (0.5, 0.75, 0.76, 1)] == [0, 0, 2, 2]


def test_a_center_without_gradient_is_refused() -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1)
    nn.init.zeros_(conv.weight)
    with pytest.raises(NotDefined, match="no gradient"):
        effective_receptive_fields(conv, [images(1, 3, 9, 9)])


# --- Fourier spectrum ---


def test_spectrum_of_an_impulse_is_flat_and_of_its_blur_known() -> None:
    impulse = torch.zeros(1, 2, 16, 16)
    impulse[:, :, 3, 5] = 1
    frequencies, flat = relative_log_amplitude(impulse)
    np.testing.assert_allclose(frequencies, np.arange(9) / 8)
    np.testing.assert_allclose(flat, 0, atol=1e-5)
    blurred = sum(0.25 * w * impulse.roll(shift, 2) for shift, w in ((-1, 1), (0, 2), (1, 1)))
    _, falling = relative_log_amplitude(blurred)  # amplitude cos(pi f / 2)^2
    np.testing.assert_allclose(falling[:-1], 2 * np.log(np.cos(np.pi * frequencies[:-1] / 2)), atol=1e-4)
    assert falling[-1] == pytest.approx(np.log(1e-6), abs=1e-3)


def test_spectrum_of_white_noise_is_flat_on_any_grid() -> None:
    for size in ((32, 32), (15, 32), (32, 20), (7, 7)):
        frequencies, amplitude = relative_log_amplitude(images(4, 256, *size))
        assert len(amplitude) == min(size) // 2 + 1
        assert frequencies[-1] == pytest.approx(2 * (min(size) // 2) / min(size))
        # Frequency 0 is a real number, the others are complex: their expected logarithms differ by log(2) / 2.
        np.testing.assert_allclose(amplitude[1 : (min(size) - 1) // 2], np.log(2) / 2, atol=0.12)


def test_the_highest_frequency_of_white_noise_is_that_of_frequency_0_on_any_grid() -> None:
    for size in ((14, 14), (7, 7), (14, 21), (21, 14)):
        (block,) = spectra(nn.Identity(), [images(1, 4096, *size)])
        assert block.high == pytest.approx(0, abs=0.05)


def test_the_highest_frequency_of_images_of_different_sizes() -> None:
    even, odd = (14, 20), (15, 20)
    for sizes in ([even, odd, odd], [odd, even, even]):
        (block,) = spectra(nn.Identity(), [images(1, 4096, *size, seed=i) for i, size in enumerate(sizes)])
        assert block.high == pytest.approx(0, abs=0.05)


def test_spectra_by_depth() -> None:
    blocks = spectra(smt(), [images(1, 3, 64, 64), images(1, 3, 64, 96, seed=1)])
    assert [block.depth for block in blocks] == [0, 0.25, 0.5, 0.75, 1]
    assert [block.info.mixer for block in blocks] == list("SSSAA")
    assert [len(block.frequencies) for block in blocks] == [9, 5, 3, 3, 2]
    with pytest.raises(NotDefined, match="one cell"):
        spectra(nn.AdaptiveAvgPool2d(1), [images(1, 3, 8, 8)])


# --- class activation maps ---


@pytest.mark.parametrize("build", [smt, swin, lambda: vit(global_pool="avg", class_token=False, fc_norm=False)])
def test_class_activation_of_average_pooling_and_a_linear_head(build: Callable[[], Any]) -> None:
    model, x = build(), images(1, 3, 64, 64)
    found = class_activation(model, x, class_id=2)
    each = class_activation(model, x, class_id=2, scores=lambda logits: (logits / 3).sigmoid())
    assert each.score == pytest.approx(float((model(x).detach()[0, 2] / 3).sigmoid()))
    with torch.no_grad():
        features = model.forward_features(x)
        scores = model(x)[0].softmax(-1)
    weight = model.get_classifier().weight[2].detach()
    if features.ndim == 4 and features.shape[1] == len(weight):
        features = features.permute(0, 2, 3, 1)
    expected = (features[0] @ weight).reshape(found.map.shape) / found.map.size
    np.testing.assert_allclose(found.map, expected, rtol=1e-3, atol=1e-6)
    assert found.score == pytest.approx(float(scores[2]), rel=1e-4)
    assert (found.class_id, found.predicted) == (2, int(scores.argmax()) == 2)
    assert found.upsampled.shape == (64, 64)
    assert found.upsampled.min() >= 0


def test_class_activation_of_the_predicted_class() -> None:
    model, x = smt(), images(1, 3, 64, 96)
    found = class_activation(model, x)
    assert found.predicted
    assert found.class_id == int(model(x).argmax())
    assert found.map.shape == (2, 3)
    assert found.upsampled.shape == (64, 96)


def test_a_class_token_has_no_class_activation_map() -> None:
    with pytest.raises(NotDefined, match="class token"):
        class_activation(vit(), images(1, 3, 64, 64))


def test_class_by_name_or_index() -> None:
    classes = ("cat", "dog", "1")
    assert [class_index(target, classes) for target in ("dog", "0", "1")] == [1, 0, 2]
    with pytest.raises(ValueError, match="'bird'"):
        class_index("bird", classes)


# --- nearest neighbors ---


def test_the_nearest_neighbor_of_a_vector_is_its_multiple() -> None:
    rng = np.random.default_rng(0)
    gallery = rng.normal(size=(20, 8)).astype(np.float32)
    found = nearest(3 * gallery[[7, 2]], gallery, 5)
    assert found.indices[:, 0].tolist() == [7, 2]
    np.testing.assert_allclose(found.similarities[:, 0], 1, rtol=1e-6)
    cosines = gallery @ gallery[7] / np.linalg.norm(gallery, axis=1) / np.linalg.norm(gallery[7])
    assert found.indices[0].tolist() == np.argsort(-cosines)[:5].tolist()


def test_neighbors_are_searched_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    gallery = rng.integers(-2, 3, (30, 3)).astype(np.float32)  # with equal similarities
    excluded = [[i, (i + 1) % 30] if i % 3 else [] for i in range(30)]
    found = nearest(gallery, gallery, 29, excluded)
    monkeypatch.setattr(neighbors_module, "MAX_SIMILARITIES", 70)
    parts = nearest(gallery, gallery, 29, excluded)
    np.testing.assert_array_equal(found.indices, parts.indices)
    for i, row in enumerate(found.indices.tolist()):
        assert not set(excluded[i]) & set(row)
        assert row.count(-1) == max(0, len(excluded[i]) - 1)
    assert np.isnan(found.similarities[found.indices < 0]).all()
    unit = gallery / np.maximum(np.linalg.norm(gallery, axis=1, keepdims=True), 1e-12)
    np.testing.assert_allclose(found.similarities[0], np.sort(unit @ unit[0])[::-1][:29], atol=1e-6)


def test_pooled_features_are_what_the_classifier_reads() -> None:
    model, x = smt(), images(2, 3, 64, 64)
    with torch.no_grad():
        logits = model.head.fc(torch.from_numpy(pooled_features(model, x)))
        torch.testing.assert_close(logits, model(x))


def test_pooled_features_of_backbones() -> None:
    """Swin's maps have their channels last."""
    for name in ("swin_tiny_patch4_window7_224", "convnext_atto"):
        kwargs = dict(img_size=64, window_size=4) if "swin" in name else {}
        backbone = timm.create_model(name, features_only=True, **kwargs).eval()
        x = images(2, 3, 64, 64)
        with torch.no_grad():
            last = backbone(x)[-1]
        expected = last.mean((1, 2) if "swin" in name else (2, 3))
        np.testing.assert_allclose(pooled_features(backbone, x), expected, rtol=1e-5, atol=1e-6)


# --- the command ---


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    picture().save(path)
    return path


KEYS = {
    "modulation-photo": ("path", "image", "stages.0.blocks.0.mixer.heads", "stages.2.blocks.2.mixer.modulator"),
    "attention-photo": (
        "path",
        "image",
        *(f"stages.2.blocks.1.mixer.{key}" for key in ("query", "keys", "from_query", "mean", "distance", "share")),
    ),
    "attention-distance": ("paths", "stages.2.blocks.1.mixer.distance", "stages.3.blocks.0.mixer.uniform_distance"),
    "erf": ("paths", "stages.0.blocks.0.map", "stages.3.blocks.0.radius95"),
    "spectrum": (
        "paths",
        "stages.3.blocks.0.frequencies",
        *(f"stages.0.blocks.0.{key}" for key in ("stage", "mixer", "depth", "log_amplitude", "complex_share", "high")),
    ),
    "cam-photo": (
        "path",
        "image",
        "class_id",
        "predicted_id",
        "label",
        "predicted_label",
        "score",
        "map",
        "upsampled",
    ),
    "neighbors": ("images", "queries", "indices", "similarities", "features"),
}


def test_all_kinds(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    photograph().resize((50, 60)).save(gallery / "a.png")
    picture().save(gallery / "copy.png")
    picture(seed=1).save(gallery / "z.png")
    (gallery / "damaged.png").write_bytes(b"")
    out = tmp_path / "out"
    data = answer(capsys, "analyze", CIFAR, photo, "--folder", gallery, "--out", out)
    (model,) = data["models"]
    assert list(model["results"]) == list(KINDS)
    assert model["undefined"] == {}
    assert [note for note in model["notes"] if "damaged.png" in note]
    assert {Path(path) for path in data["written"]} == set((out / CIFAR).iterdir())
    for stem, keys in KEYS.items():
        assert (out / CIFAR / f"{stem}.png").stat().st_size > 10_000
        with np.load(out / CIFAR / f"{stem}.npz") as arrays:
            assert {"model", *keys} <= set(arrays.files)
            assert str(arrays["model"]) == CIFAR
            assert all(np.isfinite(arrays[key]).all() for key in arrays.files if arrays[key].dtype.kind == "f")
    results = model["results"]
    assert next(Path(n["image"]).name for n in results["neighbors"]["photo"]) == "copy.png"
    assert results["neighbors"]["photo"][0]["similarity"] == pytest.approx(1, abs=1e-6)
    fields = [field["radius50"] for field in results["erf"].values()]
    assert fields == sorted(fields)
    assert [block["mixer"] for block in results["spectrum"].values()] == list("SSSASAA")
    with np.load(out / CIFAR / "cam-photo.npz") as arrays:
        assert arrays["image"].shape == (32, 32, 3)  # as the model sees it
        assert str(arrays["label"]) == results["cam"]["photo"]["label"] == str(arrays["predicted_label"])
    with np.load(out / CIFAR / "spectrum.npz") as arrays:
        assert arrays["paths"].tolist() == [str(photo)]
        assert (str(arrays["stages.0.blocks.0.stage"]), str(arrays["stages.0.blocks.0.mixer"])) == ("stages.0", "S")


def test_results_are_the_same_twice(photo: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        assert run("analyze", CIFAR, photo, "--kinds", "erf", "cam", "--out", tmp_path / folder) == 0
    for name in ("erf", "cam-photo"):
        assert len({(tmp_path / folder / CIFAR / f"{name}.npz").read_bytes() for folder in "ab"}) == 1


def test_compared_models(photo: Path, tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = ("--kinds", "modulation", "erf", "spectrum")
    data = answer(capsys, "analyze", CIFAR, photo, *kinds, "--compare", trained, "--out", tmp_path, "--format", "svg")
    assert [model["model"] for model in data["models"]] == [CIFAR, "tiny"]
    for stem, end in (("modulators", "photo"), ("erf", "1 image"), ("spectrum", "1 image")):
        text = (tmp_path / f"{stem}.svg").read_text()
        assert text.startswith("<?xml")
        assert re.search(rf"<!-- [^>]*, {end} -->", text)  # the title
    assert (tmp_path / "tiny" / "erf.npz").exists()


def test_what_is_not_defined_is_named(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("analyze", "resnet18", photo, "--untrained", "--input.size", "64", "--out", tmp_path / "out")
    (model,) = answer(capsys, *arguments)["models"]
    assert model["model"] == "resnet18 (random weights)"
    assert list(model["results"]) == ["erf", "spectrum", "cam"]
    assert list(model["undefined"]) == ["modulation", "attention"]
    error = refusal(capsys, 1, *arguments, "--kinds", "erf", "modulation")
    assert "modulation is not defined for resnet18" in error
    assert "SAM" in error
    arguments = ("analyze", "efficientformer_l1", photo, "--untrained", "--input.size", "64", "--out", tmp_path / "b")
    assert "64 x 64" in refusal(capsys, 1, *arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["absent.png"], "absent.png"),
        (["damaged.png"], "damaged.png"),
        (["photo.png", "--kinds", "neighbors"], "--folder"),
        (["photo.png", "--folder", "absent"], "absent"),
        (["photo.png", "--kinds", "erf", "--target", "cat"], "--target"),
        (["photo.png", "--kinds", "erf", "--query", "0.2", "0.2"], "--query"),
        (["photo.png", "--kinds", "attention", "--top_k", "5"], "--top_k"),
        (["photo.png", "--target", "zebra"], "'zebra'"),
        (["photo.png", "--target", "10"], "'10'"),
        (["photo.png", "--query", "0.5", "2"], "--query"),
        (["photo.png", "--top_k", "0"], "--top_k"),
        (["photo.png", "--compare", CIFAR], CIFAR),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_error(
    arguments: list[str], expected: str, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("damaged.png").write_bytes(photo.read_bytes()[:200])
    error = refusal(capsys, 1, "analyze", CIFAR, *arguments)
    assert error.startswith("smt analyze: error: ")
    assert expected in error
    assert not Path("analysis").exists()


def test_an_image_is_not_its_own_neighbor(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    for i in range(3):
        picture(seed=i).save(gallery / f"{i}.png")
    arguments = ("--kinds", "neighbors", "--folder", gallery, "--out", tmp_path / "out")
    answer(capsys, "analyze", CIFAR, gallery / "0.png", *arguments)
    with np.load(tmp_path / "out" / CIFAR / "neighbors.npz") as arrays:
        assert sorted(arrays["indices"][0]) == [1, 2]
    answer(capsys, "analyze", CIFAR, gallery / "0.png", photo, *arguments)
    with np.load(tmp_path / "out" / CIFAR / "neighbors.npz") as arrays:
        assert arrays["indices"][0, -1] == -1
        assert np.isnan(arrays["similarities"][0, -1])
        assert sorted(arrays["indices"][1]) == [0, 1, 2]
    alone = ("--kinds", "neighbors", "--folder", photo, "--out", tmp_path / "alone")
    assert "no image other than" in refusal(capsys, 1, "analyze", CIFAR, photo, *alone)


def test_at_most_20_queries_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "queries"
    folder.mkdir()
    for i in range(22):
        picture(seed=i).save(folder / f"{i}.png")
    arguments = ("analyze", CIFAR, folder, "--kinds", "neighbors", "--folder", folder, "--top_k", "1")
    (model,) = answer(capsys, *arguments, "--out", tmp_path / "out", "--format", "svg")["models"]
    assert len(model["results"]["neighbors"]) == 22
    assert any("first 20 of 22" in note for note in model["notes"])
    svg = (tmp_path / "out" / CIFAR / "neighbors.svg").read_text()
    assert svg.count("<image") == 40


def test_models_are_checked_before_the_first_is_analyzed(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ("analyze", "smt_atto", photo, "--untrained", "--input.size", "64", "--out", out, "--compare")
    assert "smt_tinny" in refusal(capsys, 1, *arguments, "smt_tinny", "--kinds", "erf")
    assert "not defined for resnet10t" in refusal(capsys, 1, *arguments, "resnet10t", "--kinds", "modulation")
    for kind, name in (("attention", "xcit_nano_12_p16_224"), ("cam", "test_vit")):
        assert f"not defined for {name}" in refusal(capsys, 1, *arguments, name, "--kinds", kind)
    assert not out.exists()


def test_an_error_of_one_kind_leaves_the_others(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    arguments = ("analyze", CIFAR, photo, "--kinds", "attention", "erf", "--out", tmp_path / "out", "--json")
    for name in ("run", "check"):
        monkeypatch.setitem(KINDS, "attention", replace(KINDS["attention"], **{name: fail}))
        assert run(*arguments) == 1
        (model,) = json.loads(capsys.readouterr().out)["models"]
        assert list(model["results"]) == ["erf"]
        assert model["failed"] == {"attention": "CUDA out of memory."}


def test_several_last_maps_have_no_class_activation_map() -> None:
    torch.manual_seed(0)
    with pytest.raises(NotDefined, match="several last feature maps"):
        class_activation(timm.create_model("crossvit_tiny_240").eval(), images(1, 3, 240, 240))


def test_a_missing_package_is_named(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    arguments = ("analyze", "resnet10t", photo, "--untrained", "--input.size", "64", "--out", tmp_path / "out")
    assert "smt-vision[analysis]" in refusal(capsys, 1, *arguments, "--kinds", "cam")
    (model,) = answer(capsys, *arguments)["models"]
    assert list(model["results"]) == ["erf", "spectrum"]
    assert "smt-vision[analysis]" in model["undefined"]["cam"]


def test_bad_usage(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "images" in refusal(capsys, 2, "analyze", CIFAR)
    assert "heatmap" in refusal(capsys, 2, "analyze", CIFAR, photo, "--kinds", "heatmap")
    assert list(DESCRIBED) == list(KINDS)


def test_untrained_is_for_names(trained: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "timm model name" in refusal(capsys, 1, "analyze", trained, photo, "--untrained")


@pytest.mark.parametrize("kind", ["detector", "segmenter"])
def test_backbones_of_dense_predictors(
    kind: str, request: pytest.FixtureRequest, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder: Path = request.getfixturevalue(f"{kind}_run")
    assert "classifier" in refusal(capsys, 1, "analyze", folder, photo, "--kinds", "cam")
    picture(seed=1).save(photo.parent / "other.png")
    arguments = ("--kinds", "spectrum", "neighbors", "--out", tmp_path / "out", "--folder", photo.parent)
    (model,) = answer(capsys, "analyze", folder, *arguments, photo)["models"]
    assert next(iter(model["results"]["spectrum"])) == "stages.0.blocks.0"
    subject = load_subject(str(folder), "run")
    x = subject.sample(photo, "photo").pixels
    assert len(modulation_maps(subject.network, x)) == 3
    assert len(attention_maps(subject.network, x)) == len(spectra(subject.network, [x])) - 3 == 2


def test_large_images_of_dense_predictors_are_reduced(segmenter_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (3000, 1000)).save(path)
    overrides = {"segment": {"short_side": 1000, "long_side": 3000}}
    sample = load_subject(str(segmenter_run), "run", overrides=overrides).sample(path, "large")
    assert sample.picture.shape[0] * sample.picture.shape[1] < 1.1 * MAX_PIXELS
    assert tuple(sample.pixels.shape[-2:]) == sample.picture.shape[:2]
    assert "1000 x 3000" in sample.reduced


def test_names_for_files(tmp_path: Path) -> None:
    file = tmp_path / "last.pt"
    file.touch()
    names = model_names(["hf-hub:timm/resnet18.a1_in1k", str(tmp_path), str(file)])
    assert names == ["hf-hub_timm_resnet18.a1_in1k", tmp_path.name, f"{tmp_path.name}-last"]
    assert image_names([Path("a/1.png"), Path("b/1.jpg"), Path("c/1-2.png")]) == ["1", "1-2", "1-2-2"]
    assert image_names([Path("a.png"), Path("A.png"), Path("b/a.png")]) == ["a", "A-2", "a-3"]
    assert image_names([Path("distance.png")]) == ["distance-2"]  # attention-distance is the mean over images
