"""Recall of captions and pictures among held-out pairs, as scripts/recall.py measures it."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.pairs import encoded_picture
from tests.support.places import ROOT
from tests.support.tiny_run import write_tiny_run

SCRIPT = ROOT / "scripts" / "recall.py"


def test_a_row_counts_once_and_any_right_entry_will_do() -> None:
    """Two pictures share the first caption; the third picture's own caption is third for it."""
    similarities = np.array([[0.9, 0.1, 0.0, 0.2], [0.3, 0.8, 0.1, 0.2], [0.5, 0.4, 0.3, 0.2]])
    right = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]], dtype=bool)
    recalls = runpy.run_path(str(SCRIPT))["recalls"]

    assert recalls(similarities, right, 1) == (1 / 3, 2 / 4)
    assert recalls(similarities, right, 2) == (2 / 3, 2 / 4)
    assert recalls(similarities, right, 3) == (1.0, 2 / 4)


def test_the_held_out_rows_of_a_file_are_measured_for_each_model(tmp_path: Path) -> None:
    """Of 80 pairs every fourth is held out, but for one without a caption; two captions of them are equal."""
    rng = np.random.default_rng(3)
    texts: list[str | None] = [f"picture {row}" for row in range(80)]
    texts[3], texts[7], texts[11] = None, "A Picture", "a picture"
    images = [encoded_picture((3 * row, 255 - 3 * row, row), rng) for row in range(80)]
    table = pa.table({"image": pa.array(images, pa.binary()), "text": pa.array(texts, pa.string())})
    pq.write_table(table, tmp_path / "pairs.parquet")
    runs = [str(write_tiny_run(tmp_path / name, seed=seed)) for seed, name in enumerate(("one", "two"))]

    command = [sys.executable, str(SCRIPT), *runs, "--pairs", str(tmp_path / "pairs.parquet"), "--every", "4"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first == "19 pictures, 18 captions: recall at 5 by chance 27.8%"
    for run, line in zip(runs, lines, strict=True):
        found = re.fullmatch(rf"{re.escape(run)}: picture to caption ([\d.]+)%, caption to picture ([\d.]+)%", line)
        assert found
        # Shares of 19 pictures and of 18 captions: a new model knows nothing, and is right by chance.
        assert float(found[1]) in {round(100 * k / 19, 1) for k in range(20)}
        assert float(found[2]) in {round(100 * k / 18, 1) for k in range(19)}
