"""The list of queries: a file with a query a line, its source and its count behind tabs. The line is the query's id."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

from model_export.curation.output import write_whole, writing
from model_export.curation.word_cuts import normalise
from model_export.errors import DataError

LONGEST: Final = 100
"""Characters of a query."""
MOST: Final = 2**31 - 1


class Query(NamedTuple):
    """A query as it is searched for, its source, and how often the source has it."""

    text: str
    source: str = ""
    seen: int = 0


@dataclass(frozen=True)
class QueryList:
    """Queries, each at the place of its id."""

    queries: Sequence[Query]

    @cached_property
    def digest(self) -> str:
        """Return a hash of the texts in their order."""
        return hashlib.sha256("\n".join(query.text for query in self.queries).encode()).hexdigest()


def read_queries(path: Path) -> QueryList:
    """Read a list.

    Raises:
        DataError: it is absent, not UTF-8 or empty; a query is empty or too long, or stands there twice in any
            spelling that is searched for alike.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name a list of queries, one a line") from error
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(f"{path}: holds no query")
    return QueryList(_unique((number, _query(line, f"{path}, line {number}")) for number, line in enumerate(lines, 1)))


def write_queries(path: Path, queries: Iterable[Query]) -> QueryList:
    """Write a list, completely or not at all."""
    content = QueryList(tuple(queries))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(f"{q.text}\t{q.source}\t{q.seen}\n" for q in content.queries).encode())
    return content


def _query(line: bytes, where: str) -> Query:
    try:
        text, *more = line.decode().rstrip("\r").split("\t")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is not UTF-8 (byte {error.start + 1}); write the list in UTF-8") from error
    query = normalise(text)
    if not query:
        raise DataError(f"{where}: is empty; delete the line")
    if len(query) > LONGEST:
        raise DataError(f"{where}: has {len(query)} characters; a query has at most {LONGEST}")
    source, count = (*more, "", "")[:2]
    if len(more) > 2 or (count and not count.isascii()) or not (count or "0").isdigit():
        raise DataError(f"{where}: is not a query, its source and its count behind tabs")
    return Query(query, source, int(count or 0))


def _unique(numbered: Iterable[tuple[int, Query]]) -> tuple[Query, ...]:
    lines: dict[str, int] = {}
    queries = []
    for number, query in numbered:
        if (first := lines.setdefault(query.text, number)) != number:
            raise DataError(f"lines {first} and {number} are both the query {query.text!r}; delete one of them")
        queries.append(query)
    return tuple(queries)
