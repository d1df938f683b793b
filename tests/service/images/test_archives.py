import gzip
import io
import os
import tarfile
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.request.spool import Spool
from service.errors import AnyclassError, InvalidImage, MalformedRequest, PayloadTooLarge
from service.images.archives import MAX_NAME_CHARS, ArchivedFile, ArchiveLimits, entries

LIMITS = ArchiveLimits(max_images=5, max_image_bytes=1_000, max_bytes=100_000)
FILES = (("a/red.png", b"red"), ("b.png", b"x" * 1_000), ("empty", b""))

Files = Sequence[tuple[str, bytes]]


def tar(files: Files, *, mode: str = "w", kind: int = tarfile.PAX_FORMAT) -> bytes:
    """Make a tar; with mode ``w:gz`` a compressed one."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, format=kind) as archive:  # type: ignore[call-overload]
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def zipped(files: Files, *, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Make a zip."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return stream.getvalue()


def read(data: bytes, limits: ArchiveLimits = LIMITS) -> list[ArchivedFile]:
    """All entries."""
    return list(entries(io.BytesIO(data), limits))


MAKERS: dict[str, Callable[[Files], bytes]] = {
    "pax": tar,
    "gnu": lambda files: tar(files, kind=tarfile.GNU_FORMAT),
    "ustar": lambda files: tar(files, kind=tarfile.USTAR_FORMAT),
    "tar.gz": lambda files: tar(files, mode="w:gz"),
    "zip": zipped,
    "stored": lambda files: zipped(files, compression=zipfile.ZIP_STORED),
}
every_kind = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@every_kind
def test_files_come_in_their_order_with_their_names(make: Callable[[Files], bytes]) -> None:
    """What kind of archive it is, its bytes tell."""
    assert [ArchivedFile(*file) for file in FILES] == read(make(FILES))


@every_kind
def test_an_oversized_file_fails_no_other(make: Callable[[Files], bytes]) -> None:
    """It has its own error, and what follows is read."""
    found = read(make([("big", b"x" * 1_001), ("next", b"fine")]))
    assert ["big", "next"] == [entry.name for entry in found]
    assert isinstance(found[0].image, PayloadTooLarge)
    assert b"fine" == found[1].image


@every_kind
def test_too_many_files(make: Callable[[Files], bytes]) -> None:
    """Refused at the first one too many; those before it are read."""
    reading = entries(io.BytesIO(make([(str(n), b"x") for n in range(6)])), LIMITS)
    assert ["0", "1", "2", "3", "4"] == [next(reading).name for _ in range(5)]
    with pytest.raises(PayloadTooLarge, match="5 files"):
        next(reading)


@every_kind
def test_too_many_bytes_in_all(make: Callable[[Files], bytes]) -> None:
    """Counted as they come out, whatever the headers say."""
    limits = ArchiveLimits(max_images=100, max_image_bytes=1_000, max_bytes=5_000)
    with pytest.raises(PayloadTooLarge, match="unpacks to"):
        read(make([(str(n), b"x" * 900) for n in range(20)]), limits)


@every_kind
def test_an_archive_without_a_file(make: Callable[[Files], bytes]) -> None:
    """An archive without files has no answer."""
    with pytest.raises(MalformedRequest):
        read(make([]))


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"not an archive", b"\x1f\x8b", b"\x1f\x8b\x08" + bytes(50), b"PK\x03\x04" + bytes(60),
             gzip.compress(b"not a tar" * 200, mtime=0), b"\x89PNG\r\n\x1a\n" + bytes(1_000)],
)  # fmt: skip
def test_what_is_not_an_archive(data: bytes) -> None:
    """The client's mistake, and never ours."""
    with pytest.raises(MalformedRequest):
        read(data)


@every_kind
def test_a_damaged_archive_never_passes_for_a_shorter_one(make: Callable[[Files], bytes]) -> None:
    """Cut off within a file or a header: an error, and not just fewer results."""
    whole = make([("a", os.urandom(900)), ("b", os.urandom(900))])
    for end in (1_100, 1_700):
        with pytest.raises(MalformedRequest):
            read(whole[:end])


def test_a_damaged_header_is_not_the_end_of_a_tar() -> None:
    """`tarfile` itself would stop there and say nothing."""
    data = bytearray(tar([("a", b"x" * 10), ("b", b"y" * 10)], kind=tarfile.USTAR_FORMAT))
    data[1_024 + 10] ^= 0xFF
    with pytest.raises(MalformedRequest):
        read(bytes(data))


ENDS = {"none": b"", "half": bytes(512), "one": bytes(512) + b"more" * 128, "cut": bytes(700)}


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["tar", "tar.gz"])
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_tar_without_its_end_breaks_off(end: bytes, pack: Callable[[bytes], bytes]) -> None:
    """Two blocks of zeros end a tar; without them files may be missing, though the last one is whole."""
    whole = tar([("a", b"x" * 10), ("b", b"y" * 512)], kind=tarfile.USTAR_FORMAT)
    reading = entries(io.BytesIO(pack(whole[: 4 * 512] + end)), LIMITS)
    assert ["a", "b"] == [next(reading).name for _ in range(2)]
    with pytest.raises(MalformedRequest, match=r"breaks off.*Send it whole"):
        next(reading)


