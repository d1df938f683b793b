import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model_export.cli import main
from tests.support.curating import content_of

TEXTS = ["A red dog.", "IMG_0001", "two Dogs", "my dog, in New York", None, "new york at night"]
RECIPE = """
[data]
files = ["raw"]
columns.text = "caption"
[match]
queries = "queries.txt"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write data in two files, a list of queries and a recipe."""
    (tmp_path / "raw").mkdir()
    for at in range(2):
        table = pa.table({"caption": TEXTS[at * 3 : at * 3 + 3]})
        pq.write_table(table, tmp_path / "raw" / f"{at}.parquet")
    (tmp_path / "queries.txt").write_text("dog\nNew York\n")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def curate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    """Run ``anyclass-export curate`` in this process; return the exit code and both outputs."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "argv", ["anyclass-export", "curate", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0), *capsys.readouterr()


def test_a_recipe_becomes_a_data_set(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths are relative to the recipe; the report has each reason, and JSON the same as dataset.json."""
    out = folder / "out"
    code, printed, shown = curate(
        capsys, monkeypatch, "run", folder / "recipe.toml", "--out", out, "--json", folder / "report.json"
    )

    assert 0 == code, shown
    rows = pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("*.parquet"))]).to_pydict()
    assert [("A red dog.", [0]), ("my dog, in New York", [0, 1]), ("new york at night", [1])] == list(
        zip(rows["text"], rows["queries"], strict=True)
    )
    assert all(word in printed for word in ("match", "no query", "no text", "3 of 6 pairs"))
    assert "shards: 2 of 2, 3 of 6 pairs kept" in shown
    content = json.loads((out / "dataset.json").read_text())
    assert content == json.loads((folder / "report.json").read_text())
    assert 2 == content["recipe"]["settings"]["match"]["queries"]["count"]


def test_a_command_makes_what_a_recipe_makes(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes, whether a stage is run by itself or from a file."""
    curate(capsys, monkeypatch, "run", folder / "recipe.toml", "--out", folder / "one")
    options = ("--queries", folder / "queries.txt", "--text-column", "caption", "--out", folder / "two")
    assert 0 == curate(capsys, monkeypatch, "match", folder / "raw", *options)[0]

    assert content_of(folder / "one") == content_of(folder / "two")


def test_a_data_set_is_verified(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte changed in an input, or in a shard, is named; the exit code is 1."""
    out = folder / "out"
    curate(capsys, monkeypatch, "run", folder / "recipe.toml", "--out", out)
    assert (0, "2 shards follow from their inputs") == (
        (done := curate(capsys, monkeypatch, "verify", out))[0],
        done[1].strip().partition(": ")[2],
    )

    whole = (folder / "raw/1.parquet").read_bytes()
    (folder / "raw/1.parquet").write_bytes(whole.replace(b"night", b"nighs"))
    code, printed, _ = curate(capsys, monkeypatch, "verify", out)
    assert (1, 1) == (code, printed.count("differs:"))
    assert f"{folder}/raw/1.parquet: its bytes are not those read" in printed

    (folder / "raw/1.parquet").write_bytes(whole)
    shard = out / "00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-20] + b"x" + shard.read_bytes()[-19:])
    code, printed, _ = curate(capsys, monkeypatch, "verify", out)
    assert (1, 1) == (code, printed.count("differs:"))
    assert "00000.parquet: " in printed
    assert 0 == curate(capsys, monkeypatch, "verify", out, "--shard", "00001.parquet")[0]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("[data]\nfiles = []", "data.files: Tuple should have at least 1 item"),
        ("[data]\nfiles = ['raw']\n[match]\nlist = 'q'", "match.list: Extra inputs"),
        ("[data]\nfiles = ['raw']\n[match]", "match.queries: name a list, or its sources under [queries]"),
        (
            RECIPE + "[queries]\ntext = ['t']",
            "match.queries: name a list, or its sources under [queries], and not both",
        ),
        ("[data]\nfiles = ['raw']\n[queries]\ntext = ['t']", "queries: makes a list that no stage uses"),
        (RECIPE + "[queries]", "queries: names no source"),
        ("[data]\nfiles = ['raw']\n[balance]", "balance.queries: name the list that the data were matched with"),
        (RECIPE + "[balance]\nqueries = 'q'", "balance.queries: is the list of [match]; leave it out"),
        (RECIPE + "[balance]\nmost = 0", "at most 0 pairs a query: must be at least 1"),
        (RECIPE + "[filter]\ntext = false", "nothing to filter; set text or images to true"),
        (RECIPE + "[filter]\nconfidence = 2", "confidence 2.0 of the text filter: must be above 0 and at most 1"),
        (RECIPE + "[dedup]\nmethod = 'best'", "method 'best' is unknown"),
        ("[data", "is not TOML"),
        (RECIPE.replace("queries.txt", "none.txt"), "none.txt: cannot be read"),
        (RECIPE.replace('"raw"', '"none.parquet"'), "none.parquet: no such file"),
    ],
)
def test_a_wrong_recipe_is_refused(
    folder: Path, recipe: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line names every mistake."""
    (folder / "recipe.toml").write_text(recipe)
    code, _, shown = curate(capsys, monkeypatch, "run", folder / "recipe.toml", "--out", folder / "out")

    assert 2 == code
    assert message in shown
    assert 1 == len(shown.splitlines())


def test_a_folder_without_a_data_set_cannot_be_verified(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says what is missing."""
    code, _, shown = curate(capsys, monkeypatch, "verify", folder)

    assert (2, True) == (code, "has no dataset.json; run the curation to its end" in shown)


def test_a_query_list_is_made(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From files that a range names; without a source, the command says which it takes."""
    for at in range(2):
        (folder / f"dump-{at}.txt").write_text("dog cat\n")
    text = ("--text", folder / "dump-{0..1}.txt", "--least", 2, "--least-pmi", 0)
    code, printed, _ = curate(capsys, monkeypatch, "queries", "--out", folder / "list.tsv", *text)

    assert (0, True) == (code, "3 queries (2 words, 1 pairs of words)" in printed)
    lines = (folder / "list.tsv").read_text().splitlines()
    assert ["cat\twords\t2", "dog\twords\t2", "dog cat\tpairs of words\t2"] == lines
    code, _, shown = curate(capsys, monkeypatch, "queries", "--out", folder / "none.tsv")
    assert (2, True) == (code, "give --text, --titles or --wordnet" in shown)
