import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model_export.curation.output import Output
from model_export.curation.run import Curation, curate
from model_export.data.opening import open_pairs
from model_export.data.parquet import PairColumns
from model_export.data.reader import PairReader
from model_export.drivers.local import LocalDriver
from model_export.errors import CurationError, DataError
from tests.support.curating import SMALL, Without, content_of, quiet, write_texts
from tests.support.places import ROOT
from tests.support.tars import write_tar, write_tars
from tests.support.waiting import wait_until

ROWS = {"b.parquet": 130, "a.parquet": 45, "c.parquet": 300}
KILLS = 4
PATIENCE_S = 240.0
"""Two processes start one after another, which takes long on a busy machine."""
STAGES = (Without("IMG"), Without("sky", name="without sky"))


def run(data: list[str], out: Path, *, workers: int = 1, stages: tuple[Without, ...] = STAGES) -> dict[str, bytes]:
    """Curate, and return the data set."""
    with quiet() as progress:
        curate(Curation(data, stages, out, sizes=SMALL, driver=LocalDriver(workers)), progress)
    return content_of(out)


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Write three files."""
    return write_texts(tmp_path / "data", ROWS)


def curating(data: Path, out: Path, *, workers: int, seconds: float) -> "subprocess.Popen[str]":
    """Start a curation as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.curating", data, out, str(workers), str(seconds)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def kill_one(process: "subprocess.Popen[str]", out: Path, pids: Path, *, worker_first: bool) -> None:
    """Kill a curation after it has finished a shard; before that, one of its processes, which it replaces."""
    done, known = records_of(out), len(pids.read_text().split()) if pids.exists() else 0
    wait_until(lambda: records_of(out) > done, within_s=PATIENCE_S)
    if worker_first:
        os.kill(int(pids.read_text().split()[known]), signal.SIGKILL)
        wait_until(lambda: len(pids.read_text().split()) - known > 2, within_s=PATIENCE_S)
    process.kill()
    process.communicate()


def records_of(out: Path) -> int:
    """Return the number of finished shards."""
    return len(list(out.glob("records/0*.json")))


def test_every_row_is_kept_once_or_counted_with_its_reason(data: list[str], tmp_path: Path) -> None:
    """The shards hold exactly the rows without these words, with the ids that follow from file and row."""
    with quiet() as progress:
        found = curate(Curation(data, STAGES, tmp_path / "out", sizes=SMALL), progress)

    texts = [text for path in data for text in pq.read_table(path)["text"].to_pylist()]
    left = [text for text in texts if "IMG" not in text and "sky" not in text]
    shards = [pq.read_table(tmp_path / "out" / shard["shard"]) for shard in found["shards"]]
    table = pa.concat_tables(shards)
    assert sorted(left) == sorted(table["text"].to_pylist())
    assert len(left) == found["rows"] == len(set(table["id"].to_pylist()))
    read, first, second = found["stages"]
    assert {"name": "read", "in": 475, "out": 475, "dropped": {}, "notes": {}} == read
    assert (475, {"has IMG": 475 - first["out"]}) == (first["in"], first["dropped"])
    assert (first["out"], {"has sky": first["out"] - len(left)}) == (second["in"], second["dropped"])


def test_bytes_are_the_same_for_any_workers_and_any_order(data: list[str], tmp_path: Path) -> None:
    """Shards, records and dataset.json."""
    wanted = run(data, tmp_path / "one")

    assert 10 < len(wanted)
    assert wanted == run(data, tmp_path / "two", workers=2)
    assert wanted == run(data[::-1], tmp_path / "eight", workers=8)
    assert wanted == run([str(tmp_path / "data")], tmp_path / "folder", workers=2)


