"""Labels whose vectors are being looked up or computed, and the outcome of each."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.errors import AnyclassError, PromptTooLong
from service.inference.served_model import Model
from service.model.arrays import Vectors
from service.model.prompts import prompts_for


@dataclass(eq=False)
class PendingVectors:
    """A group of labels that are resolved together, possibly for several requests.

    Attributes:
        keys: of the labels in the text cache.
        labels: in the order of `keys`.
        done: completes once every key has an outcome.
        waiters: number of requests that wait for the group.
        outcomes: key → vector, or the error of that label.
        computed: keys that needed the text encoder.
    """

    keys: tuple[str, ...]
    labels: tuple[str, ...]
    done: asyncio.Future[None]
    waiters: int = 0
    outcomes: dict[str, Vectors | AnyclassError] = field(default_factory=dict)
    computed: set[str] = field(default_factory=set)

    @property
    def wanted(self) -> bool:
        """Return whether a request still waits for missing outcomes."""
        return self.waiters > 0 and not self.done.done()

    @property
    def missing(self) -> list[str]:
        """Return the keys without an outcome."""
        return [key for key in self.keys if key not in self.outcomes]

    def finish(self) -> None:
        """Wake the waiters; every key has its outcome. Further calls have no effect."""
        if not self.done.done():
            self.done.set_result(None)

    def raise_failure(self, keys: Sequence[str]) -> None:
        """Raise the first failure among a request's `keys`; the group's other labels belong to other requests."""
        failed = {key: outcome for key, outcome in self.outcomes.items() if isinstance(outcome, AnyclassError)}
        if not failed:
            return
        for index, key in enumerate(keys):
            error = failed.get(key)
            if isinstance(error, PromptTooLong):
                raise PromptTooLong(
                    f"Label {index} has more tokens, with its template, than this model can read; shorten it.",
                    index=index,
                )
            if error is not None:
                raise error


def vector(outcome: Vectors | AnyclassError) -> Vectors:
    """Return the vector, or raise the error."""
    if isinstance(outcome, AnyclassError):
        raise outcome
    return outcome


def cancel_if_unwanted(job: asyncio.Task[None], groups: Sequence[PendingVectors]) -> None:
    """Cancel a job once no request waits for any of its groups."""
    if not any(group.wanted for group in groups):
        job.cancel()


def tokenise(
    model: Model, sought: dict[str, str], templates: Sequence[str]
) -> tuple[list[list[int]], dict[str, PromptTooLong]]:
    """Tokenise all prompts, label-major; return the errors of labels that are too long separately, by key."""
    tokenize = model.tokenizer.tokenize
    try:
        return tokenize(prompts_for(sought.values(), templates)), {}
    except PromptTooLong:
        tokens: list[list[int]] = []
        too_long: dict[str, PromptTooLong] = {}
        for key, label in sought.items():
            try:
                tokens += tokenize(prompts_for([label], templates))
            except PromptTooLong as exc:
                too_long[key] = exc
        return tokens, too_long
