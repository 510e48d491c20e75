"""What is imported when: commands that compute nothing start without PyTorch, and the models are registered anyway."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "timm", "numpy", "torchvision", "lightning_fabric", "matplotlib")


def python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
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


# Each in a process of its own, which takes seconds.
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


def test_other_imports_do_not_import_timm() -> None:
    code = "import smt_vision, sys; smt_vision.RECIPES; print('timm' in sys.modules, 'torch' in sys.modules)"
    assert python(code).split() == ["False", "False"]
