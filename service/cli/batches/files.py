"""The files of batches on their way: requests to a service, answers back."""

import asyncio
import json
import os
import secrets
import sys
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from service.cli.batches.view import MEMBERS
from service.cli.console.progress import Screen
from service.cli.inputs import InputError
from service.cli.remote.client import RemoteError, Service

_PIECE: Final = 2**18
_FIRST_LINE_BYTES: Final = 2**25
_DEFAULT_ENDPOINT: Final = "/v1/classify"


async def endpoint_of(file: Path) -> str:
    """The route that the first line of a file names; that of classification where it names none.

    Raises `InputError` for a file that cannot be read, or whose first line is no request at all.
    """
    return await asyncio.to_thread(_endpoint, file)


async def start(
    service: Service,
    file: Path,
    *,
    endpoint: str,
    window: str,
    metadata: Mapping[str, str] | None,
    idempotency_key: str | None,
) -> dict[str, Any]:
    """Send a file and begin its batch. Whatever is sent again has the same key, so nothing is begun twice.

    Raises `RemoteError`, and `InputError` for a file that cannot be read.
    """
    key = idempotency_key or uuid.uuid4().hex
    boundary = f"anyclass-{secrets.token_hex(16)}"
    head, tail = _around(file.name, boundary)
    try:
        size = (await asyncio.to_thread(file.stat)).st_size
    except OSError as exc:
        raise InputError(f"cannot read {file}: {exc.strerror or exc}") from exc
    with Screen(results=False, noun="MiB") as screen:

        async def body() -> AsyncIterator[bytes]:
            sent = 0
            yield head
            async for piece in _pieces(file):
                yield piece
                sent += len(piece)
                screen.stage("sending", done=sent / 2**20, total=size / 2**20)
            yield tail

        headers = {
            "content-type": f"multipart/form-data; boundary={boundary}",
            "content-length": str(len(head) + size + len(tail)),
            "idempotency-key": key,
        }
        sent_file = await service.json("POST", "/v1/files", ("id",), fresh=body, headers=headers)
    asked = {
        "input_file_id": sent_file["id"],
        "endpoint": endpoint,
        "completion_window": window,
        "metadata": metadata,
    }
    return await service.json("POST", "/v1/batches", MEMBERS, json=asked, headers={"idempotency-key": key})


async def fetch(service: Service, file_id: str | None, target: Path) -> None:
    """Write a file's content; to a file under another name first, so that half a file is never taken for one.

    Without a `file_id` there is nothing in it, and an empty file says so. Raises `RemoteError`, `InputError`.
    """
    to_stdout = str(target) == "-"
    part = target.with_name(f"{target.name}.part")
    try:
        stream = sys.stdout.buffer if to_stdout else await asyncio.to_thread(part.open, "wb")
        try:
            if file_id is not None:
                await _copy(service, file_id, stream)
        finally:
            if not to_stdout:
                await asyncio.to_thread(stream.close)
        if not to_stdout:
            await asyncio.to_thread(os.replace, part, target)
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise RemoteError(f"cannot write {target}: {exc.strerror or exc}") from exc


async def _copy(service: Service, file_id: str, stream: BinaryIO) -> None:
    async with service.download(f"/v1/files/{file_id}/content") as pieces:
        async for piece in pieces:
            await asyncio.to_thread(stream.write, piece)
    await asyncio.to_thread(stream.flush)


async def _pieces(file: Path) -> AsyncIterator[bytes]:
    try:
        stream = await asyncio.to_thread(file.open, "rb")
        try:
            while piece := await asyncio.to_thread(stream.read, _PIECE):
                yield piece
        finally:
            await asyncio.to_thread(stream.close)
    except OSError as exc:
        raise InputError(f"cannot read {file}: {exc.strerror or exc}") from exc


def _around(name: str, boundary: str) -> tuple[bytes, bytes]:
    """What stands before and after a file in a form (RFC 7578); a name as browsers spell it."""
    safe = "".join({'"': "%22", "\r": "%0D", "\n": "%0A"}.get(each, each) for each in name)
    head = (
        f'--{boundary}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="{safe}"\r\n'
        "content-type: application/jsonl\r\n\r\n"
    )
    return head.encode("utf-8", "replace"), f"\r\n--{boundary}--\r\n".encode()


def _endpoint(file: Path) -> str:
    try:
        line = next(_first_lines(file), b"")
    except OSError as exc:
        raise InputError(f"cannot read {file}: {exc.strerror or exc}") from exc
    if len(line) == _FIRST_LINE_BYTES:
        return _DEFAULT_ENDPOINT  # only a part of a line, which the service reads as a whole
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise InputError(f"{file} is no file of requests: its first line is not a JSON object; see docs/batch-jobs.md")
    # What else is wrong with a request the service says, of this line and of all others.
    return str(request.get("url", _DEFAULT_ENDPOINT))


def _first_lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while line := stream.readline(_FIRST_LINE_BYTES):
            if line.strip():
                yield line
