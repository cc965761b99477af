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


def text(name: str) -> str:
    """The text of one of `names()`, whose `.yaml` may be left out. Raises `UserError`, with near names, for others."""
    known = names()
    wanted = name if name.endswith(".yaml") else f"{name}.yaml"
    if wanted not in known:
        near = get_close_matches(wanted, known, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise UserError(f"found {name!r}, which does not come with the project; {hint}")
    return (FOLDER / wanted).read_text(encoding="utf-8")
