import pickle

import pyarrow as pa
import pytest

from model_export.curation.stage import StageResult, digest_of, row_ids, run_stage, split
from model_export.errors import CurationError


class Shortest:
    """Drops texts below a length; ``forgets`` drops a row without counting it."""

    name = "shortest"
    digest = digest_of("shortest", 1, {"length": 3})

    def __init__(self, *, forgets: bool = False) -> None:
        self.forgets = forgets

    def run(self, table: pa.Table) -> StageResult:
        """Drop texts of fewer than three characters."""
        reasons = pa.array(["short" if len(text) < 3 else None for text in table["text"].to_pylist()], pa.string())
        result = split(table, reasons)
        return StageResult(result.kept.slice(1), result.dropped) if self.forgets else result


def test_rows_with_a_reason_are_dropped_and_counted() -> None:
    """The others stay in their order."""
    table = pa.table({"text": ["a dog", "b", "cat", "", "é"]})

    kept, dropped, notes = run_stage(Shortest(), table)

    assert ["a dog", "cat"] == kept["text"].to_pylist()
    assert {"short": 3} == dropped
    assert {} == notes


def test_reasons_are_counted_apart_and_in_order() -> None:
    """Several chunks count as one column; a table may lose no row, or all."""
    table = pa.table({"text": ["1", "2", "3", "4"]})
    reasons = pa.chunked_array([pa.array(["z", None]), pa.array(["a", "z"])])

    assert ["2"] == split(table, reasons).kept["text"].to_pylist()
    assert [("a", 1), ("z", 2)] == list(split(table, reasons).dropped.items())
    assert {} == split(table, pa.nulls(4, pa.string())).dropped
    assert 0 == split(table, pa.array(["x"] * 4)).kept.num_rows


def test_a_stage_that_loses_a_row_is_refused() -> None:
    """The message has both counts."""
    with pytest.raises(CurationError, match="shortest took 2 rows and accounts for 1"):
        run_stage(Shortest(forgets=True), pa.table({"text": ["a dog", "a cat"]}))


def test_a_digest_depends_on_name_version_and_settings_only() -> None:
    """The order of settings is none of them."""
    assert digest_of("a", 1, {"x": 1, "y": "é"}) == digest_of("a", 1, {"y": "é", "x": 1})
    others = {digest_of("b", 1, {}), digest_of("a", 2, {}), digest_of("a", 1, {}), digest_of("a", 1, {"x": 1})}
    assert 4 == len(others)


def test_ids_depend_on_content_and_row() -> None:
    """A table cut anywhere has the same ids; other files have others."""
    whole = row_ids("d1", 0, 5).to_pylist()

    assert whole == row_ids("d1", 0, 2).to_pylist() + row_ids("d1", 2, 3).to_pylist()
    assert 10 == len({*whole, *row_ids("d2", 0, 5).to_pylist()})
    assert {32} == set(map(len, whole))


def test_a_stage_can_be_pickled() -> None:
    """Worker processes get a copy."""
    copy = pickle.loads(pickle.dumps(Shortest()))  # noqa: S301 - our own
    assert {"short": 1} == copy.run(pa.table({"text": ["a"]})).dropped
