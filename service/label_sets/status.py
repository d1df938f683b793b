"""How a label set stands, and what must hold of it for it to be changed."""

from dataclasses import dataclass
from typing import Literal

from service.errors import UnknownLabelSet, VersionMismatch
from service.label_sets.storage import Head

State = Literal["computing", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class Condition:
    """What must hold of a set for it to be changed; versions, `*` standing for any."""

    if_match: frozenset[str] | None = None
    if_none_match: frozenset[str] | None = None

    @property
    def given(self) -> bool:
        """Whether there is any."""
        return self.if_match is not None or self.if_none_match is not None

    def check(self, version: str | None) -> None:
        """Raise VersionMismatch unless a set of `version`, None for no set, may be changed."""
        if self.if_match is not None and not _matches(self.if_match, version):
            raise VersionMismatch("The label set is not, or no longer, in the version of If-Match; read it again.")
        if self.if_none_match is not None and _matches(self.if_none_match, version):
            raise VersionMismatch("There is a label set already in the version that If-None-Match excludes.")


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """How far the class vectors of one model are; `done` of `total` labels. `reason` is why there will be none."""

    model: str
    state: State
    done: int
    total: int
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class LabelSetStatus:
    """A label set without its labels. `retry_after_s` is given while it is computed."""

    name: str
    head: Head
    models: tuple[ModelStatus, ...]
    retry_after_s: float | None

    @property
    def state(self) -> State:
        """For all models together: failed where one has failed, ready where all are."""
        states = {model.state for model in self.models}
        return "failed" if "failed" in states else "computing" if "computing" in states else "ready"


def unknown() -> UnknownLabelSet:
    """The error for a name that no set has."""
    return UnknownLabelSet("There is no label set of that name; GET /v1/label-sets lists those there are.")


def _matches(versions: frozenset[str], version: str | None) -> bool:
    return version is not None and ("*" in versions or version in versions)
