"""The `search` stage of `search.method: asvit`: a topology without training, then networks of many sizes."""

from __future__ import annotations

from search.asvit.growth import grow, name_of
from search.asvit.scoring import GenotypeScorer, ntk_images
from search.asvit.topology import ALGORITHMS
from vitas.config import RunConfig
from vitas.distributed import World, barrier
from vitas.report import Report, shown_path
from vitas.space import Genotype, GenotypeSpace, costs
from vitas.space.found import Found, write_found


def search(config: RunConfig, world: World) -> None:
    """Find a topology and grow it; every network of the series lands in `save_path/search/architectures.yaml`."""
    settings, folder = config.search, config.folder
    report = Report("search", folder, world)
    images = ntk_images(config)
    if settings.topology is None:
        space = GenotypeSpace()
        report.line(
            f"As-ViT: {settings.algorithm} over {space.size:,} topologies, {settings.steps} steps of "
            f"{settings.repeat} initialisations, {world.size} process(es) on {world.device.type}"
        )
        scorer = GenotypeScorer(config, folder.topologies, images, report, world)
        topology = ALGORITHMS[settings.algorithm](config, space, scorer, report, world)
    else:
        topology = Genotype.parse(settings.topology)
    report.line(f"topology {topology.topology}")
    series = grow(topology, config, GenotypeScorer(config, folder.growth, images, report, world), report)
    if world.is_main:
        found = [
            Found(
                name_of(step),
                genotype,
                {
                    "length_distortion": scores.length_distortion,
                    "ntk_condition": scores.ntk_condition,
                    **costs(genotype, config.model.image_size, config.model.num_classes),
                },
            )
            for step, (genotype, scores) in enumerate(series)
        ]
        # The first entry is what `best` means to the stages after this one: here the largest.
        write_found(folder.architectures, found[::-1])
        last = found[-1]
        report.line(
            f"grew {len(found)} networks, {name_of(0)} to {last.name} ({last.architecture}, "
            f"{last.facts['macs']:,} MACs, {last.facts['parameters']:,} parameters), "
            f"in {shown_path(folder.architectures)}"
        )
    report.close()
    # The next stage reads the file on every rank.
    barrier(world)
