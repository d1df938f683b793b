"""A request whose body is one JSON object: read within the limits, checked against a model."""

from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from service.api.problems.table import FieldErrors, UnsupportedMediaType, quoted
from service.api.request import body as bodies
from service.api.request.classify_request import JSON, body_of, media_type, refuse_query
from service.api.request.fields import field_errors, parse_json_object
from service.settings import Settings

M = TypeVar("M", bound=BaseModel)


async def read_json(request: Request, settings: Settings) -> dict[str, Any]:
    """The JSON object that is the body of `request`.

    Raises:
        UnsupportedMediaType: it is something else by its Content-Type, or encoded.
        MalformedRequest: it is not a JSON object.
        PayloadTooLarge: it has too many bytes.
        FieldErrors: a name is repeated, or there are query parameters.
    """
    if (kind := media_type(request)) != JSON:
        given = f"the Content-Type {quoted(kind, 100)}" if kind else "a body without a Content-Type"
        raise UnsupportedMediaType(f"This route does not read {given}; send {JSON}.")
    refuse_query(request)
    return parse_json_object(await bodies.read(body_of(request, settings)))


def checked(model: type[M], fields: Mapping[str, Any]) -> M:
    """The fields as `model` has them. Raises `FieldErrors` naming each that is at fault."""
    try:
        return model.model_validate(fields)
    except ValidationError as exc:
        raise FieldErrors(list(field_errors(exc))) from exc
