"""`vitas check`: everything that a flagged stage would refuse, before the first hour is spent."""

from __future__ import annotations

import shlex
from itertools import combinations
from typing import Any

import click

from vitas.cli.options import command, config_arguments, cores_here, json_option, print_json, progress_bar
from vitas.config import Findings, RunConfig, find, find_mistakes
from vitas.errors import MISTAKE, UserError
from vitas.run import STAGES

# Bad images that are named.
_LISTED = 10


@command(
    "vitas check vitas_1g.yaml",
    "vitas check vitas_1g.yaml --data                          # opens every image",
    "vitas check vitas_1g.yaml search.flag=false --json",
)
@config_arguments
@click.option("--data", "opens", is_flag=True, help="Open every image, and compare the files of the folders.")
@click.option("--processes", type=click.IntRange(1), metavar="N", help="Of --data; by default the cores there are.")
@json_option
def check(config: str, overrides: tuple[str, ...], opens: bool, processes: int | None, as_json: bool) -> int:
    """Find everything that a flagged stage of CONFIG would refuse, in all stages at once.

    Folders, classes that differ, empty classes, batch sizes, budgets that no architecture meets, checkpoints that
    later stages name, and every mistake of the YAML. Where no stage is flagged, all that have a section are looked at.
    Exit code 2 where anything would be refused.
    """
    path = find(config, "search")
    found = find_mistakes(path, overrides)
    mistakes, warnings, images = list(found.mistakes), list(found.warnings), {}
    if opens and found.config is not None:
        images = _open_images(found, found.config, processes or cores_here(), mistakes, warnings)
    if as_json:
        print_json(
            {
                "config": str(path),
                "stages": list(found.stages),
                "mistakes": mistakes,
                "warnings": warnings,
                "images": images,
            }
        )
        return MISTAKE if mistakes else 0
    for line in mistakes:
        print(f"  {line}")
    for line in warnings:
        print(f"  warning: {line}")
    for folder, facts in images.items():
        print(f"  {folder}: {facts['images']:,} images of {facts['classes']:,} classes, {facts['bad']:,} bad")
    stages = ", ".join(found.stages) or "no stage"
    if mistakes:
        print(f"{path}: {len(mistakes)} to mend ({stages})")
        return MISTAKE
    print(f"{path}: nothing to mend ({stages})")
    if found.stages:
        print(f"next: vitas {found.stages[0]} {shlex.join([str(path), *overrides])}")
    return 0


def _open_images(
    found: Findings, config: RunConfig, processes: int, mistakes: list[str], warnings: list[str]
) -> dict[str, dict[str, Any]]:
    """Open the images of the stages' folders, each folder once; adds to mistakes and warnings."""
    from pathlib import Path

    from vitas.data.census import Census, open_all

    sections = {name: getattr(config, name) for name in STAGES if name in found.stages}
    data = {name: section.data for name, section in sections.items() if section is not None and section.data}
    opened: dict[str, Census] = {}
    for name, settings in data.items():
        folder = settings.data_dir
        if not Path(folder).is_dir():
            continue
        try:
            if folder not in opened:
                with progress_bar(folder) as update:
                    opened[folder] = open_all(folder, processes, update)
        except UserError as error:
            mistakes.append(f"{name}.data.data_dir: {error}")
            continue
        census = opened[folder]
        allowed = int(settings.bad_images * census.total)
        if census.bad:
            listed = "".join(f"\n    {path} {reason}" for path, reason in list(census.bad.items())[:_LISTED])
            more = f"\n    and {len(census.bad) - _LISTED:,} more" if len(census.bad) > _LISTED else ""
            line = (
                f"{name}.data.bad_images: {len(census.bad):,} of the {census.total:,} images of {folder!r} are bad; "
                f"{settings.bad_images:g} of them allows {allowed:,}{listed}{more}"
            )
            (mistakes if len(census.bad) > allowed else warnings).append(line)
    for (first, one), (second, other) in combinations(data.items(), 2):
        folders = one.data_dir, other.data_dir
        if folders[0] == folders[1] or not all(folder in opened for folder in folders):
            continue
        common = opened[folders[1]].in_common(opened[folders[0]])
        if common:
            warnings.append(
                f"{second}.data.data_dir: {len(common):,} of the {opened[folders[1]].total:,} images of {folders[1]!r} "
                f"are among those of {first}.data.data_dir, {folders[0]!r}: {common[0][0]} is {common[0][1]}"
            )
    return {
        folder: {
            "images": census.total,
            "classes": len(census.images),
            "bad": len(census.bad),
            "bad_files": {str(path): reason for path, reason in census.bad.items()},
            "of_class": dict(census.images),
        }
        for folder, census in opened.items()
    }
