"""Validates an input file line by line as its bytes arrive, and divides it into chunks of lines."""

from collections.abc import Iterator
from typing import Final

from service.errors import InvalidLine
from service.jobs.line_handler import LineHandler
from service.jobs.records import LineFault
from service.jobs.transitions import ChunkPlan

CHUNK_LINES: Final = 32
"""Lines per chunk: they are answered, and their results written, together."""
CHUNK_BYTES: Final = 8 * 2**20
"""Size from which a chunk ends: it is held in memory as a whole."""
MAX_FAULTS: Final = 50


class LineSplitter:
    """Splits bytes into lines of at most `max_bytes`."""

    def __init__(self, max_bytes: int, *, offset: int = 0, first_line: int = 1) -> None:
        self._max_bytes = max_bytes
        self._rest = bytearray()
        self._offset = offset
        self._line = first_line
        self._too_long = False
        self._dropped = 0

    def feed(self, content: bytes) -> Iterator[tuple[int, int, bytes | None]]:
        """Yield complete lines: first byte, number, and content, which is None if the line is too long."""
        *complete, rest = content.split(b"\n")
        for part in complete:
            yield from self._end(part, 1)
        self._keep(rest)

    def finish(self) -> Iterator[tuple[int, int, bytes | None]]:
        """Yield the last line if it has no line break."""
        if self._rest or self._too_long:
            yield from self._end(b"", 0)

    def _keep(self, part: bytes) -> None:
        if self._too_long or len(self._rest) + len(part) > self._max_bytes:
            # A line that is too long is counted, but not kept.
            self._dropped += len(self._rest) + len(part)
            self._too_long = True
            self._rest.clear()
        else:
            self._rest += part

    def _end(self, part: bytes, end_bytes: int) -> Iterator[tuple[int, int, bytes | None]]:
        self._keep(part)
        line = None if self._too_long else bytes(self._rest)
        size = self._dropped + len(self._rest) + end_bytes
        yield self._offset, self._line, line
        self._offset += size
        self._line += 1
        self._rest.clear()
        self._too_long, self._dropped = False, 0


class Validation:
    """Validates one file. Call `feed` and `finish` in a thread: they parse every line."""

    def __init__(self, handler: LineHandler, endpoint: str, *, max_lines: int, max_line_bytes: int) -> None:
        self.faults: list[LineFault] = []
        self.lines = 0
        self._blank = 0
        self._handler = handler
        self._endpoint = endpoint
        self._max_lines = max_lines
        self._max_line_bytes = max_line_bytes
        self._splitter = LineSplitter(max_line_bytes)
        self._seen: dict[str, int] = {}
        self._starts: list[int] = []
        self._first_lines: list[int] = []
        self._in_chunk = 0
        self._bytes = 0

    @property
    def over(self) -> bool:
        """Return whether the file is already invalid enough to stop reading."""
        return len(self.faults) >= MAX_FAULTS or max(self.lines, self._blank) > self._max_lines

    def feed(self, content: bytes) -> None:
        """Check complete lines."""
        self._bytes += len(content)
        for each in self._splitter.feed(content):
            self._check(*each)

    def finish(self) -> ChunkPlan:
        """Check the rest. The plan is valid only without `faults`."""
        for each in self._splitter.finish():
            self._check(*each)
        if not self.lines and not self.faults:
            self.faults.append(LineFault(code="empty_file", message="The file has no requests."))
        return ChunkPlan(self._starts, self._first_lines, self._bytes, self.lines)

    def _check(self, start: int, number: int, line: bytes | None) -> None:
        if self.over:
            return
        if line is not None and not line.strip():
            self._blank += 1
            if self._blank > self._max_lines:
                message = f"The file has more than {self._max_lines} blank lines; remove them."
                self.faults.append(LineFault(code="too_many_blank_lines", message=message, line=number))
            return
        self.lines += 1
        if self.lines > self._max_lines:
            message = f"The file has more than {self._max_lines} requests, the limit of this server."
            self.faults.append(LineFault(code="too_many_requests", message=message, line=number))
            return
        if not self._starts or self._in_chunk >= CHUNK_LINES or start - self._starts[-1] >= CHUNK_BYTES:
            self._starts.append(start)
            self._first_lines.append(number)
            self._in_chunk = 0
        self._in_chunk += 1
        try:
            self._read(number, line)
        except InvalidLine as exc:
            self.faults.append(LineFault(code=exc.code, message=exc.detail, line=number, param=exc.param))

    def _read(self, number: int, line: bytes | None) -> None:
        if line is None:
            raise InvalidLine("line_too_long", f"The line has more than {self._max_line_bytes} bytes.")
        custom_id = self._handler.read(line, self._endpoint).custom_id
        first = self._seen.setdefault(custom_id, number)
        if first != number:
            raise InvalidLine("duplicate_custom_id", f"The custom_id is also that of line {first}.", "custom_id")
