"""One table from errors to RFC 9457 problems.

`type` is ``urn:anyclass:problem:<slug>``: an identifier that never changes and leads to no page.
``docs/api.md`` documents the slugs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from service import errors

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:anyclass:problem:"

_FIELDS_NAMED: Final = 5

READINESS_RETRY_S: Final = 1.0
"""Seconds after which a client may retry while the service starts."""


class FieldErrors(errors.InvalidRequest):
    """Fields of a request that are missing, unknown, repeated or of the wrong kind.

    The message names the first few: not every protocol's form of errors has a list of them.

    Attributes:
        fields: name and fault of each field, at least one.
    """

    def __init__(self, fields: Sequence[tuple[str, str]]) -> None:
        named = "; ".join(f"{name}: {message}" for name, message in fields[:_FIELDS_NAMED])
        more = f"; and {len(fields) - _FIELDS_NAMED} more" if len(fields) > _FIELDS_NAMED else ""
        super().__init__(named + more)
        self.fields = tuple(fields)


class UnsupportedMediaType(errors.AnyclassError):
    """A body of a media type that the route does not read."""


class NotAcceptable(errors.AnyclassError):
    """A client that accepts none of the route's media types."""


class BodyTimeout(errors.AnyclassError):
    """A body that arrived too slowly."""


class BodiesFull(errors.Overloaded):
    """Bodies of all requests that together reach the limit of bytes in memory."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of the table: the members of a problem that never change."""

    slug: str
    title: str
    status: int

    @property
    def type(self) -> str:
        """Return the problem's identifier, a URN."""
        return TYPE_PREFIX + self.slug


KINDS: Final[dict[type[errors.AnyclassError], Kind]] = {
    errors.AnyclassError: Kind("internal", "Something went wrong in the service", 500),
    errors.InvalidRequest: Kind("invalid-request", "The request cannot be fulfilled as it is", 422),
    errors.InvalidLabels: Kind("invalid-labels", "The labels cannot be used", 422),
    errors.InvalidTemplates: Kind("invalid-templates", "The prompt templates cannot be used", 422),
    errors.InvalidScoring: Kind("invalid-scoring", "The scoring options cannot be used", 422),
    errors.PromptTooLong: Kind("prompt-too-long", "A prompt is longer than the model can read", 422),
    errors.InvalidImage: Kind("invalid-image", "The image cannot be read", 422),
    errors.ImageNotFetched: Kind("image-not-fetched", "The image could not be fetched from its URL", 422),
    errors.InvalidLine: Kind("invalid-request", "The request cannot be fulfilled as it is", 422),
    errors.UnsupportedImageFormat: Kind("unsupported-image-format", "The image format is not supported", 415),
    errors.PayloadTooLarge: Kind("payload-too-large", "The request is too large", 413),
    errors.TooManyLabels: Kind("too-many-labels", "The request has too many labels", 413),
    errors.MalformedRequest: Kind("malformed-request", "The request cannot be parsed", 400),
    errors.UnknownModel: Kind("unknown-model", "No such model is served here", 404),
    errors.UnknownLabelSet: Kind("unknown-label-set", "No such label set is kept here", 404),
    errors.LabelSetComputing: Kind("label-set-computing", "The label set is still being computed", 409),
    errors.LabelSetFailed: Kind("label-set-failed", "The label set could not be computed", 409),
    errors.VersionMismatch: Kind("version-mismatch", "It is not in the version that was asked for", 412),
    errors.UnknownObject: Kind("unknown-object", "No such file or batch is kept here", 404),
    errors.Conflict: Kind("conflict", "It does not go together with what is there", 409),
    errors.StateFull: Kind("state-full", "No more can be kept here", 507),
    errors.StateUnavailable: Kind("state-unavailable", "The state store cannot be used", 503),
    errors.StateCorrupt: Kind("state-corrupt", "A stored entry is damaged", 500),
    errors.Overloaded: Kind("overloaded", "Too much work is waiting", 429),
    errors.Unauthorized: Kind("unauthorized", "The request has no valid API key", 401),
    errors.RateLimited: Kind("rate-limited", "Too many requests from one client", 429),
    errors.NotReady: Kind("not-ready", "The service is not ready", 503),
    errors.DeadlineExceeded: Kind("deadline-exceeded", "The service took too long", 503),
    errors.InferenceFailed: Kind("inference-failed", "The model could not be run", 500),
    errors.NonFiniteOutput: Kind("non-finite-output", "The model gave no usable answer", 500),
    errors.DeviceOutOfMemory: Kind("device-out-of-memory", "The device has too little memory at this moment", 503),
    errors.DeviceLost: Kind("device-lost", "The device has failed", 503),
    # These three end the process at its start; an answer would mean that the service is not ready.
    errors.BundleError: Kind("bundle-refused", "The model bundle cannot be served", 503),
    errors.ProviderUnavailable: Kind("provider-unavailable", "The execution provider is not available", 503),
    errors.ConfigurationError: Kind("configuration-refused", "The configuration cannot be used", 503),
    FieldErrors: Kind("invalid-request", "The request cannot be fulfilled as it is", 422),
    UnsupportedMediaType: Kind("unsupported-media-type", "The request's content type is not supported", 415),
    NotAcceptable: Kind("not-acceptable", "None of the accepted content types can be given", 406),
    BodyTimeout: Kind("request-timeout", "The request came too slowly", 408),
    BodiesFull: Kind("overloaded", "Too much work is waiting", 429),
}

