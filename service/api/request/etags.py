"""Entity tags (RFC 9110, sections 8.8.3 and 13.1): what a client wants to be so before something is changed."""

import re
from typing import Final

from starlette.requests import Request

from service.errors import MalformedRequest
from service.label_sets.status import Condition

_TAG: Final = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_MAX_HEADER_CHARS: Final = 4_096


def condition_of(request: Request) -> Condition:
    """What `If-Match` and `If-None-Match` ask for. Raises `MalformedRequest`."""
    return Condition(
        if_match=_tags(request, "if-match", weak=False), if_none_match=_tags(request, "if-none-match", weak=True)
    )


def etag(version: str) -> str:
    """The strong entity tag of a version."""
    return f'"{version}"'


def _tags(request: Request, header: str, *, weak: bool) -> frozenset[str] | None:
    """The versions in a header; a weak tag equals none where the comparison is strong (`weak` false)."""
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
    # A tag may be spelled as an asterisk in quotes; here it would mean any.
    return frozenset(versions - {"*"})
