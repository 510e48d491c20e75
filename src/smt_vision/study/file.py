"""A study in a file of one's own, and the networks that the file registers."""

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from .study import Study

_imported: set[str] = set()  # names of the modules that are files of studies


def study_from_file(path: Path) -> Study:
    """The variable ``STUDY`` of a Python file, which is executed.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file raises an error, or does not define ``STUDY``.
    """
    study = getattr(import_file(path), "STUDY", None)
    if not isinstance(study, Study):
        raise ValueError(f"{path}: expected a variable STUDY of type smt_vision.study.study.Study, got {study!r}")
    return study


def import_file(path: Path) -> ModuleType:
    """Execute a Python file as a module named like it, e.g. so that timm's ``register_model`` finds its functions.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Another module has its name, or it raises an error.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; expected a Python file that defines STUDY")
    if path.stem in sys.modules and path.stem not in _imported:
        raise ValueError(f"{path}: there is a module called {path.stem} already; rename the file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    _imported.add(path.stem)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # code of the user may raise anything
        del sys.modules[path.stem]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        if isinstance(error, SyntaxError):
            lines = [error.lineno]
        where = f", line {lines[-1]}" if lines else ""
        raise ValueError(f"{path}{where}: {type(error).__name__}: {error}") from error
    return module
