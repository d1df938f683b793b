"""Parses JSON (RFC 8259) strictly: UTF-8, no repeated names, no NaN or infinity, a limit on the number of values."""

import json
from typing import Any, Final, NoReturn, cast

from service.api.problems.table import FieldErrors, quoted
from service.errors import AnyclassError, MalformedRequest, PayloadTooLarge

_MAX_VALUES: Final = 2**21
"""Values in one document, estimated by counting commas and brackets, those in strings included."""


def parse_json_object(body: bytes | str, *, numbers: bool = False) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        numbers: allows arrays of millions of numbers.

    Raises: `MalformedRequest`, `FieldErrors` for a repeated name, and `PayloadTooLarge` for too many values.
    """
    value = _parse(body, numbers=numbers)
    if not isinstance(value, dict):
        raise MalformedRequest("The body must be a JSON object.")
    return value


def parse_json_list(name: str, text: str) -> list[Any]:
    """Parse a JSON list; `text` begins with ``[``. Raises `FieldErrors` for the field `name`."""
    try:
        return cast("list[Any]", _parse(text))
    except AnyclassError as exc:
        raise FieldErrors([(name, "begins with [ but is not a valid JSON list")]) from exc


def _parse(body: bytes | str, *, numbers: bool = False) -> Any:  # noqa: ANN401 - any JSON value
    try:
        text = body if isinstance(body, str) else body.decode("utf-8")
        # Counted before parsing: an empty list is 3 bytes of JSON and 64 bytes of memory.
        if text.count("[") + text.count("{") + (0 if numbers else text.count(",")) > _MAX_VALUES:
            raise PayloadTooLarge(f"The JSON has more than {_MAX_VALUES} values, the limit of this server.")
        return json.loads(text, object_pairs_hook=_unique_names, parse_constant=_refuse_constant)
    except UnicodeDecodeError as exc:
        raise MalformedRequest("The body is not valid JSON: it must be in UTF-8.") from exc
    except json.JSONDecodeError as exc:
        raise MalformedRequest(
            f"The body is not valid JSON: {exc.msg} at line {exc.lineno}, column {exc.colno}."
        ) from exc
    except RecursionError as exc:
        raise MalformedRequest("The body cannot be read: its JSON is nested too deeply.") from exc
    except ValueError as exc:
        raise MalformedRequest("The body cannot be read: a number in its JSON has too many digits.") from exc


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        seen: set[str] = set()
        repeated = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise FieldErrors([(quoted(repeated), "is given more than once")])
    return names


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedRequest(f"The body is not valid JSON: {name} is not a JSON number.")
