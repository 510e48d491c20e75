"""Registration of the models with timm, when timm is imported.

Importing timm takes seconds, which a command that only prints help, or reads recipes, need not wait for. So where timm
has not been imported yet, the import of this package does not import it: the models are registered as soon as anyone
imports timm.
"""

import importlib
import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

REGISTRY = f"{__package__}.registry"


class _Finder(importlib.abc.MetaPathFinder):
    """Finds timm as the other finders do, with a loader that registers the models after it."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname != "timm":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((spec for finder in others if (spec := finder.find_spec(fullname, path, target))), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec


class _Loader(importlib.abc.Loader):
    """Loads a module with another loader, then the registry."""

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self.loader, self.finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self.loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        spec.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        importlib.import_module(REGISTRY)  # after an error, the next import of timm tries again
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)

    def __getattr__(self, name: str) -> Any:
        """What else the other loader has, e.g. ``get_data``."""
        return getattr(self.loader, name)


def register() -> None:
    """Register the models now if timm has been imported, otherwise when it is."""
    if "timm" in sys.modules:
        importlib.import_module(REGISTRY)
    else:
        sys.meta_path.insert(0, _Finder())
