"""What is stored of files and jobs: JSON, checked when it is read."""

import re
import secrets
from enum import StrEnum
from typing import Annotated, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import StateCorrupt

R = TypeVar("R", bound=BaseModel)

FILE_PREFIX: Final = "file-"
JOB_PREFIX: Final = "batch_"
ALL: Final = 1_000_000
"""As the limit of a look at keys: every one of them."""
FILE_RECORDS: Final = "files/record/"
"""Where the records of files are in the state store."""

Purpose = Literal["batch", "batch_output"]
Unit = int | Literal["validate", "finalise"]
"""A piece of a job's work: a chunk of lines by its number, or what comes before and after all chunks."""

_ID: Final = re.compile(rf"(?:{FILE_PREFIX}|{JOB_PREFIX})([0-9a-f]{{12}})([0-9a-f]{{20}})")
_NEWEST: Final = 2**48 - 1


class Status(StrEnum):
    """Where a job stands, in OpenAI's words."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


ACTIVE: Final = (Status.VALIDATING, Status.IN_PROGRESS, Status.FINALIZING, Status.CANCELLING)
ENDED: Final = (Status.COMPLETED, Status.FAILED, Status.EXPIRED, Status.CANCELLED)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileRecord(_Record):
    """A file; its content is in blobs under `data`. Times are seconds since 1970."""

    id: str
    name: str
    purpose: Purpose
    bytes: int
    created_at: int
    expires_at: int
    data: str


class LineFault(_Record):
    """Why an input file, or one line of it (counted from 1), cannot be used."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Lease(_Record):
    """The right to work on a unit until a time, in seconds since 1970; the token is never given twice in a job."""

    token: int
    until: float


class Job(_Record):
    """A batch job and the state of its work. Times are seconds since 1970.

    Attributes:
        output_id: what the file of answers is called once it is there; `error_id` likewise.
        starts: byte at which each chunk of the input begins.
        first_lines: number of each chunk's first line, counted from 1.
        accepted: for each chunk the token under which its results were accepted, 0 while there are none.
        leases: unit → who may work on it.
        fence: the last token given.
        outcome: what the job ends as, once it is being finalised.
    """

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: dict[str, str] | None
    status: Status = Status.VALIDATING
    created_at: int
    expires_at: int
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    errors: tuple[LineFault, ...] = ()
    total: int = 0
    completed: int = 0
    failed: int = 0
    keep_output_s: int | None = None
    output_id: str
    error_id: str
    has_output: bool = False
    has_errors: bool = False

    input_bytes: int = 0
    starts: tuple[int, ...] = ()
    first_lines: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()
    leases: dict[str, Lease] = Field(default_factory=dict)
    fence: Annotated[int, Field(ge=0)] = 0
    outcome: Literal[Status.COMPLETED, Status.CANCELLED, Status.EXPIRED] | None = None

    @property
    def active(self) -> bool:
        """Whether there is still something to do for it."""
        return self.status in ACTIVE

    def chunk(self, number: int) -> tuple[int, int, int]:
        """First byte of a chunk, the byte after it, and the number of its first line."""
        end = self.starts[number + 1] if number + 1 < len(self.starts) else self.input_bytes
        return self.starts[number], end, self.first_lines[number]


class Reservation(_Record):
    """What an idempotency key stands for until a time, in seconds since 1970."""

    fingerprint: str
    object_id: str
    until: float


def new_id(prefix: str, now: float) -> str:
    """A new id: the prefix, twelve digits of time (ms, hexadecimal) and twenty that are random."""
    return f"{prefix}{int(now * 1000) & _NEWEST:012x}{secrets.token_hex(10)}"


def is_id(prefix: str, text: str) -> bool:
    """Whether `text` could be an id of that kind; anything else is no part of a key."""
    return text.startswith(prefix) and _ID.fullmatch(text) is not None


def made_at(text: str) -> float:
    """When an id was made, in seconds since 1970."""
    found = _ID.fullmatch(text)
    return int(found[1], 16) / 1000 if found else 0.0


def newest_first(text: str) -> str:
    """The part of a key that stands for an id, such that the newest comes first."""
    found = _ID.fullmatch(text)
    if found is None:
        raise ValueError("not an id")
    return f"{_NEWEST - int(found[1], 16):012x}{found[2]}"


def dump(record: BaseModel) -> bytes:
    """A record as JSON."""
    return record.model_dump_json(exclude_defaults=True).encode()


def parse(model: type[R], key: str, value: bytes) -> R:
    """The record in `value`. Raises StateCorrupt, naming `key`."""
    try:
        return model.model_validate_json(value)
    except ValidationError as exc:
        raise StateCorrupt(f"The stored entry {key} is damaged; delete it.") from exc
