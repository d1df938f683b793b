from pathlib import Path

import pytest

from model_export.curation.query_list import Query, read_queries, write_queries
from model_export.errors import DataError


def test_a_written_list_is_read_again(tmp_path: Path) -> None:
    """With source and count of each query, in their order."""
    queries = [Query("cat", "words", 120), Query("new york", "phrases", 7), Query("c++", "titles", 0)]
    written = write_queries(tmp_path / "new" / "queries.tsv", queries)

    found = read_queries(tmp_path / "new" / "queries.tsv")
    assert tuple(queries) == found.queries
    assert written.digest == found.digest


def test_a_plain_list_is_normalised(tmp_path: Path) -> None:
    """As texts are; the last line may lack its end."""
    path = tmp_path / "queries.txt"
    path.write_bytes("New  York\r\n CAF\u00c9\ncafe\u0301 noir".encode())

    assert ["new york", "caf\u00e9", "caf\u00e9 noir"] == [query.text for query in read_queries(path).queries]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\n\xff\xfe\n", r"line 2: is not UTF-8 \(byte 1\)"),
        (b"cat\n\ndog\n", "line 2: is empty"),
        (b" \t words\t3\n", "line 1: is empty"),
        (b"x" * 101, "line 1: has 101 characters; a query has at most 100"),
        (b"cat\ndog\nCAT\n", "lines 1 and 3 are both the query 'cat'"),
        ("caf\u00e9\ncafe\u0301".encode(), "lines 1 and 2 are both"),
        (b"cat\twords\tmany\n", "line 1: is not a query, its source and its count"),
        (b"", "holds no query"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """The message names the lines."""
    path = tmp_path / "queries.txt"
    path.write_bytes(content)

    with pytest.raises(DataError, match=message):
        read_queries(path)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    """With the way out."""
    with pytest.raises(DataError, match=r"none.txt: cannot be read .*; name a list of queries"):
        read_queries(tmp_path / "none.txt")
