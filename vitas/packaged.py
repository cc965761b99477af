"""The YAML files that come with the project: `configs/` of the repository, and the same files in a wheel."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from vitas.errors import UserError

# setup.py puts the files of `configs/` beside this module when it makes a wheel; in the repository they lie above it.
_INSTALLED = Path(__file__).resolve().parent / "configs"
FOLDER = _INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parents[1] / "configs"
# What jobs ask Slurm for: no run.
CLUSTER = "cluster.yaml"


def names() -> list[str]:
    """The YAML files of runs, such as `quickstart.yaml` and `search/ViTAS_1G.yaml`, those of no folder first."""
    paths = [path.relative_to(FOLDER) for path in FOLDER.rglob("*.yaml")]
    return [path.as_posix() for path in sorted(paths, key=lambda path: (len(path.parts), path)) if path.name != CLUSTER]


def find(name: str) -> Path:
    """The file of one of `names()`, whose `.yaml` and folder may be left out; capitals do not matter.

    Raises `UserError`, with near names, for others.
    """
    known = names()
    wanted = name.removeprefix("configs/").removesuffix(".yaml").lower()
    by_path = {each.removesuffix(".yaml").lower(): each for each in known}
    fits = [each for path, each in by_path.items() if path == wanted] or [
        each for path, each in by_path.items() if path.rpartition("/")[2] == wanted
    ]
    # A run begins with the search: of files of one name, that of the search is meant.
    fits = [each for each in fits if each.startswith("search/")] or fits
    if len(fits) != 1:
        near = fits or [by_path[path] for path in get_close_matches(wanted, by_path, n=3, cutoff=0.6)]
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise UserError(f"found {name!r}, which does not come with the project; {hint}")
    return FOLDER / fits[0]


def text(name: str) -> str:
    """The text of one of `names()`. Raises `UserError` as `find` does."""
    return find(name).read_text(encoding="utf-8")
