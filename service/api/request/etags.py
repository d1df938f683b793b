"""Entity tags (RFC 9110, section 8.8.3) and the conditional requests made with them (section 13.1)."""

import re
from typing import Final

from starlette.requests import Request

from service.errors import MalformedRequest
from service.label_sets.status import Condition

_TAG: Final = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_MAX_HEADER_CHARS: Final = 4_096


def read_condition(request: Request) -> Condition:
    """Read `If-Match` and `If-None-Match`. Raises `MalformedRequest`."""
    return Condition(
        if_match=_tags(request, "if-match", weak=False), if_none_match=_tags(request, "if-none-match", weak=True)
    )


def etag(version: str) -> str:
    """Return the strong entity tag of a version."""
    return f'"{version}"'


def _tags(request: Request, header: str, *, weak: bool) -> frozenset[str] | None:
    """Return the versions in a header, None without the header. Weak tags count only if `weak`."""
    values = request.headers.getlist(header)
    if not values:
        return None
    text = ",".join(values)
    if text.strip() == "*":
        return frozenset("*")
    versions, position = set(), 0
    for match in _TAG.finditer(text[:_MAX_HEADER_CHARS]):
        if text[position : match.start()].strip(" \t,"):
            break
        position = match.end()
        if weak or match[1] is None:
            versions.add(match[2])
    if text[position:].strip(" \t,") or position == 0:
        raise MalformedRequest(f'{header} must be * or one or more entity tags, each in double quotes: "…".')
    # "*" in quotes is a tag like any other, but in the returned set it would mean any version.
    return frozenset(versions - {"*"})
