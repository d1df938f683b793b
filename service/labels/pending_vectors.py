"""Labels on their way to their vectors, and what becomes of each."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.errors import AnyclassError, PromptTooLong
from service.inference.batch_execution import Vectors
from service.inference.served_model import Model
from service.model.prompts import prompts_for


@dataclass(eq=False)
class Flight:
    """Some labels on their way; every outcome is a vector, or the error of that very label."""

    keys: tuple[str, ...]
    labels: tuple[str, ...]
    landed: asyncio.Future[None]
    waiters: int = 0
    outcomes: dict[str, Vectors | AnyclassError] = field(default_factory=dict)
    computed: set[str] = field(default_factory=set)

    @property
    def wanted(self) -> bool:
        """Whether anyone still waits for what is missing."""
        return self.waiters > 0 and not self.landed.done()

    def land(self) -> None:
        """Every label has its outcome; more than once does no harm."""
        if not self.landed.done():
            self.landed.set_result(None)


def tokenise(
    model: Model, sought: dict[str, str], templates: Sequence[str]
) -> tuple[list[list[int]], dict[str, PromptTooLong]]:
    """Tokenise all prompts, label-major; labels that are too long are left out and returned apart, by key."""
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


def missing(flight: Flight) -> list[str]:
    """Keys without an outcome."""
    return [key for key in flight.keys if key not in flight.outcomes]


def vector(outcome: Vectors | AnyclassError) -> Vectors:
    """Return the vector, or raise the error."""
    if isinstance(outcome, AnyclassError):
        raise outcome
    return outcome


def raise_own_failure(flight: Flight, keys: Sequence[str]) -> None:
    """Raise the first failure among `keys`: other labels of the same flight are other requests' business."""
    failed = {key: outcome for key, outcome in flight.outcomes.items() if isinstance(outcome, AnyclassError)}
    if not failed:
        return
    for index, key in enumerate(keys):
        error = failed.get(key)
        if isinstance(error, PromptTooLong):
            raise PromptTooLong(
                f"Label {index} has more tokens, with its template, than this model can read; shorten it.", index=index
            )
        if error is not None:
            raise error


def cancel_if_unwanted(job: asyncio.Task[None], flights: list[Flight]) -> None:
    """End a job when nobody waits for any of its flights."""
    if not any(flight.wanted for flight in flights):
        job.cancel()
