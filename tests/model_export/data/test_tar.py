from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.data.opening import open_pairs
from model_export.data.pairs import BrokenRowError, Pair
from model_export.data.parquet import PairColumns
from model_export.data.reader import PairReader
from model_export.data.tar import TarPairs
from model_export.data.tar_index import SAMPLE
from model_export.data.tar_members import members
from model_export.errors import DataError
from service.images.decoding import DEFAULT_LIMITS
from tests.support.pairs import write_pairs
from tests.support.tars import write_tar, write_tars

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def pairs_of(path: Path, *, text: str = "text", label: str = "label") -> list[Pair]:
    """Read all samples of a tar file."""
    reader = PairReader([TarPairs(path, PairColumns(text=text, label=label))], groups_in_memory=1)
    return [reader[row] for row in range(len(reader))]


def refusal(path: Path) -> str:
    """Return the one line that a tar file is refused with, after its name."""
    with pytest.raises(DataError) as caught:
        TarPairs(path, PairColumns())
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


def test_members_of_one_key_are_a_sample(tmp_path: Path) -> None:
    """Image, caption and class by suffix, in any order and case; a JSON member stands in for what is missing."""
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("a.txt", b"a cat\n"),
            ("a.jpg", b"1"),
            ("a.json", b'{"text": "no", "label": "animal"}'),
            ("sub/a.JPEG", b"2"),
            ("sub/a.cls", b"7"),
            ("b.webp", b"3"),
            ("b.json", b'{"text": "a dog", "label": 4}'),
            ("notes.txt", b"no image, no sample"),
            ("c.png", b"4"),
            ("c.mask.png", b"not the image"),
            ("d.png", b"5"),
            ("d.txt", b"caf\xe9"),
            ("d.json", b"[1"),
            ("README", b""),
            (".hidden.jpg", b""),
        ],
    )
    assert [
        Pair(b"1", "a cat", "animal"),
        Pair(b"2", None, "7"),
        Pair(b"3", "a dog", "4"),
        Pair(b"4", None, None),
        Pair(b"5", None, None),
    ] == pairs_of(path)
    assert "a cat" == pairs_of(path, text="caption")[0].text
    assert [None, "a dog"] == [pairs_of(path, label="x")[0].label, pairs_of(path, label="text")[2].label]


