"""Optional dependencies: the one helper through which they are imported, and their versions."""

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType


def require(module: str, extra: str | None = None) -> ModuleType:
    """Import an optional module.

    Args:
        module: Full name, e.g. ``datasets``.
        extra: The extra of this package that installs it, e.g. ``data``; ``None`` for a package that no extra has.

    Returns:
        The module.

    Raises:
        ImportError: It is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise  # the module is installed, and one that it needs itself is not: that is the better message
        source = f"extra {extra!r}: pip install 'smt-vision[{extra}]'" if extra else f"pip install {package}"
        raise ImportError(f"the package {module!r} is not installed; install it with {source}") from error


def version_of(module: str) -> str:
    """Version of an installed module, whatever the package that has it is called, e.g. ``onnxruntime-gpu``."""
    try:
        return version(module)
    except PackageNotFoundError:
        return str(importlib.import_module(module).__version__)
