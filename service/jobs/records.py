"""The stored records of files and jobs: JSON, validated on reading."""

import re
import secrets
from enum import StrEnum
from typing import Annotated, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.state.framing import corrupt

R = TypeVar("R", bound=BaseModel)

FILE_PREFIX: Final = "file-"
JOB_PREFIX: Final = "batch_"
ALL: Final = 1_000_000
"""A `limit` for `StateStore.keys` that stands for all keys."""
FILE_RECORDS: Final = "files/record/"
"""Key prefix of the records of files."""
FILE_DATA: Final = "files/data/"
"""Key prefix of the contents of files; a content's name follows, then the number of a piece."""

Purpose = Literal["batch", "batch_output"]
Unit = int | Literal["validate", "finalise"]
"""A piece of a job's work: a chunk of lines by its number, or the step before or after all chunks."""

_ID: Final = re.compile(rf"(?:{FILE_PREFIX}|{JOB_PREFIX})([0-9a-f]{{12}})([0-9a-f]{{20}})")
_NEWEST: Final = 2**48 - 1


class JobStatus(StrEnum):
    """The state of a job, in OpenAI's terms."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


ACTIVE: Final = (JobStatus.VALIDATING, JobStatus.IN_PROGRESS, JobStatus.FINALIZING, JobStatus.CANCELLING)
ENDED: Final = (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.EXPIRED, JobStatus.CANCELLED)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileRecord(_Record):
    """A file whose content is in blobs under `data`. Times are seconds since 1970."""

    id: str
    name: str
    purpose: Purpose
    bytes: int
    created_at: int
    expires_at: int
    data: str


class LineFault(_Record):
    """A fault of an input file, or of one of its lines, counted from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Lease(_Record):
    """The right to work on a unit until a time, in seconds since 1970. No token is used twice in a job."""

    token: int
    until: float


class Job(_Record):
    """A batch job and the state of its work. Times are seconds since 1970.

    Attributes:
        output_id: id of the future file of answers; `error_id` of the file of errors.
        starts: byte at which each chunk of the input begins.
        first_lines: number of each chunk's first line, counted from 1.
        accepted: for each chunk, the token under which its results were accepted; 0 while it has none.
        leases: unit → its current lease.
        fence: the token given last.
        outcome: the final status, set once the job is being finalised.
    """

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: dict[str, str] | None
    status: JobStatus = JobStatus.VALIDATING
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
    outcome: Literal[JobStatus.COMPLETED, JobStatus.CANCELLED, JobStatus.EXPIRED] | None = None

    @property
    def active(self) -> bool:
        """Return whether work on the job remains."""
        return self.status in ACTIVE

    def chunk(self, number: int) -> tuple[int, int, int]:
        """Return the first byte of a chunk, the byte after its last, and the number of its first line."""
        end = self.starts[number + 1] if number + 1 < len(self.starts) else self.input_bytes
        return self.starts[number], end, self.first_lines[number]


class IdempotencyRecord(_Record):
    """The object that an idempotency key stands for, until a time in seconds since 1970."""

    fingerprint: str
    object_id: str
    until: float


def new_id(prefix: str, now: float) -> str:
    """Return a new id: the prefix, twelve hexadecimal digits of time (ms), and twenty random ones."""
    return f"{prefix}{int(now * 1000) & _NEWEST:012x}{secrets.token_hex(10)}"


def is_id(prefix: str, text: str) -> bool:
    """Return whether `text` is a well-formed id with the prefix, and so safe in a key."""
    return text.startswith(prefix) and _ID.fullmatch(text) is not None


def made_at(text: str) -> float:
    """Return the creation time of an id, in seconds since 1970; 0 for a malformed one."""
    found = _ID.fullmatch(text)
    return int(found[1], 16) / 1000 if found else 0.0


def newest_first(text: str) -> str:
    """Return the part of a key that stands for an id, sorting newest first."""
    found = _ID.fullmatch(text)
    if found is None:
        raise ValueError("not an id")
    return f"{_NEWEST - int(found[1], 16):012x}{found[2]}"


def dump(record: BaseModel) -> bytes:
    """Serialise a record as JSON."""
    return record.model_dump_json(exclude_defaults=True).encode()


def parse(model: type[R], key: str, value: bytes) -> R:
    """Parse the record in `value`. Raises StateCorrupt, naming `key`."""
    try:
        return model.model_validate_json(value)
    except ValidationError as exc:
        raise corrupt(key) from exc
