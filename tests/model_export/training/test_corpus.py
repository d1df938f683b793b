"""The captions of the tokenizer, and the pictures that a run is measured on: bounded, however large the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model_export.data.parquet import PairColumns, ParquetPairs
from model_export.data.reader import PairReader
from model_export.training import corpus as corpus_module
from model_export.training import held_out_sets as sets_module
from model_export.training.corpus import corpus
from model_export.training.held_out_sets import held_out_rows, held_out_sets

TEMPLATES = ["a {}.", "{}"]


def reader(folder: Path, *files: list[tuple[str | None, str | None]]) -> PairReader:
    """Write files of texts and classes, in row groups of 4 rows, and open them."""
    paths = [folder / f"{at}.parquet" for at in range(len(files))]
    for path, rows in zip(paths, files, strict=True):
        texts, labels = zip(*rows, strict=True)
        columns = {"image": [b""] * len(rows), "text": pa.array(texts, pa.string()), "label": labels}
        if not any(labels):
            del columns["label"]
        pq.write_table(pa.table(columns), path, row_group_size=4)
    return PairReader([ParquetPairs(path, PairColumns()) for path in paths], groups_in_memory=1)


def test_each_noun_and_class_is_set_into_each_template(tmp_path: Path) -> None:
    """Once, however often it occurs; what is no text is left out."""
    pairs = reader(tmp_path, [("cat", "animal"), ("cat", None), ("", "animal"), (None, "b\0")])

    assert ["a animal.", "animal", "a cat.", "cat"] == list(corpus(pairs, TEMPLATES))


def test_of_many_sentences_each_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number of different texts, the templates alternate; of more rows, evenly spaced groups are read."""
    monkeypatch.setattr(corpus_module, "MOST_WORDS", 10)
    pairs = reader(tmp_path, [(f"text {i}", None) for i in range(16)])
    assert [f"a text {i}." if i % 2 == 0 else f"text {i}" for i in range(16)] == list(corpus(pairs, TEMPLATES))

    monkeypatch.setattr(corpus_module, "MOST_WORDS", 5)
    monkeypatch.setattr(corpus_module, "MOST_ROWS", 8)
    assert [f"text {i}" for i in (0, 1, 2, 3, 8, 9, 10, 11)] == list(corpus(pairs, ["{}"]))


def test_held_out_rows_are_measured_file_by_file(tmp_path: Path) -> None:
    """The last of each three rows, if it has a class; a file without classes is not measured, but held out."""
    pairs = reader(
        tmp_path,
        [("x", "a"), ("x", "b"), ("x", "c"), ("x", "d"), ("x", "e"), ("x", None)],
        [("x", None)] * 7,
        [("x", "f"), ("x", "g"), ("x", "h")],
    )

    sets = held_out_sets(pairs, 3)

    assert [("0", [2], ("c",)), ("2", [15], ("h",))] == [(each.name, each.rows.tolist(), each.labels) for each in sets]
    assert 5 == held_out_rows(pairs, 3)
    assert [] == held_out_sets(pairs, 0)
    assert 0 == held_out_rows(pairs, 0)


def test_many_files_are_measured_together_and_many_rows_thinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures of a set are in memory decoded, so a set has a largest size."""
    files: list[list[tuple[str | None, str | None]]] = [
        [("x", f"{file} {row}") for row in range(10)] for file in range(3)
    ]
    pairs = reader(tmp_path, *files)
    monkeypatch.setattr(sets_module, "MOST_ROWS", 2)
    assert [[1, 9], [11, 19], [21, 29]] == [each.rows.tolist() for each in held_out_sets(pairs, 2)]

    monkeypatch.setattr(sets_module, "MOST_FILES", 2)
    (together,) = held_out_sets(pairs, 2)
    assert ("held-out", [1, 29], ("0 1", "2 9")) == (together.name, together.rows.tolist(), together.labels)
    monkeypatch.setattr(sets_module, "MOST_ROWS", 100)
    (together,) = held_out_sets(pairs, 2)
    np.testing.assert_array_equal(np.arange(1, 30, 2), together.rows)
