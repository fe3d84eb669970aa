"""Registers our models when timm is imported, without importing timm (five seconds) to do so."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType


def install() -> None:
    """Registers at once if timm is there already, else as soon as somebody imports it."""
    if "timm" in sys.modules:
        _register()
    elif not any(isinstance(finder, _TimmFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TimmFinder())


def _register() -> None:
    from beit3_vqa.models.names import register_with_timm

    register_with_timm()


class _TimmFinder(importlib.abc.MetaPathFinder):
    """Finds timm as the others do, and puts our loader around theirs."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "timm":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("timm")
        if spec is not None and spec.loader is not None:
            spec.loader = _TimmLoader(spec.loader)
        return spec


class _TimmLoader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader):
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        with warnings.catch_warnings():
            # timm 0.6.13, which torchscale pins, scripts its activations on import; torch calls that deprecated.
            warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
            self.loader.exec_module(module)
        _register()
