"""Removal of copies: which picture of a group stays, and the command ``curate dedup``."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from model_export.curation.dedup import Dedup, DedupSettings, Method, keys_of, methods_named
from model_export.curation.deduplicating import DedupPlan, Pictures, plan_dedup
from model_export.curation.groups import Groups
from model_export.curation.pieces import InputColumns
from model_export.curation.stage import ID, run_stage
from model_export.data.opening import open_pairs
from model_export.data.parquet import PairColumns
from model_export.data.reader import PairReader
from model_export.errors import CurationError
from tests.model_export.test_cli import in_this_process
from tests.support.curating import content_of, quiet
from tests.support.pictures import encode
from tests.support.planted import COPIES, scene

SCENES = 12


def rows_of(scenes: int = SCENES) -> list[dict[str, object]]:
    """Return pairs: of each scene the original, an exact copy, a mirror image, and one that is larger."""
    chance = np.random.default_rng(1)
    rows = []
    for seed in range(scenes):
        image = scene(seed)
        versions = {"a": image, "b": image, "mirror": COPIES["mirrored"](image, chance)}
        versions["large"] = COPIES["scaled × 1.3"](image, chance)
        rows += [
            {"id": f"{seed} {name}", "image": encode(version, "PNG"), "text": f"A {name} picture", "seed": seed}
            for name, version in versions.items()
        ]
    return rows


def write(folder: Path, rows: list[dict[str, object]], files: int = 2) -> Path:
    """Write pairs into files of several row groups."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        mine = pa.Table.from_pylist(rows[number::files])
        pq.write_table(mine, folder / f"{number}.parquet", row_group_size=10)
    return folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return data with copies, a broken picture and two flat ones."""
    rows = rows_of()
    rows += [
        {"id": "broken", "image": b"GIF89a", "text": "Broken", "seed": -1},
        {"id": "white", "image": encode(Image.new("RGB", (40, 40), "white"), "PNG"), "text": "White", "seed": -2},
        {"id": "black", "image": encode(Image.new("RGB", (40, 40), "black"), "PNG"), "text": "Black", "seed": -3},
    ]
    return write(tmp_path_factory.mktemp("raw"), rows)


def planned(data: Path, folder: Path, settings: DedupSettings) -> DedupPlan:
    """Return the plan for a folder of data."""
    return plan_dedup(Pictures([str(data)], InputColumns(), folder), settings, quiet())


def dropped(plan: DedupPlan, data: Path) -> dict[str, str]:
    """Return the reason for each id that a plan drops."""
    ids = pa.concat_arrays([pq.read_table(path)[ID].combine_chunks() for path in sorted(data.glob("*.parquet"))])
    reasons = dict(zip(plan.stage.keys.tolist(), plan.stage.methods.tolist(), strict=True))
    keys = keys_of(ids, plan.stage.settings.seed).tolist()
    return {
        each: list(Method)[reasons[key]].reason
        for each, key in zip(ids.to_pylist(), keys, strict=True)
        if key in reasons
    }


def test_the_largest_picture_of_a_group_stays(raw: Path, tmp_path: Path) -> None:
    """Of four versions the larger one stays; one of the two equal ones is an exact copy, the others are near copies."""
    plan = planned(raw, tmp_path, DedupSettings())

    found = dropped(plan, raw)
    assert {4: SCENES} == plan.sizes
    assert 3 * SCENES == len(found)
    for seed in range(SCENES):
        assert f"{seed} large" not in found
        assert "near copy" == found[f"{seed} mirror"]
        assert {"exact copy", "near copy"} == {found[f"{seed} a"], found[f"{seed} b"]}
    assert (4 * SCENES + 3, 1, 2) == (plan.pictures, plan.broken, plan.flat)


def test_survivors_do_not_depend_on_order_and_files(raw: Path, tmp_path: Path) -> None:
    """The same ids go, whatever the files and their order; another seed decides among equals otherwise."""
    settings = DedupSettings(methods=(Method.EXACT,))
    first = planned(raw, tmp_path / "1", settings)
    rows = pa.concat_tables([pq.read_table(path) for path in sorted(raw.glob("*.parquet"))]).to_pylist()
    other = write(tmp_path / "other", rows[::-1], files=3)
    second = planned(other, tmp_path / "2", settings)
    reseeded = planned(raw, tmp_path / "1", DedupSettings(methods=(Method.EXACT,), seed=1))

    assert SCENES == len(dropped(first, raw))
    assert dropped(first, raw) == dropped(second, other)
    assert first.stage.digest == second.stage.digest
    assert set(dropped(first, raw)) != set(dropped(reseeded, raw))
    assert SCENES == len(dropped(reseeded, raw))


def test_near_alone_finds_equal_pictures_too(raw: Path, tmp_path: Path) -> None:
    """Without the method exact, equal pictures are near copies."""
    found = dropped(planned(raw, tmp_path, DedupSettings(methods=(Method.NEAR,))), raw)
    assert {"near copy"} == set(found.values())
    assert 3 * SCENES == len(found)


def test_groups_are_chains_with_their_first_row() -> None:
    """Rows are in one group if a chain of pairs leads from one to the other."""
    groups = Groups(7)
    groups.join(np.array([[5, 4], [3, 2]]))
    groups.join(np.array([[4, 3], [6, 6]]))
    assert [0, 1, 2, 2, 2, 2, 6] == groups.firsts().tolist()
    assert {4: 1} == groups.sizes()
    assert [True, False] == groups.joined(np.array([5, 1]), np.array([2, 0])).tolist()


def test_the_stage_counts_each_reason() -> None:
    """Rows are dropped by id; without copies all stay."""
    ids = pa.array(["a", "b", "c", "d"])
    settings = DedupSettings()
    keys = keys_of(ids, 0)
    order = np.argsort(keys[:2])
    stage = Dedup(settings, keys[:2][order], np.array([0, 1], np.uint8)[order])

    result = run_stage(stage, pa.table({ID: ids}))

    assert ["c", "d"] == result.kept[ID].to_pylist()
    assert {"exact copy": 1, "near copy": 1} == result.dropped
    none = Dedup(settings, keys[:0], np.zeros(0, np.uint8))
    assert 4 == run_stage(none, pa.table({ID: ids})).kept.num_rows
    assert none.digest != stage.digest


def test_the_command_makes_the_same_bytes_for_any_number_of_processes(raw: Path, tmp_path: Path) -> None:
    """Shards, report, JSON and plot; two processes make the same where shards are lost."""
    some = ("curate", "dedup", raw)
    first = in_this_process(
        *some, "--out", tmp_path / "one", "--json", tmp_path / "report.json", "--plot", tmp_path / "groups.png"
    )
    assert 0 == first.returncode, first.stderr
    for text in ("exact copy", "near copy", "pictures of a group", "could not be read", "are flat"):
        assert text in first.stdout
    assert "near copies: 15 of 15" in first.stderr
    assert (tmp_path / "groups.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((tmp_path / "report.json").read_text())
    assert [{"pictures": 4, "groups": SCENES}] == report["dedup"]["groups"]
    assert {"exact copy": SCENES, "near copy": 2 * SCENES} == report["stages"][1]["dropped"]
    kept = {row for path in (tmp_path / "one").glob("*.parquet") for row in pq.read_table(path)[ID].to_pylist()}
    assert {f"{seed} large" for seed in range(SCENES)} | {"broken", "white", "black"} == kept

    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for shard in ("*.parquet", "records/signatures/*.parquet"):
        for path in (tmp_path / "two").glob(shard):
            path.unlink()
    again = in_this_process(*some, "--out", tmp_path / "two", "--workers", 2)
    assert 0 == again.returncode, again.stderr
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")


def test_tars_hold_the_pairs_that_parquet_holds(tmp_path: Path) -> None:
    """With ``--format tar``; verify makes them again."""
    data = write(tmp_path / "raw", rows_of(2), files=1)
    some = ("curate", "dedup", data, "--out")
    assert 0 == in_this_process(*some, tmp_path / "parquet").returncode
    made = in_this_process(*some, tmp_path / "tar", "--format", "tar")
    assert 0 == made.returncode, made.stderr

    assert not list((tmp_path / "tar").glob("*.parquet"))
    pairs, rows = (
        PairReader(open_pairs([str(tmp_path / kind)], PairColumns()), groups_in_memory=4) for kind in ("tar", "parquet")
    )
    assert 0 < len(rows) == len(pairs) < 8
    assert [pairs[row][:2] for row in range(len(pairs))] == [rows[row][:2] for row in range(len(rows))]
    assert 0 == in_this_process("curate", "verify", tmp_path / "tar").returncode
    (tmp_path / "tar/records/recipe.json").unlink()
    refused = in_this_process(*some, tmp_path / "tar")
    assert 2 == refused.returncode
    assert "holds tar files of something else" in refused.stderr


def test_what_cannot_work_is_refused_before_pictures_are_read(raw: Path, tmp_path: Path) -> None:
    """Wrong settings, data without pictures, ids that repeat: one line each, and no folder."""
    rows = rows_of(2)
    (tmp_path / "text").mkdir()
    pq.write_table(pa.table({"text": ["A dog"]}), tmp_path / "text" / "0.parquet")
    twice = write(tmp_path / "twice", [*rows, rows[0]], files=1)
    out = tmp_path / "out"
    for data, arguments, message in (
        (raw, ("--method", "exact,fuzzy"), "method 'fuzzy' is unknown"),
        (raw, ("--method", ","), "no method"),
        (raw, ("--similarity", "0.5"), "must be from 0.8 to 1"),
        (raw, ("--seed", "-1"), "must be from 0"),
        (raw, ("--plot", tmp_path / "plot.jpg"), "writes a PNG"),
        (raw, ("--image-column", "picture"), "no column 'picture' of encoded pictures"),
        (tmp_path / "text", (), "no column 'image' of encoded pictures"),
        (twice, (), "1 ids of column 'id' repeat"),
    ):
        done = in_this_process("curate", "dedup", data, "--out", out, *arguments)
        assert 2 == done.returncode, message
        assert message in done.stderr
    assert not out.exists()
    made = in_this_process("curate", "dedup", twice, "--out", out, "--id-column", "none")
    assert 0 == made.returncode, made.stderr
    assert 2 == sum(pq.read_table(path).num_rows for path in out.glob("*.parquet"))
    for folder, message in ((out, "of another recipe"), (tmp_path / "text", "of something else")):
        done = in_this_process("curate", "dedup", raw, "--out", folder, "--similarity", "0.9")
        assert 2 == done.returncode
        assert message in done.stderr
        assert not (folder / "records" / "signatures" / "00001.parquet").exists()


def test_methods_are_named_and_ordered() -> None:
    """Any order and spaces are taken; settings hold the order of the methods."""
    assert (Method.EXACT, Method.NEAR) == methods_named("near, exact")
    with pytest.raises(CurationError, match="choose from exact"):
        methods_named("same")
