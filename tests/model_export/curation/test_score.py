"""Scores of labels as Parquet shards."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model_export.cli import main
from model_export.curation.encoding import BundleEncoder
from model_export.curation.label_files import LabelList, read_label_set, read_labels
from model_export.curation.score import Score, label_matrix
from model_export.curation.stage import run_stage
from model_export.errors import CurationError, DataError
from service.errors import InvalidScoring
from service.model.manifest import DEMO_BUNDLE
from tests.support.pairs import COLOURS, encoded_picture

NAMES = ("red", "green", "blue")
TEMPLATES = ("a photo of a {}.", "a {} picture.")


@pytest.fixture(scope="module")
def encoder() -> BundleEncoder:
    """Open the demo bundle."""
    return BundleEncoder(DEMO_BUNDLE, "cpu", threads=1, batch_size=4)


@pytest.fixture
def table() -> pa.Table:
    """Make pictures of plain colours with captions; the last picture is broken."""
    rng = np.random.default_rng(0)
    pictures = [encoded_picture(colour, rng) for colour in list(COLOURS.values())[:3]]
    return pa.table(
        {
            "id": ["a", "b", "c", "d"],
            "image": [*pictures, b"none"],
            "text": ["a dog", None, "two red cars", "a house"],
        }
    )


def test_scores_are_those_of_the_vectors(encoder: BundleEncoder, table: pa.Table) -> None:
    """Softmax sums to one; cosines are those of image and label vectors; the labels stand in the schema."""
    labels = LabelList(NAMES, TEMPLATES)
    matrix = label_matrix(encoder, labels)
    shares = run_stage(Score(encoder, labels, matrix=matrix), table).kept
    found = run_stage(Score(encoder, labels, "cosine", matrix=matrix, columns=("text",)), table)

    vectors = encoder.encode_pictures(table["image"].to_pylist()).vectors
    assert json.loads(shares.schema.metadata[b"labels"]) == list(NAMES)
    assert [sum(row) for row in shares["scores"].to_pylist()[:3]] == pytest.approx([1, 1, 1])
    np.testing.assert_allclose(found.kept["scores"].to_pylist()[:3], vectors[:3] @ matrix.T, atol=1e-6)
    assert found.kept["scores"].to_pylist()[3] is None
    assert found.kept["text"].to_pylist() == table["text"].to_pylist()
    assert found.notes == {"broken picture": 1}


def test_the_best_labels_come_first(encoder: BundleEncoder, table: pa.Table) -> None:
    """With `top`, each row has its best labels, by falling score."""
    labels = LabelList(NAMES, TEMPLATES)
    matrix = label_matrix(encoder, labels)
    every = run_stage(Score(encoder, labels, matrix=matrix), table).kept["scores"].to_pylist()
    found = run_stage(Score(encoder, labels, top=2, matrix=matrix, drop_broken=True), table)

    assert found.dropped == {"broken picture": 1}
    for row, names, best in zip(
        every, found.kept["labels"].to_pylist(), found.kept["scores"].to_pylist(), strict=False
    ):
        wanted = sorted(zip(row, NAMES, strict=True), reverse=True)[:2]
        assert names == [name for _, name in wanted]
        assert best == [score for score, _ in wanted]


def test_what_a_model_cannot_score_is_refused(encoder: BundleEncoder) -> None:
    """Before any picture is read."""
    labels = LabelList(NAMES, TEMPLATES)
    with pytest.raises(CurationError, match="--top 4: choose 1 to 3"):
        Score(encoder, labels, top=4)
    with pytest.raises(InvalidScoring, match="temperature"):
        Score(encoder, labels, temperature=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no label; write one a line"),
        ("# none\n\n", "holds no label"),
        ("cat\ndog # pets\nCat \ncat", "lines 1 and 4 hold the same label 'cat'"),
        ("cat\n" + "x" * 1_001, "characters"),
    ],
)
def test_label_files_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    """The message names the file and the lines."""
    (tmp_path / "labels.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        read_labels(tmp_path / "labels.txt", None, {"default": TEMPLATES})


def test_label_files_and_sets(tmp_path: Path) -> None:
    """Comments are left out; a set brings templates; a missing or damaged one is refused."""
    own = {"default": TEMPLATES, "plain": ("{}",)}
    (tmp_path / "labels.txt").write_text("cat\n# no label\nred fox # an animal\n")
    (tmp_path / "set.json").write_text('{"labels": ["cat", "dog"], "templates": ["{}!"], "status": "ready"}')
    (tmp_path / "bad.json").write_text("cat")

    assert read_labels(tmp_path / "labels.txt", "plain", own) == LabelList(("cat", "red fox"), ("{}",))
    assert read_label_set(tmp_path / "set.json", own) == LabelList(("cat", "dog"), ("{}!",))
    with pytest.raises(DataError, match="is no label set; write"):
        read_label_set(tmp_path / "bad.json", own)
    with pytest.raises(DataError, match="does not exist; name a file"):
        read_labels(tmp_path / "none.txt", None, own)


def export(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `anyclass-export`, and return its exit code."""
    monkeypatch.setattr("sys.argv", ["anyclass-export", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    "options", [("embed", "--text", "--dtype", "float16"), ("score", "--labels"), ("score", "--top", 2, "--labels")]
)
def test_verify_makes_the_shards_again_with_the_bundle(
    tmp_path: Path,
    table: pa.Table,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[object, ...],
) -> None:
    """Without it, it compares digests, and says so; a shard that was changed is named by both."""
    data, labels, out = tmp_path / "data.parquet", tmp_path / "labels.txt", tmp_path / "out"
    pq.write_table(table, data)
    labels.write_text("\n".join(NAMES))
    command = (*options, labels) if options[-1] == "--labels" else options
    assert export(monkeypatch, *command, data, "--bundle", DEMO_BUNDLE, "--provider", "cpu", "--out", out) == 0
    capsys.readouterr()

    assert export(monkeypatch, "curate", "verify", out, "--bundle", DEMO_BUNDLE) == 0
    assert "1 shards follow from their inputs" in (shown := capsys.readouterr().out)
    assert "note" not in shown
    assert export(monkeypatch, "curate", "verify", out) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "shards were not made again: they need the bundle demo, revision" in shown
    assert "1 shards and the inputs have their recorded bytes" in shown

    rows = pq.read_table(out / "00000.parquet")
    pq.write_table(rows.slice(1), out / "00000.parquet")
    for more in ((), ("--bundle", DEMO_BUNDLE)):
        assert export(monkeypatch, "curate", "verify", out, *more) == 1
        assert "differs: 00000.parquet: " in capsys.readouterr().out


def test_the_commands_from_files_to_shards(
    tmp_path: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both commands write shards and a report; what is wrong is refused in a line, before the engine runs."""
    data, labels, out = tmp_path / "data.parquet", tmp_path / "labels.txt", tmp_path / "out"
    pq.write_table(table, data)
    labels.write_text("\n".join(NAMES))
    common = (data, "--bundle", DEMO_BUNDLE, "--provider", "cpu")

    nulls = table.append_column("photo", pa.array([*table["image"].to_pylist()[:3], None], pa.binary()))
    pq.write_table(nulls.drop_columns(["image"]), tmp_path / "nulls.parquet")
    with_nulls = (tmp_path / "nulls.parquet", *common[1:], "--image-column", "photo", "--labels", labels)

    assert export(monkeypatch, "score", *with_nulls, "--out", tmp_path / "nulls") == 0
    assert "no picture, kept" in capsys.readouterr().out
    scored = pq.read_table(tmp_path / "nulls" / "00000.parquet")
    assert scored["image_problem"].to_pylist() == [None, None, None, "no picture"]
    assert scored["scores"].null_count == 1
    assert export(monkeypatch, "embed", *common, "--out", tmp_path / "vectors", "--json", tmp_path / "embed.json") == 0
    assert "broken picture, kept" in capsys.readouterr().out
    assert json.loads((tmp_path / "embed.json").read_bytes())["rows"] == 4
    assert export(monkeypatch, "score", *common, "--out", out, "--labels", labels, "--top", 1) == 0
    assert pq.read_table(out / "00000.parquet")["labels"].to_pylist()[3] is None
    capsys.readouterr()

    assert export(monkeypatch, "score", *common, "--out", out, "--labels", labels) == 2
    assert "holds a data set of other recipe" in capsys.readouterr().err
    assert export(monkeypatch, "score", *common, "--out", out) == 2
    assert "give either --labels or --label-set" in capsys.readouterr().err
    no_bundle = (data, "--bundle", tmp_path, "--out", tmp_path / "else")
    assert export(monkeypatch, "embed", *no_bundle) == 2
    assert "is not a bundle" in capsys.readouterr().err
    assert export(monkeypatch, "embed", *common[:3], "--provider", "tensorrt", "--out", tmp_path / "else") == 2
    assert "tensorrt" in capsys.readouterr().err
    assert not (tmp_path / "else").exists()
