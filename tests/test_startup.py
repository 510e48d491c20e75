"""What is imported when: commands that compute nothing start without PyTorch, and the models are registered anyway."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch  # noqa: F401  the garbage collector of this process is left alone
from PIL import Image

from smt_vision.cli.startup import no_garbage_collection
from waiting import DEADLINE

# What training, export and pictures need, and the prediction of a classifier does not.
NOT_TO_PREDICT = ("matplotlib", "lightning_fabric", "torchmetrics", "pandas", "scipy", "onnxruntime", "openvino")
HEAVY = ("torch", "timm", "numpy", "torchvision", "lightning_fabric", "matplotlib")


def python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "--version",
        "recipes",
        "recipes quickstart",
        "train quickstart --help",
        "predict --help",
        "bench --help",
    ],
)
def test_commands_that_compute_nothing_import_nothing_heavy(words: str) -> None:
    code = f"""
import sys
from smt_vision.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print([name for name in {HEAVY} if name in sys.modules])
"""
    assert python(code, *words.split()).splitlines()[-1] == "[]"


# The tests below start processes that import timm, which takes seconds.
def test_prediction_of_a_classifier_imports_what_it_needs(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    code = f"""
import sys
from smt_vision.cli import main
assert main(["predict", "smt_femto.cifar10", sys.argv[1], "--json"]) == 0
print()
print("timm" in sys.modules, [name for name in {NOT_TO_PREDICT} if name in sys.modules])
"""
    assert python(code, str(tmp_path / "image.png")).splitlines()[-1] == "True []"


def test_the_import_is_not_traversed_by_the_garbage_collector_until_the_process_ends() -> None:
    code = """
import atexit, gc
from smt_vision.cli.startup import no_garbage_collection
atexit.register(lambda: print(gc.get_freeze_count() < frozen / 10))  # runs after those registered later
before = gc.get_stats()[2]["collections"]
with no_garbage_collection():
    import torch
    print(gc.isenabled(), gc.get_stats()[2]["collections"] - before)
frozen = gc.get_freeze_count()
print(gc.isenabled(), frozen > 100_000)
"""
    assert python(code).split() == ["False", "0", "True", "True", "True"]


def test_the_garbage_collector_of_a_process_with_pytorch_is_left_alone() -> None:
    frozen = gc.get_freeze_count()
    with no_garbage_collection():
        assert gc.isenabled()
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, frozen)


@pytest.mark.parametrize("imports", [
    "import smt_vision, importlib.util; assert importlib.util.find_spec('timm'); import timm",  # as transformers looks
    "import smt_vision.model, timm",
    "import smt_vision.forms, timm",
])  # fmt: skip
def test_models_are_registered_in_any_order_of_imports(imports: str) -> None:
    code = f"""
import sys
{imports}
assert timm.is_model("smt_tiny") and "smt_femto" in timm.list_models("smt_*")
assert not [finder for finder in sys.meta_path if "smt_vision" in type(finder).__module__]
import importlib.resources
assert importlib.resources.files("timm").is_dir()
print(type(timm.__spec__.loader).__module__)
"""
    assert "smt_vision" not in python(code)


def test_after_a_failed_registration_the_next_import_fails_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMT_VISION_KERNELS", "bad")
    code = """
import importlib.util
import smt_vision
assert importlib.util.find_spec("timm").loader.is_package("timm")
for _ in range(2):
    try:
        import timm
    except ValueError as error:
        print(error)
"""
    assert python(code).splitlines() == ["invalid SMT_VISION_KERNELS='bad': expected one of 'auto', 'plain'"] * 2


def test_other_imports_do_not_import_timm() -> None:
    code = "import smt_vision, sys; smt_vision.RECIPES; print('timm' in sys.modules, 'torch' in sys.modules)"
    assert python(code).split() == ["False", "False"]
