"""Messages for invalid values. They say what the value must be, and never quote it: it may be a secret."""

from collections.abc import Iterable, Iterator
from typing import Final

from pydantic_core import ErrorDetails

_MESSAGES: Final = {
    "missing": "is missing",
    "extra_forbidden": "is not known here",
    "string_type": "must be a string",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "path_type": "must be a path",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
}
"""By the type of pydantic's error; names in braces come from its context."""


def faults(errors: Iterable[ErrorDetails]) -> Iterator[tuple[str, str]]:
    """Yield the dotted path of each invalid value, empty for the whole input, and its message."""
    for entry in errors:
        yield ".".join(str(part) for part in entry["loc"]), message_of(entry)


def message_of(entry: ErrorDetails) -> str:
    """Return the fault as a sentence without its subject, the value's name. `entry` must have its context."""
    kind, context = entry["type"], entry.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "too_short" and context["min_length"] == 1:
        return "must not be empty"
    if kind in _MESSAGES:
        return _MESSAGES[kind].format(**context)
    # Our own checks, and types of errors that no model here has yet.
    return entry["msg"][:1].lower() + entry["msg"][1:]
