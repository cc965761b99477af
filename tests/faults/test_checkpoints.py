"""Files of weights with anything in them: read as what they were, or refused; and nothing in them is ever run."""

import io
import os
import pickle
import random
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from tests.faults.fuzz import fuzzed, read_or_refused
from vitas.checkpoint import read, safetensors_bytes, write
from vitas.loading import load_weights

MARK = "VITAS_WAS_HERE"


class Evil:
    """What runs a command when it is unpickled as pickle does by default."""

    def __init__(self, how) -> None:
        self._how = how

    def __reduce__(self):
        return self._how


def commands(path) -> list[tuple]:
    text = f"open({str(path)!r}, 'w').close()"
    return [(eval, (text,)), (exec, (text,)), (os.system, (f"touch {path}",)), (open, (str(path), "w"))]


def saved(state: object, **options: object) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, **options)
    return file.getvalue()


def ours(folder) -> bytes:
    write({"model": nn.Linear(3, 2).state_dict(), "step": 3, "recipe": {"seed": 0}}, folder / "ours")
    return (folder / "ours").read_bytes()


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> list[bytes]:
    folder, state = tmp_path_factory.mktemp("seeds"), nn.Linear(3, 2).state_dict()
    return [
        ours(folder),
        saved(state),
        saved({"model": state, "architecture": "p8-e32-token-h2q96m64"}),
        saved(state, _use_new_zipfile_serialization=False),
        save(state, {"architecture": "p8-e32-token-h2q96m64"}),
        safetensors_bytes(state, {"format": "pt"}),
        pickle.dumps({"weight": [1, 2, 3]}),
    ]


@st.composite
def changed_bytes(draw, seeds: list[bytes]) -> bytes:
    """A file with bytes flipped, cut out, put in, repeated or exchanged."""
    data = bytearray(draw(st.sampled_from(seeds)))
    rng = random.Random(draw(st.integers(0, 2**32)))
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 2, 4, 8, 64, 400))
        change = rng.choice(("flip", "flip", "byte", "cut", "put", "repeat", "move", "end", "number"))
        if change == "flip" and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif change == "byte" and at < len(data):
            data[at] = rng.randrange(256)
        elif change == "cut":
            del data[at : at + length]
        elif change == "put":
            data[at:at] = rng.randbytes(length)
        elif change == "repeat":
            data[at:at] = data[at : at + length] * rng.choice((1, 50))
        elif change == "move":
            part = data[at : at + length]
            del data[at : at + length]
            place = rng.randrange(len(data) + 1)
            data[place:place] = part
        elif change == "end":
            del data[at:]
        elif change == "number":
            data[at : at + 8] = rng.choice((0, 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)).to_bytes(8, "little")
    return bytes(data)


@st.composite
def changed_pickles(draw, seeds: list[bytes]) -> bytes:
    """An archive whose pickle was changed, and whose checksums were then made anew."""
    with zipfile.ZipFile(io.BytesIO(seeds[1])) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    entries[name] = draw(changed_bytes([entries[name]]))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))) as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    return file.getvalue()


def look(path) -> None:
    """Read a file as the programs do."""
    state = read_or_refused(lambda: read(path))
    assert state is None or isinstance(state, dict)
    read_or_refused(lambda: load_weights(nn.Linear(3, 2), path))


@fuzzed()
@given(data=st.data())
def test_changed_files_of_weights_are_read_or_refused(tmp_path_factory, seeds, data) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.pth"
    path.write_bytes(data.draw(changed_bytes(seeds) | changed_pickles(seeds)))
    look(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("place", ["whole", "model", "deep", "key"])
def test_no_file_of_weights_runs_a_command(tmp_path, place, kind, zipped) -> None:
    mark = tmp_path / MARK
    evil = Evil(commands(mark)[kind])
    state = {
        "whole": evil,
        "model": {"model": evil},
        "deep": {"model": {"weight": [{"a": (evil,)}]}},
        "key": {"recipe": {"x": evil}},
    }[place]
    path = tmp_path / "evil.pth"
    path.write_bytes(saved(state, _use_new_zipfile_serialization=zipped))
    look(path)
    assert not mark.exists()
    # It would have run, so that the line above can fail.
    torch.load(path, weights_only=False)
    assert mark.exists()
