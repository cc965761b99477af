"""Calling a function once a module is there, without importing that module."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType


def after_import(name: str, call: Callable[[], object]) -> None:
    """Call `call` when the top-level module `name` has run: now where it has, and after each later import or reload.

    What `call` raises, the import raises. A module that is not installed stays so.
    """
    for finder in sys.meta_path:
        if isinstance(finder, _Finder) and finder.name == name:
            finder.call = call
            break
    else:
        sys.meta_path.insert(0, _Finder(name, call))
    if sys.modules.get(name) is not None:
        call()


class _Finder:
    """Lets the finders after it find the module, and has it loaded by a `_Loader`."""

    def __init__(self, name: str, call: Callable[[], object]) -> None:
        self.name = name
        self.call = call

    def find_spec(self, fullname: str, path=None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        # Those after it alone: two finders of this kind that asked all others would ask each other for ever.
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(fullname, path, target) if find_spec else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self)
                return spec
        return None


class _Loader:
    """The module's own loader, but for the call after the module has run."""

    def __init__(self, loader, finder: _Finder) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str):
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        # The module and its resources belong to the loader that they would have had.
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._finder.call()
