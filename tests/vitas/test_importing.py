"""Calling a function once a module is there: after every import and reload, and with nothing of the module changed."""

import importlib
import importlib.util
import sys

import pytest

from vitas.importing import after_import


@pytest.fixture
def late(tmp_path, monkeypatch):
    """(name, source) -> a module that can be imported; the import machinery is put back afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))

    def make(name: str, source: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text(source)
        (folder / "data.txt").write_text("data")
        importlib.invalidate_caches()

    before = set(sys.modules)
    yield make
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_function_is_called_after_each_time_that_a_module_has_run(late):
    late("late_one", "value = 1")
    calls = []
    after_import("late_one", lambda: calls.append(sys.modules["late_one"].value))
    assert importlib.util.find_spec("late_one").name == "late_one"
    assert importlib.util.find_spec("late_two") is None
    assert (calls, "late_one" in sys.modules) == ([], False)
    module = importlib.import_module("late_one")
    assert calls == [1]
    importlib.reload(module)
    assert calls == [1, 1]
    after_import("late_one", lambda: calls.append("at once"))
    assert calls == [1, 1, "at once"]
    importlib.reload(module)
    assert calls == [1, 1, "at once", "at once"]


def test_a_module_keeps_its_own_loader_and_resources(late):
    late("late_one", "import importlib.resources as r\nheld = (r.files(__name__) / 'data.txt').read_text()")
    plain = importlib.util.find_spec("late_one")
    after_import("late_one", lambda: None)
    found = importlib.util.find_spec("late_one")
    assert (found.origin, found.cached, found.submodule_search_locations) == (
        plain.origin,
        plain.cached,
        plain.submodule_search_locations,
    )
    assert found.loader.get_filename("late_one") == plain.origin
    module = importlib.import_module("late_one")
    assert module.held == "data"
    assert type(module.__loader__) is type(module.__spec__.loader) is type(plain.loader)


@pytest.mark.parametrize("source", ["raise LookupError('its own')", "value = 1"])
def test_what_goes_wrong_is_not_hidden(late, source):
    late("late_one", source)

    def call():
        raise LookupError("of the call")

    after_import("late_one", call)
    with pytest.raises(LookupError, match="its own" if "raise" in source else "of the call"):
        importlib.import_module("late_one")
    assert "late_one" not in sys.modules
