"""The commands ``curate filter`` and ``curate balance``."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.model_export.test_cli import in_this_process
from tests.support.made_titles import YFCC, made_titles
from tests.support.matched import write_shards, zipf_pairs

QUERIES = 20


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Return a file of captions, most of them junk."""
    texts = [text for _, text in made_titles(400, 3, YFCC)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "raw.parquet")
    return tmp_path / "raw.parquet"


@pytest.fixture
def matched(tmp_path: Path) -> tuple[Path, Path]:
    """Return a folder of matched pairs in two shards, and their query list."""
    folder, queries = tmp_path / "matched", tmp_path / "queries.txt"
    folder.mkdir()
    table = zipf_pairs(600, QUERIES, 1)
    write_shards(folder, table.append_column("text", pa.array(["A dog"] * 600)), (250,))
    queries.write_text("".join(f"query {number}\n" for number in range(QUERIES)))
    return folder, queries


def shards(folder: Path) -> dict[str, bytes]:
    """Return the shards of a data set."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def test_filter_makes_a_data_set_and_a_report(raw: Path, tmp_path: Path) -> None:
    """The report and dataset.json have each reason; the shards hold the rest."""
    done = in_this_process("curate", "filter", raw, "--out", tmp_path / "out")
    assert 0 == done.returncode, done.stderr
    assert "shards: 1 of 1" in done.stderr
    assert "filter text" in done.stdout
    assert "file name" in done.stdout
    stage = json.loads((tmp_path / "out" / "dataset.json").read_text())["stages"][1]
    assert 400 == stage["out"] + sum(stage["dropped"].values())
    assert stage["out"] == sum(pq.read_table(path).num_rows for path in (tmp_path / "out").glob("*.parquet"))


def test_filter_takes_settings(raw: Path, tmp_path: Path) -> None:
    """Another language keeps others; wrong settings are one line."""
    done = in_this_process("curate", "filter", raw, "--out", tmp_path / "de", "--language", "de", "--confidence", "0.5")
    assert 0 == done.returncode
    for arguments, message in (
        (("--language", "xx"), "language 'xx' is unknown"),
        (("--confidence", "2"), "above 0 and at most 1"),
        (("--no-text",), "give --text, --images or --clip-score"),
        (("--images",), "no column 'image'"),
    ):
        done = in_this_process("curate", "filter", raw, "--out", tmp_path / "no", *arguments)
        assert 2 == done.returncode
        assert message in done.stderr


def test_balance_makes_a_data_set_a_table_and_a_plot(matched: tuple[Path, Path], tmp_path: Path) -> None:
    """Bands, the most frequent queries and the plot; counts are written, and taken the next time."""
    folder, queries = matched
    some = ("curate", "balance", folder, "--queries", queries, "--most", 10, "--counts", tmp_path / "counts.parquet")
    first = in_this_process(*some, "--out", tmp_path / "one", "--plot", tmp_path / "kept.png")
    assert 0 == first.returncode, first.stderr
    for text in ("over cap", "unmatched", "pairs of a query", "query 0"):
        assert text in first.stdout
    assert "count queries" in first.stderr
    assert (tmp_path / "kept.png").read_bytes().startswith(b"\x89PNG")
    second = in_this_process(*some, "--out", tmp_path / "two", "--workers", 2)
    assert 0 == second.returncode, second.stderr
    assert 1 == second.stderr.count("count queries: 2 of 2")  # of the kept pairs only
    assert shards(tmp_path / "one") == shards(tmp_path / "two")
    assert 0 < sum(pq.read_table(path).num_rows for path in (tmp_path / "one").glob("*.parquet")) < 600


def test_balance_refuses_counts_of_others(matched: tuple[Path, Path], tmp_path: Path) -> None:
    """Counts of other shards or of another list are refused before any work; so are wrong settings."""
    folder, queries = matched
    counts = ("--counts", tmp_path / "counts.parquet")
    made = in_this_process("curate", "balance", folder, "--queries", queries, "--out", tmp_path / "one", *counts)
    assert 0 == made.returncode, made.stderr
    out = ("--out", tmp_path / "two")
    part = in_this_process("curate", "balance", folder / "00000.parquet", "--queries", queries, *out, *counts)
    assert 2 == part.returncode
    assert "counts are of other shards" in part.stderr
    more = tmp_path / "more.txt"
    more.write_text(queries.read_text() + "another\n")
    other = in_this_process("curate", "balance", folder, "--queries", more, *out, *counts)
    assert 2 == other.returncode
    assert "counts are of another query list" in other.stderr
    for arguments, message in (
        (("--most", "0"), "must be at least 1"),
        (("--method", "best"), "choose cap or independent"),
        (("--plot", "kept.jpg"), "writes a PNG"),
    ):
        done = in_this_process("curate", "balance", folder, "--queries", queries, *out, *arguments)
        assert 2 == done.returncode
        assert message in done.stderr
    assert not (tmp_path / "two").exists()
