"""What the tests share: the digits, small spaces and their members, and a configuration of seconds."""

from __future__ import annotations

import os

# The networks here are so small that threads only cost; subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Stages write their pages in the tests of the report alone.
os.environ.setdefault("VITAS_REPORT", "0")

import itertools
import math
import signal
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import yaml
from hypothesis import strategies as st

from vitas import Architecture, Block, SearchSpace, cli
from vitas.data.example_images import write_digits
from vitas.elastic_space import AnySpace, ElasticSpace
from vitas.slurm.signals import SIGNALS

# The same examples in every run, and no clock: a failure is the code's, not the machine's.
hypothesis.settings.register_profile("vitas", derandomize=True, deadline=None, max_examples=50, database=None)
hypothesis.settings.load_profile("vitas")

SMALL_SPACE = {
    "patch_sizes": [4, 8],
    "embed_dim": 32,
    "depth": 3,
    "heads": [2, 4],
    "qkv_dim": 96,
    "mlp_dim": 64,
    "widths": [0.5, 1.0],
}


def largest(space: AnySpace) -> Architecture:
    """The widest, deepest member with the smallest patches: the shape of the supernet."""
    if isinstance(space, ElasticSpace):
        return space.network
    block = Block(space.heads[-1], space.qkv_dims[-1], space.mlp_dims[-1])
    return Architecture(space.patch_sizes[0], space.embed_dims[-1], (block,) * space.depth, space.classifier)


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def reference() -> Path:
    """Numbers of the released implementations."""
    return Path(__file__).with_name("data")


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """scikit-learn's digits as `train`, `val` and `test` image folders of 32 x 32."""
    folder = tmp_path_factory.mktemp("images") / "digits"
    write_digits(folder)
    return folder


@pytest.fixture
def vitas(monkeypatch, capsys):
    """(arguments) -> (exit code, stdout, stderr) of the command on a terminal of 80 columns."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vitas", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "80")
        code = 0
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        finally:
            # A stage listens to them.
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def small_space() -> SearchSpace:
    return SearchSpace(**SMALL_SPACE)


@pytest.fixture(scope="session")
def vitas_spaces() -> dict[str, SearchSpace]:
    """The spaces in which the published networks were found, by the networks' names."""
    ratios = [i / 10 for i in range(1, 11)]
    abe = SearchSpace((14, 16, 32), 384, 16, (3, 6, 12, 16), 1440, 1440, ratios)
    f = SearchSpace((14, 16, 32), 768, 13, (3, 6, 12, 16), 2880, 2880, ratios, identity=False)
    return {"vitas_a": abe, "vitas_b": abe, "vitas_e": abe, "vitas_f": f}


@pytest.fixture(scope="session")
def tiny_spaces() -> dict[str, SearchSpace]:
    """One space of each kind, small enough to go through every genome of it."""
    return {
        "identity": SearchSpace((4, 8), 32, 2, (2, 4), 96, 64, (0.5, 1.0)),
        "deep": SearchSpace((8,), 10, 4, (1,), 9, 7, (1 / 3, 1.0), classifier="mean"),
        "no identity": SearchSpace((4, 8), 32, 2, (2, 4), 96, 64, (0.5, 1.0), identity=False),
        "shared": SearchSpace((4, 8), 32, 3, (2, 4), 96, 64, (0.25, 0.5, 1.0), shared_blocks=True),
        "shared, no identity": SearchSpace(
            (4, 8), 32, 3, (2, 4), 96, 64, (0.5, 1.0), identity=False, shared_blocks=True
        ),
    }


@pytest.fixture(params=["identity", "deep", "no identity", "shared", "shared, no identity"])
def tiny_space(request, tiny_spaces) -> SearchSpace:
    """Each of `tiny_spaces` in turn."""
    return tiny_spaces[request.param]


@pytest.fixture(scope="session")
def all_genomes():
    """space -> every genome of it, an array [genomes, genes]."""
    return lambda space: np.array(list(itertools.product(*map(range, space.gene_counts))))


@pytest.fixture(scope="session")
def all_architectures(all_genomes):
    """space -> its different networks of at least one block, identities last."""

    def enumerate_networks(space: SearchSpace) -> list[Architecture]:
        networks = dict.fromkeys(space.decode(genome).shifted() for genome in all_genomes(space))
        return [network for network in networks if network.depth]

    return enumerate_networks


@st.composite
def _spaces(draw) -> SearchSpace:
    steps = draw(st.integers(1, 4))
    ratios = draw(st.sets(st.integers(1, steps), min_size=1))
    heads = draw(st.sets(st.sampled_from([1, 2, 3, 4]), min_size=1))
    return SearchSpace(
        patch_sizes=sorted(draw(st.sets(st.sampled_from([4, 8, 16]), min_size=1))),
        embed_dim=steps * max(heads) + draw(st.integers(steps, 20)),
        depth=draw(st.integers(1, 5)),
        heads=sorted(heads),
        qkv_dim=3 * math.lcm(*heads) * steps * draw(st.integers(1, 3)),
        mlp_dim=draw(st.integers(2 * steps, 30)),
        widths=[ratio / steps for ratio in sorted(ratios)],
        identity=draw(st.booleans()),
        shared_blocks=draw(st.booleans()),
        classifier=draw(st.sampled_from(["token", "mean"])),
    )


@pytest.fixture(scope="session")
def spaces() -> st.SearchStrategy[SearchSpace]:
    """Random valid spaces for 16 x 16 images and larger ones."""
    return _spaces()


@pytest.fixture
def make_config(tmp_path, digits):
    """(overrides by dotted key, file name) -> a YAML of four stages that take seconds, all of them flagged.

    Everything lies below `tmp_path`; the run's folder is `tmp_path / "run"`.
    """

    def make(overrides: dict[str, object] | None = None, name: str = "config.yaml") -> Path:
        config = small_run(tmp_path / "run", digits)
        for key, value in (overrides or {}).items():
            *sections, last = key.split(".")
            section = config
            for part in sections:
                section = section.setdefault(part, {})
            section[last] = value
        path = tmp_path / name
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    return make


def small_run(save_path: Path, digits: Path) -> dict:
    """The configuration of four stages that take seconds, as plain data."""
    augmentation = {"auto_augment": None, "color_jitter": 0.0, "random_erasing": 0.0, "flip": 0.0, "scale": [0.7, 1.0]}

    def evaluation(part: str) -> dict:
        return {"data_dir": str(digits / part), "workers": 0, "crop_fraction": 1.0}

    def training() -> dict:
        return {
            "flag": True,
            "data": {"data_dir": str(digits / "train"), "workers": 0, "augmentation": dict(augmentation)},
            "epochs": 2,
            "batch_size": 64,
            "lr": 2e-3,
            "warmup_epochs": 1,
            "clip_grad": 5.0,
            "log_steps": 8,
        }

    return {
        "save_path": str(save_path),
        "seed": 0,
        # The sharing with the most passes.
        "model": {"image_size": 32, "num_classes": 10, "sharing": "bilateral", "space": dict(SMALL_SPACE)},
        "search": training(),
        "sample": {
            "flag": True,
            "data": evaluation("val"),
            "budget": {"minimum": 400_000, "maximum": 1_200_000},
            "initial_population": 6,
            "population": 4,
            "generations": 2,
            "sample_num": 3,
        },
        "retrain": training() | {"architecture": "best", "drop_path_rate": 0.1},
        "test": {"flag": True, "data": evaluation("test")},
    }
