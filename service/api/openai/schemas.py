"""Files and batches as OpenAI's clients read them."""

import re
from typing import Annotated, Any, Final, Generic, Literal, TypeVar

from fastapi import Header, Path, Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from service.api.documentation.examples import BATCH_ID, FILE_ID
from service.api.problems.schemas import AnswerModel
from service.api.problems.table import FieldErrors
from service.api.request.validation import RequestModel
from service.jobs.records import FILE_PREFIX, JOB_PREFIX, FileRecord, Job
from service.jobs.use_cases import Idempotency

FILES_PAGE: Final = 10_000
BATCHES_PAGE: Final = 20
MAX_BATCHES_PAGE: Final = 100
SHORTEST_KEEP_S: Final = 3_600
LONGEST_KEEP_S: Final = 30 * 24 * 3_600
_WINDOW: Final = "([1-9]|[1-9][0-9]|1[0-5][0-9]|16[0-8])h"
_MAX_PAIRS: Final = 16
_MAX_KEY_CHARS: Final = 255

Object = TypeVar("Object")

_FILE_ID: Final = {"pattern": f"^{FILE_PREFIX}[0-9a-f]{{32}}$"}
_BATCH_ID: Final = {"pattern": f"^{JOB_PREFIX}[0-9a-f]{{32}}$"}
FileId = Annotated[
    str, Path(description="The file's id.", max_length=100, examples=[FILE_ID], json_schema_extra=_FILE_ID)
]
BatchId = Annotated[
    str, Path(description="The batch's id.", max_length=100, examples=[BATCH_ID], json_schema_extra=_BATCH_ID)
]
AfterFile = Annotated[
    str | None,
    Query(description="The id of the last object of the previous page.", max_length=100, json_schema_extra=_FILE_ID),
]
AfterBatch = Annotated[
    str | None,
    Query(description="The id of the last object of the previous page.", max_length=100, json_schema_extra=_BATCH_ID),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        json_schema_extra={"minLength": 1, "maxLength": _MAX_KEY_CHARS},
        description="Within 24 hours a request is executed once per key; repeating it returns the same object. "
        "The same key with another request is refused with 409.",
    ),
]


class _Page(AnswerModel, Generic[Object]):
    object: Literal["list"] = "list"
    data: list[Object]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileOut(AnswerModel):
    """A file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"


class FilesOut(_Page[FileOut]):
    """A page of files."""


class FileDeletedOut(AnswerModel):
    """A deleted file."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class BatchErrorOut(AnswerModel):
    """An error of the input file, or of one of its lines, counted from 1."""

    code: str
    message: str
    line: int | None
    param: str | None


class BatchErrorsOut(AnswerModel):
    """Errors of the input file."""

    object: Literal["list"] = "list"
    data: list[BatchErrorOut]


class RequestCountsOut(AnswerModel):
    """Lines of the input: all, answered, and failed."""

    total: int
    completed: int
    failed: int


class BatchOut(AnswerModel):
    """A batch job."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrorsOut | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCountsOut
    metadata: dict[str, str] | None


class BatchesOut(_Page[BatchOut]):
    """A page of batches, newest first."""


class ExpiresAfter(BaseModel):
    """The time for which a file is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=SHORTEST_KEEP_S, le=LONGEST_KEEP_S)]


def _whole_hours(window: str) -> str:
    if not re.fullmatch(_WINDOW, window):
        raise PydanticCustomError("completion_window", "must be whole hours from 1h to 168h, such as 24h")
    return window


class BatchRequest(RequestModel):
    """The fields of OpenAI's request."""

    input_file_id: Annotated[
        str,
        Field(max_length=100, description="A file with the purpose `batch`.", json_schema_extra=_FILE_ID),
    ]
    endpoint: Annotated[
        str,
        Field(
            max_length=100,
            description="The route that answers each line.",
            json_schema_extra={"enum": ["/v1/classify", "/v1/embeddings"]},
        ),
    ]
    completion_window: Annotated[
        str,
        AfterValidator(_whole_hours),
        Field(
            json_schema_extra={"pattern": f"^{_WINDOW}$"},
            description="When the batch expires: whole hours, `1h` to `168h`.",
            examples=["24h"],
        ),
    ] = "24h"
    metadata: Annotated[
        dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]]
        | None,
        Field(max_length=_MAX_PAIRS, description="Any pairs of strings; returned unchanged."),
    ] = None
    output_expires_after: Annotated[
        ExpiresAfter | None, Field(description="The time for which the results are kept.")
    ] = None


def idempotency_of(key: str | None, client: str) -> Idempotency | None:
    """Return a request's idempotency key. Raises `FieldErrors` for one that is empty or too long."""
    if key is None:
        return None
    if not 0 < len(key) <= _MAX_KEY_CHARS:
        raise FieldErrors([("Idempotency-Key", f"must have 1 to {_MAX_KEY_CHARS} characters")])
    return Idempotency(key, client)


def file_json(record: FileRecord) -> dict[str, Any]:
    """Return a file as `FileOut` describes it."""
    return FileOut(
        id=record.id,
        bytes=record.bytes,
        created_at=record.created_at,
        expires_at=record.expires_at,
        filename=record.name,
        purpose=record.purpose,
    ).model_dump()


def batch_json(job: Job) -> dict[str, Any]:
    """Return a job as `BatchOut` describes it."""
    faults = [BatchErrorOut(**fault.model_dump()) for fault in job.errors]
    same = job.model_dump(mode="json", include=set(BatchOut.model_fields) - {"errors"})
    return BatchOut(
        **same,
        errors=BatchErrorsOut(data=faults) if faults else None,
        output_file_id=job.output_id if job.has_output else None,
        error_file_id=job.error_id if job.has_errors else None,
        request_counts=RequestCountsOut(total=job.total, completed=job.completed, failed=job.failed),
    ).model_dump()


def page_json(objects: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """Return a page of objects, as OpenAI's clients expect it."""
    return {
        "object": "list",
        "data": objects,
        "first_id": objects[0]["id"] if objects else None,
        "last_id": objects[-1]["id"] if objects else None,
        "has_more": has_more,
    }


class EmbeddingOut(AnswerModel):
    """A vector of unit length: a list of numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(AnswerModel):
    """Tokens of the texts; images have none."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(AnswerModel):
    """The vectors, in the order of the inputs."""

    object: Literal["list"]
    data: list[EmbeddingOut]
    model: str
    usage: EmbeddingsUsage
