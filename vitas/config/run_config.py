"""The typed sections of the YAML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, PrivateAttr, Tag

from vitas.architecture import MAX_DIM
from vitas.budget import Budget, MacsModel
from vitas.catalog import BEST, AnyArchitecture, find_architecture, read_found
from vitas.config_section import (
    AboveZero,
    Count,
    Fraction,
    Line,
    NonNegative,
    Positive,
    Probability,
    Section,
    Share,
    fields_of,
)
from vitas.data.folders import EvaluationData, TrainingData, WeakAugmentation
from vitas.elastic_space import SCORES, AnySpace, Shares, read_elastic_space
from vitas.errors import UserError
from vitas.report.loggers import LOGGERS
from vitas.run import RunFolder, offered_by
from vitas.sharing import SCHEMES
from vitas.space import SearchSpace

Channels = Annotated[list[float], Field(min_length=3, max_length=3)]
# Keys of a recipe that a training may be resumed with other values of; `data` is the images.
ALLOWED_CHANGES = (
    "lr", "min_lr", "weight_decay", "warmup_epochs", "clip_grad", "label_smoothing", "mixup", "cutmix", "data",
)  # fmt: skip

if TYPE_CHECKING:
    # A type checker does not know what registries hold.
    SharingName: TypeAlias = str
    ObjectiveName: TypeAlias = str
    DrawName: TypeAlias = str
    TogetherName: TypeAlias = str
    ScoreName: TypeAlias = str
    AllowedChange: TypeAlias = str
    LoggerName: TypeAlias = str
else:
    SharingName = Literal[tuple(SCHEMES)]
    ObjectiveName = Literal[tuple(offered_by("sample.objectives"))]
    DrawName = Literal[tuple(offered_by("search.subnets.draw"))]
    TogetherName = Literal[tuple(offered_by("search.subnets.together"))]
    ScoreName = Literal[tuple(SCORES)]
    AllowedChange = Literal[ALLOWED_CHANGES]
    LoggerName = Literal[tuple(LOGGERS)]


def _kind_of_space(section: object) -> str:
    if isinstance(section, Mapping):
        # `depth` is a number of the one and a list of the other.
        own = set(fields_of(SearchSpace)) - set(fields_of(Shares))
        return SearchSpace.tag if own & section.keys() else Shares.tag
    return Shares.tag if isinstance(section, Shares) else SearchSpace.tag


# The section `model.space`: of networks from scratch, or beside `model.from_pretrained`.
AnySpaceSection = Annotated[
    Annotated[SearchSpace, Tag(SearchSpace.tag)] | Annotated[Shares, Tag(Shares.tag)], Discriminator(_kind_of_space)
]


class Importance(Section):
    """By what the channels, heads, MLP units and blocks of a pretrained network are ordered (see `vitas.importance`).

    score: the rule. images: train images that it looks at, without augmentation.
    """

    score: ScoreName = "taylor"
    images: Positive = 512


class Model(Section):
    """What all stages share: images, classes and the search space.

    image_size: side of the images, in pixels. mean, std: their normalisation, by default ImageNet's.
    space: needed by `search` and `sample`, and by a `retrain.architecture` that is a net_id.
    from_pretrained: a network that the supernet starts from, a model of timm or a file: `space` then says shares of it.
    importance: how that network is ordered.
    sharing, qkv_mode: see `vitas.SuperNet`.
    """

    image_size: Annotated[int, Field(ge=1, le=MAX_DIM)] = 224
    num_classes: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    mean: Channels = [0.485, 0.456, 0.406]
    std: Annotated[list[AboveZero], Field(min_length=3, max_length=3)] = [0.229, 0.224, 0.225]
    space: AnySpaceSection | None = None
    from_pretrained: str | None = None
    importance: Importance = Importance()
    sharing: SharingName = "ordinal"
    qkv_mode: Literal[0, 1, 2] = 2

    @property
    def dims(self) -> SearchSpace:
        """`space` of networks from scratch. Raises `UserError` where it is missing, or says shares."""
        if self.space is None:
            raise UserError("model.space: is missing; it says what may be searched")
        if isinstance(self.space, Shares):
            raise UserError(
                "model.from_pretrained: is missing; model.space says shares of a pretrained network, and not of which"
            )
        return self.space

    @property
    def shares(self) -> Shares:
        """`space` of a pretrained network. Raises `UserError` where it says dims."""
        if isinstance(self.space, SearchSpace):
            raise UserError(
                "model.space: found dims; beside model.from_pretrained it says shares of that network "
                "(embed, heads, mlp, depth, keep)"
            )
        return self.space or Shares()


class Distillation(Section):
    """Learning from a teacher's logits beside the labels.

    teacher: a checkpoint of `retrain`, or the name of one of timm's models; `pretrained` is that of
        `model.from_pretrained`. In `search` also `largest`: where a step trains several subnets, the others learn from
        the first, which learns from the labels alone.
    weight: of the teacher's targets; the labels have the rest.
    temperature: of the softmax of both logits.
    hard: the teacher's top-1 class instead of its probabilities, as in DeiT.
    """

    teacher: str
    weight: Share = 0.5
    temperature: AboveZero = 1.0
    hard: bool = False


class NotFinite(Section):
    """What happens to steps whose gradients are not finite, which are left out (see `vitas/step_watch.py`).

    in_a_row: after so many, the training goes back to its newest checkpoint.
    returns: how often it may go back before it gives up.
    """

    in_a_row: Positive = 10
    returns: Count = 3


class Training(Section):
    """The recipe of a training stage; the defaults are those of the published results.

    batch_size: of all processes together.
    lr: the peak, 1e-3 at a batch of 1024; it is not scaled with the batch.
    weight_decay: on matrices only.
    warmup_epochs: linear warm-up from zero; then cosine down to min_lr, per step.
    repeats: how often an image comes in an epoch, each time augmented anew (repeated augmentation); an epoch keeps
        its number of steps.
    mixup, cutmix: their alphas; 0 is off. With both, each batch takes one of them.
    clip_grad: the largest gradient norm; 0 is off.
    ema_decay: of the average of the weights; 0 is off.
    distillation: null is off.
    amp: bfloat16 on a GPU.
    not_finite: what happens when gradients are not finite.
    allow_changes: keys of the recipe, or `data`, that may differ from those of the checkpoint that is resumed.
    keep: how many epoch checkpoints to keep; 0 keeps all.
    checkpoint_steps: steps between checkpoints within an epoch; 0 is only after epochs.
    checkpoint_epochs: epochs between checkpoints; the last epoch has one too.
    log_steps: steps between log lines.
    """

    flag: bool = False
    data: TrainingData
    epochs: Positive = 300
    batch_size: Positive = 1024
    lr: AboveZero = 1e-3
    min_lr: NonNegative = 0.0
    weight_decay: NonNegative = 0.05
    warmup_epochs: Count = 5
    label_smoothing: Fraction = 0.1
    repeats: Positive = 1
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    clip_grad: NonNegative = 0.0
    ema_decay: Fraction = 0.0
    distillation: Distillation | None = None
    amp: bool = True
    not_finite: NotFinite = NotFinite()
    allow_changes: list[AllowedChange] = []
    keep: Count = 3
    checkpoint_steps: Count = 0
    checkpoint_epochs: Positive = 1
    log_steps: Positive = 50

    def tied_to_epochs(self, steps: int, per_epoch: int) -> str | None:
        """Why the first `steps` steps, `per_epoch` an epoch, would be others with other `epochs`; None if they would
        not: in the warm-up, and with a rate that is constant after it."""
        if self.lr != self.min_lr and steps > self.warmup_epochs * per_epoch:
            return "its learning rate falls over all epochs"
        return None


class SearchData(TrainingData):
    """Training images of the supernet, by default weakly augmented."""

    augmentation: WeakAugmentation = WeakAugmentation()


class Subnets(Section):
    """Which subnets each step of the supernet's training trains (see `search/subnets.py`).

    draw: the rule by which random ones are drawn.
    widen: for in_budget, the share by which both ends of `sample.budget` are moved outwards.
    size_bias: for in_budget, how much large depths and embedding dims are favoured: by (depth x dim) ** size_bias.
    together: what a step trains: `one` random subnet; with `complementary` every second step the complementary widths
        of the step before it; with `sandwich` the largest, `randoms` random ones and the smallest.
    parts: parts of a batch, each with subnets of its own; on several processes each trains those of its images.
    """

    draw: DrawName = "in_budget"
    widen: Fraction = 0.25
    size_bias: NonNegative = 1.5
    together: TogetherName = "complementary"
    randoms: Positive = 2
    parts: Positive = 1


class Panel(Section):
    """A fixed set of subnets of the budget that is scored while the supernet trains (see `search/panel.py`).

    size: subnets. epochs: between scores.
    stop_at: end the training when the ranking agrees with the one before, by Kendall's tau, so well twice in a row;
        null never does.
    """

    size: Annotated[int, Field(ge=2)] = 16
    epochs: Positive = 10
    stop_at: Annotated[float, Field(gt=0, le=1)] | None = None


class Search(Training):
    """The supernet's training.

    method: what the stage does; with `asvit` the keys are those of `AsvitSearch`.
    subnets: which subnets a step trains.
    panel: subnets that are scored on the val images on the way; null is none.
    identity_probability: of each position, where `subnets.draw` is `published`; null searches the one at which random
        subnets cost the middle of `sample.budget` on average.
    """

    method: Literal["supernet"] = "supernet"
    data: SearchData
    subnets: Subnets = Subnets()
    panel: Panel | None = None
    identity_probability: Fraction | None = None

    def tied_to_epochs(self, steps: int, per_epoch: int) -> str | None:
        tied = super().tied_to_epochs(steps, per_epoch)
        return tied or ("its record of the choices' losses fades over a quarter of all epochs" if steps else None)


class Growth(Section):
    """Growth of a topology into larger and larger networks.

    parameters, macs: the budget of the largest network, at full width; at least one of them.
    hidden_dim: of the first network, which has one block in each stage.
    widen: shares by which a step may raise the hidden dim.
    score_width: the share of the hidden dim at which networks are scored.
    """

    parameters: Positive | None = None
    macs: Positive | None = None
    hidden_dim: Positive = 32
    widen: Annotated[list[Share], Field(min_length=1)] = [0.05, 0.1, 0.15, 0.2]
    score_width: Share = 0.25

    @property
    def limits(self) -> dict[str, int | None]:
        """The budget, by the name of the cost."""
        return {"parameters": self.parameters, "macs": self.macs}


class AsvitSearch(Section):
    """As-ViT's search without training (arXiv 2202.11921); the defaults are the published settings.

    data: images for the NTK, the same `batch_size` images for every network; null is noise.
    algorithm: of the topology search.
    steps: topologies to score.
    repeat: initialisations that a score is the mean over.
    batch_size: images for the NTK. points: on the circle of images for the length distortion.
    lr: of the policy's Adam. baseline_decay: of the running mean reward, the baseline.
    population: of nsga2.
    topology: grow this topology instead of searching one.
    growth: how the topology grows, and up to which cost.
    """

    method: Literal["asvit"]
    flag: bool = False
    data: EvaluationData | None = None
    algorithm: Literal["reinforce", "nsga2"] = "reinforce"
    steps: Positive = 500
    repeat: Positive = 5
    batch_size: Annotated[int, Field(ge=2)] = 16
    points: Positive = 10
    lr: AboveZero = 0.08
    baseline_decay: Fraction = 0.9
    population: Positive = 25
    topology: str | None = None
    growth: Growth


def _method(section: object) -> object:
    return section.get("method", "supernet") if isinstance(section, Mapping) else getattr(section, "method", "supernet")


# The section `search`, by its method.
AnySearch = Annotated[Annotated[Search, Tag("supernet")] | Annotated[AsvitSearch, Tag("asvit")], Discriminator(_method)]


class Race(Section):
    """All candidates of a generation are scored on a part of the val images, the best of them on all.

    images: the part, a share. keep: the share of the candidates that goes on.
    """

    images: Share = 0.25
    keep: Share = 0.5


class Adapt(Section):
    """Candidates train for a few steps from the supernet's weights before they are scored (see `search/adaptation.py`).

    steps, batch_size, lr: of that training, on the images of `search`; the rate falls linearly to 0.
    keep: the share of the candidates of a generation that is adapted, the best by their scores without it.
    """

    steps: Positive = 100
    batch_size: Positive = 64
    lr: AboveZero = 1e-3
    keep: Share = 1.0


class Finalists(Section):
    """The best of the search are scored again, on images that it has not seen: the best of many scores is flattered.

    count: how many. images: the share of the val images that the search does not see.
    """

    count: Positive = 20
    images: Annotated[float, Field(gt=0, lt=1)] = 0.2


class Prescreen(Section):
    """A model of the scores chooses which children are scored (see `search/predictor.py`).

    oversample: of so many times as many children, the best by the model.
    scored: as many architectures must have been scored before.
    """

    oversample: Annotated[int, Field(ge=2)] = 4
    scored: Annotated[int, Field(ge=10)] = 50


class Sample(Section):
    """The evolution of architectures, scored by the supernet.

    budget: the range that every architecture's cost must be in, as it was given; `RunConfig.budget` is in numbers.
    initial_population: random architectures inside the budget that it starts from.
    population, generations: survivors, and rounds with as many children.
    objectives: what is minimised (see `search/objectives.py`); with `macs` beside `error`, it keeps the whole
        non-dominated front, from cheap to accurate.
    sample_num: how many of the best are written to architectures.yaml.
    mutation: the probability that a gene of a child is drawn anew.
    batch_size: images per evaluation batch and process.
    sides: how several sides (bilateral sharing) make one score: the score of the sum of their logits, which is what
        training trained; or the mean of their scores, as published.
    race, adapt, finalists, prescreen: null is off.
    prior: of this many random architectures each, the initial population takes the one whose choices had the least
        loss in the supernet's training; 1 takes any.
    load_name: the supernet's checkpoint, by default the newest.
    weights: of the supernet: the trained ones, or their average (`search.ema_decay`).
    """

    flag: bool = False
    data: EvaluationData
    budget: Budget
    initial_population: Positive = 100
    population: Positive = 50
    generations: Count = 40
    objectives: Annotated[list[ObjectiveName], Field(min_length=1)] = ["error"]
    sample_num: Positive = 5
    mutation: Probability = 0.1
    batch_size: Positive = 256
    amp: bool = True
    sides: Literal["mean", "sum"] = "sum"
    race: Race | None = None
    adapt: Adapt | None = None
    finalists: Finalists | None = None
    prescreen: Prescreen | None = None
    prior: Positive = 1
    load_name: str | None = None
    weights: Literal["model", "ema"] = "model"


class TokenPhase(Section):
    """A phase of training on coarser tokens (As-ViT's progressive tokenisation).

    until: its end, as a fraction of the epochs; it begins where the phase before it ends.
    reduce: the factor by which tokens along a side of the image are fewer.
    """

    until: Annotated[float, Field(gt=0, lt=1)]
    reduce: Annotated[int, Field(ge=2)]


class Retrain(Training):
    """The training of one architecture, from scratch or from existing weights.

    architecture: `best`, a name in architectures.yaml, a name in the zoo, a
        canonical text, {net_id: "..."} in model.space, or an architecture's
        YAML form. null is the one stored in `from_checkpoint`, or else `best`.
    drop_path_rate: stochastic depth at the last position.
    from_supernet: start from the supernet's weights.
    from_checkpoint: start from the weights of a file (fine-tuning); class count
        and image size may differ from those it was trained with.
    tokens: phases of coarser tokens at the beginning; after them, tokens are full.
    val: images that the network is measured on while it trains; null is none. The best network is kept.
    val_epochs: epochs between two measurements; the last epoch has one too.
    patience: end the training after so many epochs without a better top-1 on them; null never does.
    """

    architecture: str | dict[str, Any] | None = None
    drop_path_rate: Fraction = 0.1
    from_supernet: bool = False
    from_checkpoint: str | None = None
    tokens: list[TokenPhase] = []
    val: EvaluationData | None = None
    val_epochs: Positive = 1
    patience: Positive | None = None

    def tied_to_epochs(self, steps: int, per_epoch: int) -> str | None:
        tied = super().tied_to_epochs(steps, per_epoch)
        return tied or ("its phases of coarser tokens are shares of all epochs" if steps and self.tokens else None)


class Test(Section):
    """The measurement of trained networks.

    weights: the trained ones, or their average (`retrain.ema_decay`).
    load_name: one checkpoint, in retrain's checkpoint folder or a path; by
        default, and without a range, the newest. `best_ckpt` is the best by `retrain.val`.
    from_supernet: measure `architecture` (by default the best) with the weights that the supernet has for it.
    start, end, strip: a range of epochs, both ends included, and its stride.
    wait: wait for epochs of the range that `retrain` has not written yet, instead of failing.
    architecture: as in `retrain`; needed only if the checkpoint does not hold it.
    """

    flag: bool = False
    data: EvaluationData
    batch_size: Positive = 256
    amp: bool = True
    weights: Literal["model", "ema"] = "model"
    load_name: str | None = None
    from_supernet: bool = False
    start: Positive | None = None
    end: Positive | None = None
    strip: Positive = 1
    wait: bool = False
    architecture: str | dict[str, Any] | None = None


class RunConfig(Section):
    """A run: its model, the folder it writes to, and its four stages.

    port: of the rendezvous under Slurm, by default derived from the job's id.
    stall_seconds: seconds without a step after which a job of several processes counts as stalled, and ends; null is
        ten times the slowest step seen, 2 to 30 minutes.
    loggers: programs that get the numbers of all stages, beside the CSV that is always written.
    callbacks: code of installed packages that follows the stages, by the names of its entry points.
    """

    model: Model
    save_path: Line
    seed: Count = 0
    port: Annotated[int, Field(ge=1024, le=65535)] | None = None
    stall_seconds: Positive | None = None
    loggers: list[LoggerName] = ["tensorboard"]
    callbacks: list[Line] = []
    search: AnySearch | None = None
    sample: Sample | None = None
    retrain: Retrain | None = None
    test: Test | None = None

    _warning: str | None = PrivateAttr(None)

    @property
    def warning(self) -> str | None:
        """What the author of the file should know, though it is not a mistake."""
        return self._warning

    @property
    def folder(self) -> RunFolder:
        return RunFolder(Path(self.save_path))

    @property
    def space(self) -> AnySpace:
        """The search space. Raises `UserError` where there is none, and before a pretrained network has been read."""
        if self.model.from_pretrained is not None:
            return read_elastic_space(self.folder.pretrained, self.model.shares)
        return self.model.dims

    @property
    def budget(self) -> Budget | None:
        """`sample.budget` in numbers; None without a section `sample`.

        Raises `UserError` as `space` does where it is relative, and where it is empty in this space.
        """
        if self.sample is None:
            return None
        given = self.sample.budget
        return self.macs_model.resolve(given) if given.is_relative else given

    @property
    def macs_model(self) -> MacsModel:
        """MACs over the space, in the budget's convention, or as released for a budget in images per second."""
        budget = self.sample.budget if self.sample else None
        convention = budget.convention if budget and not budget.is_speed else "released"
        return MacsModel(self.space, self.model.image_size, self.model.num_classes, convention)

    def flagged(self, stages: Iterable[str]) -> list[str]:
        """The stages among `stages` whose `flag` is true."""
        return [name for name in stages if (section := getattr(self, name)) and section.flag]

    def architecture(self, reference: str | Mapping[str, Any] | None) -> AnyArchitecture:
        """The architecture that `retrain.architecture` or `test.architecture` refers to; null is `best`.

        Raises `UserError` if it does not exist, does not parse or does not fit
        the images.
        """
        reference = BEST if reference is None else reference
        path = self.folder.architectures
        listed = read_found(path) if isinstance(reference, str) and path.exists() else {}
        if reference == BEST and not listed:
            raise UserError(f"found {BEST!r}, but {path} does not exist; run `sample` first")
        space = self.model.space if isinstance(self.model.space, SearchSpace) else None
        found = find_architecture(reference, listed, space)
        found.check_image_size(self.model.image_size)
        return found
