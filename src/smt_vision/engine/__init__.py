"""The only training and evaluation loops of the project, and what they write down."""

import sys
from importlib.metadata import version
from types import ModuleType


def _import_fabric() -> None:
    """Import Fabric, which imports torchmetrics only to compare its version: over a second of a start."""
    if "torchmetrics" in sys.modules:
        return
    stub = ModuleType("torchmetrics")
    stub.__dict__["__version__"] = version("torchmetrics")
    sys.modules["torchmetrics"] = stub
    try:
        import lightning_fabric  # noqa: F401
    finally:
        del sys.modules["torchmetrics"]


_import_fabric()
