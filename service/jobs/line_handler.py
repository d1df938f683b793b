"""The interface through which jobs read and answer the requests in their lines."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from service.errors import AnyclassError


@dataclass(frozen=True, slots=True)
class LineRequest:
    """A line of an input file: the client's id of the request, and its body."""

    custom_id: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """The answer to a line: an HTTP status, and the body as the line's route sends it, as JSON without line breaks."""

    status: int
    body: str


class LineHandler(Protocol):
    """Reads and answers the lines of jobs."""

    endpoints: Collection[str]

    def read(self, line: bytes, endpoint: str) -> LineRequest:
        """Parse a line and check everything but its image. Runs in a thread. Raises InvalidLine."""
        ...

    async def answer(self, request: LineRequest, endpoint: str) -> LineAnswer:
        """Answer a line in the background lane. Raises AnyclassError."""
        ...

    def failure(self, error: AnyclassError | None, endpoint: str, request_id: str) -> LineAnswer:
        """Build the answer for `error`; None means an unexpected exception."""
        ...
