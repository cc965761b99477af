"""YAML -> typed, checked configuration.

One file drives the four stages. `load` refuses what cannot work before
anything is built: every message has the key, what it held and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PrivateAttr, Tag, ValidationError, field_validator

from vitas import cost
from vitas.data import EvaluationData, TrainingData, WeakAugmentation, check_image_folder, class_names
from vitas.errors import UserError
from vitas.files import RunFolder, read_text
from vitas.released import Configuration, read_configuration
from vitas.settings import Settings, explain
from vitas.space import (
    Architecture,
    Genotype,
    GenotypeSpace,
    Network,
    SearchSpace,
    check_patch_size,
    costs,
    network_from_dict,
)
from vitas.space.found import read_found
from vitas.space.published import resolve_architecture

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Channels = Annotated[list[float], Field(min_length=3, max_length=3)]

BEST = "best"


class Space(Settings):
    """The maxima and ratios of `vitas.SearchSpace`, field by field."""

    patch_sizes: list[Positive]
    embed_dim: Positive
    depth: Positive
    heads: list[Positive]
    qkv_dim: Positive
    mlp_dim: Positive
    widths: list[float]
    identity: bool = True
    shared_blocks: bool = False
    classifier: Literal["token", "mean"] = "token"

    def build(self) -> SearchSpace:
        return SearchSpace(**dict(self))


class Model(Settings):
    """What all stages share: the images, the classes, and the space that is searched.

    image_size: side of the images, in pixels. mean, std: their normalisation (ImageNet's).
    space: needed by `search` and `sample`, and by a `retrain.architecture` that is a net_id.
    sharing, qkv_mode: of `vitas.SuperNet`.
    """

    image_size: Positive = 224
    num_classes: Positive = 1000
    mean: Channels = [0.485, 0.456, 0.406]
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)] = [0.229, 0.224, 0.225]
    space: Space | None = None
    sharing: Literal["bilateral", "ordinal"] = "bilateral"
    qkv_mode: Literal[0, 1, 2] = 2


class Training(Settings):
    """The recipe of a training stage; the defaults are those of the published results.

    batch_size: of all processes together.
    lr: the peak; 1e-3 at a batch of 1024, and it is not scaled for you.
    weight_decay: on matrices only.
    warmup_epochs: from a rate of zero; then cosine down to min_lr, per iteration.
    mixup, cutmix: their alphas; 0 is off, and with both each batch takes one.
    clip_grad: the largest gradient norm; 0 is off.
    amp: bfloat16 where there is a GPU.
    keep: how many epoch checkpoints stay; 0 keeps all.
    checkpoint_steps: a checkpoint every so many steps within an epoch; 0 is only after epochs.
    checkpoint_epochs: a checkpoint after every so many epochs, and after the last.
    log_steps: a log line every so many steps.
    """

    flag: bool = False
    data: TrainingData
    epochs: Positive = 300
    batch_size: Positive = 1024
    lr: Annotated[float, Field(gt=0)] = 1e-3
    min_lr: NonNegative = 1e-5
    weight_decay: NonNegative = 0.05
    warmup_epochs: Count = 5
    label_smoothing: Fraction = 0.1
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    clip_grad: NonNegative = 0.0
    amp: bool = True
    keep: Count = 3
    checkpoint_steps: Count = 0
    checkpoint_epochs: Positive = 1
    log_steps: Positive = 50


class SearchData(TrainingData):
    """Training images of the supernet, weakly augmented unless the YAML says otherwise."""

    augmentation: WeakAugmentation = WeakAugmentation()


class Search(Training):
    """The supernet's training.

    method: what the stage does; `asvit` takes the keys of `AsvitSearch`.
    identity_probability: of each position; null has it searched, so that
        random subnets cost the middle of `sample.budget` on average.
    """

    method: Literal["supernet"] = "supernet"
    data: SearchData
    identity_probability: Fraction | None = None


class Growth(Settings):
    """From a topology to larger and larger networks.

    parameters, macs: the budget of a network, at full width; one of them at least.
    hidden_dim: of the network that it starts from, with a block in each stage.
    widen: by which shares a step may raise the hidden dim.
    score_width: the share of the hidden dim at which networks are scored.
    """

    parameters: Positive | None = None
    macs: Positive | None = None
    hidden_dim: Positive = 32
    widen: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = [0.05, 0.1, 0.15, 0.2]
    score_width: Annotated[float, Field(gt=0, le=1)] = 0.25

    @property
    def limits(self) -> dict[str, int | None]:
        """The budget by the names of costs."""
        return {"parameters": self.parameters, "macs": self.macs}


class AsvitSearch(Settings):
    """As-ViT's search without training (arXiv 2202.11921); the defaults are the published settings.

    data: images of the NTK, the same `batch_size` for every network; null is noise.
    algorithm: how the topology is found.
    steps: topologies that are scored on the way.
    repeat: initialisations that a score is the mean of.
    batch_size: images of the NTK. points: of the circle of images that is distorted.
    lr: of the policy's Adam. baseline_decay: of the mean reward that a reward is compared with.
    population: of nsga2.
    topology: grow this one, and search none.
    growth: when a network is large enough, and how one gets there.
    """

    method: Literal["asvit"]
    flag: bool = False
    data: EvaluationData | None = None
    algorithm: Literal["reinforce", "nsga2"] = "reinforce"
    steps: Positive = 500
    repeat: Positive = 5
    batch_size: Annotated[int, Field(ge=2)] = 16
    points: Positive = 10
    lr: Annotated[float, Field(gt=0)] = 0.08
    baseline_decay: Fraction = 0.9
    population: Positive = 25
    topology: str | None = None
    growth: Growth


def _method(section: object) -> object:
    return section.get("method", "supernet") if isinstance(section, Mapping) else getattr(section, "method", "supernet")


# What the stage `search` is told, by its method.
AnySearch = Annotated[Annotated[Search, Tag("supernet")] | Annotated[AsvitSearch, Tag("asvit")], Discriminator(_method)]


class BudgetRange(Settings):
    """What every architecture must cost.

    minimum, maximum: multiply-adds of an image; or images per second, measured on the run's device.
    convention: how multiply-adds are counted, or images_per_second.
    batch_size: images of the forward passes that images per second are measured with.
    """

    minimum: Count
    maximum: Positive
    convention: Literal["released", "true", "images_per_second"] = "released"
    batch_size: Positive = 256

    @field_validator("convention", mode="before")
    @classmethod
    def _unquoted_true(cls, value: object) -> object:
        # YAML reads a bare `true` as a boolean.
        return "true" if value is True else value

    def build(self) -> cost.Budget:
        return cost.Budget(self.minimum, self.maximum, self.convention)


class Sample(Settings):
    """The evolution.

    budget: what every architecture must cost.
    initial_population: random architectures inside the budget that it starts from.
    population, generations: survivors, and rounds of as many children.
    objectives: what is minimised; with `macs` too, the front from cheap to good is kept alive.
    sample_num: how many of the best are written to architectures.yaml.
    mutation: the probability that a gene of a child is drawn anew.
    batch_size: images of an evaluation batch on each process.
    load_name: a checkpoint of the supernet; without it the newest.
    """

    flag: bool = False
    data: EvaluationData
    budget: BudgetRange
    initial_population: Positive = 100
    population: Positive = 50
    generations: Count = 40
    objectives: list[Literal["error", "macs"]] = ["error"]
    sample_num: Positive = 5
    mutation: Probability = 0.1
    batch_size: Positive = 256
    amp: bool = True
    load_name: str | None = None


class TokenPhase(Settings):
    """A part of a training that sees coarser tokens (As-ViT's progressive tokenisation).

    until: where it ends, as a fraction of the epochs; it begins where the one before ends.
    reduce: by how much there are fewer tokens along a side of the image.
    """

    until: Annotated[float, Field(gt=0, lt=1)]
    reduce: Annotated[int, Field(ge=2)]


class Retrain(Training):
    """The training of one architecture, from scratch, or from weights that are there.

    architecture: `best`, a name in architectures.yaml, a name in the zoo, the
        canonical text, {net_id: "..."} in model.space, or a mapping of its own.
        null: that of `from_checkpoint`, which must say it; without that, `best`.
    drop_path_rate: stochastic depth of the last position.
    from_supernet: start from the supernet's weights.
    from_checkpoint: start from the weights of a file (fine-tuning); class count
        and image size may be others than it was trained with.
    ema_decay: of an average of the weights; 0 is off.
    tokens: phases of coarser tokens at the beginning; after them, and without any, tokens are full.
    """

    architecture: str | dict[str, Any] | None = None
    drop_path_rate: Fraction = 0.1
    from_supernet: bool = False
    from_checkpoint: str | None = None
    ema_decay: Fraction = 0.0
    tokens: list[TokenPhase] = []

    def token_mistakes(self, network: Network, image_size: int) -> Iterator[str]:
        """A line for every phase of `tokens` that this network cannot have with images of this size."""
        for i, phase in enumerate(self.tokens):
            yield from _attempt(
                f"retrain.tokens.{i}.reduce: ", lambda p=phase: network.check_token_reduction(image_size, p.reduce)
            )


class Test(Settings):
    """The measurement.

    weights: the trained ones, or their average (`retrain.ema_decay`).
    load_name: one checkpoint, in the folder of retrain or a path; without it,
        and without a range, the newest.
    start, end, strip: a range of epochs, both ends included, and its stride.
    wait: for those of the range that `retrain` has not written yet; else they are refused.
    architecture: as in `retrain`; needed only where the checkpoint does not say.
    """

    flag: bool = False
    data: EvaluationData
    batch_size: Positive = 256
    amp: bool = True
    weights: Literal["model", "ema"] = "model"
    load_name: str | None = None
    start: Positive | None = None
    end: Positive | None = None
    strip: Positive = 1
    wait: bool = False
    architecture: str | dict[str, Any] | None = None


class RunConfig(Settings):
    """A run: what is trained, where it is written, and its four stages.

    port: of the rendezvous under Slurm; without it, one derived from the job.
    """

    model: Model
    save_path: str
    seed: Count = 0
    port: Annotated[int, Field(ge=1024, le=65535)] | None = None
    search: AnySearch | None = None
    sample: Sample | None = None
    retrain: Retrain | None = None
    test: Test | None = None

    _warning: str | None = PrivateAttr(None)

    @property
    def warning(self) -> str | None:
        """What whoever wrote the file should know, though it is no mistake."""
        return self._warning

    @property
    def folder(self) -> RunFolder:
        return RunFolder(Path(self.save_path))

    @property
    def space(self) -> SearchSpace:
        """The search space; a configuration whose flagged stages need one has one."""
        if self.model.space is None:
            raise UserError("model.space: is missing; it says what may be searched")
        return self.model.space.build()

    @property
    def costs(self) -> cost.SpaceCosts:
        """Multiply-adds over the space, in the budget's convention if it is in them."""
        budget = self.sample.budget.build() if self.sample else None
        convention = budget.convention if budget and not budget.is_speed else "released"
        return cost.SpaceCosts(self.space, self.model.image_size, self.model.num_classes, convention)

    def architecture(self, value: str | dict | None) -> Network:
        """The architecture that a `retrain.architecture` or `test.architecture` means; null is `best`.

        Raises `UserError` for one that does not exist, does not parse or does
        not fit the images.
        """
        value = BEST if value is None else value
        if isinstance(value, dict):
            if "net_id" in value:
                if set(value) != {"net_id"}:
                    raise UserError(f"found {value!r}; net_id stands alone, its space is model.space")
                found = self.space.from_net_id(value["net_id"])
            else:
                found = network_from_dict(value)
        else:
            listed = read_found(self.folder.architectures) if self.folder.architectures.exists() else {}
            if value in listed:
                found = listed[value]
            elif value == BEST:
                if not listed:
                    raise UserError(f"found {BEST!r}, but {self.folder.architectures} is not there; run `sample` first")
                found = next(iter(listed.values()))
            else:
                found = resolve_architecture(value, also=listed)
        found.check_image_size(self.model.image_size)
        return found


def load(path: str | Path, overrides: Sequence[str] = (), stages: Sequence[str] = ()) -> RunConfig:
    """The configuration of a YAML file with `key=value` overrides.

    stages: those that the caller could run; of these, the flagged ones are
        checked against the file system too.

    The file may be a released ViTAS one; `warning` of the result then says what of it has no effect.

    Raises `UserError` with every mistake that it found.
    """
    source = read_configuration(read_text(Path(path)), str(path), overrides)
    try:
        config = RunConfig.model_validate(source.data)
    except ValidationError as error:
        raise _mistakes(path, source, explain(error, RunConfig)) from None
    mistakes = list(_check(config, stages))
    if mistakes:
        raise _mistakes(path, source, mistakes)
    if source.is_released:
        config._warning = _released_warning(path, source)
    return config


def _released_warning(path: str | Path, source: Configuration) -> str:
    without_effect = "\n  ".join(source.told_without_effect())
    return (
        f"{path} is a released ViTAS file (`vitas convert {path}` prints what it means here). "
        f"Of its keys, these have no effect:\n  {without_effect}"
    )


def _mistakes(path: str | Path, source: Configuration, lines: list[str]) -> UserError:
    lines = [source.in_its_words(line) for line in lines]
    return UserError(f"{path}: {lines[0]}" if len(lines) == 1 else "\n  ".join([f"{path}:", *lines]))


def _check(config: RunConfig, stages: Sequence[str]):
    """What types cannot say, one line a mistake."""
    model = config.model
    flagged = [name for name in stages if (section := getattr(config, name)) and section.flag]
    # Leftovers of stages that do not run should not keep another one from running.
    searches = any(section is not None and section.flag for section in (config.search, config.sample))
    space = None
    if model.space is not None and searches:
        try:
            space = model.space.build()
        except UserError as error:
            yield f"model.space.{error}"
        for patch_size in model.space.patch_sizes:
            yield from _attempt("model.space.patch_sizes: ", lambda p=patch_size: check_patch_size(p, model.image_size))
    elif "sample" in flagged or ("search" in flagged and isinstance(config.search, Search)):
        yield "model.space: is missing; it says what may be searched"
    if isinstance(config.search, AsvitSearch):
        yield from _check_asvit(config)
    if config.sample is not None:
        budget = config.sample.budget
        if budget.minimum > budget.maximum:
            yield f"sample.budget.minimum: found {budget.minimum}; it must be at most the maximum, {budget.maximum}"
        elif space is not None and not budget.build().is_speed:
            yield from _attempt("sample.budget: ", lambda: config.costs.require(budget.build()))
        if "error" not in config.sample.objectives:
            yield f"sample.objectives: found {config.sample.objectives}; error must be among them"
    for name, section in (("search", config.search), ("retrain", config.retrain)):
        if not isinstance(section, Training):
            continue
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
        elif test.start is not None and test.start > test.end:
            yield f"test.start: found {test.start}; it must be at most test.end, {test.end}"
        if test.start is not None and test.load_name is not None:
            yield f"test.load_name: found {test.load_name!r} beside a range (test.start, test.end); give one of them"
        if test.wait and test.start is None:
            yield "test.wait: found true without a range; it waits for the epochs of test.start to test.end"
        if test.wait and test.start is not None and config.retrain is not None:
            yield from _never_written(test, config.retrain)
    if config.retrain is not None and config.retrain.from_supernet and config.retrain.from_checkpoint is not None:
        yield "retrain.from_supernet, retrain.from_checkpoint: found both; a network starts from one of them"
    finds = _finds(config, flagged)
    for name in ("retrain", "test"):
        value = getattr(config, name).architecture if name in flagged else None
        if name == "retrain" and name in flagged and value is None and config.retrain.from_checkpoint is None:
            value = BEST
        # What an earlier one of these stages will find cannot be looked up yet.
        if value is not None and not (finds and _is_found(value)):
            yield from _attempt(f"{name}.architecture: ", lambda v=value: config.architecture(v))
    if (
        "retrain" in flagged
        and config.retrain.from_supernet
        and not (finds and _is_found(config.retrain.architecture or BEST))
    ):
        yield from _attempt(
            "retrain.from_supernet: ",
            lambda: config.space.encode(_of_a_supernet(config.architecture(config.retrain.architecture))),
        )
    if config.retrain is not None:
        yield from _coarse_tokens(config, flagged)
    for name in flagged:
        data = getattr(config, name).data
        if data is None:
            continue
        yield from _attempt(f"{name}.data.data_dir: ", lambda d=data: check_image_folder(d.data_dir, model.num_classes))
    yield from _differing_classes(config)


def _never_written(test: Test, retrain: Retrain):
    for epoch in range(test.start, test.end + 1, test.strip):
        if epoch > retrain.epochs or (epoch % retrain.checkpoint_epochs and epoch != retrain.epochs):
            yield (
                f"test.end: found {test.end}; it would wait for epoch {epoch}, which is never written: retrain.epochs "
                f"is {retrain.epochs}, retrain.checkpoint_epochs is {retrain.checkpoint_epochs}"
            )
            return


def _check_asvit(config: RunConfig):
    search, growth, model = config.search, config.search.growth, config.model
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
    for genotype in smallest:
        stages = tuple(replace(stage, layers=1) for stage in genotype.stages)
        try:
            first = replace(genotype, stages=stages, hidden_dim=growth.hidden_dim)
            first.scaled(growth.score_width)
        except UserError as error:
            yield f"search.growth.hidden_dim: found {growth.hidden_dim}; scored at {growth.score_width} of it, {error}"
            return
        for name, limit in growth.limits.items():
            least = costs(first, model.image_size, model.num_classes)[name]
            if limit is not None and limit < least:
                yield f"search.growth.{name}: found {limit:,}; the smallest network that can be grown has {least:,}"
                return


def _coarse_tokens(config: RunConfig, flagged: Sequence[str]):
    retrain = config.retrain
    for i, (before, phase) in enumerate(pairwise(retrain.tokens), 1):
        if phase.until <= before.until:
            yield f"retrain.tokens.{i}.until: found {phase.until}; it must be more than the one before, {before.until}"
    value = retrain.architecture
    if value is None and retrain.from_checkpoint is None:
        value = BEST
    if "retrain" not in flagged or value is None or (_finds(config, flagged) and _is_found(value)):
        return
    # An architecture that is not there has been told of.
    with suppress(UserError):
        yield from retrain.token_mistakes(config.architecture(value), config.model.image_size)


def _of_a_supernet(network: Network) -> Architecture:
    if not isinstance(network, Architecture):
        raise UserError(f"found true, and {network} is a genotype, which no supernet has weights for")
    return network.shifted()


def _finds(config: RunConfig, flagged: Sequence[str]) -> bool:
    """Whether one of the flagged stages writes architectures.yaml."""
    return "sample" in flagged or ("search" in flagged and isinstance(config.search, AsvitSearch))


def _is_found(architecture: str | dict) -> bool:
    """Whether an architecture is named by its place in architectures.yaml."""
    return isinstance(architecture, str) and re.fullmatch(rf"{BEST}|(subnet|grown)_\d+", architecture) is not None


def _differing_classes(config: RunConfig):
    """Labels are positions in the sorted names of the class folders: all stages must have the same names."""
    sections = {name: getattr(config, name) for name in ("search", "sample", "retrain", "test")}
    folders = {name: section.data.data_dir for name, section in sections.items() if section and section.data}
    names = {name: class_names(folder) for name, folder in folders.items() if Path(folder).is_dir()}
    for name in list(names)[1:]:
        first = next(iter(names))
        differing = sorted(set(names[name]) ^ set(names[first]))
        if differing and len(names[name]) == len(names[first]):
            yield (
                f"{name}.data.data_dir: found {folders[name]!r}, whose class folders differ from those of "
                f"{first}.data.data_dir, {folders[first]!r}: {differing[0]!r} is in one of them only"
            )


def _attempt(prefix: str, check: Callable[[], object]):
    try:
        check()
    except UserError as error:
        yield f"{prefix}{error}"
