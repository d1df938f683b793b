"""A recipe with every stage: the same as its commands one after another, after stops at any place, and verified."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from model_export.curation.verification import Verified, verify_dataset
from model_export.drivers.driver import Driver
from model_export.drivers.local import LocalDriver
from model_export.errors import CurationError
from tests.model_export.test_cli import in_this_process
from tests.support.curating import content_of, quiet
from tests.support.places import ROOT
from tests.support.stopping import StoppedError, Stopping, run_file
from tests.support.whole_recipe import RECIPE, write_whole_recipe


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write pairs in three files, the sources of a query list, and a recipe."""
    folder = tmp_path_factory.mktemp("whole")
    write_whole_recipe(folder, files=3)
    return folder


@pytest.fixture(scope="module")
def whole(raw: Path) -> Path:
    """Run the recipe."""
    run(raw, raw / "whole")
    return raw / "whole"


def run(folder: Path, out: Path, driver: Driver | None = None, recipe: str = "recipe.toml") -> None:
    """Run the recipe of a folder."""
    run_file(folder / recipe, out, driver or LocalDriver())


def rows_of(folder: Path) -> list[dict[str, object]]:
    """Return the rows of a data set in order."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def verified(folder: Path, *only: str) -> Verified:
    """Verify a data set."""
    with quiet() as progress:
        return verify_dataset(folder, progress, only=only)


def test_a_recipe_makes_what_its_commands_make(raw: Path, whole: Path, tmp_path: Path) -> None:
    """The same rows in the same order, with the same reasons for those that are gone."""
    listed = tmp_path / "queries.tsv"
    sources = ("--text", raw / "dump.txt", "--titles", raw / "views.tsv")
    least = ("--least", 2, "--least-pmi", 0, "--least-views", 10)
    for command in (
        ("queries", *sources, *least, "--out", listed),
        ("match", raw / "raw", "--queries", listed, "--out", tmp_path / "1"),
        ("filter", tmp_path / "1", "--images", "--shorter-side", 16, "--out", tmp_path / "2"),
        ("dedup", tmp_path / "2", "--out", tmp_path / "3"),
        ("balance", tmp_path / "3", "--queries", listed, "--most", 4, "--out", tmp_path / "4"),
    ):
        done = in_this_process("curate", *command)
        assert 0 == done.returncode, done.stderr

    assert listed.read_bytes() == (whole / "records/queries.tsv").read_bytes()
    assert 0 < len(rows_of(whole)) < 60
    assert rows_of(tmp_path / "4") == rows_of(whole)
    stages = json.loads((whole / "dataset.json").read_text())["stages"]
    single = [json.loads((tmp_path / name / "dataset.json").read_text())["stages"] for name in "1234"]
    assert [stage for each in single for stage in each if stage["name"] != "read"] == stages[1:]
    assert ["read", "match", "filter text", "filter images", "dedup", "balance"] == [each["name"] for each in stages]
    assert all(stage["dropped"] for stage in stages if stage["name"] in {"match", "filter text", "dedup", "balance"})


def test_the_bytes_are_the_same_for_any_workers_and_order(raw: Path, whole: Path, tmp_path: Path) -> None:
    """Shards, records and dataset.json; the shards between are gone, unless they are to stay."""
    text = RECIPE.replace('["raw"]', '["raw/2.parquet", "raw/{0..1}.parquet"]') + "keep_work = true\n"
    (raw / "other.toml").write_text(text)
    out = raw / "other"
    run(raw, out, LocalDriver(2), "other.toml")

    assert content_of(whole) == content_of(out)
    assert not (whole / "work").exists()
    assert {"1", "2"} == {path.name for path in (out / "work").iterdir()}


def test_a_run_goes_on_after_a_stop_in_any_phase(raw: Path, whole: Path) -> None:
    """After one task more each time, until it ends."""
    out = raw / "stopped"
    for tasks in range(1, 200):
        try:
            run(raw, out, Stopping(tasks=tasks))
            break
        except StoppedError:
            assert not (out / "dataset.json").exists()

    assert tasks > 15
    assert content_of(whole) == content_of(out)
    assert not (out / "work").exists()


@pytest.mark.timeout(600)
def test_a_run_goes_on_after_kills(raw: Path, whole: Path) -> None:
    """In the phases of match, of the signatures, of the copies, and of the balance."""
    out = raw / "killed"
    for tasks in (4, 8, 12, 16):
        killed = subprocess.run(
            [sys.executable, "-m", "tests.support.stopping", raw / "recipe.toml", out, str(tasks)],
            cwd=ROOT,
            check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert -signal.SIGKILL == killed.returncode
    assert not (out / "dataset.json").exists()
    run(raw, out)

    assert content_of(whole) == content_of(out)
    assert not list(out.rglob("*.partial"))


def test_a_finished_run_is_left_alone_and_a_damaged_one_mended(raw: Path, whole: Path) -> None:
    """Without the shards between, the rest is made again."""
    out = raw / "mended"
    shutil.copytree(whole, out)
    wanted = content_of(out)
    run(raw, out, Stopping(tasks=len(list(out.glob("*.parquet")))))  # digests of shards, nothing else
    (out / "00001.parquet").unlink()
    run(raw, out)

    assert wanted == content_of(out)


def test_another_recipe_is_refused(raw: Path, whole: Path) -> None:
    """Before anything is written; another source of the query list, too."""
    before = content_of(whole)
    for change, message in ((("most = 4", "most = 5"), "other recipe"), (("least = 2", "least = 1"), "other queries")):
        (raw / "changed.toml").write_text(RECIPE.replace(*change))
        with pytest.raises(CurationError, match=message):
            run(raw, whole, recipe="changed.toml")
    assert before == content_of(whole)


def test_every_shard_follows_from_the_inputs(whole: Path) -> None:
    """All of them, and one alone; nothing is left behind."""
    assert Verified(3, (), ()) == verified(whole)
    assert Verified(1, (), ()) == verified(whole, "00001.parquet")
    assert not list(whole.glob(".verify-*"))


@pytest.mark.parametrize("name", ["raw/1.parquet", "dump.txt"])
def test_one_byte_changed_in_an_input_is_named(raw: Path, whole: Path, name: str) -> None:
    """Also in a source of the query list."""
    path = raw / name
    content = path.read_bytes()
    path.write_bytes(content[:5] + bytes([content[5] ^ 1]) + content[6:])
    try:
        found = verified(whole)
    finally:
        path.write_bytes(content)

    assert f"{path}: its bytes are not those read" in found.problems


def test_one_byte_changed_in_a_shard_is_named(whole: Path, tmp_path: Path) -> None:
    """The shard, and not its neighbours."""
    path = whole / "00002.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    try:
        found = verified(whole)
    finally:
        path.write_bytes(content)

    assert 1 == len(found.problems)
    assert found.problems[0].startswith("00002.parquet: ")


def test_a_changed_record_is_named(whole: Path) -> None:
    """The digest of the data set follows from recipe, inputs and shards."""
    path = whole / "dataset.json"
    content = path.read_text()
    path.write_text(content.replace('"most": 4', '"most": 3'))
    try:
        found = verified(whole)
    finally:
        path.write_text(content)

    assert "dataset.json: its digest does not follow from its recipe, inputs and shards" in found.problems


def test_tars_hold_the_same_pairs_and_are_verified(raw: Path, whole: Path) -> None:
    """Image, text and the other columns of each pair; the bytes are the same again, and a changed one is named."""
    (raw / "tars.toml").write_text(RECIPE + 'format = "tar"\n')
    outs = raw / "tars", raw / "tars-again"
    for out in outs:
        run(raw, out, recipe="tars.toml")
    first, second = ({path.name: path.read_bytes() for path in out.glob("*.tar")} for out in outs)

    assert first == second
    assert {"00000.tar.index", "00001.tar.index", "00002.tar.index"} == {path.name for path in outs[0].glob("*.index")}
    pairs = [pair for path in sorted(outs[0].glob("*.tar")) for pair in pairs_in(path)]
    assert rows_of(whole) == pairs
    assert Verified(3, (), ()) == verified(outs[0])
    shard = outs[0] / "00001.tar"
    shard.write_bytes(shard.read_bytes().replace(b"garden", b"gardeN", 1))
    assert "00001.tar: differs from the shard that follows from the inputs" in verified(outs[0]).problems


def pairs_in(path: Path) -> list[dict[str, object]]:
    """Return the pairs of a tar."""
    found: dict[str, dict[str, object]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            assert (0, 0, 0, 0o644) == (member.mtime, member.uid, member.gid, member.mode)
            key, _, suffix = member.name.partition(".")
            content = tar.extractfile(member)
            assert content is not None
            data = content.read()
            pair = found.setdefault(key, {})
            if suffix == "json":
                pair.update(json.loads(data))
            else:
                pair[{"jpg": "image", "txt": "text"}[suffix]] = data if suffix == "jpg" else data.decode()
    return list(found.values())
