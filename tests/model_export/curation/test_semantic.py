"""Semantic copies: files of vectors, clusters, and the method of ``curate dedup``."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model_export.curation import semantic
from model_export.curation.dedup import keys_of
from model_export.curation.semantic import VectorFiles, semantic_pairs
from model_export.errors import CurationError
from tests.model_export.test_cli import in_this_process
from tests.support.curating import quiet
from tests.support.pictures import encode
from tests.support.planted import scene

COUNT, LENGTH = 300, 16


def vectors_with_copies() -> np.ndarray:
    """Return random unit vectors; each of the first fifty is also behind, a little changed."""
    chance = np.random.default_rng(1)
    found = chance.normal(size=(COUNT, LENGTH))
    found[-50:] = found[:50] + 0.02 * chance.normal(size=(50, LENGTH))
    units: np.ndarray = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return units


def pairs(vectors: np.ndarray) -> set[tuple[int, int]]:
    """Return the pairs of semantic copies."""
    found = semantic_pairs(vectors, np.arange(len(vectors)), 0.98, quiet())
    return {(int(some), int(other)) for each in found for some, other in each}


@pytest.mark.filterwarnings("ignore:builtin type .*:DeprecationWarning")  # of faiss's wrappers
def test_clusters_find_the_pairs_of_a_comparison_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Near vectors are in a cluster together."""
    vectors = vectors_with_copies()
    expected = {(row, COUNT - 50 + row) for row in range(50)}
    assert expected == pairs(vectors)
    monkeypatch.setattr(semantic, "_CLUSTER", 40)
    monkeypatch.setattr(semantic, "_BLOCK", 16)
    assert expected == pairs(vectors)


def write(path: Path, ids: list[str], vectors: list[list[float] | None]) -> Path:
    """Write a file of vectors."""
    pq.write_table(pa.table({"id": ids, "vector": pa.array(vectors, pa.list_(pa.float32()))}), path)
    return path


def test_vectors_are_found_by_their_ids(tmp_path: Path) -> None:
    """Order and other ids do not matter; nulls count as no vector; lengths become one."""
    path = write(tmp_path / "v.parquet", ["x", "b", "c", "a"], [[9.0, 9.0], [0.0, 2.0], None, [3.0, 4.0]])
    files = VectorFiles([str(path)])
    rows, found = files.read(keys_of(pa.array(["a", "b", "c", "d"]), 0), 0, tmp_path / "scratch")
    assert [0, 1] == rows.tolist()
    assert found[rows] == pytest.approx(np.array([[0.6, 0.8], [0.0, 1.0]]))


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0, 0.0], [0.0, 0.0]], "is zero or not finite"),
        ([[1.0, 0.0], [1.0]], "several lengths"),
        ([None, None], "has no vector"),
    ],
)
def test_wrong_vectors_are_refused(vectors: list[list[float] | None], message: str, tmp_path: Path) -> None:
    """The message names the file."""
    path = write(tmp_path / "v.parquet", ["a", "b"], vectors)
    with pytest.raises(CurationError, match=message):
        VectorFiles([str(path)]).read(keys_of(pa.array(["a", "b"]), 0), 0, tmp_path / "scratch")


def test_the_command_drops_semantic_copies(tmp_path: Path) -> None:
    """Different pictures with near vectors are one; without vectors, or with those of other pairs, it is refused."""
    ids = [f"{seed}" for seed in range(6)]
    data = pa.array([encode(scene(seed), "PNG") for seed in range(6)], pa.binary())
    pq.write_table(pa.table({"id": ids, "image": data, "text": ids}), tmp_path / "raw.parquet")
    angles = np.array([0.0, 0.1, 1.0, 2.0, 2.1, 3.0])
    near = write(tmp_path / "v.parquet", ids, np.stack([np.cos(angles), np.sin(angles)], axis=1).tolist())
    some = ("curate", "dedup", tmp_path / "raw.parquet", "--method", "exact,near,semantic", "--out", tmp_path / "out")
    for arguments, message in (
        ((), "name Parquet files of them with --vectors"),
        (("--vectors", near, "--vector-column", "v"), "no column 'v' of lists of floats"),
        (("--vectors", near, "--cosine", "0.4"), "must be above 0.5"),
    ):
        done = in_this_process(*some, *arguments)
        assert 2 == done.returncode, message
        assert message in done.stderr
    assert not (tmp_path / "out").exists()
    others = write(tmp_path / "w.parquet", ["x"], [[1.0, 0.0]])
    assert "no pair has a vector" in in_this_process(*some, "--vectors", others).stderr
    done = in_this_process(*some, "--vectors", near)
    assert 0 == done.returncode, done.stderr
    assert "semantic copy" in done.stdout
    assert 4 == sum(pq.read_table(path).num_rows for path in (tmp_path / "out").glob("*.parquet"))
