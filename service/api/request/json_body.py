"""Reads a request whose body is one JSON object."""

from typing import Any

from fastapi import Request

from service.api.request.body import JSON, read_body, require_media_type
from service.api.request.off_loop import parsed
from service.api.request.query import refuse_query
from service.api.request.strict_json import parse_json_object
from service.settings import Settings


async def read_json(request: Request, settings: Settings, *, max_values: int) -> dict[str, Any]:
    """Return the JSON object that is the body of `request`, with at most about `max_values` values.

    Raises:
        UnsupportedMediaType: the Content-Type is not JSON, or the body has a Content-Encoding.
        MalformedRequest: the body is not a JSON object.
        PayloadTooLarge: the body has too many bytes or values.
        BodiesFull: the bodies of other requests leave no memory for this one.
        FieldErrors: a name is repeated, or the request has query parameters.
    """
    require_media_type(request, JSON)
    refuse_query(request)
    body = await read_body(request, settings)
    return await parsed(body, lambda: parse_json_object(body, max_values=max_values))
