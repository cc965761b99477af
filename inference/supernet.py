"""Subnets with the supernet's own weights: which one `test` chooses, and the release of the whole supernet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vitas import __version__, loading
from vitas.architecture import Architecture
from vitas.catalog import BEST
from vitas.checkpoint import CheckpointFolder
from vitas.config import RunConfig
from vitas.data.folders import check_image_folder, class_names
from vitas.errors import UserError, require_number
from vitas.journal import Journal, read_records
from vitas.models import SuperNet, VisionTransformer
from vitas.report import shown_path
from vitas.supernet_folder import ABOUT, Member, front_of, require_one_network, write_supernet_folder


def supernet_checkpoint(config: RunConfig) -> Path:
    """The checkpoint that `sample` takes too. Raises `UserError` where there is none."""
    return CheckpointFolder(config.folder.checkpoints("search")).resolve(_load_name(config))


def _load_name(config: RunConfig) -> str | None:
    return config.sample.load_name if config.sample else None


def trained_supernet(config: RunConfig, weights: str) -> tuple[SuperNet, dict]:
    """The run's supernet with the weights `model` or `ema`, in eval mode on the CPU; and its checkpoint.

    Raises `UserError` where there is none, and where a subnet is more than one network.
    """
    path, state = CheckpointFolder(config.folder.checkpoints("search")).read(_load_name(config))
    supernet = SuperNet.of(config)
    require_one_network(supernet)
    loading.load_state(supernet, state, path, weights)
    return supernet.eval(), state


def inherited_network(config: RunConfig) -> tuple[VisionTransformer, dict]:
    """The network of `test.architecture`, by default the best one found, with the supernet's weights; its checkpoint.

    Raises `UserError` as `trained_supernet` does, and for an architecture outside the space.
    """
    reference = config.test.architecture or BEST
    architecture = config.architecture(reference)
    if not isinstance(architecture, Architecture):
        raise UserError(f"test.from_supernet: {architecture} is a genotype, and no supernet has weights for one")
    supernet, state = trained_supernet(config, config.test.weights)
    try:
        return supernet.extract(architecture.compact()), state
    except UserError as error:
        raise UserError(f"test.architecture: {error}") from None


def name_of_subnet(config: RunConfig) -> str:
    """What a file of the subnet is called: its name where it has one."""
    reference = config.test.architecture or BEST
    return reference.rpartition(":")[2] if isinstance(reference, str) else str(config.architecture(reference))


def export_supernet(config: RunConfig, output: Path | None = None, overwrite: bool = False) -> str:
    """Write the run's supernet as a folder for `vitas.load_supernet`, and say in one line what was written.

    output: by default `SAVE_PATH/export/supernet`. overwrite: replace an earlier one.

    Raises `UserError` as `trained_supernet` does, where `sample` has measured
    nothing or other weights, and where `output` is there.
    """
    if config.sample is None:
        raise UserError("sample: is missing; it says how the subnets were measured")
    path = output or config.folder.exports / "supernet"
    if path.exists() and not (overwrite and (path / ABOUT).is_file()):
        replaced = "replace it with --overwrite" if (path / ABOUT).is_file() else "it is no exported supernet"
        raise UserError(f"--output: {path} is there already; choose another name ({replaced})")
    supernet, state = trained_supernet(config, config.sample.weights)
    members = list(_measured(config, supernet))
    data, model = config.sample.data, config.model
    if Path(data.data_dir).is_dir():
        check_image_folder(data.data_dir, model.num_classes)
        names = class_names(data.data_dir)
    else:
        names = [str(label) for label in range(model.num_classes)]
    facts = {
        "epoch": state.get("epoch", 0),
        "from_pretrained": model.from_pretrained,
        "measured": len(members),
        "vitas_version": __version__,
    }
    write_supernet_folder(path, supernet, members, model.mean, model.std, names, data.crop_fraction, facts)
    front = front_of(members)
    return (
        f"{shown_path(supernet_checkpoint(config))} -> {shown_path(path)}: {len(front)} networks on the front, "
        f"from {front[0].macs:,} MACs ({front[0].top1:.2f}%) to {front[-1].macs:,} ({front[-1].top1:.2f}%)"
    )


def _measured(config: RunConfig, supernet: SuperNet) -> Iterator[Member]:
    """The subnets that `sample` has measured with the supernet's own weights, on all its images.

    Raises `UserError` where it measured other weights: `search` went on since.
    """
    model, path = config.model, config.folder.population
    lines = Journal(path).lines
    if lines and lines[0].get("supernet") != supernet.digest():
        raise UserError(f"{path} holds scores of other weights than these; move it away and run `sample` again")

    def read(line: dict) -> Member | None:
        if line.get("rung", "supernet") != "supernet":
            return None
        architecture = Architecture.parse(line.get("architecture")).compact()
        costs = architecture.costs(model.image_size, model.num_classes)
        return Member(
            architecture, require_number(line.get("top1"), "top1", 0, 100), costs["macs"], costs["parameters"]
        )

    yield from filter(None, read_records(path, lines[1:], read, first=2))
