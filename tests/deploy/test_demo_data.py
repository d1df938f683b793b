"""The data of the demo model, as scripts/demo_data.py prepares them."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.places import ROOT


def write(path: Path, columns: Mapping[str, Any]) -> None:
    """Write a source."""
    path.parent.mkdir(parents=True, exist_ok=True)
    types = {"image": pa.binary()}
    pq.write_table(pa.table({name: pa.array(v, types.get(name, pa.string())) for name, v in columns.items()}), path)


def prepared(folder: Path, out: str, *options: str) -> Path:
    """Run the script."""
    command = [sys.executable, "scripts/demo_data.py", str(folder), str(folder / out), *options]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    return folder / out


def test_names_are_one_words_are_of_several_languages_and_copies_hold_out_the_same_rows(tmp_path: Path) -> None:
    """A source is cut to whole blocks of 25 rows, then repeated; a title without a class keeps its own words."""
    write(
        tmp_path / "free/caltech101.parquet",
        {"image": [b"%d" % i for i in range(60)], "text": ["sedan"] * 60, "label": ["automobile"] * 60},
    )
    write(
        tmp_path / "free/openclipart.parquet",
        {"image": [b"a"] * 25, "text": ["Jupiter. The planet"] * 25, "label": [""] * 25},
    )
    write(
        tmp_path / "free/fluent-emoji.parquet",
        {"image": [b"e"], "text": ["automobile"], "label": ["automobile"], "id": ["x"]},
    )
    write(
        tmp_path / "free/captions-multilingual.parquet",
        {"id": ["x", "x"], "lang": ["ko", "fi"], "text": ["자동차", "auto"], "source": ["fluent-emoji-3d"] * 2},
    )
    others = ("cifar10-train", "cifar100-train", "clothing", "grocery", "trashnet", "recipes", "tiny-imagenet")
    without = [option for name in (*others, "fluent-emoji") for option in ("--without", name)]

    out = prepared(tmp_path, "out", *without)

    cars = pq.read_table(out / "caltech101.parquet").to_pylist()
    assert 3 * 50 == len(cars)
    assert {"car"} == {row["label"] for row in cars}
    assert {"sedan", "automobile", "자동차"} == {row["text"] for row in cars}
    held_out = [{row["image"] for row in cars[copy * 50 + 24 : copy * 50 + 50 : 25]} for copy in range(3)]
    assert held_out[0] == held_out[1] == held_out[2] == {b"24", b"49"}
    titles = pq.read_table(out / "openclipart.parquet").to_pylist()
    assert [{"image": b"a", "text": "Jupiter", "label": None}] * 25 == titles
    again = prepared(tmp_path, "again", *without)
    assert (out / "caltech101.parquet").read_bytes() == (again / "caltech101.parquet").read_bytes()
