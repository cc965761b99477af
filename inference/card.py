"""What an exported network's card says of its test and its training: what the run's files say of these weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitas.architecture import Architecture
from vitas.config import RunConfig
from vitas.errors import UserError, is_integer
from vitas.model_card import Measured, Trained
from vitas.plain_data import parse_json, read_text


def data_name(data_dir: str) -> str:
    """What a folder of images is called: `digits/test`. The rest of its path is this machine's."""
    return "/".join(Path(data_dir).parts[-2:])


def trained_of(state: Mapping[str, Any], config: RunConfig) -> Trained | None:
    """How the weights of a checkpoint were trained; None for one that does not say it, as those of other programs."""
    recipe = state.get("recipe")
    if not isinstance(recipe, Mapping):
        return None
    inherited = config.test is not None and config.test.from_supernet
    section = config.search if inherited else config.retrain
    listing = state.get("listing")
    images = sum(count for count, _ in listing.values()) if isinstance(listing, Mapping) else None
    # With `data` among the changes it counts those of the end.
    started_from = config.model.from_pretrained if inherited else recipe.get("from_checkpoint")
    if not inherited and recipe.get("from_supernet"):
        started_from = "the supernet of its search"
    return Trained(
        data=data_name(section.data.data_dir) if section is not None and section.data is not None else None,
        images=images,
        epochs=state.get("epoch", 0),
        of_epochs=epochs if is_integer(epochs := recipe.get("epochs")) else None,
        supernet=inherited,
        started_from=started_from and Path(started_from).name,
        teacher=teacher if isinstance(teacher := recipe.get("distillation.teacher"), str) else None,
        changes=bool(state.get("changes")),
    )


def measured_of(config: RunConfig, path: Path, architecture: Architecture) -> Measured | None:
    """What `test` wrote about the weights that the `test` section chooses; None if it measured other ones.

    path: the checkpoint. One that is newer than the results is not the one that was measured.
    """
    results, test, model = config.folder.results, config.test, config.model
    try:
        if path.stat().st_mtime_ns > results.stat().st_mtime_ns:
            return None
        data: Any = parse_json(read_text(results), str(results))
        for row in data["checkpoints"]:
            if (
                Path(row["checkpoint"]).resolve() == path.resolve()
                and row["weights"] == test.weights
                and row["architecture"] == str(architecture)
                and bool(row.get("from_supernet")) == test.from_supernet
                # Of images of this size, and so many classes.
                and row["macs"] == architecture.macs(model.image_size, model.num_classes)
            ):
                numbers = (float(row[name]) for name in ("top1", "top5", "loss"))
                return Measured(data_name(test.data.data_dir), row["images"], *numbers, row["images_left_out"])
    except (OSError, UserError, KeyError, TypeError, ValueError):
        # No results, or those of an older version.
        return None
    return None
