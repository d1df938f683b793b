"""Checks a request's fields against a model, and names each faulty field."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from service.api.problems.table import FieldErrors, quoted
from service.validation_messages import message_of

MAX_ERRORS_SHOWN: Final = 20

M = TypeVar("M", bound=BaseModel)


class RequestModel(BaseModel):
    """Base of what clients send as JSON: no conversion between types, no unknown field, finite numbers."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def validate_fields(model: type[M], fields: Mapping[str, Any]) -> M:
    """Return the fields as a `model`. Raises `FieldErrors` with each faulty field."""
    try:
        return model.model_validate(fields)
    except ValidationError as exc:
        raise FieldErrors(list(field_errors(exc))) from exc


def field_errors(exc: ValidationError) -> Iterable[tuple[str, str]]:
    """Yield the name and the fault of each field in `exc`, for `FieldErrors`."""
    for entry in exc.errors(include_url=False, include_input=False)[:MAX_ERRORS_SHOWN]:
        yield quoted(_path(entry["loc"]) or entry["type"]), message_of(entry)


def _path(location: tuple[int | str, ...]) -> str:
    """Return ``labels[3]`` for ("labels", 3), without the union branches that pydantic adds."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not path:
            path = part
    return path
