"""The studies that ship: their cells, the sizes of the networks beside SMT, and training runs at debug size."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN

from drawn_sets import write_scenes
from smt_vision.cost import describe
from smt_vision.engine.log import read_log
from smt_vision.engine.loop import train
from smt_vision.engine.run import Run
from smt_vision.model import SAM
from smt_vision.recipe import Recipe
from smt_vision.study.peers import EQUAL_GMAC, EQUAL_PARAMETERS, IMAGENET
from smt_vision.study.runner import unique_cells
from smt_vision.study.studies import CIFAR10, STUDIES
from smt_vision.study.study import Overrides, model_key, recipe_key, with_overrides
from smt_vision.tasks import get_task
from smt_vision.tasks.build import create_model
from smt_vision.tasks.load import load
from tiny_run import write_split

TOLERANCE = 0.03


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Tiny datasets by task."""
    folder = tmp_path_factory.mktemp("studies")
    return {"classify": write_split(folder / "colors"), "segment": write_scenes(folder / "scenes")}


def build(overrides: Overrides) -> Any:
    recipe = with_overrides(CIFAR10, overrides)
    return create_model(recipe.model, num_classes=10, in_chans=3, **recipe.model_args)


def test_baselines_are_classifiers_only() -> None:
    with pytest.raises(ValueError, match=r"cifar_convnext is a classifier.*without features_only"):
        timm.create_model("cifar_convnext", features_only=True)


def test_hashes_of_cells_do_not_change() -> None:
    # Results are stored under these: another hash would train all cells again.
    aggregation, camvid = STUDIES["aggregation"], STUDIES["stacking_camvid"]
    assert recipe_key(aggregation.cell("5 epochs", "saa", 0).recipe) == "6a3635c01209"
    assert recipe_key(aggregation.cell("2 epochs", "none", 1).recipe) == "2cb6971e3bbb"
    assert recipe_key(STUDIES["budget"].cell("10 epochs", "no_aggregation", 1).recipe) == "bf088dace6f5"
    assert recipe_key(camvid.cell("14 epochs", "halves", 0).recipe) == "2608f719f4d9"
    assert recipe_key(STUDIES["budget"].cell("5 epochs", "smt", 0).recipe) == "6a3635c01209"


@pytest.mark.parametrize("name", STUDIES)
def test_cells_of_a_study_differ(name: str) -> None:
    cells = list(STUDIES[name].cells(2))
    assert len(cells) == 2 * len(STUDIES[name].variants) * len(STUDIES[name].budgets)
    assert len(unique_cells(cells)) == len(cells)
    assert len(unique_cells(list(STUDIES[name].for_debugging().cells()))) == 2 * len(STUDIES[name].variants)


@pytest.mark.parametrize(
    ("name", "quantity"),
    [(name, "parameters") for name in EQUAL_PARAMETERS] + [(name, "gmac") for name in EQUAL_GMAC],
)
def test_networks_have_the_size_of_smt_and_train(name: str, quantity: str) -> None:
    model = build((EQUAL_PARAMETERS if quantity == "parameters" else EQUAL_GMAC)[name])
    smt, peer = describe(build({}), (3, 32, 32)), describe(model, (3, 32, 32))
    assert getattr(peer, quantity) == pytest.approx(getattr(smt, quantity), rel=TOLERANCE)
    maps = [stage.shape for stage in peer.stages if "." in stage.name or stage.name.startswith("layer")]
    assert [shape[-1] for shape in maps[-4:]] == [16, 8, 4, 2]
    loss = torch.nn.functional.cross_entropy(model.train()(torch.randn(2, 3, 32, 32)), torch.tensor([0, 1]))
    loss.backward()
    missing = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing


@pytest.mark.parametrize("name", IMAGENET)
def test_networks_for_imagenet_have_about_the_size_of_smt_small(name: str) -> None:
    recipe = STUDIES["peers_imagenet"].cell("300 epochs", name, 0).recipe
    with torch.device("meta"):
        model = create_model(recipe.model, **recipe.model_args)
        smt = create_model("smt_small")
    assert recipe.model_args == {"drop_path_rate": 0.2}
    size = sum(p.numel() for p in model.parameters()) / sum(p.numel() for p in smt.parameters())
    assert 0.94 < size < 1.28


def train_one_epoch(recipe: Recipe, data: Mapping[str, Path], folder: Path) -> Run:
    """Train one epoch of two and evaluate; without the report, which takes longer."""
    recipe = replace(recipe, data=str(data[recipe.task]), epochs=2)
    images = len(get_task(recipe.task).training(recipe).train_set)
    return train(recipe, folder, display=False, max_steps=images // recipe.batch_size)


@pytest.mark.parametrize(
    "name", [name for name in STUDIES if "peers" not in name and "_" in name.removeprefix("mhmc_")]
)
def test_study_trains_at_debug_size(name: str, data: Mapping[str, Path], tmp_path: Path) -> None:
    study = STUDIES[name].for_debugging()
    first, *_, last = (study.cell("debug", variant, 0).recipe for variant in study.variants)
    run = train_one_epoch(last, data, tmp_path)
    trained, of_last, of_first = map(shapes_in_stages, (run.raw, network(last), network(first)))
    assert trained == of_last != of_first
    assert 0 <= run.metrics[run.task.primary_metric] <= 100
    losses = [line["loss"] for line in read_log(tmp_path) if line["kind"] == "train"]
    assert len(losses) == run.step
    assert all(map(math.isfinite, losses))


def network(recipe: Recipe) -> Any:
    """The network of a recipe, without memory for its weights."""
    with torch.device("meta"):
        return create_model(recipe.model, **recipe.model_args)


def shapes_in_stages(model: torch.nn.Module) -> dict[str, torch.Size]:
    """The parameters of an SMT's stages; it may be a backbone."""
    return {name.partition("stages.")[2]: p.shape for name, p in model.named_parameters() if "stages." in name}


def test_every_variant_is_a_network_of_its_own() -> None:
    """Each network once: studies and budgets have many in common."""
    cells = [cell for name, study in STUDIES.items() if "peers" not in name for cell in study.cells(1)]
    networks = {model_key(cell.recipe): cell for cell in cells}
    assert len(networks) > 30
    labels: dict[Any, str] = {}
    for cell in networks.values():
        model = network(cell.recipe)
        modulations = tuple(module.modulation for module in model.modules() if isinstance(module, SAM))
        other = labels.setdefault((str(model), modulations), cell.label)
        assert other == cell.label, f"{cell.label} is the network of {other}"


@pytest.mark.parametrize("variant", STUDIES["peers_imagenet"].variants)
def test_networks_are_loaded_from_a_run(variant: str, data: Mapping[str, Path], tmp_path: Path) -> None:
    recipe = STUDIES["peers_imagenet"].for_debugging().cell("debug", variant, 0).recipe
    run = train_one_epoch(recipe, data, tmp_path)
    predictor, x = load(tmp_path), torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(predictor.model.eval()(x), run.weights.eval()(x))
    assert describe(*predictor.flops_model()).parameters == sum(p.numel() for p in run.raw.parameters())
    assert predictor.spec.input.mean == IMAGENET_DEFAULT_MEAN  # all networks see the same images
