"""Transfer of batch files: requests to a service, answers back."""

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
from service.cli.console.progress import ProgressDisplay
from service.cli.inputs import InputError
from service.cli.remote.client import RemoteError, Service

_CHUNK_BYTES: Final = 2**18
_FIRST_LINE_BYTES: Final = 2**25
_DEFAULT_ENDPOINT: Final = "/v1/classify"


async def read_endpoint(file: Path) -> str:
    """Return the route in the first line of a file, or the classification route if the line has none.

    Raises `InputError` for an unreadable file, or if the first line is not a request.
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
    """Send a file and start its batch. Retries carry the same idempotency key, so nothing starts twice.

    Raises `RemoteError`, and `InputError` for an unreadable file.
    """
    key = idempotency_key or uuid.uuid4().hex
    boundary = f"anyclass-{secrets.token_hex(16)}"
    head, tail = _form_parts(file.name, boundary)
    try:
        size = (await asyncio.to_thread(file.stat)).st_size
    except OSError as exc:
        raise InputError(f"cannot read {file}: {exc.strerror or exc}") from exc
    with ProgressDisplay(results=False, noun="MiB") as display:

        async def body() -> AsyncIterator[bytes]:
            sent = 0
            yield head
            async for chunk in _chunks(file):
                yield chunk
                sent += len(chunk)
                display.update("sending", done=sent / 2**20, total=size / 2**20)
            yield tail

        headers = {
            "content-type": f"multipart/form-data; boundary={boundary}",
            "content-length": str(len(head) + size + len(tail)),
            "idempotency-key": key,
        }
        sent_file = await service.json("POST", "/v1/files", ("id",), make_body=body, headers=headers)
    request = {
        "input_file_id": sent_file["id"],
        "endpoint": endpoint,
        "completion_window": window,
        "metadata": metadata,
    }
    return await service.json("POST", "/v1/batches", MEMBERS, json=request, headers={"idempotency-key": key})


async def fetch(service: Service, file_id: str | None, target: Path) -> None:
    """Write a file's content to `target`, under another name until it is complete.

    Without a `file_id` the file is empty. Raises `RemoteError`, `InputError`.
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
    async with service.download(f"/v1/files/{file_id}/content") as chunks:
        async for chunk in chunks:
            await asyncio.to_thread(stream.write, chunk)
    await asyncio.to_thread(stream.flush)


async def _chunks(file: Path) -> AsyncIterator[bytes]:
    try:
        stream = await asyncio.to_thread(file.open, "rb")
        try:
            while chunk := await asyncio.to_thread(stream.read, _CHUNK_BYTES):
                yield chunk
        finally:
            await asyncio.to_thread(stream.close)
    except OSError as exc:
        raise InputError(f"cannot read {file}: {exc.strerror or exc}") from exc


def _form_parts(name: str, boundary: str) -> tuple[bytes, bytes]:
    """Return the bytes of a form before and after the file (RFC 7578); the name is escaped as browsers do."""
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
        return _DEFAULT_ENDPOINT  # a part of a line; the service reads all of it
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise InputError(
            f"{file} is not a file of requests: its first line is not a JSON object; see docs/batch-jobs.md"
        )
    # The service reports any other fault, of this line as of the others.
    return str(request.get("url", _DEFAULT_ENDPOINT))


def _first_lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while line := stream.readline(_FIRST_LINE_BYTES):
            if line.strip():
                yield line