@pytest.mark.timeout(1200)
def test_nothing_is_lost_or_doubled_by_kills_of_driver_and_workers(data: list[str], tmp_path: Path) -> None:
    """After each kill -9 the same command goes on, until it ends by itself."""
    wanted = run(data, tmp_path / "unharmed")
    out, pids = tmp_path / "out", tmp_path / "out.pids"

    for kill in range(KILLS):
        process = curating(tmp_path / "data", out, workers=2, seconds=0.05)
        kill_one(process, out, pids, worker_first=kill % 2 == 1)
    assert records_of(out) < len(wanted) // 2, "the last run finds everything done"
    process = curating(tmp_path / "data", out, workers=2, seconds=0)

    assert "" == process.communicate()[1]
    assert 0 == process.returncode
    assert wanted == content_of(out)
    assert not list(out.rglob("*.partial"))


def test_processes_end_with_a_killed_driver(data: list[str], tmp_path: Path) -> None:
    """Without a driver their shards would never be recorded."""
    process = curating(tmp_path / "data", tmp_path / "out", workers=2, seconds=30)
    pids = tmp_path / "out.pids"
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) > 1, within_s=PATIENCE_S)
    assert all(_runs(int(pid)) for pid in pids.read_text().split())
    process.kill()
    process.communicate()

    wait_until(lambda: not any(_runs(int(pid)) for pid in pids.read_text().split()))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_only_damaged_shards_are_made_again(data: list[str], tmp_path: Path) -> None:
    """A changed shard, a lost one and a lost record are restored; the others keep their files."""
    out = tmp_path / "out"
    wanted = run(data, out)
    kept = out / "00003.parquet"
    before = kept.stat().st_ino
    (out / "00000.parquet").write_bytes(b"changed")
    (out / "00001.parquet").unlink()
    (out / "records" / "00002.json").unlink()

    assert wanted == run(data, out)
    assert before == kept.stat().st_ino


def test_a_folder_of_another_recipe_is_refused(data: list[str], tmp_path: Path) -> None:
    """The message names the difference, and the folder is left as it was."""
    wanted = run(data, tmp_path / "out")

    with pytest.raises(CurationError, match=r"other recipe \(different: stages\); name another folder"):
        run(data, tmp_path / "out", stages=(Without("dog"),))
    with pytest.raises(CurationError, match=r"other inputs \(different: ../data/c.parquet\)"):
        run(data[:2], tmp_path / "out")
    assert wanted == content_of(tmp_path / "out")


def test_a_folder_with_other_parquet_files_is_refused(data: list[str], tmp_path: Path) -> None:
    """Nothing of them is overwritten."""
    with pytest.raises(CurationError, match="holds Parquet files of something else"):
        run(data, tmp_path / "data")


def test_an_input_that_changed_between_two_runs_is_refused(data: list[str], tmp_path: Path) -> None:
    """Shards of both states would be mixed."""
    run(data, tmp_path / "out")
    write_texts(tmp_path / "data", {"a.parquet": 46})

    with pytest.raises(CurationError, match=r"different: ../data/a.parquet"):
        run(data, tmp_path / "out")


def test_two_runs_on_one_folder_are_refused(data: list[str], tmp_path: Path) -> None:
    """The second one says so at once."""
    with Output(tmp_path / "out").locked(), pytest.raises(CurationError, match="another run writes to this folder"):
        run(data, tmp_path / "out")


