"""Folders of pictures as data of `embed` and `score`."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model_export.curation import picture_folders
from model_export.curation.embed import Embed
from model_export.curation.encoding import BundleEncoder
from model_export.curation.picture_folders import (
    PictureGroups,
    folder_digest,
    folder_mark,
    picture_groups,
    picture_tables,
)
from model_export.curation.pieces import InputColumns, PieceSizes
from model_export.curation.run import Curation, curate
from model_export.curation.verification import Verified, verify_dataset
from model_export.drivers.local import LocalDriver
from model_export.errors import CurationError, DataError
from service.images.decoding import DEFAULT_LIMITS, decode
from service.model.manifest import DEMO_BUNDLE
from tests.model_export.test_cli import error_of, in_this_process
from tests.support.curating import content_of, quiet
from tests.support.pairs import COLOURS, encoded_picture

BROKEN = ("b/broken.png", "b/huge.tif", "empty.webp")
NOWHERE = ("b/gone.jpg", "b/itself.jpg")


@pytest.fixture(scope="module")
def encoder() -> BundleEncoder:
    """Open the demo bundle."""
    return BundleEncoder(DEMO_BUNDLE, "cpu", threads=1, batch_size=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write eight pictures, three files that cannot be decoded, two links to nowhere, and what is passed over."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    names = ("z.jpg", "a/1.JPG", "a/deep/er/2.jpeg", "a-b.jpg", "b/3 of 4.jpg", "b/4.jpg", "b/é犬.jpg", "c\n.jpg")
    for name, colour in zip(names, list(COLOURS.values()) * 2, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded_picture(colour, rng))
    (folder / "b/broken.png").write_bytes(b"none")
    (folder / "empty.webp").touch()
    with (folder / "b/huge.tif").open("wb") as huge:
        huge.truncate(DEFAULT_LIMITS.max_bytes + 9)
    for name in ("notes.txt", ".hidden.jpg", ".thumbnails/1.jpg", "jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "z.jpg", folder / name)
    (folder / "b/gone.jpg").symlink_to(tmp_path / "gone.jpg")
    (folder / "b/itself.jpg").symlink_to("itself.jpg")
    (folder / "b/linked.jpg").symlink_to("4.jpg")
    (folder / "loop").symlink_to(folder)
    (folder / "loop.jpg").symlink_to(folder)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    return folder


def embed(
    folder: Path, out: Path, encoder: BundleEncoder, *, workers: int = 1, sizes: PieceSizes | None = None
) -> pa.Table:
    """Embed a folder as the command does, and return the rows of all shards."""
    stage = Embed(encoder)
    curation = Curation(
        [str(folder)],
        [stage],
        out,
        InputColumns(text=""),
        sizes or PieceSizes(),
        {"settings": {"embed": stage.settings}},
        LocalDriver(workers),
    )
    with quiet() as progress:
        content = curate(curation, progress)
    return pa.concat_tables([pq.read_table(out / shard["shard"]) for shard in content["shards"]])


def verified(out: Path) -> Verified:
    """Verify a data set with the demo bundle."""
    with quiet() as progress:
        return verify_dataset(out, progress, bundle=DEMO_BUNDLE, threads=1)


def test_each_picture_has_its_path_and_its_vector(folder: Path, encoder: BundleEncoder, tmp_path: Path) -> None:
    """Sorted by path; what cannot be decoded is null, with a reason; other files and links to folders are left out."""
    found = embed(folder, tmp_path / "out", encoder)

    ids = found["id"].to_pylist()
    assert ids == [
        *("a-b.jpg", "a/1.JPG", "a/deep/er/2.jpeg", "b/3 of 4.jpg", "b/4.jpg", "b/broken.png", "b/gone.jpg"),
        *("b/huge.tif", "b/itself.jpg", "b/linked.jpg", "b/é犬.jpg", "c\n.jpg", "empty.webp", "z.jpg"),
    ]
    for name, vector, why in zip(
        ids, found["image_embedding"].to_pylist(), found["image_problem"].to_pylist(), strict=True
    ):
        if name in (*BROKEN, *NOWHERE):
            assert vector is None
            assert (why == "no picture") == (name in NOWHERE)
            assert why
            continue
        pixels = decode((folder / name).read_bytes(), encoder.bundle.manifest.image)
        np.testing.assert_allclose(vector, encoder.engine.encode_images(pixels[np.newaxis])[0], atol=1e-5)
    recorded = json.loads((tmp_path / "out" / "dataset.json").read_bytes())
    assert recorded["inputs"] == [{"name": "../photos", "sha256": folder_digest(str(folder))}]
    assert [stage["in"] for stage in recorded["stages"]] == [14, 14]
    assert recorded["stages"][1]["notes"] == {"broken picture": 3, "no picture": 2}


def test_any_number_of_processes_gives_the_same_bytes(
    folder: Path, encoder: BundleEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several row groups are several shards; a run that is repeated reads no picture again."""
    monkeypatch.setattr(picture_folders, "GROUP", 3)
    small = PieceSizes(piece=1, table=1_000)
    embed(folder, tmp_path / "one", encoder, sizes=small)
    embed(folder, tmp_path / "two", encoder, workers=2, sizes=small)

    assert picture_groups(str(folder))[0].tolist() == [3, 3, 3, 3, 2]
    wanted = content_of(tmp_path / "one")
    assert len([name for name in wanted if name.endswith(".parquet")]) == 5
    assert content_of(tmp_path / "two") == wanted

    monkeypatch.setattr("model_export.curation.pieces.folder_digest", lambda _: pytest.fail("read again"))
    embed(folder, tmp_path / "one", encoder, sizes=small)
    assert content_of(tmp_path / "one") == wanted


