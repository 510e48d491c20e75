"""Counting a model's parameters, GMAC and activations."""

import copy
import json
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import smt_vision
from literal import LiteralSMT
from smt_vision.cost import describe
from smt_vision.model.attention import MSA
from smt_vision.model.smt import SMT
from smt_vision.registry import VARIANTS


def on_meta(name: str, **kwargs: Any) -> Any:
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def test_tiny_is_the_papers() -> None:
    model = on_meta("smt_tiny")
    info = describe(model)
    assert (info.name, info.input_size, info.parameters) == ("smt_tiny", (3, 224, 224), 11_506_536)
    assert info.gmac == pytest.approx(2.46, rel=0.005)
    assert [(s.name, s.shape, s.mixers) for s in info.stages] == [
        ("stem", (64, 56, 56), None),
        ("stages.0", (64, 56, 56), "SS"),
        ("stages.1", (128, 28, 28), "SS"),
        ("stages.2", (256, 14, 14), "SASASASA"),
        ("stages.3", (512, 7, 7), "A"),
        ("head", (1000,), None),
    ]
    assert sum(s.parameters for s in info.stages) == info.parameters
    assert sum(s.gmac for s in info.stages) == pytest.approx(info.gmac, rel=1e-9)
    stem, head = info.stages[0], info.stages[-1]
    assert stem.gmac == (27 * 64 * 112**2 + 4 * 64 * 64 * 56**2) / 1e9
    assert head.gmac == 512 * 1000 / 1e9
    assert head.parameters == 513_000
    assert json.loads(json.dumps(info.to_dict()))["stages"][3]["mixers"] == "SASASASA"


def test_a_map_of_as_many_rows_as_channels_keeps_its_axes() -> None:
    stages = describe(on_meta("smt_tiny"), (3, 256, 384)).stages
    assert stages[1].shape == (64, 64, 96)


def test_other_sizes_and_channels() -> None:
    model = on_meta("smt_atto", in_chans=1, num_classes=0)
    small, large = describe(model, (1, 64, 64)), describe(model, (1, 128, 128))
    assert small.parameters == large.parameters
    assert large.activations == 4 * small.activations
    assert large.gmac > 4 * small.gmac  # attention grows with the square of the grid


def test_fused_and_written_out_attention_count_alike() -> None:
    with torch.device("meta"):
        literal = LiteralSMT(**VARIANTS["smt_atto"])
    assert describe(literal, (3, 64, 96)).gmac == describe(on_meta("smt_atto"), (3, 64, 96)).gmac
    attention = MSA(8, 2)

    class OnGrid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x.permute(0, 2, 3, 1))

    tokens, C = 4 * 6, 8
    expected = tokens * C * 3 * C + 2 * tokens * tokens * C + tokens * C * 9 + tokens * C * C
    assert describe(OnGrid(), (8, 4, 6)).gmac == expected / 1e9


def test_a_fused_model_has_the_activations_of_its_layers() -> None:
    model = timm.create_model("smt_atto").eval()
    plain, fused = describe(model), describe(smt_vision.fuse(model))
    assert 0.9 * plain.activations < fused.activations <= plain.activations


def test_the_model_is_left_alone() -> None:
    model = SMT(**VARIANTS["smt_atto"], num_classes=3).train()
    before = copy.deepcopy(model.state_dict())
    parameters = [id(p) for p in model.parameters()]
    describe(model, (3, 64, 64))
    assert model.training
    assert all(m.training for m in model.modules())
    assert [id(p) for p in model.parameters()] == parameters
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("name", "size", "millions", "gmac", "first", "last"),
    [
        ("resnet18", 224, 11.69, 1.82, (64, 112, 112), (512, 7, 7)),
        ("convnext_atto", 224, 3.70, 0.55, (40, 56, 56), (320, 7, 7)),
        ("swin_tiny_patch4_window7_224", 224, 28.29, 4.5, (96, 56, 56), (768, 7, 7)),
        ("vit_tiny_patch16_224", 224, 5.72, 1.26, (197, 192), (197, 192)),
    ],
)
def test_any_timm_model(
    name: str, size: int, millions: float, gmac: float, first: tuple[int, ...], last: tuple[int, ...]
) -> None:
    """Parameters and GMAC as timm's tables and the models' papers have them."""
    info = describe(on_meta(name), (3, size, size))
    assert info.name == name
    assert info.parameters / 1e6 == pytest.approx(millions, rel=0.005)
    assert info.gmac == pytest.approx(gmac, rel=0.03)
    assert (info.stages[0].shape, info.stages[-1].shape) == (first, last)
    assert all(s.mixers is None for s in info.stages)


def test_a_plain_module_has_totals_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))
    info = describe(net, (3, 8, 8))
    assert (info.name, info.stages) == ("Sequential", ())
    assert info.parameters == 3 * 4 * 9 + 4 + 144 * 5 + 5
    assert info.gmac == (36 * 4 * 27 + 144 * 5) / 1e9
    assert info.activations == 144 + 5


def test_an_operator_unknown_to_the_meta_device() -> None:
    class Values(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.mean((2, 3)) * float(x.shape[0] + x.sum().item()))

    assert describe(Values(), (3, 4, 4)).gmac == 6 / 1e9


@pytest.mark.parametrize("size", [(3, 224), (3, 0, 224), ()])
def test_an_input_size_that_cannot_work(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"input_size=.*three positive numbers"):
        describe(nn.Identity(), size)


def test_a_model_of_other_channels() -> None:
    with pytest.raises(ValueError, match=r"input_size=\(1, 64, 64\) for SMT: .*built for"):
        describe(SMT(**VARIANTS["smt_atto"]), (1, 64, 64))
