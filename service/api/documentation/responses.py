"""Responses for the OpenAPI document: their headers, and the errors that a route may answer with.

A route names the exceptions that it may raise. The table of problems and the error form of its path give the statuses,
media types, codes and headers, through the functions that answer a request.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from service import errors
from service.api.documentation.examples import REQUEST_ID
from service.api.problems.protocol_forms import write_error
from service.api.problems.table import (
    NOT_FOUND,
    BodiesFull,
    BodyTimeout,
    FieldErrors,
    Kind,
    UnsupportedMediaType,
    headers_of,
    kind_of,
    problem,
)
from service.api.protocols import ErrorForm, error_form_of

ErrorType: TypeAlias = type[errors.AnyclassError]

REFERENCE: Final = "#/components/schemas/"

_EVERY_ROUTE: Final = (errors.Unauthorized, errors.RateLimited, errors.AnyclassError)
BODY_ERRORS: Final = (
    errors.MalformedRequest,
    FieldErrors,
    UnsupportedMediaType,
    errors.PayloadTooLarge,
    BodyTimeout,
    BodiesFull,
)
"""Errors of a route that reads a body."""
LABEL_ERRORS: Final = (
    errors.InvalidLabels,
    errors.InvalidTemplates,
    errors.InvalidScoring,
    errors.PromptTooLong,
    errors.TooManyLabels,
)
"""Errors of a route that turns labels into class vectors."""
STATE_ERRORS: Final = (errors.NotReady, errors.StateUnavailable, errors.StateCorrupt)
"""Errors of a route that uses the state store."""
INFERENCE_ERRORS: Final = (
    errors.Overloaded,
    errors.NotReady,
    errors.DeadlineExceeded,
    errors.InferenceFailed,
    errors.NonFiniteOutput,
    errors.DeviceOutOfMemory,
    errors.DeviceLost,
)
"""Errors of a route that runs the model."""
IMAGE_ERRORS: Final = (errors.InvalidImage, errors.ImageNotFetched, errors.UnsupportedImageFormat)
"""Errors of a route that fetches and decodes an image."""
LABEL_SET_ERRORS: Final = (
    errors.UnknownLabelSet,
    errors.LabelSetComputing,
    errors.LabelSetFailed,
    errors.StateUnavailable,
    errors.StateCorrupt,
)
"""Errors of a route that takes the name of a label set in place of labels."""

HEADERS: Final[Mapping[str, dict[str, Any]]] = {
    "X-Request-ID": {
        "description": "The request's id: the client's own from this header, or a new one.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 128},
        "example": REQUEST_ID,
    },
    "Retry-After": {
        "description": "Seconds after which to try again.",
        "schema": {"type": "integer", "minimum": 1},
        "example": 2,
    },
    "WWW-Authenticate": {
        "description": "How to authenticate (RFC 6750).",
        "schema": {"type": "string"},
        "example": 'Bearer realm="anyclass"',
    },
    "X-Should-Retry": {
        "description": "`false`: the same request would get the same answer. OpenAI's clients read it.",
        "schema": {"type": "string", "enum": ["false"]},
    },
    "RateLimit": {
        "description": "What is left of the rate limit, if one is set (draft-ietf-httpapi-ratelimit-headers).",
        "schema": {"type": "string"},
        "example": '"default";r=9;t=1',
    },
    "RateLimit-Policy": {
        "description": "The rate limit, if one is set (draft-ietf-httpapi-ratelimit-headers).",
        "schema": {"type": "string"},
        "example": '"default";q=10;w=1',
    },
    "Server-Timing": {
        "description": "Milliseconds in each stage and in total; stages overlap.",
        "schema": {"type": "string", "pattern": r"total;dur=\d+\.\d\d$"},
        "example": "decode;dur=1.20, queue;dur=0.05, text;dur=0.00, image;dur=9.80, score;dur=0.10, total;dur=11.40",
    },
    "X-Anyclass-Warnings": {
        "description": "Codes of the answer's warnings, if it has any: see `warnings` in the answer to /v1/classify.",
        "schema": {"type": "string", "pattern": "^[a-z_]+(, [a-z_]+)*$"},
        "example": "labels_equal_to_model",
    },
    "ETag": {
        "description": "The version of the label set, in double quotes.",
        "schema": {"type": "string", "pattern": '^".+"$'},
        "example": '"3f2a9c0d1e5b7a84"',
    },
    "Inference-Header-Content-Length": {
        "description": "Bytes of the JSON, if binary tensors follow it.",
        "schema": {"type": "integer", "minimum": 1},
        "example": 155,
    },
}
"""Every header of an answer, by the name under which the document refers to it."""

_ONE_SEGMENT: Final = re.compile(r"\{\w+\}")
"""A path parameter that matches no slash: a value with one leads to no route."""
_ERROR_MODELS: Final[Mapping[ErrorForm, str]] = {
    "problem": "Problem",
    "openai": "OpenAIError",
    "huggingface": "PlainError",
    "open-inference": "PlainError",
}


def header(name: str, *, always: bool = False) -> dict[str, dict[str, Any]]:
    """Return an entry for a response's `headers`; `always` if every such response has the header."""
    return {name: {**HEADERS[name], "required": True} if always else {"$ref": f"#/components/headers/{name}"}}


def error_responses(path: str, *raised: ErrorType) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of the route at `path`, for its `responses`.

    `raised` need not name the errors that every route may give.
    """
    model = _ERROR_MODELS[error_form_of(path)]
    described = [_described(path, kind_of(each), headers_of(each)) for each in map(_sample, (*raised, *_EVERY_ROUTE))]
    if _ONE_SEGMENT.search(path):
        described.append(_described(path, NOT_FOUND))
    by_status: dict[int, list[_Described]] = {}
    for each in described:
        by_status.setdefault(each.status, []).append(each)
    return {status: _response(by_status[status], model) for status in sorted(by_status)}


@dataclass(frozen=True, slots=True)
class _Described:
    """An error as the protocol of the path writes it."""

    status: int
    media_type: str
    description: str
    headers: frozenset[str]


def _sample(error: ErrorType) -> errors.AnyclassError:
    """Return an error of that type, which decides the status and the names of the headers."""
    if issubclass(error, FieldErrors):
        return error([("field", "detail")])
    if issubclass(error, errors.InvalidLine):
        return error("code", "detail")
    if issubclass(error, errors.Overloaded | errors.RateLimited | errors.LabelSetComputing):
        return error("detail", 1.0)
    return error("detail")


def _described(path: str, kind: Kind, headers: Iterable[str] = ()) -> _Described:
    status, media_type, body = write_error(path, problem(kind, kind.title, REQUEST_ID))
    match body:
        case {"type": code} | {"error": {"code": code}}:
            description = f"`{code}`: {kind.title}"
        case _:
            description = kind.title
    return _Described(status, media_type, description, frozenset(headers))


def _response(described: Sequence[_Described], model: str) -> dict[str, Any]:
    """Return the response of one status, which may have several causes."""
    headers: dict[str, Any] = {}
    for name in HEADERS:
        having = [each for each in described if name.lower() in each.headers]
        if having:
            headers |= header(name, always=len(having) == len(described))
    return {
        "description": "; ".join(dict.fromkeys(each.description for each in described)),
        "headers": headers,
        "content": {described[0].media_type: {"schema": {"$ref": REFERENCE + model}}},
    }
