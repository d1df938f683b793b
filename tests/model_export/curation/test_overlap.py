"""Overlap of an evaluation set with a training set: figures, pairs, and the set without it."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from model_export.curation.overlap_accuracy import AccuracyChange
from model_export.evaluation.data.sources import open_data
from tests.model_export.test_cli import in_this_process
from tests.support.labelled import write_parquet
from tests.support.pictures import encode
from tests.support.planted import COPIES, scene
from tests.support.tiny_bundle import write_tiny_bundle

TRAINED, OWN = 10, 6


def write(path: Path, pictures: dict[str, Image.Image], *broken: str) -> Path:
    """Write labelled pictures without texts, as evaluation sets are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = [encode(picture, "PNG") for picture in pictures.values()] + [b"broken"] * len(broken)
    ids = [*pictures, *broken]
    columns = {"id": ids, "image": pa.array(data, pa.binary()), "label": list(range(len(ids)))}
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a training set with a pair of its own, and an evaluation set with three copies and a broken picture."""
    folder = tmp_path_factory.mktemp("sets")
    chance = np.random.default_rng(1)
    trained = {f"train {seed}": scene(seed) for seed in range(TRAINED)} | {"train again": scene(9)}
    evaluated = {f"own {seed}": scene(100 + seed) for seed in range(OWN)}
    evaluated |= {
        "same": scene(0),
        "mirror": COPIES["mirrored"](scene(1), chance),
        "jpeg": COPIES["JPEG q60"](scene(9), chance),
    }
    return write(folder / "train.parquet", trained), write(folder / "eval.parquet", evaluated, "broken")


def test_the_share_has_its_error_and_the_pairs(sets: tuple[Path, Path], tmp_path: Path) -> None:
    """Of nine readable pictures three are in the training set, one of them twice; the clean set has the others."""
    train, evaluation = sets
    done = in_this_process(
        *("curate", "overlap", train, "--with", evaluation, "--pairs", tmp_path / "pairs.parquet"),
        *("--json", tmp_path / "overlap.json", "--clean", tmp_path / "clean", "--signatures", tmp_path / "signatures"),
    )

    assert 0 == done.returncode, done.stderr
    assert "3 of 9 pictures" in done.stdout
    assert "33.33% ± 15.71% (1 exact copies)" in done.stdout
    report = json.loads((tmp_path / "overlap.json").read_text())
    assert (9, 11, 1, 3) == tuple(
        report[key] for key in ("evaluation_pictures", "training_pictures", "exact_copies", "copies")
    )
    assert report["standard_error"] == pytest.approx(math.sqrt(2 / 9 / 9))
    expected = [
        ("jpeg", "train 9", "near"),
        ("jpeg", "train again", "near"),
        ("mirror", "train 1", "near"),
        ("same", "train 0", "exact"),
    ]
    pairs = pq.read_table(tmp_path / "pairs.parquet")
    assert expected == [tuple(row.values()) for row in pairs.to_pylist()]
    clean = pq.read_table(tmp_path / "clean" / "00000.parquet")
    assert [f"own {seed}" for seed in range(OWN)] + ["broken"] == clean["id"].to_pylist()
    (source,) = open_data([str(tmp_path / "clean")])  # as evaluate reads it
    assert clean["label"].to_pylist() == list(source.labels)
    assert list((tmp_path / "signatures").glob("*.parquet"))


def test_exact_copies_alone(sets: tuple[Path, Path]) -> None:
    """The method exact finds the same pixels only."""
    done = in_this_process("curate", "overlap", sets[0], "--with", sets[1], "--method", "exact")
    assert "1 of 9 pictures" in done.stdout


def test_accuracy_with_and_without_the_overlap(tmp_path: Path) -> None:
    """Of eight pictures, two that are trained on are right, and of the others half: 62.5% with them, 50% without."""
    colours = ["red", "blue", "red", "blue", "green", "green", "blue", "red"]
    labels = ["red", "blue", "red", "blue", "green", "red", "green", "blue"]
    pictures = [Image.new("RGB", (20 + at, 20), colour) for at, colour in enumerate(colours)]
    labelled = [(encode(picture, "PNG"), label) for picture, label in zip(pictures, labels, strict=True)]
    train = write_parquet(tmp_path / "train.parquet", labelled[:2])
    evaluation = write_parquet(tmp_path / "eval.parquet", labelled)
    bundle = write_tiny_bundle(tmp_path / "bundle")
    some = ("curate", "overlap", train, "--with", evaluation, "--bundle")
    done = in_this_process(*some, bundle, "--json", tmp_path / "overlap.json")

    assert 0 == done.returncode, done.stderr
    assert "accuracy 62.50% with them, 50.00% without, difference +12.50%" in done.stdout
    found = json.loads((tmp_path / "overlap.json").read_text())["accuracy"]
    assert (8, 6) == (found["images"], found["clean_images"])
    assert found["standard_error"] == pytest.approx(2 / 8 * math.sqrt(0.5 * 0.5 / 6))
    assert 0 != in_this_process(*some, tmp_path / "none").returncode
    assert AccuracyChange("t", 5, 0.8, 5, 0.8, 0.0, 0.0) == AccuracyChange.of("t", (5, 0.8), (5, 0.8))


def test_wrong_input_is_refused(sets: tuple[Path, Path], tmp_path: Path) -> None:
    """A set without readable pictures, other columns, and files that cannot be written."""
    empty = write(tmp_path / "broken.parquet", {}, "a", "b")
    for arguments, message in (
        ((sets[0], "--with", empty), "evaluation set has no picture"),
        ((empty, "--with", sets[1]), "training set has no picture"),
        ((sets[0], "--with", sets[1], "--image-column", "png"), "no column 'png'"),
        ((sets[0], "--with", sets[1], "--json", tmp_path / "no" / "a.json"), "folder is missing"),
        ((sets[0], "--with", sets[1], "--method", "other"), "method 'other' is unknown"),
    ):
        done = in_this_process("curate", "overlap", *arguments)
        assert 2 == done.returncode, message
        assert message in done.stderr
