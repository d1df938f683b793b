"""The file of query counts: digests of list and shards, merging, damage."""

from pathlib import Path

import numpy as np
import pytest

from model_export.curation.query_counts import QueryCounts
from model_export.errors import CurationError


def some(*shards: str, queries: str = "list", matched: tuple[int, ...] = (3, 0, 5)) -> QueryCounts:
    """Return counts of three queries."""
    return QueryCounts(np.array(matched), queries, frozenset(shards))


def test_counts_are_written_and_read(tmp_path: Path) -> None:
    """The same counts give the same bytes, whatever the order of the shards."""
    paths = [tmp_path / "one", tmp_path / "two"]
    some("a", "b").write(paths[0])
    some("b", "a").write(paths[1])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    found = QueryCounts.read(paths[0])
    assert [3, 0, 5] == found.matched.tolist()
    assert ("list", frozenset({"a", "b"})) == (found.queries, found.shards)
    found.check("list", ["b", "a"])


def test_counts_of_shards_are_added() -> None:
    """Counts of different shards add up."""
    total = some("a") + some("b", matched=(1, 1, 1))
    assert [4, 1, 6] == total.matched.tolist()
    assert {"a", "b"} == total.shards


def test_counts_that_do_not_fit_are_not_added() -> None:
    """The same shard twice, or another list, is refused."""
    with pytest.raises(CurationError, match="counted twice"):
        some("a", "b") + some("b")
    with pytest.raises(CurationError, match="different query lists"):
        some("a") + some("b", queries="other")


@pytest.mark.parametrize(
    ("queries", "shards", "message"),
    [
        ("other", ["a", "b"], "another query list"),
        ("list", ["a"], "1 of them are not among these, 0 of these were not counted"),
        ("list", ["a", "b", "c"], "0 of them are not among these, 1 of these were not counted"),
    ],
)
def test_counts_of_others_are_refused(queries: str, shards: list[str], message: str) -> None:
    """Counts of another list or of other shards name the difference and the remedy."""
    with pytest.raises(CurationError, match=f"{message}.*delete them"):
        some("a", "b").check(queries, shards)


@pytest.mark.parametrize("content", [b"", b"PAR1 nonsense", b"{}"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    """The message names the file and the remedy."""
    path = tmp_path / "counts.parquet"
    path.write_bytes(content)
    with pytest.raises(CurationError, match=r"counts\.parquet: holds no counts.*delete it"):
        QueryCounts.read(path)


def test_another_parquet_file_is_named(tmp_path: Path) -> None:
    """A Parquet file without our metadata is no file of counts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"matched": [1]}), tmp_path / "counts.parquet")
    with pytest.raises(CurationError, match="holds no counts"):
        QueryCounts.read(tmp_path / "counts.parquet")