def test_a_changed_folder_is_other_data(folder: Path, encoder: BundleEncoder, tmp_path: Path) -> None:
    """A renamed, added, removed or changed picture; verify names the folder."""
    out = tmp_path / "out"
    embed(folder, out, encoder)
    whole = verified(out)
    before = folder_digest(str(folder)), folder_mark(str(folder))
    kept = (folder / "z.jpg").read_bytes()

    assert whole == Verified(1, (), ())
    (folder / "z.jpg").rename(folder / "y.jpg")
    renamed = folder_digest(str(folder)), folder_mark(str(folder))
    (folder / "y.jpg").unlink()
    removed = folder_digest(str(folder)), folder_mark(str(folder))
    (folder / "z.jpg").write_bytes(kept + b"\0")
    changed = folder_digest(str(folder)), folder_mark(str(folder))
    states = (before, renamed, removed, changed)
    assert len({digest for digest, _ in states}) == len({mark for _, mark in states}) == 4

    assert f"{folder}: its bytes are not those read" in verified(out).problems
    with pytest.raises(CurationError, match="holds a data set of other inputs"):
        embed(folder, out, encoder)


def test_a_picture_that_vanishes_ends_the_run_with_its_name(folder: Path) -> None:
    """After the folder was counted."""
    paths = picture_groups(str(folder)).paths[2:8]
    assert [table.num_rows for table in picture_tables(str(folder), paths, 4)] == [4, 2]
    (folder / "b/4.jpg").unlink()
    with pytest.raises(DataError, match=r"b/4\.jpg: cannot be read \(No such file or directory\); restore it"):
        list(picture_tables(str(folder), paths, 4))


def test_a_picture_that_is_added_meanwhile_ends_the_run(
    folder: Path, encoder: BundleEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No data set is described that the folder does not have; rows of the shards do not shift."""
    monkeypatch.setattr(picture_folders, "GROUP", 3)
    small = PieceSizes(piece=1, table=1_000)
    wanted = embed(folder, tmp_path / "whole", encoder, sizes=small)
    read = picture_folders.picture_tables

    def adding(*given: Any) -> Iterator[pa.Table]:
        shutil.copy(folder / "z.jpg", folder / "a/0.jpg")
        return read(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model_export.curation.reading.picture_tables", adding)
        with pytest.raises(DataError, match="photos: was changed while it was read, and is other data now"):
            embed(folder, tmp_path / "out", encoder, sizes=small)

    assert not (tmp_path / "out" / "dataset.json").exists()
    shards = [pq.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet"))]
    assert pa.concat_tables(shards).equals(wanted)


def test_a_shard_of_other_pictures_is_made_again(
    folder: Path, encoder: BundleEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture came after the digest was taken and before the plan, and went later."""
    monkeypatch.setattr(picture_folders, "GROUP", 3)
    small = PieceSizes(piece=1, table=1_000)
    wanted = embed(folder, tmp_path / "whole", encoder, sizes=small)
    planned = picture_folders.picture_groups

    def late(name: str) -> PictureGroups:
        shutil.copy(folder / "z.jpg", folder / "a/0.jpg")
        return planned(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model_export.curation.pieces.picture_groups", late)
        with pytest.raises(DataError, match="was changed while it was read"):
            embed(folder, tmp_path / "out", encoder, sizes=small)
    (folder / "a/0.jpg").unlink()
    assert embed(folder, tmp_path / "out", encoder, sizes=small).equals(wanted)


def test_a_name_that_is_not_utf8_has_an_id(folder: Path, encoder: BundleEncoder, tmp_path: Path) -> None:
    """Its bytes are escaped."""
    try:
        shutil.copy(folder / "z.jpg", folder / os.fsdecode(b"zz\xff.jpg"))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    found = embed(folder, tmp_path / "out", encoder)
    assert found["id"].to_pylist()[-1] == "zz\\xff.jpg"
    assert found["image_embedding"].to_pylist()[-1] == found["image_embedding"].to_pylist()[-2]


def test_the_commands_take_folders(folder: Path, tmp_path: Path) -> None:
    """Scores are verified too; a folder with Parquet files is one of Parquet files; texts are not to be had."""
    labels, common = tmp_path / "labels.txt", ("--bundle", DEMO_BUNDLE, "--provider", "cpu", "--out")
    labels.write_text("red\ngreen\n")
    done = in_this_process("score", folder, *common, tmp_path / "scores", "--labels", labels, "--top", 1)
    assert done.returncode == 0, done.stderr
    assert "photos: passed over 4 that are no pictures: links to folders 2, no suffix 1, txt 1\n" in done.stderr
    assert pq.read_table(tmp_path / "scores" / "00000.parquet").num_rows == 14
    assert verified(tmp_path / "scores") == Verified(1, (), ())

    assert "holds pictures, and no texts" in error_of(
        in_this_process("embed", folder, "--text", *common, tmp_path / "no")
    )
    (tmp_path / "none").mkdir()
    empty = error_of(in_this_process("embed", tmp_path / "none", *common, tmp_path / "no"))
    assert "none: holds no files named .parquet or .tar, and no pictures" in empty

    pq.write_table(pa.table({"id": ["one"], "image": [(folder / "z.jpg").read_bytes()]}), folder / "data.parquet")
    done = in_this_process("embed", folder, *common, tmp_path / "parquet")
    assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / "parquet" / "00000.parquet")["id"].to_pylist() == ["one"]
