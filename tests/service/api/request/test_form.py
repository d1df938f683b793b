"""Forms with long parts, and long forms beside each other."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from service.api.problems.table import FieldErrors
from service.api.request.form import MAX_TEXT_BYTES, Form, read_form
from service.api.request.form_reader import FormReader
from service.api.request.pieces import PIECE_BYTES
from service.errors import PayloadTooLarge

CONTENT_TYPE = "multipart/form-data; boundary=b"
LONG = 2 * PIECE_BYTES + 1_000
PICTURE = b"\xff\xd8" + bytes(LONG)


async def chunks(body: bytes, size: int = 256_000) -> AsyncIterator[bytes]:
    """Yield a body as a server does."""
    for at in range(0, len(body), size):
        yield body[at : at + size]


def part(name: str, content: bytes, more: str = "") -> bytes:
    """Return a part."""
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"


async def read(*parts: bytes) -> Form:
    """Read a form whose files have the name `image`."""
    body = b"".join(parts) + b"--b--\r\n"
    return await read_form(chunks(body), CONTENT_TYPE, files=["image"], max_fields=10, max_files=10)


@pytest.mark.parametrize("more", ["", '; filename="a.jpg"'])
async def test_long_files_keep_their_content_and_their_places(more: str) -> None:
    """With a file name or without: a long file arrives in pieces, which are joined at the end."""
    files = [b"\xff", PICTURE, b"\xfe", PICTURE[::-1]]
    form = await read(*[part("image", content, more) for content in (*files[:3], b"\xff" + files[3])])
    assert {"image": [*files[:3], b"\xff" + files[3]]} == form.files


async def test_long_texts_keep_their_content_and_their_places() -> None:
    """A character that two pieces share is whole again."""
    texts = ["a", "x" + "é" * (LONG // 2), "b"]
    form = await read(*[part("labels", text.encode()) for text in texts])
    assert {"labels": texts} == form.fields


async def test_a_long_field_that_is_no_text_is_named() -> None:
    """The fault may be in a later piece."""
    with pytest.raises(FieldErrors, match="labels: must be text in UTF-8"):
        await read(part("labels", b"a" * LONG + b"\xff"))


async def test_a_field_has_a_limit_that_a_file_has_not() -> None:
    """Making a text takes a while in which no other thread runs."""
    with pytest.raises(PayloadTooLarge, match=f"more than {MAX_TEXT_BYTES} bytes"):
        await read(part("labels", b"a" * (MAX_TEXT_BYTES + 1)))
    form = await read(part("image", b"a" * (MAX_TEXT_BYTES + 1), '; filename="a"'))
    assert [MAX_TEXT_BYTES + 1] == [len(content) for content in form.files["image"]]


async def test_a_long_text_in_place_of_a_file_is_a_field() -> None:
    """As a short one is: its reader names the fault."""
    assert "image" in (await read(part("image", b"a" * (MAX_TEXT_BYTES + 1)))).fields


class Counted(FormReader):
    """Notes the round of the event loop of each of its parts."""

    def __init__(self, clock: list[int]) -> None:
        super().__init__()
        self.rounds: list[int] = []
        self._clock = clock

    def part_begins(self, name: str, options: dict[bytes, bytes]) -> None:
        """Note the round."""
        self.rounds.append(self._clock[0])

    def part_data(self, data: bytes, start: int, end: int) -> None:
        """Keep nothing."""

    def part_ends(self) -> None:
        """Keep nothing."""


async def test_of_long_forms_one_has_its_turn_in_a_round_of_the_loop() -> None:
    """If each had, other requests would wait for a millisecond for each client that sends one."""
    clock = [0]

    async def count_rounds() -> None:
        while True:
            await asyncio.sleep(0)
            clock[0] += 1

    counting = asyncio.create_task(count_rounds())
    readers = [Counted(clock) for _ in range(4)]

    async def parse(reader: Counted) -> None:
        body = part("labels", b"a") * 3_000 + b"--b--\r\n"
        async for _ in reader.chunks(chunks(body), CONTENT_TYPE):
            pass

    await asyncio.gather(*map(parse, readers))
    counting.cancel()
    rounds = [set(reader.rounds) for reader in readers]
    first = max(min(each) for each in rounds)
    later = [number for each in rounds for number in each if number > first]
    assert len(later) > len(readers)
    assert sorted(later) == sorted(set(later))
