"""Writes a problem (RFC 9457) in the form of errors of the protocol at a path."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from fastapi.responses import Response

from service.api.problems.table import MEDIA_TYPE, TYPE_PREFIX
from service.api.protocols import ErrorForm, error_form_of

_JSON: Final = "application/json"
_AS_BAD_REQUEST: Final = {422: 400}
"""Clients of OpenAI and of the Open Inference Protocol expect 400, not 422, for a request that makes no sense."""

_OPENAI_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_OPENAI_CODES: Final = {
    "unknown-model": "model_not_found",
    "overloaded": "rate_limit_exceeded",
    "unauthorized": "invalid_api_key",
}
_SERVER_ERROR: Final = 500
_HUGGING_FACE_STATUSES: Final = {"deadline-exceeded": 504}
"""Hugging Face's JavaScript client repeats a request at once on 503, which is right only while the service starts."""

WrittenError: TypeAlias = tuple[int, str, dict[str, Any]]
"""Status, media type and body."""


def _own(problem: Mapping[str, Any]) -> WrittenError:
    return problem["status"], MEDIA_TYPE, dict(problem)


def _openai(problem: Mapping[str, Any]) -> WrittenError:
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


def _hugging_face(problem: Mapping[str, Any]) -> WrittenError:
    slug = problem["type"].removeprefix(TYPE_PREFIX)
    return _HUGGING_FACE_STATUSES.get(slug, problem["status"]), _JSON, {"error": problem["detail"]}


def _open_inference(problem: Mapping[str, Any]) -> WrittenError:
    return _AS_BAD_REQUEST.get(problem["status"], problem["status"]), _JSON, {"error": problem["detail"]}


_WRITERS: Final[Mapping[ErrorForm, Callable[[Mapping[str, Any]], WrittenError]]] = {
    "problem": _own,
    "openai": _openai,
    "huggingface": _hugging_face,
    "open-inference": _open_inference,
}


def write_error(path: str, problem: Mapping[str, Any]) -> WrittenError:
    """Return the status, the media type and the body of `problem` in the form of `path`."""
    return _WRITERS[error_form_of(path)](problem)


def render_error(path: str, problem: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """Return the response for `problem`, in the form that `path` decides; `headers` are the error's own."""
    status, media_type, body = write_error(path, problem)
    content = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    return Response(content, status_code=status, headers=dict(headers or {}), media_type=media_type)
