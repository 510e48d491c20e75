"""Decoders of segmentation_models.pytorch on the feature maps of a backbone."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import nn

import debug_model
import smt_vision
from drawn_sets import scenes_recipe
from smt_vision.deploy.exported import open_program
from smt_vision.deploy.parity import logits_parity
from smt_vision.deploy.programs import trace, write
from smt_vision.engine.loop import train
from smt_vision.recipe import Input
from smt_vision.spec import ModelSpec
from smt_vision.tasks import get_task
from smt_vision.tasks.backbone import Backbone
from smt_vision.tasks.segmentation.config import SegmentConfig
from smt_vision.tasks.segmentation.heads.decoders import DECODERS, DecoderHead
from smt_vision.tasks.segmentation.heads.network import SegmentationNetwork
from smt_vision.tasks.segmentation.heads.sliding import probability_rows
from smt_vision.tasks.segmentation.task import SegmentationTraining

U_SHAPED = ("linknet", "manet", "unet", "unetplusplus")
SMALL = SegmentConfig(head="unet", channels=128, aux_channels=8, crop=(64, 64))


def build(head: str, model: str = "smt", **changes: Any) -> SegmentationNetwork:
    torch.manual_seed(0)
    config = replace(SMALL, head=head, **changes)
    if model != "smt":
        spec = ModelSpec("segment", model, ("a", "b", "c"), Input(), head=config)
        network: Any = get_task("segment").build_model(spec)
    else:
        network = SegmentationNetwork(Backbone(debug_model.create(features_only=True)), 3, config)
    nn.init.normal_(network.head.classifier.weight, std=0.5)  # logits far from zero
    return network


@pytest.fixture(params=DECODERS)
def head(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_decoder_is_a_head() -> None:
    assert {"upernet", *DECODERS} == set(get_args(get_type_hints(SegmentConfig)["head"]))


def test_every_parameter_has_a_gradient(head: str) -> None:
    model = build(head).train()
    logits, auxiliary = model(debug_model.images(2, 3, 64, 96))
    stride = 2 if head in U_SHAPED else 4
    assert logits.shape == (2, 3, 64 // stride, 96 // stride)
    assert auxiliary.shape == (2, 3, 4, 6)
    (logits.square().mean() + auxiliary.square().mean()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert build(head, aux_weight=0.0).train()(debug_model.images(1, 3, 64, 64))[1] is None


def test_images_of_any_size(head: str) -> None:
    """An image is padded to a multiple of 32 inside, so the logits of its own pixels are those of the padded image."""
    model = build(head).eval()
    image = debug_model.images(1, 3, 41, 90)
    padded = torch.zeros(1, 3, 64, 96)
    padded[..., :41, :90] = image
    with torch.no_grad():
        logits = model(image)
        assert logits.shape == (1, 3, 41, 90)
        torch.testing.assert_close(logits, model(padded)[..., :41, :90])
        assert model(debug_model.images(1, 3, 32, 32)).shape == (1, 3, 32, 32)


def test_one_window_over_the_image_equals_the_full_image(head: str) -> None:
    model = build(head).eval()
    image = debug_model.images(1, 3, 60, 90)
    slide = replace(SMALL, head=head, test="slide", crop=(64, 96), stride=(32, 32))
    with torch.no_grad():
        one, other = (torch.cat(list(probability_rows(model, image, c)), dim=-2) for c in (slide, replace(SMALL)))
    torch.testing.assert_close(one, other)


def test_unet_has_four_blocks_and_a_skip_connection_from_each_finer_map() -> None:
    decoder = build("unet").head.decoder
    assert [tuple(block.conv1[0].weight.shape[:2]) for block in decoder.blocks] == [
        (128, 128 + 64), (64, 128 + 32), (32, 64 + 16), (16, 32)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("head", "channels", "multiple"), [("fpn", 64, 128), ("unet", 100, 8), ("manet", 12, 8), ("linknet", 4, 8)]
)
def test_channels_that_do_not_fit_are_refused(head: str, channels: int, multiple: int) -> None:
    with pytest.raises(ValueError, match=rf"channels={channels}: segment\.head={head} needs a multiple of {multiple}"):
        build(head, channels=channels)


def test_crops_that_do_not_fit_are_refused() -> None:
    assert SegmentConfig(crop=(100, 64)).crop == (100, 64)
    with pytest.raises(ValueError, match=r"crop=\(100, 64\).*unet.*multiples of 32"):
        replace(SMALL, crop=(100, 64))


def test_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ImportError, match=r"smt-vision\[segment\]"):
        DecoderHead([8, 16, 32, 64], 3, SMALL)


@pytest.mark.usefixtures("no_report")
def test_run_predicts_like_its_model_and_starts_another(scenes: Path, tmp_path: Path) -> None:
    recipe = scenes_recipe(scenes, head="unet")
    run = train(replace(recipe, batch_size=1), tmp_path / "run", display=False)  # only UPerNet needs two images
    segmenter = smt_vision.load(run.folder)
    assert segmenter.spec.head == recipe.segment
    (result,) = segmenter([next((scenes / "images" / "val").iterdir())])
    assert result.class_ids.shape == result.size
    started = SegmentationTraining(replace(recipe, checkpoint=str(run.folder))).model.state_dict()
    saved = segmenter.model.state_dict()
    assert all(torch.equal(started[name], saved[name]) for name in saved)
    with pytest.raises(ValueError, match=r"best\.pt does not match the model; check .* the head"):
        SegmentationTraining(replace(scenes_recipe(scenes, head="linknet"), checkpoint=str(run.folder)))


SLOW = [pytest.param(head, format, marks=pytest.mark.slow) for head in DECODERS for format in ("onnx", "openvino")]


@pytest.mark.parametrize(("head", "format"), [*SLOW, ("unet", "torch")])
def test_exports_take_any_size(head: str, format: str, tmp_path: Path) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(format, format))
    model = build(head, "test_resnet").eval()
    with torch.no_grad():
        program, dynamic_image_size = trace(model, 3, 64)
        assert dynamic_image_size
        write(program, tmp_path, format, (), lambda path: torch.zeros(3, 64, 64))
        parity = logits_parity(model, open_program(tmp_path, format), debug_model.images(2, 3, 64, 64), True)
    assert parity["max_difference"] < 1e-4
    assert parity["agreement"] > 0.999
