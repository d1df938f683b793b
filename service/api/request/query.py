"""Query parameters of routes whose fields are in the body, and of routes with a few parameters."""

from typing import Final
from urllib.parse import parse_qsl

from starlette.requests import Request

from service.api.problems.table import FieldErrors, quoted
from service.api.request.validation import MAX_ERRORS_SHOWN

_SHOWN_BYTES: Final = 4_096


def refuse_query(request: Request) -> None:
    """Raise `FieldErrors` if the request has query parameters."""
    # Only the beginning is parsed: all of a long one would block the event loop.
    text = request.scope["query_string"][:_SHOWN_BYTES].decode("utf-8", "replace")
    if names := list(dict.fromkeys(name for name, _ in parse_qsl(text, keep_blank_values=True))):
        message = "must be in the body; only a request whose body is the image itself has query parameters"
        raise FieldErrors([(quoted(name), message) for name in names[:MAX_ERRORS_SHOWN]])


def read_query(request: Request, *names: str) -> dict[str, str]:
    """Return the query parameters by name. Raises `FieldErrors` for one not in `names` and for one given twice."""
    query: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in names:
            raise FieldErrors([(quoted(name), f"is not a parameter of this route; it has {', '.join(names)}")])
        if name in query:
            raise FieldErrors([(name, "is given more than once")])
        query[name] = value
    return query
