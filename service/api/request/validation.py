"""Checks a request's fields against a model, and names each faulty field."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails

from service.api.problems.table import FieldErrors, quoted
from service.validation_messages import message_of

MAX_ERRORS_SHOWN: Final = 20

_COMPARED_CHARS: Final = 64
_ALIKE: Final = 0.8
_NULL: Final[JsonSchemaValue] = {"type": "null"}
_ANNOTATIONS: Final = ("title", "description", "default", "examples")

M = TypeVar("M", bound=BaseModel)


class RequestModel(BaseModel):
    """Base of what clients send as JSON: no conversion between types, no unknown field, finite numbers.

    `null` for an optional field counts as not given: many clients send every field that they know.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, given: Any) -> Any:  # noqa: ANN401 - any JSON value
        if not isinstance(given, dict) or None not in given.values():
            return given
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {name: value for name, value in given.items() if value is not None or name not in optional}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describe optional fields as nullable."""
        described = handler(schema)
        target = handler.resolve_ref_schema(described)
        required = target.get("required", ())
        target["properties"] = {
            name: each if name in required else _nullable(each) for name, each in target["properties"].items()
        }
        return described


def _nullable(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Return a field's schema with `null` as one more type."""
    branches = schema.get("anyOf")
    if branches is not None:
        return schema if _NULL in branches else {**schema, "anyOf": [*branches, _NULL]}
    about = {name: value for name, value in schema.items() if name in _ANNOTATIONS}
    return {"anyOf": [{name: value for name, value in schema.items() if name not in about}, _NULL], **about}


def validate_fields(model: type[M], fields: Mapping[str, Any]) -> M:
    """Return the fields as a `model`. Raises `FieldErrors` with each faulty field."""
    try:
        return model.model_validate(fields)
    except ValidationError as exc:
        raise FieldErrors(list(_field_errors(exc, fields))) from exc


def unknown_field(name: str, known: Collection[str]) -> tuple[str, str]:
    """Return the name and the fault of a field that the request does not have, for `FieldErrors`."""
    # Frameworks write a list as labels[] or labels[0].
    plain = name[:_COMPARED_CHARS].partition("[")[0]
    meant = difflib.get_close_matches(plain, known, n=1, cutoff=_ALIKE)
    hint = f" (did you mean {meant[0]}?)" if meant else ""
    return quoted(name), f"is not a field of this request{hint}; it has {', '.join(known)}"


def _field_errors(exc: ValidationError, fields: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield the name and the fault of each field in `exc`."""
    for entry in exc.errors(include_url=False, include_input=False)[:MAX_ERRORS_SHOWN]:
        yield quoted(_path(entry, fields) or entry["type"]), message_of(entry)


def _path(entry: ErrorDetails, fields: Mapping[str, Any]) -> str:
    """Return ``inputs[0].datatype`` for ("inputs", 0, "datatype").

    pydantic names the branches of a union too. A name is a field's if the request has it, or if its absence is the
    fault.
    """
    path = ""
    value: object = fields
    location = entry["loc"]
    for index, part in enumerate(location):
        if isinstance(part, int):
            path += f"[{part}]"
            value = value[part] if isinstance(value, list) and part < len(value) else None
            continue
        present = isinstance(value, Mapping) and part in value
        if present or (entry["type"] == "missing" and index == len(location) - 1):
            path += f".{part}" if path else part
            value = value[part] if present else None  # type: ignore[index]
    return path
