"""The status of label sets, and conditions on changing them."""

from dataclasses import dataclass
from typing import Literal

from service.errors import StateCorrupt, UnknownLabelSet, VersionMismatch
from service.label_sets.storage import Head

State = Literal["computing", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class Condition:
    """A precondition on the version of a set to change; `*` stands for any version."""

    if_match: frozenset[str] | None = None
    if_none_match: frozenset[str] | None = None

    @property
    def given(self) -> bool:
        """Return whether the client gave a condition."""
        return self.if_match is not None or self.if_none_match is not None

    def check(self, version: str | None) -> None:
        """Raise VersionMismatch unless the condition holds for `version`; None means that the set does not exist."""
        if self.if_match is not None and not _matches(self.if_match, version):
            raise VersionMismatch("The label set does not have the version of If-Match. Read it again.")
        if self.if_none_match is not None and _matches(self.if_none_match, version):
            raise VersionMismatch("The label set exists in a version that If-None-Match excludes.")


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """Progress of one model's class vectors: `done` of `total` labels. `reason` explains a failure."""

    model: str
    state: State
    done: int
    total: int
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class LabelSetStatus:
    """A label set without its labels. `retry_after_s` is set while it is being computed."""

    name: str
    head: Head
    models: tuple[ModelStatus, ...]
    retry_after_s: float | None

    @property
    def state(self) -> State:
        """Return the state over all models: failed if one has failed, ready if all are."""
        states = {model.state for model in self.models}
        return "failed" if "failed" in states else "computing" if "computing" in states else "ready"


def unknown() -> UnknownLabelSet:
    """Return the error for a name without a set."""
    return UnknownLabelSet("No label set has this name; GET /v1/label-sets lists all.")


def corrupt(name: str, problem: str) -> StateCorrupt:
    """Return the error for a set whose stored content is inconsistent; `problem` is a sentence without its end."""
    return StateCorrupt(f"Label set {name} is corrupt: {problem}. Delete it and create it again.")


def _matches(versions: frozenset[str], version: str | None) -> bool:
    return version is not None and ("*" in versions or version in versions)
