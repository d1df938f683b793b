"""Reads a request whose body is one JSON object."""

from typing import Any

from fastapi import Request

from service.api.problems.table import UnsupportedMediaType
from service.api.request.body import JSON, content_type_shown, media_type, read_body
from service.api.request.query import refuse_query
from service.api.request.strict_json import parse_json_object
from service.settings import Settings


async def read_json(request: Request, settings: Settings) -> dict[str, Any]:
    """Return the JSON object that is the body of `request`.

    Raises:
        UnsupportedMediaType: the Content-Type is not JSON, or the body has a Content-Encoding.
        MalformedRequest: the body is not a JSON object.
        PayloadTooLarge: the body has too many bytes.
        BodiesFull: the bodies of other requests leave no memory for this one.
        FieldErrors: a name is repeated, or the request has query parameters.
    """
    if (kind := media_type(request)) != JSON:
        raise UnsupportedMediaType(f"This route does not read {content_type_shown(kind)}; send {JSON}.")
    refuse_query(request)
    return parse_json_object(await read_body(request, settings))
