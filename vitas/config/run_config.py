"""`RunConfig`: all sections of the YAML, and what follows from several of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field, PrivateAttr

from vitas.budget import Budget, MacsModel
from vitas.catalog import BEST, AnyArchitecture, find_architecture, read_found
from vitas.config.model import Model
from vitas.config.retrain import Retrain
from vitas.config.sample import Sample
from vitas.config.search import AnySearch
from vitas.config.test import Test
from vitas.config_section import (
    Count,
    Line,
    Positive,
    Section,
)
from vitas.elastic_space import AnySpace, read_elastic_space
from vitas.errors import UserError
from vitas.report.loggers import LOGGERS
from vitas.run import RunFolder
from vitas.space import SearchSpace

if TYPE_CHECKING:
    # A type checker does not know what registries hold.
    LoggerName: TypeAlias = str
else:
    LoggerName = Literal[tuple(LOGGERS)]


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
