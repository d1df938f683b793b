"""The CLIP score of pairs: as a stage, by the command, in a recipe, and verified."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model_export.curation.clip_score import ClipScore
from model_export.curation.encoding import BundleEncoder
from model_export.curation.stage import run_stage
from model_export.errors import CurationError
from service.model.manifest import DEMO_BUNDLE
from tests.model_export.test_cli import error_of, in_this_process
from tests.support.curating import content_of
from tests.support.pairs import COLOURS, encoded_picture

TEXTS = ("a dog", None, "two red cars", "a house", "the red car")
RECIPE = """
[data]
files = ["raw.parquet"]
[filter]
text = false
clip_score = -1
bundle = "bundle"
provider = "cpu"
"""


@pytest.fixture(scope="module")
def encoder() -> BundleEncoder:
    """Open the demo bundle."""
    return BundleEncoder(DEMO_BUNDLE, "cpu", threads=1, batch_size=4)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """Make pictures of plain colours with captions: number 1 has no caption, the picture of number 3 is broken."""
    rng = np.random.default_rng(0)
    pictures = [encoded_picture(list(COLOURS.values())[row % len(COLOURS)], rng) for row in range(len(TEXTS))]
    pictures[3] = b"none"
    return pa.table({"id": list("abcde"), "image": pictures, "text": TEXTS})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, table: pa.Table) -> Path:
    """Run a recipe, and return the folder of its data, bundle and data set."""
    folder = tmp_path_factory.mktemp("clip-score")
    rows = pa.concat_tables([table] * 4)
    pq.write_table(rows, folder / "raw.parquet", row_group_size=5)
    shutil.copytree(DEMO_BUNDLE, folder / "bundle")
    (folder / "recipe.toml").write_text(RECIPE)
    done = in_this_process("curate", "run", folder / "recipe.toml", "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    return folder


def test_pairs_below_the_score_are_dropped(encoder: BundleEncoder, table: pa.Table) -> None:
    """Each pair has one reason; those that stay have their cosine."""
    everything = run_stage(ClipScore(encoder, -1), table)
    cosines = everything.kept["clip_score"].to_pylist()
    found = run_stage(ClipScore(encoder, float(np.mean(cosines))), table)

    pictures = encoder.encode_pictures(table["image"].to_pylist()).vectors
    texts = encoder.encode_texts(TEXTS).vectors
    assert everything.dropped == {"broken": 1, "missing": 1}
    np.testing.assert_allclose(cosines, [pictures[row] @ texts[row] for row in (0, 2, 4)], atol=1e-6)
    above = [cosine for cosine in cosines if cosine >= np.mean(cosines)]
    assert 0 < len(above) < 3
    assert found.dropped == {"broken": 1, "clip score": 3 - len(above), "missing": 1}
    assert found.kept["clip_score"].to_pylist() == above
    assert found.kept.column_names == ["id", "image", "text", "clip_score"]


def test_a_score_that_is_no_cosine_is_refused(encoder: BundleEncoder) -> None:
    """Percent, for instance."""
    with pytest.raises(CurationError, match="clip score 28: must be from -1 to 1"):
        ClipScore(encoder, 28)


def test_the_command_makes_what_the_recipe_makes(made: Path, tmp_path: Path) -> None:
    """By two processes, and with the bundle in another place: neither decides the data set."""
    options = ("--no-text", "--clip-score", -1, "--bundle", DEMO_BUNDLE, "--provider", "cpu", "--workers", 2)
    done = in_this_process("curate", "filter", made / "raw.parquet", *options, "--out", tmp_path / "out")

    assert done.returncode == 0, done.stderr
    wanted = content_of(made / "out")
    here = content_of(tmp_path / "out")
    contents = [json.loads(content.pop("dataset.json")) for content in (wanted, here)]
    assert here == wanted
    assert contents[0]["digest"] == contents[1]["digest"]
    assert contents[0]["stages"][1]["dropped"] == {"broken": 4, "missing": 4}
    assert contents[0]["recipe"]["settings"]["filter"]["encoder"]["provider"] == "cpu"


def test_shards_are_made_again_with_their_bundle(made: Path) -> None:
    """Without it, the digests are compared, and a note names the bundle."""
    out = made / "out"
    whole = in_this_process("curate", "verify", out, "--bundle", DEMO_BUNDLE)
    digests = in_this_process("curate", "verify", out)

    assert whole.returncode == digests.returncode == 0
    assert "1 shards follow from their inputs" in whole.stdout
    assert "note" not in whole.stdout
    assert "1 shards and the inputs have their recorded bytes" in digests.stdout.replace("\n", " ")
    assert "they need the bundle demo, revision" in digests.stdout.replace("\n", " ")


def test_a_changed_shard_or_input_is_named_with_and_without_the_bundle(made: Path, tmp_path: Path) -> None:
    """Scores that were changed, and one byte of the data."""
    shutil.copytree(made, tmp_path / "copy")
    out = tmp_path / "copy" / "out"
    rows = pq.read_table(out / "00000.parquet")
    scores = pa.array(np.ones(rows.num_rows, np.float32))
    pq.write_table(rows.set_column(rows.column_names.index("clip_score"), "clip_score", scores), out / "00000.parquet")
    for options, message in (
        (("--bundle", DEMO_BUNDLE), "00000.parquet: differs from the shard that follows from"),
        ((), "00000.parquet: is missing, or its bytes are not those recorded"),
    ):
        done = in_this_process("curate", "verify", out, *options)
        assert done.returncode == 1
        assert message in done.stdout.replace("\n", " ")

    raw = tmp_path / "copy" / "raw.parquet"
    raw.write_bytes(raw.read_bytes().replace(b"two red cars", b"two red cats"))
    done = in_this_process("curate", "verify", out)
    assert "raw.parquet: its bytes are not those read" in done.stdout.replace("\n", " ")


def test_another_bundle_is_refused(made: Path, tmp_path: Path) -> None:
    """One of another revision, a folder that is no bundle, and a bundle for a data set that was made without one."""
    recorded = json.loads((made / "out" / "dataset.json").read_bytes())
    recorded["recipe"]["settings"]["filter"]["encoder"]["revision"] = "f" * 64
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(recorded))

    wrong = error_of(in_this_process("curate", "verify", tmp_path / "out", "--bundle", DEMO_BUNDLE))
    assert f"was made with demo, revision {'f' * 64}; name that bundle" in wrong
    assert "is not a bundle" in error_of(in_this_process("curate", "verify", made / "out", "--bundle", made))
    done = in_this_process("curate", "filter", made / "raw.parquet", "--out", tmp_path / "plain", "--confidence", 0.1)
    assert done.returncode == 0
    unused = error_of(in_this_process("curate", "verify", tmp_path / "plain", "--bundle", DEMO_BUNDLE))
    assert "was made without a bundle; leave --bundle out" in unused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("clip_score = -1", ""), "filter: clip_score and bundle belong together"),
        (('bundle = "bundle"', ""), "filter: clip_score and bundle belong together"),
        (('bundle = "bundle"', 'bundle = "none"'), "is not a bundle"),
        (("clip_score = -1", "clip_score = 28"), "clip score 28.0: must be from -1 to 1"),
        (('"cpu"', '"gpu"'), "gpu"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(
    made: Path, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    """In one line, and nothing is written."""
    path = made / "wrong.toml"
    path.write_text(RECIPE.replace(*change))

    assert message in error_of(in_this_process("curate", "run", path, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_options_belong_together(made: Path, tmp_path: Path) -> None:
    """The score needs a bundle."""
    data = made / "raw.parquet"
    alone = in_this_process("curate", "filter", data, "--clip-score", 0.2, "--out", tmp_path / "out")
    assert "--clip-score and --bundle belong together; give both" in error_of(alone)
    nothing = in_this_process("curate", "filter", data, "--no-text", "--out", tmp_path / "out")
    assert "give --text, --images or --clip-score" in error_of(nothing)