INTERNAL: Final = KINDS[errors.AnyclassError]
INTERNAL_DETAIL: Final = "The service failed to answer this request. Search its log for the request id."
NOT_FOUND: Final = Kind("not-found", "There is nothing here", 404)
METHOD_NOT_ALLOWED: Final = Kind("method-not-allowed", "The method is not allowed here", 405)
BAD_HTTP: Final = Kind("malformed-http", "The request is not valid HTTP", 400)
ROUTING_KINDS: Final = {kind.status: kind for kind in (NOT_FOUND, METHOD_NOT_ALLOWED)}
"""Problems of routing, which have no exception of the service's own."""


def kind_of(error: errors.AnyclassError) -> Kind:
    """Return the row of the error's class, or of its nearest base class."""
    return next(KINDS[cls] for cls in type(error).__mro__ if cls in KINDS)


def problem(kind: Kind, detail: str, request_id: str, **extensions: object) -> dict[str, Any]:
    """Return a problem as a JSON object; `extensions` follow the members of RFC 9457."""
    # The detail may quote a client's text with lone surrogates, which UTF-8 cannot encode.
    safe_detail = detail.encode("utf-8", "replace").decode("utf-8")
    return {
        "type": kind.type,
        "title": kind.title,
        "status": kind.status,
        "detail": safe_detail,
        "request_id": request_id,
        **extensions,
    }


def problem_of(error: errors.AnyclassError, request_id: str) -> dict[str, Any]:
    """Return the problem for `error`."""
    kind = kind_of(error)
    if isinstance(error, FieldErrors):
        fields = [{"field": quoted(name), "detail": quoted(message)} for name, message in error.fields]
        return problem(kind, error.detail, request_id, errors=fields)
    return problem(kind, error.detail, request_id)


def headers_in(error: errors.AnyclassError, request: Mapping[str, str]) -> dict[str, str]:
    """Return the HTTP headers for `error` in the answer to a request; one without a body closes no connection.

    Args:
        error: the error.
        request: the request's headers, by lower-case names.
    """
    headers = headers_of(error)
    if "transfer-encoding" not in request and request.get("content-length", "0") == "0":
        headers.pop("connection", None)
    return headers


def headers_of(error: errors.AnyclassError) -> dict[str, str]:
    """Return the HTTP headers for `error`."""
    match error:
        case errors.Overloaded() | errors.RateLimited() | errors.LabelSetComputing():
            # The rest of the body may still be arriving, see below.
            closing = {"connection": "close"} if isinstance(error, BodiesFull) else {}
            return {"retry-after": str(max(1, math.ceil(error.retry_after_s))), **closing}
        case errors.Unauthorized():
            reason = ', error="invalid_token"' if error.presented else ""
            # The body is not read: a client without a key may not send one.
            return {"www-authenticate": f'Bearer realm="anyclass"{reason}', "connection": "close"}
        case errors.Conflict() | errors.StateUnavailable(lasting=True):
            # OpenAI's clients repeat a request on 409, as if a lock were soon free, and on 503, as if the server were
            # soon back.
            return {"x-should-retry": "false"}
        case errors.NotReady() | errors.StateUnavailable():
            return {"retry-after": str(math.ceil(READINESS_RETRY_S))}
        case errors.PayloadTooLarge() | errors.StateFull() | BodyTimeout():
            # The rest of the body may still be arriving, and will not be read. A full store stays full until something
            # is deleted, but OpenAI's clients would send the file twice more.
            again = {"x-should-retry": "false"} if isinstance(error, errors.StateFull) else {}
            return {"connection": "close", **again}
        case _:
            return {}


def quoted(text: str, limit: int = 200) -> str:
    """Return `text` fit to show to a client: valid UTF-8, and at most `limit` characters."""
    safe = text.encode("utf-8", "replace").decode("utf-8")
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"