@given(
    st.lists(
        st.tuples(
            st.text("aé/x", min_size=1, max_size=260).map(lambda name: name.strip("/")), st.binary(max_size=1200)
        ),
        max_size=6,
    ),
    st.sampled_from(FORMATS),
)
def test_members_are_those_that_the_standard_library_reads(files: list[tuple[str, bytes]], form: int) -> None:
    """Names, places and sizes, in each format, long names and empty files included."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            try:
                archive.addfile(entry, io.BytesIO(content))
            except ValueError:  # a name that the format has no room for
                continue
            archive.addfile(folder := tarfile.TarInfo("folder"))
            folder.type = tarfile.DIRTYPE
    data = stream.getvalue()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = [(entry.name, entry.offset_data, entry.size) for entry in archive if entry.isreg()]

    found = members(lambda length, offset: data[offset : offset + length], len(data))

    assert expected == [(member.name.decode(), member.offset, member.size) for member in found]


def test_a_sample_is_found_through_its_index(tmp_path: Path) -> None:
    """The index lies beside the tar file, has at most 40 bytes a sample, and the second opening reads no header."""
    (path,) = write_tars(tmp_path, [600])
    first = PairReader([TarPairs(path, PairColumns())], groups_in_memory=2)
    index = tmp_path / "00000.tar.index"
    assert 600 * SAMPLE.itemsize + 512 == index.stat().st_size
    assert SAMPLE.itemsize <= 40
    assert [256, 256, 88] == first.groups.rows.tolist()
    assert f"{path}, 00000599.png" == first.where(599)

    made = index.stat().st_mtime_ns
    again = pickle.loads(pickle.dumps(PairReader([TarPairs(path, PairColumns())], groups_in_memory=2)))  # noqa: S301
    assert made == index.stat().st_mtime_ns
    for row in np.random.default_rng(0).permutation(600)[:50].tolist():
        assert first[row] == again[row]
    assert [(pair.text, pair.label) for pair in map(first.__getitem__, range(600))] == list(again.texts(most=600))


def test_where_no_index_can_be_written_it_is_kept_in_the_cache(tmp_path: Path, cache: Path) -> None:
    """As on a read-only mount: here a folder has the name. The second opening finds it."""
    (path,) = write_tars(tmp_path, [3])
    (tmp_path / "00000.tar.index").mkdir()
    assert 3 == len(pairs_of(path))
    (index,) = cache.rglob("*.index")
    made = index.stat().st_mtime_ns
    assert 3 == len(pairs_of(path))
    assert made == index.stat().st_mtime_ns


def test_the_digest_changes_with_a_member(tmp_path: Path) -> None:
    """Another size, name or time of one member is another file."""
    entries = [("a.jpg", b"1"), ("a.txt", b"cat")]
    digests = set()
    for number, change in enumerate([entries, [("a.jpg", b"1"), ("a.txt", b"dogs")], [("b.jpg", b"1"), entries[1]]]):
        digests.add(TarPairs(write_tar(tmp_path / f"{number}.tar", change), PairColumns()).digest)
    assert 3 == len(digests)
    assert TarPairs(write_tar(tmp_path / "again.tar", entries), PairColumns()).digest in digests


@pytest.mark.parametrize("moved_s", [-3600, 1, 3600])
def test_an_index_older_than_its_tar_is_refused(tmp_path: Path, moved_s: int) -> None:
    """Also one of a tar file that was put back with an earlier date. The message says which file to delete."""
    (path,) = write_tars(tmp_path, [3])
    index = tmp_path / "00000.tar.index"
    pairs_of(path)
    write_tars(tmp_path, [4])
    moved = index.stat().st_mtime_ns + moved_s * 10**9
    os.utime(path, ns=(moved, moved))

    assert f"was changed after its index was made; delete {index}, and it is made again" == refusal(path)

    index.unlink()
    assert 4 == len(pairs_of(path))


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"x" * 512])
def test_a_damaged_index_is_refused(tmp_path: Path, content: bytes) -> None:
    """It is named, and never guessed at."""
    (path,) = write_tars(tmp_path, [3])
    index = tmp_path / "00000.tar.index"
    index.write_bytes(content)
    assert f"has an index that cannot be read; delete {index}, and it is made again" == refusal(path)
    index.unlink()
    pairs_of(path)
    index.write_bytes(index.read_bytes()[:-1])
    assert f"has an index that cannot be read; delete {index}, and it is made again" == refusal(path)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_tar_is_refused(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """It cannot be read at any position."""
    (path,) = write_tars(tmp_path, [3])
    path.write_bytes(pack(path.read_bytes()))
    assert "must be read at any position; decompress it" in refusal(path)


@pytest.mark.parametrize("kept", [0, 100, 512, 600, 1024, 3000])
def test_a_tar_that_is_cut_off_is_refused(tmp_path: Path, kept: int) -> None:
    """Wherever it ends before the two empty blocks that end a tar file."""
    path = write_tar(tmp_path / "a.tar", [("a.jpg", b"x" * 700), ("a.txt", b"y"), ("b.jpg", b"z")])
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    assert "copy the file again" in refusal(path) or (kept < 512 and refusal(path) == "is not a tar file")
    path.write_bytes(whole[: 7 * 512])  # without the end
    assert "is cut off or damaged at byte 3,584; copy the file again" == refusal(path)
    path.write_bytes(whole)
    assert 2 == len(pairs_of(path))


def test_other_entries_and_names_are_refused(tmp_path: Path) -> None:
    """Links, names that lead out of the file, and keys or members that occur twice."""
    path = tmp_path / "a.tar"
    for name in ("../a.jpg", "x/../../a.jpg", "/a.jpg"):
        write_tar(path, [(name, b"1")])
        assert f"{name} leads out of the tar file; write it with plain names" == refusal(path)
    write_tar(path, [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.txt", b"x"), ("a.png", b"3")])
    assert "a.jpg has a key that occurs twice; give each sample a key of its own" == refusal(path)
    write_tar(path, [("a.jpg", b"1"), ("a.jpg", b"2")])
    assert "a.jpg occurs twice; give each sample a key of its own" == refusal(path)
    write_tar(path, [("a.txt", b"1")])
    assert "has no images; add members such as 0001.jpg with 0001.txt" == refusal(path)
    for kind, word in ((tarfile.SYMTYPE, "a link"), (tarfile.LNKTYPE, "a link"), (tarfile.FIFOTYPE, "a pipe")):
        with tarfile.open(path, "w") as archive:
            entry = tarfile.TarInfo("a.jpg")
            entry.type, entry.linkname = kind, "b.jpg"
            archive.addfile(entry)
        assert f"a.jpg is {word}; write the tar file with plain files only" == refusal(path)


def test_a_tar_that_shrank_under_a_run_is_named(tmp_path: Path) -> None:
    """The index promises bytes that are no longer there."""
    (path,) = write_tars(tmp_path, [3])
    reader = PairReader([TarPairs(path, PairColumns())], groups_in_memory=1)
    os.truncate(path, 1000)
    with pytest.raises(DataError, match=r"00000\.tar: is shorter than its index says"):
        reader[2]


def test_a_picture_above_the_limit_is_not_read(tmp_path: Path) -> None:
    """It is one broken row, by name."""
    size = DEFAULT_LIMITS.max_bytes + 1
    path = write_tar(tmp_path / "a.tar", [("a.jpg", bytes(size)), ("a.txt", b"big")])
    with pytest.raises(BrokenRowError, match=rf"a\.tar, a\.jpg: has {size} bytes; the limit is"):
        pairs_of(path)


def test_classes_are_required_of_a_tar_too(tmp_path: Path) -> None:
    """A recipe that wants them in captions is refused without any."""
    path = write_tar(tmp_path / "a.tar", [("a.jpg", b"1"), ("a.txt", b"cat")])
    assert not TarPairs(path, PairColumns()).has_labels
    with pytest.raises(DataError, match=r"a\.tar: has no classes.*captions\.class_name_share = 0"):
        TarPairs(path, PairColumns(label_required=True))


def test_names_of_several_files(tmp_path: Path) -> None:
    """Ranges, folders of tars or of Parquet files, and files of both kinds in one recipe."""
    write_tars(tmp_path / "tars", [2, 3, 4])
    parquet = write_pairs(tmp_path / "pairs.parquet", 5)
    (tmp_path / "empty").mkdir()

    names = [f"{tmp_path}/tars/{{00001..00002}}.tar", str(parquet), str(tmp_path / "tars"), str(tmp_path)]
    files = open_pairs(names, PairColumns())

    assert [3, 4, 5, 2, 3, 4, 5] == [int(file.group_rows.sum()) for file in files]
    with pytest.raises(DataError, match="empty: holds no files named"):
        open_pairs([str(tmp_path / "empty")], PairColumns())
    with pytest.raises(DataError, match="must count upwards"):
        open_pairs([f"{tmp_path}/{{3..1}}.tar"], PairColumns())
    with pytest.raises(DataError, match=r"absent\.tar: no such file"):
        open_pairs([str(tmp_path / "absent.tar")], PairColumns())
    assert json.loads((tmp_path / "tars" / "00000.tar.index").read_bytes()[:512])["samples"] == 2
