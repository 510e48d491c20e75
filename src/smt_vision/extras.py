"""Optional dependencies: the one helper through which they are imported."""

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: its full name, as ``datasets``.
        extra: the extra of this package that installs it, as ``data``.

    Returns:
        The module.

    Raises:
        ImportError: it is not installed; the message names the extra and the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # the module is there, and something that it needs itself is not: that is the better message
        raise ImportError(
            f"the package {module!r} is not installed; it comes with the extra {extra!r}: "
            f"pip install 'smt-vision[{extra}]'"
        ) from error
