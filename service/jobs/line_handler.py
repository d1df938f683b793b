"""What a job asks of the routes whose requests it runs."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from service.errors import AnyclassError


@dataclass(frozen=True, slots=True)
class LineRequest:
    """One line of an input file: a client's own id, and the body of a request."""

    custom_id: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one line: an HTTP status, and the body in the words of the line's route: JSON, in one line."""

    status: int
    body: str


class LineHandler(Protocol):
    """Reads and answers the lines of jobs."""

    endpoints: Collection[str]

    def read(self, line: bytes, endpoint: str) -> LineRequest:
        """Check all of a line that can be known without its picture. Runs in a thread. Raises InvalidLine."""
        ...

    async def answer(self, request: LineRequest, endpoint: str) -> Answer:
        """Answer a line in the background lane. Raises AnyclassError."""
        ...

    def failure(self, error: AnyclassError | None, endpoint: str, request_id: str) -> Answer:
        """The answer that tells of `error`, None for one that nobody foresaw."""
        ...
