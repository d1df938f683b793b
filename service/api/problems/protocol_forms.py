"""In which form a client is told of an error: one table from the path to the protocol that is spoken there.

A problem (RFC 9457) is what everything in the service makes; `render_error` writes it as the path's protocol has it.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from fastapi.responses import Response

from service.api.problems.table import MEDIA_TYPE, TYPE_PREFIX

_JSON: Final = "application/json"
_AS_BAD_REQUEST: Final = {422: 400}
"""OpenAI and the Open Inference Protocol know no 422: their clients look for 400 where a request makes no sense."""

_OPENAI_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_OPENAI_CODES: Final = {
    "unknown-model": "model_not_found",
    "overloaded": "rate_limit_exceeded",
    "unauthorized": "invalid_api_key",
}
_OPENAI_ONLY: Final = (
    "/v1/assistants",
    "/v1/audio",
    "/v1/chat",
    "/v1/completions",
    "/v1/conversations",
    "/v1/fine_tuning",
    "/v1/images",
    "/v1/moderations",
    "/v1/responses",
    "/v1/threads",
    "/v1/uploads",
    "/v1/vector_stores",
    "/v1/videos",
)
_SERVER_ERROR: Final = 500
_HUGGING_FACE_STATUSES: Final = {"deadline-exceeded": 504}
"""Hugging Face's JavaScript client sends a request again at once on 503: to wait is right only for a start."""

Form = Callable[[Mapping[str, Any]], tuple[int, str, dict[str, Any]]]
"""From a problem to the status, the media type and the body that say it."""


def _own(problem: Mapping[str, Any]) -> tuple[int, str, dict[str, Any]]:
    return problem["status"], MEDIA_TYPE, dict(problem)


def _openai(problem: Mapping[str, Any]) -> tuple[int, str, dict[str, Any]]:
    status = _AS_BAD_REQUEST.get(problem["status"], problem["status"])
    slug = problem["type"].removeprefix(TYPE_PREFIX)
    fields = problem.get("errors") or [{}]
    other = "server_error" if status >= _SERVER_ERROR else "invalid_request_error"
    error = {
        "message": problem["detail"],
        "type": _OPENAI_TYPES.get(status, other),
        "param": fields[0].get("field"),
        "code": _OPENAI_CODES.get(slug, slug.replace("-", "_")),
    }
    return status, _JSON, {"error": error}


def _hugging_face(problem: Mapping[str, Any]) -> tuple[int, str, dict[str, Any]]:
    slug = problem["type"].removeprefix(TYPE_PREFIX)
    return _HUGGING_FACE_STATUSES.get(slug, problem["status"]), _JSON, {"error": problem["detail"]}


def _open_inference(problem: Mapping[str, Any]) -> tuple[int, str, dict[str, Any]]:
    return _AS_BAD_REQUEST.get(problem["status"], problem["status"]), _JSON, {"error": problem["detail"]}


_EXACT: Final[Mapping[str, Form]] = {"/": _hugging_face}
# One that ends in a slash is about what lies below it only.
_PREFIXES: Final[Mapping[str, Form]] = {
    "/v1/embeddings": _openai,
    "/v1/files": _openai,
    "/v1/batches": _openai,
    "/v1/models/": _openai,
    # What OpenAI's clients ask for and is not here: they show a message only where it has their form.
    **dict.fromkeys(_OPENAI_ONLY, _openai),
    "/models": _hugging_face,
    "/v2": _open_inference,
}


def form_of(path: str) -> Form:
    """The form of errors at `path`: that of the protocol which is spoken there, else RFC 9457."""
    if path in _EXACT:
        return _EXACT[path]
    return next(
        (form for at, form in _PREFIXES.items() if path == at or path.startswith(f"{at.removesuffix('/')}/")), _own
    )


def render_error(path: str, problem: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """The HTTP answer at `path` that carries `problem`, which `problems.problem` or `problems.problem_of` made.

    `headers` are those that belong to the error, such as ``Retry-After``.
    """
    status, media_type, body = form_of(path)(problem)
    content = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    return Response(content, status_code=status, headers=dict(headers or {}), media_type=media_type)
