"""Words that the demo model learns from WordNet, as scripts/demo_words.py teaches them."""

import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from tests.support.places import ROOT
from tests.support.tiny_run import write_tiny_run

SCRIPT = ROOT / "scripts" / "demo_words.py"
LICENCE = "  1 This software and database is being provided to you\n"
# thing > animal > bird > penguin, pelican; thing > tool > crane; a constellation has the crane's name too.
SYNSETS = {
    "00000001": ("03", ["thing"], []),
    "00000002": ("05", ["animal"], ["00000001"]),
    "00000003": ("05", ["bird"], ["00000002"]),
    "00000004": ("05", ["penguin"], ["00000003"]),
    "00000005": ("05", ["pelican", "sea_pelican"], ["00000003"]),
    "00000006": ("06", ["tool"], ["00000001"]),
    "00000007": ("06", ["crane"], ["00000006"]),
    "00000008": ("17", ["Crane", "Grus"], ["00000001"]),
}
SENSES = {"crane": ["00000008", "00000007"]}


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """The names of the script."""
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write WordNet's three files, in miniature."""
    data, index = [LICENCE], [LICENCE]
    words = dict[str, list[str]]()
    for offset, (kind, names, parents) in SYNSETS.items():
        listed = " ".join(f"{name} 0" for name in names)
        pointers = " ".join(
            [f"{len(parents) + 1:03}", *(f"@ {parent} n 0000" for parent in parents), "+ 00000001 v 0101"]
        )
        data.append(f"{offset} {kind} n {len(names):02x} {listed} {pointers} | a gloss\n")
        for name in names:
            words.setdefault(name.lower(), []).append(offset)
    for name, offsets in (words | SENSES).items():
        index.append(f"{name} n {len(offsets)} 2 @ + {len(offsets)} 0 {' '.join(offsets)}  \n")
    (tmp_path / "data.noun").write_text("".join(data))
    (tmp_path / "index.noun").write_text("".join(index))
    (tmp_path / "cntlist.rev").write_text("pelican%1:05:00:: 1 7\npelican%2:05:00:: 1 90\n")
    return tmp_path


def test_a_word_has_its_everyday_sense(script: dict[str, Any], folder: Path) -> None:
    """A name with a capital is another word; a noun has the sense of its class, or none."""
    wordnet = script["WordNet"](folder)

    assert wordnet.thing("Penguins") == "00000004"
    assert wordnet.thing("crane") == "00000007"
    assert wordnet.thing("emperor penguin") == "00000004"
    assert wordnet.thing("crane", "00000004") is None
    assert wordnet.thing("thing") is None  # of no kind that a picture shows
    assert wordnet.things()["sea pelican"] == "00000005"
    assert "thing" not in wordnet.things()
    assert wordnet.everyday("pelican", "00000005") > 7 > wordnet.everyday("crane", "00000007") == 1


def test_similarity_is_lins(script: dict[str, Any], folder: Path) -> None:
    """Twice the content of what two synsets have in common, over their own: of 8 synsets, 3 are birds."""
    wordnet = script["WordNet"](folder)
    bird = 1 - math.log(3) / math.log(8)

    found = wordnet.similarity(["00000005", "00000007"], ["00000004", "00000003"])

    assert found == pytest.approx(np.array([[bird, 2 * bird / (1 + bird)], [0, 0]]), abs=1e-6)


def test_a_word_comes_near_its_kin(script: dict[str, Any], folder: Path) -> None:
    """A pelican is given a vector near the penguin's, and the penguin nearly its own."""
    vectors = np.eye(3, dtype=np.float32)
    taught = ["00000004", "00000007", "00000006"]

    pelican, penguin = script["expected"](script["WordNet"](folder), ["00000005", "00000004"], taught, vectors)

    assert pelican.argmax() == penguin.argmax() == 0
    assert penguin[0] > pelican[0] > pelican[1:].max()
    assert np.linalg.norm(pelican) == pytest.approx(1)


def test_plurals(script: dict[str, Any]) -> None:
    """The regular ones."""
    assert [script["plural"](word) for word in ("cat", "brush", "box", "puppy", "toy")] == [
        "cats",
        "brushes",
        "boxes",
        "puppies",
        "toys",
    ]


def test_the_text_encoder_learns_and_the_rest_stays(folder: Path, tmp_path: Path) -> None:
    """After some steps words are nearer to their targets; the picture encoder is the same, the provenance says so."""
    data = tmp_path / "data"
    data.mkdir()
    texts = ["penguin"] * 30 + ["tool"] * 30 + ["animal"] * 30
    table = {"image": pa.array([b""] * 90, pa.binary()), "text": texts, "label": texts}
    pq.write_table(pa.table(table), data / "pairs.parquet")
    run = write_tiny_run(tmp_path / "run")

    command = [sys.executable, str(SCRIPT), str(run), str(data), str(tmp_path / "out"), "--steps", "30"]
    done = subprocess.run(
        [*command, "--wordnet", str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    first, begun, ended = done.stdout.splitlines()
    assert first == "3 words of the data are taken from WordNet, 4 others are taught"
    assert float(ended.rpartition(" ")[2]) > float(begun.rpartition(" ")[2]) + 0.01
    before, after = load_file(run / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("text.") for name in changed)
    assert "WordNet" in json.loads((tmp_path / "out" / "config.json").read_text())["provenance"]["source"]