def test_a_full_disk_keeps_finished_shards(tmp_path: Path) -> None:
    """The message says how to go on; a limit on the size of files stands for the disk."""
    data = write_texts(tmp_path / "data", {"a.parquet": 20, "b.parquet": 3_000}, row_group_size=3_000)
    wanted = run(data, tmp_path / "unharmed")
    limit = 20_000
    assert len(wanted["00000.parquet"]) < limit < len(wanted["00001.parquet"])
    process = subprocess.run(
        [sys.executable, "-m", "tests.support.curating", tmp_path / "data", tmp_path / "out", "1", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )

    assert 1 == process.returncode
    assert "00001.parquet: cannot be written" in process.stderr
    assert "finished shards are kept" in process.stderr
    assert ["00000.parquet"] == [path.name for path in (tmp_path / "out").glob("*.parquet")]
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert wanted == run(data, tmp_path / "out")


def test_tars_become_shards_that_training_reads(tmp_path: Path) -> None:
    """Image, text and class of each sample that stays; a sample without text stays for the stages to judge."""
    write_tars(tmp_path / "data", [300, 20])
    write_tar(tmp_path / "data/999.tar", [("1.png", b"no picture, but bytes"), ("2.jpg", b"x"), ("2.txt", b"a dog")])
    out = tmp_path / "out"
    run([str(tmp_path / "data")], out, stages=(Without("scarlet"),))

    before = PairReader(open_pairs([str(tmp_path / "data")], PairColumns()), groups_in_memory=4)
    wanted = [pair for pair in map(before.__getitem__, range(322)) if "scarlet" not in (pair.text or "")]
    after = PairReader(open_pairs([str(out)], PairColumns()), groups_in_memory=4)
    assert 0 < len(wanted) < 322
    assert wanted == [after[row] for row in range(len(after))]


def test_rows_without_image_or_utf8_are_counted_or_null(tmp_path: Path) -> None:
    """Text that is not UTF-8 is no text; given ids are kept, and missing ones made."""
    texts = pa.Array.from_buffers(pa.string(), 4, pa.array([b"a dog", b"\xff\xfe", None, b"a cat"]).buffers())
    table = pa.table({"id": ["x", None, "y", "z"], "image": [b"1", b"2", b"3", None], "text": texts, "n": range(4)})
    pq.write_table(table, tmp_path / "a.parquet")
    with quiet() as progress:
        found = curate(Curation([str(tmp_path / "a.parquet")], (), tmp_path / "out"), progress)

    rows = pq.read_table(tmp_path / "out" / "00000.parquet").to_pydict()
    assert [{"name": "read", "in": 4, "out": 3, "dropped": {"no image": 1}, "notes": {}}] == found["stages"]
    assert (["a dog", None, None], [0, 1, 2]) == (rows["text"], rows["n"])
    assert ["x", "y"] == rows["id"][::2]
    assert 32 == len(rows["id"][1])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"caption": ["a"]}), r"no column 'text' of texts \(it has: caption\)"),
        (pa.table({"text": [1]}), "column 'text' is int64, not string"),
        (pa.table({"text": ["a"], "image": ["a"]}), "column 'image' is string, not binary"),
    ],
)
def test_columns_are_checked_before_any_shard(tmp_path: Path, table: pa.Table, message: str) -> None:
    """The message names file and column."""
    pq.write_table(table, tmp_path / "a.parquet")

    with pytest.raises(DataError, match=message):
        run([str(tmp_path / "a.parquet")], tmp_path / "out")


def test_one_file_named_twice_is_refused(data: list[str], tmp_path: Path) -> None:
    """Its pairs would be doubled; a copy under another name counts as the same file."""
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(Path(data[0]).read_bytes())

    with pytest.raises(DataError, match="have the same content; name one of them"):
        run([*data, str(copy)], tmp_path / "out")


def test_dataset_json_describes_inputs_shards_and_recipe(data: list[str], tmp_path: Path) -> None:
    """Its digest follows from contents, not from places."""
    run(data, tmp_path / "out")
    moved = write_texts(tmp_path / "elsewhere", ROWS)
    run(moved, tmp_path / "other")

    found, other = (json.loads((tmp_path / name / "dataset.json").read_text()) for name in ("out", "other"))
    assert ["../data/a.parquet", "../data/b.parquet", "../data/c.parquet"] == [each["name"] for each in found["inputs"]]
    assert ["without", "without sky"] == [stage["name"] for stage in found["recipe"]["stages"]]
    assert {"anyclass", "pyarrow", "unicode"} == set(found["versions"])
    assert found["digest"] == other["digest"]
    assert found["inputs"] != other["inputs"]