def test_two_blocks_of_zeros_end_a_tar() -> None:
    """Padding to a whole record is not needed, and nothing after the end is read."""
    whole = tar([("a", b"x" * 10)], kind=tarfile.USTAR_FORMAT)
    for after in (b"", bytes(512), b"more" * 128):
        assert [ArchivedFile("a", b"x" * 10)] == read(whole[: 2 * 512] + bytes(1_024) + after)


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: data[:-8] + bytes(8)], ids=["cut", "checksum"])
def test_the_checksum_of_gzip_counts(spoil: Callable[[bytes], bytes]) -> None:
    """It comes after the end of the tar; a wrong one means that any of the files may be wrong."""
    with pytest.raises(MalformedRequest):
        read(spoil(tar(FILES, mode="w:gz")))


@pytest.mark.parametrize("make", [MAKERS["tar.gz"], MAKERS["zip"]], ids=["tar.gz", "zip"])
def test_an_archive_that_unpacks_to_a_hundred_times_its_size(make: Callable[[Files], bytes]) -> None:
    """It is refused long before the limit of unpacked bytes, which would take seconds to reach."""
    limits = ArchiveLimits(max_images=100, max_image_bytes=2**20, max_bytes=2**40, ratio_free_bytes=2**21)
    bomb = make([(str(number), bytes(2**20)) for number in range(5)])
    reading = entries(io.BytesIO(bomb), limits)
    assert "0" == next(reading).name
    with pytest.raises(PayloadTooLarge, match="more than 100 times its size"):
        list(reading)
    assert 2 == len(read(make([("a", bytes(2**20)), ("b", os.urandom(2**20))]), limits))


def test_a_damaged_file_in_a_zip_fails_no_other() -> None:
    """Its checksum tells."""
    data = bytearray(zipped([("a", b"x" * 10), ("b", b"fine")], compression=zipfile.ZIP_STORED))
    data[data.index(b"x" * 10)] ^= 1
    first, second = read(bytes(data))
    assert isinstance(first.image, InvalidImage)
    assert b"fine" == second.image


def test_only_regular_files_are_read() -> None:
    """Links, devices and directories are passed over; nothing outside is ever reached."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            member = tarfile.TarInfo(f"entry-{kind!r}")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        member = tarfile.TarInfo("../../etc/cron.d/evil")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"red"))
    assert [ArchivedFile("../../etc/cron.d/evil", b"red")] == read(stream.getvalue())

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as zip_archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        zip_archive.writestr(link, "/etc/passwd")
        zip_archive.writestr("folder/", b"")
        zip_archive.writestr("/etc/hosts", b"red")
    assert [ArchivedFile("/etc/hosts", b"red")] == read(stream.getvalue())


def test_entries_that_are_no_files_are_counted_too() -> None:
    """A million directories cost nothing to send and much to read."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        member = tarfile.TarInfo("folder")
        member.type = tarfile.DIRTYPE
        for _ in range(1_100):
            archive.addfile(member)
    with pytest.raises(PayloadTooLarge, match="not files"):
        read(stream.getvalue(), ArchiveLimits(max_images=5, max_image_bytes=1_000, max_bytes=10**7))


def test_names_are_shortened_and_made_sound() -> None:
    """They are echoed in JSON."""
    (found,) = read(tar([("ä" * 300, b"x")]))
    assert (MAX_NAME_CHARS, "…") == (len(found.name), found.name[-1])
    raw = bytearray(tar([("abc", b"x")], kind=tarfile.USTAR_FORMAT))
    raw[0:3] = b"\xff\xfe\xfd"
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    (found,) = read(bytes(raw))
    assert "???" == found.name


