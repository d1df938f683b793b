"""The comparison of a raw pool with its curated part: the pool, equal pairs seen, the figures, and the whole of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.bench.pays import begun, budget, gain, summary
from tests.bench.pays_pool import COPIES, HEAD, counts_of_classes, read_pictures, write_pool
from tests.support.places import ROOT
from tests.support.planted import scene

CLASSES = ("dog", "ship", "frog", "automobile")
SIZE = 800


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write pictures of four classes, and others."""
    folder = tmp_path_factory.mktemp("pictures")
    write(folder / "things.parquet", [CLASSES[row % 4] for row in range(4 * 80)], 0)
    write(folder / "others.parquet", ["tulip"] * 700, 1_000)
    return folder


def write(path: Path, labels: list[str], seed: int) -> None:
    """Write a picture for each label."""
    images = []
    for row in range(len(labels)):
        stream = pa.BufferOutputStream()
        scene(seed + row, 24, 24).save(stream, "PNG")
        images.append(stream.getvalue().to_pybytes())
    pq.write_table(pa.table({"image": pa.array(images, pa.binary()), "label": labels}), path)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a folder of shards."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def pool_in(folder: Path, data: Path) -> list[dict[str, Any]]:
    """Write a pool; return its rows."""
    write_pool(folder, read_pictures(data / "things.parquet", data / "others.parquet", 5), SIZE, seed=0)
    return rows_of(folder)


def test_a_pool_has_the_stated_shares_and_no_held_out_picture(data: Path, tmp_path: Path) -> None:
    """Right captions name their picture's class, wrong ones another; but for copies no picture comes twice."""
    rows = pool_in(tmp_path / "pool", data)

    kinds = Counter(row["kind"] for row in rows)
    assert SIZE * COPIES == kinds["copy"]
    assert {"right": 90, "wrong": 12} == {kind: kinds[kind] for kind in ("right", "wrong")}
    assert 0.35 < kinds["file name"] / SIZE < 0.45
    things = pq.read_table(data / "things.parquet").to_pylist()
    label = {row["image"]: row["label"] for row in things}
    named = [(row["kind"] == "right", label[row["image"]] in row["text"].lower())
             for row in rows if row["kind"] in {"right", "wrong"} and row["image"] in label]  # fmt: skip
    assert all(right == names for right, names in named)
    assert {True, False} == {right for right, _ in named}
    held_out = {row["image"] for row in things[-20:]}
    assert not held_out & {row["image"] for row in rows}
    originals = [row["image"] for row in rows if row["kind"] != "copy"]
    assert len(originals) == len(set(originals))
    assert rows == pool_in(tmp_path / "again", data)


def test_the_head_is_twenty_times_the_tail() -> None:
    """The classes between follow Zipf's law."""
    counts = list(counts_of_classes([str(rank) for rank in range(10)], 100_000).values())
    assert counts == sorted(counts, reverse=True)
    assert counts[0] / counts[-1] == pytest.approx(HEAD, rel=0.01)
    assert sum(counts) == pytest.approx(100_000, abs=10)


@pytest.mark.parametrize("pairs", [128, 300, 5_000, 88_000])
def test_both_arms_see_equally_many_pairs(pairs: int) -> None:
    """Whole epochs of whole batches, for any number of pairs."""
    share = budget(640, pairs, 128)
    assert 640 == share.steps == share.epochs * (share.rows // 128)
    assert share.rows <= pairs


def test_too_few_pairs_are_refused() -> None:
    """A batch needs that many."""
    with pytest.raises(SystemExit, match="fewer than a batch of 128; enlarge --pool"):
        budget(640, 127, 128)


def test_the_gain_is_that_of_the_most_pairs_seen() -> None:
    """Means of the seeds are compared, each arm at its best rate; other arms and fewer pairs do not count."""
    tops = {
        ("raw", 10, 0.1): (0.1, 0.1),
        ("curated", 10, 0.1): (0.9, 0.9),
        ("raw", 20, 0.1): (0.1, 0.4),
        ("raw", 20, 0.2): (0.2, 0.4),
        ("curated", 20, 0.1): (0.5, 0.4),
        ("curated", 20, 0.2): (0.1, 0.6),
        ("match", 20, 0.1): (0.99,),
    }
    runs = [
        {"arm": arm, "pairs_seen": seen, "rate": rate, "top1": top}
        for (arm, seen, rate), of in tops.items()
        for top in of
    ]
    assert gain({"runs": runs}) == pytest.approx(15)
    row = summary({"runs": runs})[3]
    assert ("curated", 20, 2, 0.1) == (row["arm"], row["pairs_seen"], row["seeds"], row["rate"])
    assert (row["least"], row["mean"], row["most"]) == pytest.approx((40, 45, 50))


def test_a_folder_is_of_one_comparison(tmp_path: Path) -> None:
    """A pool that is whole is taken again; other options are refused."""
    assert not begun(tmp_path, {"pool": "800"})
    (tmp_path / "queries.tsv").write_text("dog\n")
    assert begun(tmp_path, {"pool": "800"})
    with pytest.raises(SystemExit, match="holds a comparison with other options"):
        begun(tmp_path, {"pool": "900"})


@pytest.mark.long
def test_the_whole_comparison_at_a_small_size(data: Path, tmp_path: Path) -> None:
    """Both arms are trained and measured; curation keeps natural captions of the classes; finished runs are kept."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tests.bench.pays", str(data), str(out), "--things", "things.parquet"]
    command += ["--others", "others.parquet", "--pool", str(SIZE), "--held-out", "5", "--most", "20", "--steps", "2"]
    command += ["--batch", "16", "--seeds", "1", "--rates", "3e-3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert 0 == done.returncode, done.stderr

    results = json.loads((out / "it-pays.json").read_text())
    assert [("raw", 32), ("curated", 32)] == [(run["arm"], run["pairs_seen"]) for run in results["runs"]]
    assert all(0 <= run["top1"] <= 1 for run in results["runs"])
    assert 20 == results["held_out"]
    kept = results["kept"]["curated"]
    assert not {"file name", "date", "url"} & set(kept)
    assert sum(kept.values()) / 2 < kept["right"] < results["pool"]["right"]
    assert "points from raw (wanted: +10)" in done.stdout
    with Image.open(out / "it-pays.png") as plot:
        assert "PNG" == plot.format
