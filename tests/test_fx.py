"""FX tracing and feature extraction of every variant, plain and with fast forms, as timm's tests ask of its models."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision.models.feature_extraction as torchvision_fx
from timm.layers import get_notrace_functions, get_notrace_modules
from timm.models import GraphExtractNet, create_feature_extractor
from torch import Tensor, nn

from debug_model import create, images
from smt_vision import registry
from smt_vision.forms.inference import fuse
from smt_vision.registry import VARIANTS

each_variant = pytest.mark.parametrize("name", VARIANTS)
two_variants = pytest.mark.parametrize("name", ["smt_atto", "smt_tiny"])  # the code of all is the same
# Blocks are alike: two in the mixed stage and one in the others show every kind at each variant's width.
DEPTHS = (1, 1, 2, 1)


@pytest.fixture(params=["plain", "forms"])
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``timm.create_model`` of a shallow network, with and without fast forms."""
    monkeypatch.setattr(registry, "KERNELS", "plain" if request.param == "plain" else "auto")

    def build(name: str, **kwargs: Any) -> Any:
        torch.manual_seed(0)
        return timm.create_model(name, depths=DEPTHS, **kwargs)

    return build


def timm_extractor(model: nn.Module) -> nn.Module:
    """The whole model as a graph that timm's tracer makes, in training and in evaluation."""
    options = dict(
        leaf_modules=get_notrace_modules(), autowrap_functions=get_notrace_functions(), param_shapes_constant=True
    )
    training, evaluation = torchvision_fx.get_graph_node_names(model, tracer_kwargs=options)
    return torchvision_fx.create_feature_extractor(
        model, train_return_nodes=[training[-1]], eval_return_nodes=[evaluation[-1]], tracer_kwargs=options
    )


@each_variant
def test_forward(name: str, build: Callable[..., Any]) -> None:
    model, x = build(name).eval(), images(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model(x)
        (found,) = timm_extractor(model)(x).values()
        assert torch.equal(found, expected)
        assert torch.equal(torch.fx.symbolic_trace(model)(x), expected)
        assert torch.equal(torch.fx.symbolic_trace(model)(images(2, 3, 40, 72)), model(images(2, 3, 40, 72)))


@two_variants
def test_backward(name: str, build: Callable[..., Any]) -> None:
    x = images(2, 3, 64, 64)
    for trace in (timm_extractor, torch.fx.symbolic_trace):
        model = build(name, num_classes=42).train()
        out = trace(model)(x)
        out = out if isinstance(out, Tensor) else torch.cat(tuple(out.values()))
        assert out.shape == (2, 42)
        assert not out.isnan().any()
        out.mean().backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []


@two_variants
@pytest.mark.parametrize("feature_cls", ["list", "dict", "fx", "hook", "getter"])
def test_features_only(name: str, feature_cls: str, build: Callable[..., Any]) -> None:
    classifier = build(name).eval()
    features = build(name, features_only=True, feature_cls=feature_cls, out_indices=(0, 1, 2, 3)).eval()
    assert features.feature_info.channels() == [*VARIANTS[name]["embed_dims"]]
    assert features.output_fmt == "NCHW"
    x = images(1, 3, 64, 96)
    with torch.no_grad():
        expected = classifier.forward_intermediates(x, intermediates_only=True)
        maps = features(x)
        for found, wanted in zip(maps.values() if feature_cls == "dict" else maps, expected, strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("feature_cls", ["list", "dict", "fx", "hook"])
@pytest.mark.parametrize("out_indices", [(1, 3), (0,), (-1,)])
def test_features_of_chosen_stages(feature_cls: str, out_indices: tuple[int, ...], build: Callable[..., Any]) -> None:
    classifier = build("smt_atto").eval()
    features = build("smt_atto", features_only=True, feature_cls=feature_cls, out_indices=out_indices).eval()
    x = images(1, 3, 64, 96)
    with torch.no_grad():
        expected = classifier.forward_intermediates(x, intermediates_only=True)
        maps = features(x)
        maps = list(maps.values()) if feature_cls == "dict" else maps
    assert len(maps) == len(out_indices)
    assert all(torch.equal(found, expected[i]) for found, i in zip(maps, out_indices, strict=True))


def test_features_of_a_graph_train(build: Callable[..., Any]) -> None:
    features = build("smt_atto", features_only=True, feature_cls="fx", out_indices=(0, 3)).train()
    sum(feature.square().mean() for feature in features(images(2, 3, 64, 64))).backward()
    assert [n for n, p in features.named_parameters() if p.grad is None and "head" not in n] == []


@two_variants
def test_extractors_of_nodes_inside_a_block(name: str, build: Callable[..., Any]) -> None:
    model, x = build(name).eval(), images(1, 3, 64, 64)
    nodes = ["stem", "stages.0.blocks.0.mixer.saa", "stages.2.blocks.1.mixer.proj", "stages.3", "head"]
    seen: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(node).register_forward_hook(lambda m, args, out, node=node: seen.update({node: out}))
        for node in nodes
    ]
    with torch.no_grad():
        model(x)
        for hook in hooks:
            hook.remove()
        for create_extractor in (create_feature_extractor, torchvision_fx.create_feature_extractor):
            found = create_extractor(model, {node: node for node in nodes})(x)
            assert found.keys() == seen.keys()
            assert all(torch.equal(found[node], seen[node]) for node in nodes)
        last = GraphExtractNet(model, ["stages.3"])(x)
    assert torch.equal(last, seen["stages.3"])


@pytest.mark.parametrize(
    "overrides",
    [
        dict(aggregation="none"),
        dict(aggregation="inverted_bottleneck", modulation="sum"),
        dict(mixers="F"),
        dict(layer_scale=0.1, mixers="A"),
        dict(conv_heads=1, stem_stride=1),
        dict(drop_path_rate=0.2, proj_drop_rate=0.1, attn_drop_rate=0.1),
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [False, True])
def test_any_arguments(overrides: dict[str, Any], training: bool) -> None:
    model, x = create(num_classes=3, **overrides).train(training), images(2, 3, 32, 32)
    traced = torch.fx.symbolic_trace(model)
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(traced(x), expected)


def test_a_fused_model() -> None:
    model, x = fuse(create(num_classes=3)), images(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))
