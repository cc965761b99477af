"""Checks that types cannot express: keys that depend on each other, or on what is in the file system."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any

from vitas.architecture import Architecture, check_patch_size
from vitas.asvit.genotype import Genotype, GenotypeSpace
from vitas.catalog import BEST, AnyArchitecture
from vitas.config.audit import audit, audit_images
from vitas.config.retrain import Retrain, TokenPhase
from vitas.config.run_config import RunConfig
from vitas.config.sample import Sample
from vitas.config.search import AsvitSearch, Search
from vitas.config.training import Training
from vitas.data.folders import EvaluationData, TrainingData, check_image_folder, class_names, common_image
from vitas.elastic_space import Shares
from vitas.errors import UserError
from vitas.report.callbacks import check_callbacks
from vitas.report.loggers import missing_package
from vitas.run import STAGES, offered_by
from vitas.sharing import SCHEMES
from vitas.space import SearchSpace


def check(config: RunConfig, stages: Sequence[str]) -> Iterator[str]:
    """A line per mistake that types cannot find; the file system is checked for the flagged ones of `stages`."""
    model = config.model
    flagged = config.flagged(stages)
    # Only a run that searches needs its space to fit the images.
    searches = bool(config.flagged(("search", "sample")))
    # What a pretrained network allows is known when it has been read: `search` checks it then.
    is_known = model.from_pretrained is None or config.folder.pretrained.exists()
    if model.from_pretrained is not None:
        yield from _check_pretrained(config, flagged)
    elif isinstance(model.space, Shares) or _needs_space(config, flagged):
        yield from _attempt("", lambda: model.dims)
    if isinstance(model.space, SearchSpace) and searches:
        for patch_size in model.space.patch_sizes:
            yield from _attempt("model.space.patch_sizes: ", partial(check_patch_size, patch_size, model.image_size))
    if isinstance(config.search, AsvitSearch):
        yield from _check_asvit(config.search, config)
    if isinstance(config.search, Search):
        yield from _check_subnets(config.search, config.sample)
    if config.sample is not None:
        if not any(offered_by("sample.objectives")[name].is_score for name in config.sample.objectives):
            yield f"sample.objectives: found {config.sample.objectives}; error or loss must be among them"
        if config.sample.adapt is not None and not isinstance(config.search, Search):
            yield "sample.adapt: its images and its loss are missing (section search)"
        budget = config.sample.budget
        has_space = isinstance(model.space, SearchSpace) == (model.from_pretrained is None)
        if has_space and is_known and searches and not budget.is_speed:
            yield from _attempt("sample.budget", partial(_check_budget, config))
    for name, section in (("search", config.search), ("retrain", config.retrain)):
        if not isinstance(section, Training):
            continue
        teacher = section.distillation.teacher if section.distillation is not None else None
        if teacher == "pretrained" and model.from_pretrained is None:
            yield f"{name}.distillation.teacher: found 'pretrained', but model.from_pretrained is missing"
        has_largest = isinstance(section, Search) and _trains_largest(section)
        if section.distillation is not None and section.distillation.teacher == "largest" and not has_largest:
            yield (
                f"{name}.distillation.teacher: found 'largest'; only a step of search that trains the largest subnet "
                "beside others has it (search.subnets.together: sandwich)"
            )
        if section.warmup_epochs >= section.epochs:
            yield (
                f"{name}.warmup_epochs: found {section.warmup_epochs}; "
                f"it must be less than {name}.epochs, {section.epochs}"
            )
        if section.min_lr > section.lr:
            yield f"{name}.min_lr: found {section.min_lr}; it must be at most {name}.lr, {section.lr}"
        if (section.mixup or section.cutmix) and section.batch_size % 2:
            yield f"{name}.batch_size: found {section.batch_size}; mixup and cutmix pair images, so it must be even"
    test = config.test
    if test is not None:
        if (test.start is None) != (test.end is None):
            yield "test.start, test.end: found one of the two; a range of epochs needs both"
        elif test.start is not None and test.end is not None and test.start > test.end:
            yield f"test.start: found {test.start}; it must be at most test.end, {test.end}"
        if test.start is not None and test.load_name is not None:
            yield f"test.load_name: found {test.load_name!r} beside a range (test.start, test.end); give one of them"
        if test.from_supernet:
            for key in ("start", "end", "load_name"):
                if getattr(test, key) is not None:
                    yield f"test.{key}: found {getattr(test, key)!r} beside from_supernet, which has no checkpoints"
            if len(SCHEMES[model.sharing].scoring_sides) > 1:
                yield (
                    f"test.from_supernet: found true, but with {model.sharing} sharing a subnet is several networks "
                    "whose logits are summed; retrain it (retrain.from_supernet)"
                )
        if test.wait and test.start is None:
            yield "test.wait: found true without a range; it waits for the epochs of test.start to test.end"
        if test.wait and test.start is not None and test.end is not None and config.retrain is not None:
            yield from _check_waiting(range(test.start, test.end + 1, test.strip), config.retrain)
    if config.retrain is not None and config.retrain.from_supernet and config.retrain.from_checkpoint is not None:
        yield "retrain.from_supernet, retrain.from_checkpoint: found both; a network starts from one of them"
    for name in ("retrain", "test"):
        reference = _known_reference(config, name, flagged)
        if reference is not None:
            yield from _attempt(f"{name}.architecture: ", partial(config.architecture, reference))
    for name, inheriting in (("retrain", config.retrain), ("test", config.test)):
        if inheriting is not None and name in flagged and inheriting.from_supernet and is_known:
            reference = inheriting.architecture or BEST
            if not _will_be_found(config, reference, flagged):
                yield from _attempt(f"{name}.from_supernet: ", partial(_check_inheritable, config, reference))
    if config.retrain is not None:
        if config.retrain.patience is not None and config.retrain.val is None:
            yield f"retrain.patience: found {config.retrain.patience}, but retrain.val is missing: its top-1 is watched"
        yield from _check_tokens(config.retrain.tokens, config, flagged)
    for name in config.loggers if flagged else ():
        if (package := missing_package(name)) is not None:
            yield f"loggers: found {name!r}, and it is not installed here: pip install {package}, or leave it out"
    if flagged:
        yield from _attempt("", partial(check_callbacks, config.callbacks))
    for name in flagged:
        yield from _check_data(config, name)
        yield from audit_images(config, name)
    if "search" in flagged and "sample" not in flagged and getattr(config.search, "panel", None) is not None:
        # The panel's images, which are looked at when the first epochs are over.
        yield from _check_data(config, "sample")
    yield from _check_class_names(config)
    yield from _check_parts(config)
    if config.sample is not None and "sample" in flagged and isinstance(config.search, Search):
        why = "scores on images that the supernet was trained on rank nothing"
        yield from _check_apart(("search.data", config.search.data), ("sample.data", config.sample.data), why)
    if config.retrain is not None and config.retrain.val is not None and "retrain" in flagged:
        why = "what is trained on tells nothing of other images"
        yield from _check_apart(("retrain.data", config.retrain.data), ("retrain.val", config.retrain.val), why)


def _check_apart(training: tuple[str, TrainingData], evaluation: tuple[str, EvaluationData], why: str) -> Iterator[str]:
    """A line where images that are measured on are trained on. Each section comes with its key."""
    (training_key, trained), (key, measured) = training, evaluation
    common = _trained_on(trained, measured)
    if common is not None:
        yield (
            f"{key}.data_dir: found {measured.data_dir!r}, whose {common} is among the images of "
            f"{training_key}.data_dir, {trained.data_dir!r}; {why}: choose others, or hold a share of them out "
            "(holdout, in both sections)"
        )


def doubts(config: RunConfig, stages: Sequence[str]) -> Iterator[str]:
    """A line for each thing that is allowed, but is seldom meant, where the flagged ones of `stages` run."""
    if config.sample is not None and config.test is not None:
        val, test = config.sample.data.data_dir, config.test.data.data_dir
        if common_image(val, test) is not None:
            yield (
                f"sample.data.data_dir {val!r} and test.data.data_dir {test!r} have images in common: "
                "what the search chose by these images is flattered by a test on them"
            )
    if config.retrain is not None and config.retrain.val is not None and config.test is not None:
        val, test = config.retrain.val.data_dir, config.test.data.data_dir
        if common_image(val, test) is not None:
            yield (
                f"retrain.val.data_dir {val!r} and test.data.data_dir {test!r} have images in common: the epoch that "
                "is best by these images is flattered by a test on them"
            )
    if _trains_on_held_out(config):
        yield (
            "retrain.data has no holdout, and sample.data has one of the same folder: the network is trained on the "
            "images too that chose it, and must be tested on others"
        )
    # Of the stages of other programs: better said now than after the days that these take.
    later = [name for name in config.flagged(tuple(STAGES)) if name not in stages]
    for name in later if config.flagged(stages) else ():
        for line in (*_check_data(config, name), *audit(config, name)):
            yield f"{line}; `{name}` will need it"


def _data_sections(config: RunConfig) -> dict[str, TrainingData | EvaluationData]:
    """The sections that name image folders, by their keys."""
    sections = {f"{name}.data": getattr(getattr(config, name), "data", None) for name in STAGES}
    sections["retrain.val"] = config.retrain.val if config.retrain else None
    return {key: section for key, section in sections.items() if section is not None}


def _check_budget(config: RunConfig) -> None:
    """Raise `UserError`, to stand behind `sample.budget`, unless an architecture of the space meets the budget."""
    try:
        budget = config.budget
    except UserError as error:
        # It begins with the field.
        raise UserError(f".{error}") from None
    if budget is not None:
        try:
            config.macs_model.require(budget)
        except UserError as error:
            raise UserError(f": {error}") from None


def _check_data(config: RunConfig, stage: str) -> Iterator[str]:
    for key, section in _data_sections(config).items():
        if key.startswith(f"{stage}."):
            check = partial(check_image_folder, section.data_dir, config.model.num_classes)
            yield from _attempt(f"{key}.data_dir: ", check)


def _is_same_folder(first: str, second: str) -> bool:
    return Path(first).resolve() == Path(second).resolve()


def _trained_on(training: TrainingData, evaluation: EvaluationData) -> str | None:
    """An image of `evaluation` that is trained on, of those that are compared (see `common_image`)."""
    if evaluation.holdout is not None and _is_same_folder(training.data_dir, evaluation.data_dir):
        # The other part of one split; or `_check_parts` says why not.
        return None
    return common_image(training.data_dir, evaluation.data_dir)


def _trains_on_held_out(config: RunConfig) -> bool:
    """Whether `retrain` trains on the images too that `sample` holds out, as a network is usually trained in the end.

    With `from_supernet` it may not: then what it gained is measured on them.
    """
    retrain, sample = config.retrain, config.sample
    if retrain is None or sample is None or retrain.from_supernet:
        return False
    same = _is_same_folder(retrain.data.data_dir, sample.data.data_dir)
    return same and retrain.data.holdout is None and sample.data.holdout is not None


def _check_parts(config: RunConfig) -> Iterator[str]:
    """Sections that name one folder must split it alike, and none may train on what another holds out of it."""
    sections = _data_sections(config)
    for (key, section), (other_key, other) in combinations(sections.items(), 2):
        if not _is_same_folder(section.data_dir, other.data_dir):
            continue
        if None not in (section.holdout, other.holdout) and section.holdout != other.holdout:
            yield (
                f"{other_key}.holdout: found {other.holdout}, and {key}.holdout is {section.holdout}; sections of one "
                f"folder, {section.data_dir!r}, must hold out the same share"
            )
    trained_whole = [key for key in ("search.data", "retrain.data") if key in sections and not sections[key].holdout]
    held_out = [key for key in ("sample.data", "retrain.val", "test.data") if key in sections and sections[key].holdout]
    for key, other_key in product(trained_whole, held_out):
        folder, share = sections[key].data_dir, sections[other_key].holdout
        is_last = key == "retrain.data" and other_key == "sample.data" and _trains_on_held_out(config)
        if _is_same_folder(folder, sections[other_key].data_dir) and not is_last:
            yield (
                f"{key}.holdout: is missing; {other_key} holds {share} of the same folder, {folder!r}, out, and {key} "
                f"would train on these images: say {share} in both"
            )


def _needs_space(config: RunConfig, flagged: Sequence[str]) -> bool:
    return "sample" in flagged or ("search" in flagged and isinstance(config.search, Search))


def _check_pretrained(config: RunConfig, flagged: Sequence[str]) -> Iterator[str]:
    model = config.model
    yield from _attempt("", lambda: model.shares)
    if isinstance(config.search, AsvitSearch):
        yield "model.from_pretrained: As-ViT scores untrained networks; take search.method: supernet"
    if not SCHEMES[model.sharing].keeps_heads:
        yield f"model.sharing: found {model.sharing!r}, which would cut the heads of a pretrained network apart"
    if isinstance(config.search, Search) and "search" in flagged and config.search.subnets.draw == "published":
        yield "search.subnets.draw: found 'published', which is of ViTAS's spaces; take in_budget or uniform"
    if "sample" in flagged and "search" not in flagged and not config.folder.pretrained.exists():
        yield f"model.from_pretrained: {config.folder.pretrained} is not there: `search` writes it; run it first"


def _trains_largest(search: Search) -> bool:
    return bool(offered_by("search.subnets.together")[search.subnets.together].ends)


def _check_subnets(search: Search, sample: Sample | None) -> Iterator[str]:
    subnets = search.subnets
    draws = offered_by("search.subnets.draw")
    if draws[subnets.draw].needs_budget and sample is None:
        others = " or ".join(name for name, draw in draws.items() if not draw.needs_budget)
        yield (
            f"search.subnets.draw: found {subnets.draw!r}, but the budget is missing (sample.budget); "
            f"without one, take {others}"
        )
    if search.identity_probability is not None and not draws[subnets.draw].reads_identity_probability:
        readers = " or ".join(repr(name) for name, draw in draws.items() if draw.reads_identity_probability)
        yield (
            f"search.identity_probability: found {search.identity_probability}; "
            f"search.subnets.draw is {subnets.draw!r}, and only {readers} reads it"
        )
    if search.panel is not None and sample is None:
        yield "search.panel: its budget and images are missing (section sample)"
    if search.batch_size % subnets.parts:
        yield (
            f"search.subnets.parts: found {subnets.parts}; it must divide search.batch_size, {search.batch_size}, "
            "so that each part has as many images"
        )


def _check_waiting(waited: range, retrain: Retrain) -> Iterator[str]:
    beyond = max(0, -(-(retrain.epochs + 1 - waited.start) // waited.step))
    # Of the others, if any is never written, one of the first three is not: the range has one stride.
    for epoch in (*waited[:3], *waited[beyond : beyond + 1]):
        if epoch > retrain.epochs or (epoch % retrain.checkpoint_epochs and epoch != retrain.epochs):
            yield (
                f"test.end: found {waited.stop - 1}; it would wait for epoch {epoch}, which is never written: "
                f"retrain.epochs is {retrain.epochs}, retrain.checkpoint_epochs is {retrain.checkpoint_epochs}"
            )
            return


def _check_asvit(search: AsvitSearch, config: RunConfig) -> Iterator[str]:
    growth, model = search.growth, config.model
    space = GenotypeSpace()
    if config.sample is not None and config.sample.flag:
        yield "sample.flag: found true; with search.method asvit there is no supernet to sample from, so leave it out"
    if search.topology is not None:
        try:
            genotype = Genotype.parse(search.topology)
            genotype.check_image_size(model.image_size)
        except UserError as error:
            yield f"search.topology: {error}"
            return
        smallest = [genotype]
    else:
        try:
            space.check_image_size(model.image_size)
        except UserError as error:
            yield f"model.image_size: {error}"
            return
        smallest = [space.decode([0] * (len(space.gene_counts) - 1) + [i]) for i in range(len(space.heads))]
    if growth.parameters is None and growth.macs is None:
        yield "search.growth: found neither parameters nor macs; one of them must say when a network is large enough"
    narrow = growth.hidden_dim * growth.score_width
    if abs(narrow - round(narrow)) > 1e-6:
        yield (
            f"search.growth.hidden_dim: found {growth.hidden_dim}; networks are scored at {growth.score_width} of it, "
            f"{narrow:g}, which must be a whole number"
        )
        return
    for genotype in smallest:
        stages = tuple(replace(stage, layers=1) for stage in genotype.stages)
        try:
            first = replace(genotype, stages=stages, hidden_dim=growth.hidden_dim)
            replace(first, hidden_dim=round(narrow))
        except UserError as error:
            yield f"search.growth.hidden_dim: found {growth.hidden_dim}; scored at {growth.score_width} of it, {error}"
            return
        for name, limit in growth.limits.items():
            least = first.costs(model.image_size, model.num_classes)[name]
            if limit is not None and least is not None and limit < least:
                yield f"search.growth.{name}: found {limit:,}; the smallest network that can be grown has {least:,}"
                return


def _check_tokens(tokens: Sequence[TokenPhase], config: RunConfig, flagged: Sequence[str]) -> Iterator[str]:
    for i, (before, phase) in enumerate(pairwise(tokens), 1):
        if phase.until <= before.until:
            yield f"retrain.tokens.{i}.until: found {phase.until}; it must be more than the one before, {before.until}"
    reference = _known_reference(config, "retrain", flagged)
    if reference is not None:
        # An architecture that cannot be found has its own message already.
        with suppress(UserError):
            yield from check_token_phases(tokens, config.architecture(reference), config.model.image_size)


def _check_inheritable(config: RunConfig, reference: str | dict[str, Any]) -> None:
    """Raise `UserError` unless the supernet has weights for an architecture."""
    architecture = config.architecture(reference)
    if not isinstance(architecture, Architecture):
        raise UserError(f"found true, but {architecture} is a genotype, and no supernet has weights for one")
    config.space.encode(architecture.shifted())


def _known_reference(config: RunConfig, stage: str, flagged: Sequence[str]) -> str | dict[str, Any] | None:
    """What `STAGE.architecture` refers to; None if its checkpoint will say it, or an earlier flagged stage find it."""
    if stage not in flagged:
        return None
    section = getattr(config, stage)
    reference = section.architecture
    if stage == "test" and section.from_supernet and reference is None:
        reference = BEST
    if stage == "retrain" and reference is None and section.from_checkpoint is None:
        reference = BEST
    return None if _will_be_found(config, reference, flagged) else reference


def _will_be_found(config: RunConfig, reference: str | dict[str, Any] | None, flagged: Sequence[str]) -> bool:
    """Whether a flagged stage writes architectures.yaml, and the reference is an entry of it."""
    writes = "sample" in flagged or ("search" in flagged and isinstance(config.search, AsvitSearch))
    return writes and isinstance(reference, str) and bool(re.fullmatch(rf"{BEST}|(subnet|grown)_\d+", reference))


def _check_class_names(config: RunConfig) -> Iterator[str]:
    """Labels are indices into the sorted names of the class folders, so all stages must have the same names."""
    folders = {key: section.data_dir for key, section in _data_sections(config).items()}
    names = {key: class_names(folder) for key, folder in folders.items() if Path(folder).is_dir()}
    for name in list(names)[1:]:
        first = next(iter(names))
        differing = sorted(set(names[name]) ^ set(names[first]))
        if differing and len(names[name]) == len(names[first]):
            more = f", and so are {len(differing) - 1} more" if len(differing) > 1 else ""
            yield (
                f"{name}.data_dir: found {folders[name]!r}, whose class folders differ from those of "
                f"{first}.data_dir, {folders[first]!r}: {differing[0]!r} is in one of them only{more}"
            )


def check_token_phases(tokens: Sequence[TokenPhase], architecture: AnyArchitecture, image_size: int) -> Iterator[str]:
    """A line per phase of `retrain.tokens` that leaves an architecture too few tokens at this image size."""
    for i, phase in enumerate(tokens):
        yield from _attempt(
            f"retrain.tokens.{i}.reduce: ", partial(architecture.check_token_reduction, image_size, phase.reduce)
        )


def _attempt(prefix: str, check: Callable[[], object]) -> Iterator[str]:
    try:
        check()
    except UserError as error:
        yield f"{prefix}{error}"
