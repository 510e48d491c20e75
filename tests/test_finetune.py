"""What of a model is trained, and for how long: frozen parts, adapters, early stopping, the learning rate finder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from drawn_sets import scenes_recipe, shapes_recipe
from same_run import assert_identical, assert_same_run
from smt_vision import RECIPES, checkpoints, find_lr, load
from smt_vision.cli import main
from smt_vision.engine.log import read_log
from smt_vision.engine.loop import train
from smt_vision.engine.lr_finder import _curve
from smt_vision.engine.optim import build_optimizer
from smt_vision.engine.run import evaluations_without_improvement
from smt_vision.lora import merge_state, merge_weight
from smt_vision.recipe import Lora, Recipe
from smt_vision.recipe_files import read_recipe_file
from smt_vision.spec import ModelSpec
from smt_vision.tasks import get_task
from smt_vision.tasks.backbone import Backbone
from smt_vision.tasks.build import without_unaccepted_drop_path
from smt_vision.tasks.finetune import select_trained
from tiny_run import MODEL_ARGS, tiny

SMALL_VIT = dict(img_size=32, patch_size=8, embed_dim=12, depth=3, num_heads=1)
LORA = Lora(rank=2, alpha=4.0)

pytestmark = pytest.mark.usefixtures("one_thread")


def prepared(model: str, arguments: dict[str, Any], **fields: Any) -> tuple[Any, list[nn.Module]]:
    """A classifier of five classes and its modules that stay in evaluation mode."""
    recipe = replace(RECIPES["finetune"], model=model, model_args=arguments, **fields)
    spec = ModelSpec("classify", model, tuple("abcde"), recipe.input, arguments)
    net = timm.create_model(model, num_classes=5, **arguments)
    return net, select_trained(net, spec, recipe)


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


# --- other models than the recipe's


@pytest.mark.parametrize(
    ("recipe", "model", "arguments", "kept"),
    [
        ("finetune", "dla46_c", {"drop_path_rate": 0.1}, {}),
        ("finetune", "densenet121", {"drop_path_rate": 0.1, "memory_efficient": True}, {"memory_efficient": True}),
        ("detect", "dla46_c", {"drop_path_rate": 0.1}, {}),
        ("finetune", "dla46_c", {"drop_path_rate": 0.2}, {"drop_path_rate": 0.2}),  # the user's: an error
        ("finetune", "naflexvit_base_patch16_gap", {"drop_path_rate": 0.1}, {"drop_path_rate": 0.1}),
        ("finetune", "test_resnet", {"drop_path_rate": 0.1}, {"drop_path_rate": 0.1}),
        ("finetune", "unknown", {"drop_path_rate": 0.1}, {"drop_path_rate": 0.1}),
        ("quickstart", "dla46_c", {"drop_path_rate": 0.1}, {"drop_path_rate": 0.1}),  # that recipe has none
    ],
)
def test_drop_path_of_the_recipe_is_left_out_for_models_without_it(
    recipe: str, model: str, arguments: dict[str, Any], kept: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    found = without_unaccepted_drop_path(replace(RECIPES[recipe], model=model, model_args=arguments))
    assert found.model_args == kept
    assert len(caplog.records) == (arguments != kept)


def test_command_for_a_model_without_drop_path(
    colored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    command = ["train", "finetune", "--model", "dla46_c", "--pretrained", "false", "--data", str(colored)]
    command += ["--input.size", "32", "--input.workers", "0", "--max_steps", "0", "--engine.loggers", "none"]
    assert main([*command, "--run", str(tmp_path / "run")]) == 0
    assert "model 'dla46_c' has no drop_path_rate: omitted that of recipe finetune, 0.1" in caplog.messages
    assert read_recipe_file(tmp_path / "run" / "recipe.yaml").model_args == {}
    assert main(["train", "--resume", str(tmp_path / "run"), "--max_steps", "0"]) == 0
    assert main([*command, "--run", str(tmp_path / "other"), "--model_args.drop_path_rate", "0.2"]) == 1
    assert "'drop_path_rate': 0.2}: DLA" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "model"), [("finetune", "dla46_c"), ("pretrain", "darknet17")])
def test_models_that_cannot_recompute_activations_are_named(name: str, model: str, colored: Path) -> None:
    recipe = RECIPES[name]
    recipe = replace(
        recipe,
        model=model,
        model_args={},
        pretrained=False,
        data=str(colored),
        input=replace(recipe.input, size=32),  # type: ignore[call-arg]
        engine=replace(recipe.engine, grad_checkpointing=True),
    )
    with pytest.raises(ValueError, match=rf"engine\.grad_checkpointing=true: model '{model}' does not"):
        get_task(recipe.task).training(recipe)


# --- frozen parts

SMT = dict(MODEL_ARGS)
PARTS = [
    ("smt_atto", SMT, "stem", ("stem.",)),
    ("smt_atto", SMT, 2, ("stem.", "stages.0.", "stages.1.")),
    ("smt_atto", SMT, "backbone", ("stem.", "stages.")),
    ("test_resnet", {}, 1, ("conv1.", "bn1.", "layer1.")),
    ("test_efficientnet", {}, 2, ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.")),
    ("test_convnext", {}, "stem", ("stem.",)),
    ("test_vit3", dict(img_size=32), 1, ("cls_token", "reg_token", "pos_embed", "patch_embed.", "blocks.0.")),
    ("poolformer_s12", {}, 1, ("stem.", "stages.0.")),  # without group_matcher
]  # fmt: skip


@pytest.mark.parametrize(("model", "arguments", "part", "prefixes"), PARTS)
def test_frozen_are_the_stem_and_the_first_stages(
    model: str, arguments: dict[str, Any], part: str | int, prefixes: tuple[str, ...]
) -> None:
    net, fixed = prepared(model, arguments, freeze=part)
    names = [name for name, _ in net.named_parameters()]
    assert trained_names(net) == {name for name in names if not name.startswith(prefixes)}
    assert any(name.startswith(prefixes) for name in names)
    net.train()
    for module in fixed:
        module.eval()
    norms = [(name, m) for name, m in net.named_modules() if hasattr(m, "running_mean")]
    assert {name for name, m in norms if not m.training} == {
        name for name, _ in norms if f"{name}.".startswith(prefixes)
    }
    assert net.training


def test_dropout_of_the_head_stays_and_that_of_the_tokens_does_not() -> None:
    net, fixed = prepared("vit_tiny_patch16_224", SMALL_VIT, freeze="backbone")
    assert net.pos_drop in fixed
    assert net.blocks[0].drop_path1 in [m for module in fixed for m in module.modules()]
    assert net.head_drop not in [m for module in fixed for m in module.modules()]
    net, fixed = prepared("vit_tiny_patch16_224", SMALL_VIT, freeze=1)
    assert net.pos_drop in fixed
    assert net.blocks[1] not in fixed


@pytest.mark.parametrize(
    ("model", "arguments", "fields", "message"),
    [
        ("smt_atto", SMT, dict(freeze=5), "freeze=5: smt_atto has 4 stages"),
        ("test_resnet", {}, dict(lora=LORA), "test_resnet has none"),
        ("smt_atto", SMT, dict(lora=LORA, freeze=4), "linear layers in the backbone that are not frozen"),
        ("smt_atto", SMT, dict(lora=replace(LORA, targets=("query",))), "'query'; expected fc1, fc2, proj, qkv, vs"),
    ],
)
def test_impossible_parts_are_refused(
    model: str, arguments: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepared(model, arguments, **fields)


def test_values_of_freeze() -> None:
    recipe = RECIPES["finetune"]
    for value in ("stages", 0, -1, True, 1.5, None):
        with pytest.raises(ValueError, match="freeze="):
            replace(recipe, freeze=value)
    with pytest.raises(ValueError, match=r"freeze=backbone.*lora\.rank=8"):
        replace(recipe, freeze="backbone", lora=Lora(rank=8))


def stored(task: Any, fixed: list[nn.Module], batch: Any) -> int:
    """Bytes of the activations that a training step keeps for the backward pass."""
    sizes: dict[int, int] = {}
    own = {p.data_ptr() for p in task.model.parameters()}

    def pack(x: Tensor) -> Tensor:
        if x.data_ptr() not in own:
            sizes[x.data_ptr()] = x.numel() * x.element_size()
        return x

    task.model.train()
    for module in fixed:
        module.eval()
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        losses = task.loss(task.model, batch)
    torch.stack(list(losses.values())).sum().backward()
    return sum(sizes.values())


@pytest.mark.parametrize("task_name", ["classify", "detect", "segment"])
def test_nothing_below_the_first_trained_layer_is_kept_or_differentiated(
    task_name: str, colored: Path, shapes: Path, scenes: Path
) -> None:
    recipe: Recipe = {
        "classify": lambda: tiny(colored),
        "detect": lambda: shapes_recipe(shapes, head="retinanet"),
        "segment": lambda: scenes_recipe(scenes),
    }[task_name]()
    kept = []
    for part in ("none", 2, "backbone"):
        task = get_task(task_name).training(replace(recipe, freeze=part))
        fixed = select_trained(task.model, task.spec, replace(recipe, freeze=part))
        inputs: list[bool] = []
        network = next((m.network for m in task.model.modules() if isinstance(m, Backbone)), task.model)
        network.stages[2].register_forward_pre_hook(lambda m, args, seen=inputs: seen.append(args[0].requires_grad))
        batch = next(iter(task.train_loader(0, 1).epoch(0)))
        kept.append(stored(task, fixed, batch))
        assert inputs == [part == "none"]
        assert {name for name, p in task.model.named_parameters() if p.grad is not None} == trained_names(task.model)
    assert kept[1] < 0.75 * kept[0]
    assert kept[2] < kept[1]


def test_optimizer_has_only_what_is_trained_at_the_same_learning_rates() -> None:
    config = replace(RECIPES["finetune"].optim, layer_decay=0.5)
    scales = []
    for part in ("none", 2):
        net, _ = prepared("smt_atto", SMT, freeze=part)
        names = {id(p): name for name, p in net.named_parameters()}
        groups = build_optimizer(net, config).param_groups
        scales.append({names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]})
        assert scales[-1].keys() == trained_names(net)
    assert scales[1].items() < scales[0].items()


# --- runs of the three tasks, from the weights of a run


FROZEN: dict[str, Any] = dict(
    model_args={**MODEL_ARGS, "stem_stride": 2, "drop_path_rate": 0.2}, epochs=2, batch_size=12, engine=dict(ema=0.9)
)  # 24 images: 2 steps per epoch


@pytest.mark.parametrize("fields", [dict(freeze=2), dict(lora=replace(LORA, dropout=0.1, norms=True), freeze="stem")])
def test_resumed_equals_uninterrupted(
    colored: Path, trained: Path, tmp_path: Path, fields: dict[str, Any], no_report: None
) -> None:
    recipe = tiny(colored, checkpoint=str(trained), **FROZEN, **fields)
    train(recipe, tmp_path / "whole", display=False)
    train(recipe, tmp_path / "halves", display=False, max_steps=3)
    run = train(recipe, tmp_path / "halves", display=False)
    assert run.step == run.total_steps
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


def test_frozen_weights_and_statistics_are_those_of_the_checkpoint(
    colored: Path, trained: Path, tmp_path: Path, no_report: None
) -> None:
    run = train(tiny(colored, checkpoint=str(trained), **FROZEN, freeze=2), tmp_path / "run", display=False)
    first, best, last = checkpoints.load(trained).weights, checkpoints.load(tmp_path / "run"), run.raw.state_dict()
    below = [name for name in last if name.startswith(("stem.", "stages.0.", "stages.1."))]
    assert any("running_var" in name for name in below)
    for name, value in last.items():
        assert torch.equal(value, first[name]) == (name in below), name
    for name in below:
        assert torch.equal(best.weights[name], first[name]), name
    assert run.trained_parameters == sum(p.numel() for name, p in run.raw.named_parameters() if name not in below)


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_backbone_of_a_dense_task_is_frozen(
    task: str, shapes: Path, scenes: Path, detector_run: Path, segmenter_run: Path, tmp_path: Path, no_report: None
) -> None:
    recipe: Recipe = shapes_recipe(shapes) if task == "detect" else scenes_recipe(scenes)
    initial = detector_run if task == "detect" else segmenter_run
    recipe = replace(recipe, checkpoint=str(initial), freeze="backbone")
    run = train(recipe, tmp_path / "run", display=False, max_steps=1)
    backbone = next(m for m in run.raw.modules() if isinstance(m, Backbone))
    assert not trained_names(backbone)
    assert run.trained_parameters == run.parameters - sum(p.numel() for p in backbone.parameters()) > 0
    before = checkpoints.load(initial).weights
    unchanged = {name for name, value in run.raw.state_dict().items() if torch.equal(value, before[name])}
    kept = {name for name in before if "backbone." in name}
    assert any("running_var" in name for name in kept)
    assert kept <= unchanged < before.keys()


# --- adapters


def test_a_merged_layer_is_peft_s() -> None:
    peft = pytest.importorskip("peft")
    net = nn.Sequential(nn.Linear(5, 3))
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, lora_alpha=6, target_modules=["0"]), net)
    layer: Any = net[0]
    nn.init.normal_(layer.lora_B["default"].weight)
    merged = merge_state(net.state_dict(), scaling=3.0)
    assert merged.keys() == {"0.weight", "0.bias"}
    plain = nn.Sequential(nn.Linear(5, 3))
    plain.load_state_dict(merged)
    x = torch.randn(4, 5)
    torch.testing.assert_close(plain(x), net(x))
    torch.testing.assert_close(
        merge_weight(layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight, 3.0),
        layer.base_layer.weight + layer.get_delta_weight("default"),
    )


def test_adapters_start_without_effect_and_the_head_is_trained() -> None:
    pytest.importorskip("peft")
    torch.manual_seed(0)
    plain = timm.create_model("smt_atto", num_classes=5, **SMT)
    net, fixed = prepared("smt_atto", SMT, lora=replace(LORA, targets=("qkv", "vs")))
    net.load_state_dict({k.replace(".base_layer.", "."): v for k, v in plain.state_dict().items()}, strict=False)
    for name, value in plain.state_dict().items():
        for key in (name, name.replace("qkv.", "qkv.base_layer.").replace("vs.", "vs.base_layer.")):
            if key in (state := net.state_dict()):
                state[key].copy_(value)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(net.eval()(x), plain.eval()(x))
    layers = {name.partition(".lora_")[0].rpartition(".")[2] for name in trained_names(net) if ".lora_" in name}
    assert layers == {"qkv", "vs"}
    assert {name for name in trained_names(net) if ".lora_" not in name} == {"head.fc.weight", "head.fc.bias"}
    assert all(hasattr(m, "running_mean") for m in fixed)
    assert len(fixed) == sum(hasattr(m, "running_mean") for m in net.modules())
    net, fixed = prepared("smt_atto", SMT, lora=replace(LORA, norms=True), freeze=1)
    norms = {name.split(".")[1] for name in trained_names(net) if "norm" in name}
    assert norms == {"1", "2", "3"}


def test_best_weights_are_those_of_a_plain_model(colored: Path, trained: Path, tmp_path: Path, no_report: None) -> None:
    pytest.importorskip("peft")
    folder = tmp_path / "run"
    recipe = tiny(colored, checkpoint=str(trained), **FROZEN, lora=LORA, optim=dict(lr=0.05, warmup_epochs=0.0))
    run = train(recipe, folder, display=False)
    first, best = checkpoints.load(trained).weights, load(folder)
    assert best.model.state_dict().keys() == first.keys()
    for name, value in best.model.state_dict().items():
        adapted = name.endswith(("qkv.weight", "vs.weight", "proj.weight", "fc1.weight", "fc2.weight"))
        changed = adapted or name.startswith("head.")
        assert torch.equal(value, first[name]) != changed, name
    timm.create_model("smt_atto", num_classes=3, **FROZEN["model_args"]).load_state_dict(best.model.state_dict())

    # last.pt has the adapters, whose average is used; read as a model, they are merged.
    state = checkpoints.load(folder / "last.pt").state
    assert any("lora_A" in key for key in state["model"])
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(load(folder / "last.pt").model.eval()(x), run.weights.eval()(x))

    # What is evaluated is the merged model, which leaves no trace.
    before = {key: value.clone() for key, value in run.weights.state_dict().items()}
    with run.merged():
        assert_identical(dict(run.weights.state_dict()), merge_state(before, LORA.alpha / LORA.rank))
        assert run.weights.state_dict().keys() == first.keys()
    assert_identical(dict(run.weights.state_dict()), before)


def test_damaged_adapters_are_named(colored: Path, trained: Path, tmp_path: Path, no_report: None) -> None:
    pytest.importorskip("peft")
    recipe = tiny(colored, checkpoint=str(trained), **{**FROZEN, "engine": {}}, lora=LORA)
    train(recipe, tmp_path / "run", display=False, max_steps=1)
    state = dict(checkpoints.load(tmp_path / "run" / "last.pt").state)
    lost = next(key for key in state["model"] if "lora_A" in key)
    checkpoints.save({**state, "model": {k: v for k, v in state["model"].items() if k != lost}}, tmp_path / "lost.pt")
    with pytest.raises(ValueError, match=r"lost\.pt: damaged adapters"):
        load(tmp_path / "lost.pt")


def test_adapter_of_a_layer_that_is_never_called_is_an_error(colored: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    arguments = dict(img_size=32, embed_dim=24, depth=1, num_heads=2)  # BEiT reads the weight of qkv
    recipe = tiny(colored, model="beit_base_patch16_224", model_args=arguments, lora=LORA)
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.qkv.*--lora.targets '\[fc1, fc2, proj\]'"):
        train(recipe, tmp_path / "run", display=False, max_steps=1)
    possible = replace(recipe, lora=replace(LORA, targets=("fc1", "fc2", "proj")))
    assert train(possible, tmp_path / "possible", display=False, max_steps=1).step == 1


# --- early stopping


@pytest.mark.parametrize(
    ("values", "min_delta", "expected"),
    [
        ([], 0.0, 0),
        ([50.0], 0.0, 0),
        ([50.0, 50.0, 50.0], 0.0, 2),
        ([50.0, 49.0, 51.0], 0.0, 0),
        ([50.0, 60.0, 59.0, 60.0], 0.0, 2),
        ([50.0, 50.4, 50.8, 51.2], 1.0, 0),  # small steps add up
        ([50.0, 50.4, 50.8, 51.0], 1.0, 3),
        ([0.0, 0.0], 0.0, 1),
    ],
)
def test_evaluations_without_improvement(values: list[float], min_delta: float, expected: int) -> None:
    assert evaluations_without_improvement(values, min_delta) == expected


def test_run_that_stops_early_is_finished(
    colored: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    still = dict(lr=0.0, warmup_lr=0.0, min_lr=0.0)  # nothing improves after the first evaluation
    fields = {**FROZEN, "epochs": 9, "engine": dict(patience=2, eval_every=2)}
    recipe = tiny(colored, checkpoint=str(trained), **fields, optim=still, freeze="backbone")
    folder = tmp_path / "run"
    run = train(recipe, folder, display=False)
    assert (run.step, run.total_steps, run.best_epoch, run.history) == (12, 18, 2, [run.history[0]] * 3)
    assert run.is_finished
    assert {"best.pt", "last.pt", "metrics.json", "curves.png"} <= {path.name for path in folder.iterdir()}
    summary = (folder / "summary.md").read_text()
    assert "stopped early after epoch 6 of 9" in summary
    head = 64 * 3 + 3
    described = f"{head / 1e6:.3f} M parameters, of {run.parameters / 1e6:.3f} M in the model (freeze backbone)"
    assert f"- trained: {described}" in summary
    notes = [line["message"] for line in read_log(folder) if line["kind"] == "note"]
    assert notes == [
        f"training {described}",
        "stopped early after epoch 6 of 9: top-1 has not improved in 2 evaluations",
    ]

    written = (folder / "summary.md").stat().st_mtime_ns
    assert main(["train", "--resume", str(folder), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["step"], result["stopped_early"], result["trained_parameters"]) == (12, True, head)
    assert main(["train", "--resume", str(folder)]) == 0
    assert f"is finished: {notes[-1]}" in capsys.readouterr().out
    assert (folder / "summary.md").stat().st_mtime_ns == written
    # With more patience, it goes on.
    assert main(["train", "--resume", str(folder), "--engine.patience", "null", "--max_steps", "13", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 13


def test_resumed_run_stops_where_an_uninterrupted_one_does(colored: Path, tmp_path: Path, no_report: None) -> None:
    engine = dict(patience=2, min_delta=90.0)  # no improvement is large enough
    recipe = tiny(colored, epochs=6, batch_size=12, optim=dict(lr=1e-5, warmup_lr=1e-5), engine=engine)
    whole = train(recipe, tmp_path / "whole", display=False)
    assert whole.step == 6  # after the third epoch
    for stop in (3, None):
        run = train(recipe, tmp_path / "stopped", display=False, max_steps=stop)
    assert run.stopped_early
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


# --- the learning rate finder


def test_suggestions_of_a_known_curve() -> None:
    lrs = np.geomspace(1e-7, 10, 161)  # 20 steps per decade
    x = np.log10(lrs)
    losses = 2 - 1 / (1 + np.exp(-4 * (x + 3))) + np.where(x > -1, 10 * (x + 1) ** 2, 0)
    curve = _curve(lrs.tolist(), losses.tolist(), diverged=False)
    assert curve.steepest == pytest.approx(1e-3, rel=0.2)
    assert curve.tenth is not None
    assert 0.03 < 10 * curve.tenth <= lrs[losses.argmin()]  # smoothing makes a steep rise begin earlier
    rising = _curve(lrs.tolist(), np.linspace(1, 2, 161).tolist(), diverged=False)
    assert (rising.steepest, rising.tenth) == (None, None)


def test_finder_writes_a_curve_and_no_run(colored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny(colored, optim=dict(lr_batch=2), engine=dict(ema=0.9))
    folder = tmp_path / "found"
    seen: list[tuple[int, int]] = []
    curve = find_lr(recipe, folder, steps=12, min_lr=1e-6, max_lr=1.0, on_progress=lambda *n: seen.append(n))
    assert sorted(path.name for path in folder.iterdir()) == ["lr_finder.json", "lr_finder.png"]
    stored = json.loads((folder / "lr_finder.json").read_text())
    assert stored["losses"] == list(curve.losses)
    assert curve.lrs == pytest.approx(np.geomspace(1e-6, 1.0, 12)[: len(curve.lrs)])
    assert seen[-1] == (len(curve.lrs), 12)
    # More steps than an epoch has, and always the same ones.
    assert len(curve.lrs) > 6
    assert find_lr(recipe, steps=12, min_lr=1e-6, max_lr=1.0) == curve
    # The learning rate of a step is that of training with this optim.lr: twice as much for 4 images as for lr_batch 2.
    double = find_lr(replace(recipe, optim=replace(recipe.optim, lr_batch=None)), steps=12, min_lr=2e-6, max_lr=2.0)
    assert double.losses == pytest.approx(curve.losses, rel=1e-4)
    with pytest.raises(ValueError, match=r"min_lr=1.*below max_lr=0\.1"):
        find_lr(recipe, min_lr=1.0, max_lr=0.1)
    limited = replace(recipe, engine=replace(recipe.engine, max_grad_norm=1e-6))  # a policy of training
    assert find_lr(limited, steps=12, min_lr=1e-6, max_lr=1.0).losses == curve.losses
    for words in (["--resume", str(folder), "--find_lr"], ["--find_lr", "quickstart", "--max_steps", "3"]):
        with pytest.raises(SystemExit) as error:
            main(["train", *words])
        assert error.value.code == 2
        assert "--find_lr" in capsys.readouterr().err


def test_finder_ends_when_the_loss_diverges(colored: Path) -> None:
    recipe = tiny(colored, optim=dict(name="sgd", clip_grad=None, lr_batch=None))
    curve = find_lr(recipe, steps=30, min_lr=1e-4, max_lr=1e6)
    assert curve.diverged
    assert len(curve.lrs) < 30
    assert all(np.isfinite(curve.losses))
