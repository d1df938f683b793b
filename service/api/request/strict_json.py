"""Parses JSON (RFC 8259) strictly: UTF-8, no repeated names, no NaN or infinity, a limit on the number of values."""

import codecs
import json
from typing import Any, Final, NoReturn, cast

from service.api.problems.table import FieldErrors, quoted
from service.errors import AnyclassError, MalformedRequest, PayloadTooLarge
from service.patient_json import MAX_TEXT_BYTES, PatientParser, TextTooLongError

MAX_VALUES: Final = 2**21
"""Most values in one document; a route that has no use for so many has a lower limit."""
MAX_NAMES: Final = 256
"""Most names in one object."""

_SHORT_BYTES: Final = 2**16
_FEW_MARKS: Final = 2**12
_PIECE: Final = 2**18


def is_cheap(body: bytes | str) -> bool:
    """Return whether JSON is parsed within about 2 ms, judged by its size, its commas and its brackets."""
    if len(body) > _SHORT_BYTES:
        return False
    return sum(_count(body, mark, 0, len(body)) for mark in "[{,") <= _FEW_MARKS


def parse_json_object(body: bytes | str, *, max_values: int = MAX_VALUES, numbers: bool = False) -> dict[str, Any]:
    """Parse a JSON object. One that is not cheap must be parsed in a thread (`service.api.request.off_loop`).

    Args:
        body: may begin with a byte order mark.
        max_values: limit on the values of all kinds in the document.
        numbers: the limit counts arrays and objects only: there may be millions of numbers.

    Raises: `MalformedRequest`, `FieldErrors` for a repeated name, and `PayloadTooLarge` for too many values.
    """
    value = _parse(body, max_values, numbers=numbers)
    if not isinstance(value, dict):
        raise MalformedRequest("The body must be a JSON object.")
    return value


def parse_json_list(name: str, text: str, *, max_values: int = MAX_VALUES) -> list[Any]:
    """Parse a JSON list; `text` begins with ``[``. Raises `FieldErrors` for the field `name`, and `PayloadTooLarge`."""
    try:
        return cast("list[Any]", _parse(text, max_values))
    except PayloadTooLarge:
        raise
    except AnyclassError as exc:
        raise FieldErrors([(name, "begins with [ but is not a valid JSON list")]) from exc


def _parse(body: bytes | str, max_values: int, *, numbers: bool = False) -> Any:  # noqa: ANN401 - any JSON value
    try:
        cheap = is_cheap(body)
        if not cheap:
            _check_memory(body, numbers=numbers)
        if cheap:
            return _DECODER.decode(body if isinstance(body, str) else _text(body))
        parser = PatientParser(_DECODER, _Counter(max_values, numbers=numbers).count, max_names=MAX_NAMES + 1)
        return parser.parse(body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body)
    except TextTooLongError as exc:
        raise PayloadTooLarge(
            f"A text in the JSON has more than {MAX_TEXT_BYTES} bytes, the limit of this server beyond ASCII."
        ) from exc
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


def _check_memory(body: bytes | str, *, numbers: bool) -> None:
    """Refuse before parsing: an empty list is 3 bytes of JSON and 64 bytes of memory. Counts marks in strings too."""
    marks = "[{" if numbers else "[{,"
    count = 0
    for at in range(0, len(body), _PIECE):
        for mark in marks:
            count += _count(body, mark, at, at + _PIECE)
        if count > MAX_VALUES:
            raise PayloadTooLarge(f"The JSON has more than {MAX_VALUES} values, the limit of this server.")


def _count(body: bytes | str, mark: str, start: int, end: int) -> int:
    return body.count(mark, start, end) if isinstance(body, str) else body.count(mark.encode(), start, end)


class _Counter:
    """Counts values as they are parsed, so that a document of millions ends before it takes memory."""

    def __init__(self, limit: int, *, numbers: bool) -> None:
        self._limit = self._left = limit
        self._numbers = numbers

    def count(self, values: int, nested: bool) -> None:  # noqa: FBT001 - called for each value
        """Count `values`. Raises `PayloadTooLarge`."""
        if nested or not self._numbers:
            self._left -= values
            if self._left < 0:
                raise PayloadTooLarge(f"The JSON has more than {self._limit} values, the limit for this request.")


def _text(body: bytes) -> str:
    """Decode UTF-8; pass over a byte order mark, as RFC 8259 allows in section 8.1."""
    return body.removeprefix(codecs.BOM_UTF8).decode("utf-8")


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_NAMES:
        raise PayloadTooLarge(f"An object in the JSON has more than {MAX_NAMES} names, the limit of this server.")
    names = dict(pairs)
    if len(names) != len(pairs):
        seen: set[str] = set()
        repeated = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise FieldErrors([(quoted(repeated), "is given more than once")])
    return names


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedRequest(f"The body is not valid JSON: {name} is not a JSON number.")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique_names, parse_constant=_refuse_constant)
