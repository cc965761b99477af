"""Finding the YAML that somebody names: a path, or a file under `configs/`."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from vitas.errors import UserError
from vitas.launch.cluster import REPOSITORY


def find_config(name: str, program: str) -> Path:
    """The path `name`, or `configs/PROGRAM/name`, or `configs/name`; `.yaml` may be left out.

    Raises `UserError` for a name that is none of them, with the near ones.
    """
    configs = REPOSITORY / "configs"
    for folder in (Path(), configs / program, configs):
        for path in (folder / name, folder / f"{name}.yaml"):
            if path.is_file():
                return path
    known = {path.name: path for folder in (configs, configs / program) for path in sorted(folder.glob("*.yaml"))}
    known.pop("cluster.yaml", None)
    # ViTAS_1.3 should find ViTAS_1.3G.yaml, and vitas_1.3g.yaml too.
    by_lower = {known_name.lower().removesuffix(".yaml"): known_name for known_name in known}
    wanted = Path(name).name.lower().removesuffix(".yaml")
    near = [by_lower[match] for match in get_close_matches(wanted, by_lower, n=3, cutoff=0.6)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(known))}"
    raise UserError(f"{name}: no such file, here or in configs/{program}/; {hint}")