def memory_of(work: Callable[[], object]) -> int:
    """The most memory that `work` had at once, in bytes."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("make", [MAKERS["tar.gz"], MAKERS["zip"]], ids=["tar.gz", "zip"])
def test_a_bomb_takes_no_memory(make: Callable[[Files], bytes]) -> None:
    """64 MiB of zeros in a few kilobytes: one file too large, or too many bytes in all, and little memory."""
    bomb = make([("zeros", bytes(2**26)), ("next", b"fine")])
    limits = ArchiveLimits(max_images=5, max_image_bytes=1_000, max_bytes=2**30)

    def work() -> None:
        first, second = read(bomb, limits)
        assert isinstance(first.image, PayloadTooLarge)
        assert b"fine" == second.image

    assert memory_of(work) < 2**23
    with pytest.raises(PayloadTooLarge):
        read(bomb, ArchiveLimits(max_images=5, max_image_bytes=2**25, max_bytes=2**25))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_headers_takes_no_memory(kind: bytes) -> None:
    """A long name of 64 MiB is read into memory by `tarfile`; here it never gets so far."""
    member = tarfile.TarInfo("name")
    member.type, member.size = kind, 2**26
    bomb = gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(2**26), 1)
    limits = ArchiveLimits(max_images=5, max_image_bytes=1_000, max_bytes=2**30)

    def work() -> None:
        with pytest.raises(MalformedRequest):
            read(bomb, limits)

    assert memory_of(work) < 2**23


def test_a_directory_of_a_zip_that_is_too_long() -> None:
    """`zipfile` reads the whole directory at once, as long as it says it is."""
    bomb = zipped([(str(n), b"") for n in range(20_000)])
    with pytest.raises(PayloadTooLarge, match="directory"):
        read(bomb)


def test_overlapping_files_are_counted_each_time() -> None:
    """A zip whose entries share their bytes unpacks to far more than it holds."""
    data = bytearray(zipped([("a", bytes(900)), ("b", bytes(900))]))
    limits = ArchiveLimits(max_images=5, max_image_bytes=1_000, max_bytes=1_000)
    with pytest.raises(PayloadTooLarge):
        read(bytes(data), limits)


def test_encrypted_and_exotic_files_have_their_errors() -> None:
    """What cannot or should not be unpacked fails no other file."""
    exotic = zipped([("a", b"x" * 100)], compression=zipfile.ZIP_LZMA)
    assert [InvalidImage] == [type(entry.image) for entry in read(exotic)]
    data = bytearray(zipped([("a", b"x")]))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (entry,) = read(bytes(data))
    assert isinstance(entry.image, InvalidImage)
    assert "encrypted" in entry.image.detail


def test_an_archive_in_an_archive_is_a_file() -> None:
    """It is not opened."""
    inner = zipped([("a", b"red")])
    assert [ArchivedFile("inner.zip", inner)] == read(tar([("inner.zip", inner)]))


@given(
    st.sampled_from(sorted(MAKERS)),
    st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(0, 2_500),
)
def test_any_damage_is_the_clients_mistake(kind: str, changes: list[tuple[int, int]], cut: int) -> None:
    """Any bytes give files or one of our errors."""
    data = bytearray(MAKERS[kind]((("a", b"red" * 100), ("b", b"green" * 50))))
    for position, value in changes:
        data[position % len(data)] = value
    try:
        found = read(bytes(data[: max(10, len(data) - cut)]))
    except AnyclassError as exc:
        assert isinstance(exc, MalformedRequest | PayloadTooLarge)  # noqa: PT017 - either is right
    else:
        assert len(found) <= LIMITS.max_images


def test_a_tar_is_read_while_it_arrives() -> None:
    """The first files are there before the rest was sent."""
    data = tar([("a", b"x" * 600), ("b", b"y" * 600)], kind=tarfile.USTAR_FORMAT)
    spool = Spool()
    spool.append(data[: 512 + 1_024 + 9_000])  # `tarfile` reads 10 KiB at once
    found = entries(spool, LIMITS)  # type: ignore[arg-type]
    spool.append(data[512 + 1_024 + 9_000 :])
    spool.finish()
    assert ["a", "b"] == [entry.name for entry in found]
    spool.close()


@every_kind
def test_a_slow_upload_is_waited_for(make: Callable[[Files], bytes]) -> None:
    """In pieces of any size, in memory or in a file."""
    files = [("a", os.urandom(900_000)), ("b", os.urandom(900_000))]
    data = make(files)
    spool = Spool()

    def send() -> None:
        for start in range(0, len(data), 50_001):
            spool.append(data[start : start + 50_001])
        spool.finish()

    sender = threading.Thread(target=send)
    sender.start()
    found = list(entries(spool, ArchiveLimits(5, 2**20, 2**22)))  # type: ignore[arg-type]
    sender.join()
    spool.close()
    assert [ArchivedFile(*file) for file in files] == found


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x1f\x8b\x08", b"name" + bytes(96)])
def test_an_upload_that_fails_ends_the_reading(start: bytes) -> None:
    """A reader that waits for more bytes gets the reason."""
    spool = Spool()
    spool.append(start)
    timer = threading.Timer(0.05, lambda: spool.fail(PayloadTooLarge("too slow")))
    timer.start()
    with pytest.raises(PayloadTooLarge, match="too slow"):
        list(entries(spool, LIMITS))  # type: ignore[arg-type]
    spool.close()
    timer.join()


def test_closing_an_upload_ends_the_reading() -> None:
    """A client that has gone leaves no thread behind."""
    spool = Spool()
    timer = threading.Timer(0.05, spool.close)
    timer.start()
    with pytest.raises(AnyclassError):
        list(entries(spool, LIMITS))  # type: ignore[arg-type]
    timer.join()
    spool.append(b"late")
